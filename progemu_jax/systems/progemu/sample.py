"""Stage `sample`: counterfactuals of held-out pairs, for ProgEmu and its controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from progemu_jax.config import Config
from progemu_jax.data import batches
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case, Prediction
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.load import load
from progemu_jax.systems.meshes import local_mesh
from progemu_jax.systems.predict import contradictions, others, write_shared
from progemu_jax.text.controls import DUMMY_PRIOR
from progemu_jax.text.findings import NO_CHANGE


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for our system and those it is compared with."""
    c, model = config.sample, load(workdir).on(local_mesh(config))
    source = batches.examples(workdir / "data/shards", "tokens", c.split)
    examples = [source[i] for i in range(len(source))]
    if c.max_cases:
        examples = examples[: c.max_cases]
    if not examples:
        raise UserError(f"{workdir / 'data/shards'}: the {c.split} split holds no pair to sample")
    policy = to_dict(c.policy)
    other = others(len(examples), c.seed)
    dummy = model.tokenize(np.full((config.data.image_size,) * 2, DUMMY_PRIOR, np.uint8))
    variants = {
        "progemu": lambda i, e: (e["prior"], e["prompt"]),
        "shuffled-prompts": lambda i, e: (e["prior"], examples[other[i]]["prompt"]),
        "text-only": lambda i, e: (dummy, e["prompt"]),
        "contradicting-prompts": lambda i, e: (e["prior"], contradicting[e["pair_id"]]),
        "null-prompt": lambda i, e: (e["prior"], NO_CHANGE),
    }
    contradicting = contradictions(workdir, examples) if "contradicting-prompts" in c.systems else {}

    def predict(cases: list[Case]) -> list[Prediction]:
        # A short last batch is filled up, so that every case is computed at one batch shape.
        filled = cases + cases[:1] * (c.batch_size - len(cases))
        out = model.sample(filled, c.seed, c.policy)
        return [Prediction(image, text) for image, text in zip(out.images, out.texts, strict=True)][: len(cases)]

    for name in c.systems:
        if name not in variants:
            raise UserError(f"config.sample.systems: {name!r} is unknown; choose among {', '.join(variants)}")
        chosen = [variants[name](i, e) for i, e in enumerate(examples)]
        samples = c.num_samples if name == "progemu" else 1
        cases = [
            Case(e["pair_id"], prior, prompt, s)
            for e, (prior, prompt) in zip(examples, chosen, strict=True)
            for s in range(samples)
        ]
        write_shared(
            workdir / "predictions" / name,
            cases,
            predict,
            batch_size=c.batch_size,
            seed=c.seed,
            checkpoint=model.name,
            model=model.hash,
            sampling=policy,
            check=model.check,
            name=f"sample {name}",
        )
    rebuilt = {e["pair_id"]: e["followup"] for e in examples}
    write_shared(
        workdir / "predictions/reconstruction",
        [Case(e["pair_id"], None, e["prompt"]) for e in examples],
        lambda cases: [Prediction(x, None) for x in model.detokenize(np.stack([rebuilt[k.pair_id] for k in cases]))],
        batch_size=c.batch_size,
        seed=c.seed,
        checkpoint=model.name,
        model=model.hash,
        sampling={},
        name="reconstruct",
    )
