"""What may be done to a training example without making it untrue.

ProgEmu drops the condition (null prompt), shuffles sentences and drops a negative one; MedJourney crops and flips. A
flip makes a left effusion a right one, so it is off by default, and on it exchanges left and right in the texts too.
It mirrors the heart all the same: there is no such patient.
"""

from dataclasses import dataclass

import numpy as np

from progemu_jax.text import rules
from progemu_jax.text.controls import DUMMY_PRIOR

IMAGES = ("prior", "followup", "older", "image")
TEXTS = ("prompt", "interpretation", "text")


@dataclass(frozen=True)
class Augment:
    """A transform of `batches.example_batches` that keeps the example's keys. Fields are probabilities.

    null_prompt: the prior becomes gray 128, older films none and the prompt "": no condition at all.
    shuffle_sentences, drop_negative (a sentence that starts with No, Unchanged or Persistent; of the interpretation
    only): of the texts. flip: see the module.
    """

    null_prompt: float = 0.01
    shuffle_sentences: float = 0.05
    drop_negative: float = 0.05
    flip: float = 0.0

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        null, turn = rng.random() < self.null_prompt, rng.random() < self.flip
        out = mirrored(example) if turn else dict(example)
        for name in TEXTS:
            if name in out:
                drop = 0.0 if name == "prompt" else self.drop_negative
                out[name] = rules.augment(out[name], rng, self.shuffle_sentences, drop)
        if null:
            out |= {"prior": np.full_like(out["prior"], DUMMY_PRIOR), "prompt": ""}
            out |= {name: out[name][:0] for name in ("older", "older_days") if name in out}
        return out


def mirrored(example: dict) -> dict:
    """The example of the mirrored chest: images [..., H, W] flipped, left and right exchanged in the texts."""
    out = dict(example)
    out |= {name: np.ascontiguousarray(out[name][..., ::-1]) for name in IMAGES if name in out}
    return out | {name: rules.swap_sides(out[name]) for name in TEXTS if name in out}


def shifted(images: np.ndarray, rng: np.random.Generator, reach: int) -> np.ndarray:
    """uint8 [N, S, S] moved together by up to `reach` pixels, edges repeated; 0: as they are, and nothing is drawn."""
    if not reach:
        return images
    size = images.shape[-1]
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    y, x = rng.integers(0, 2 * reach + 1, 2)
    return padded[:, y : y + size, x : x + size]
