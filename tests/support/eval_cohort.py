"""A small invented cohort for the tests of evaluation: references, predictions, scores of known quality."""

import json

import numpy as np
import pytest
from PIL import Image

from progemu_jax.errors import UserError
from progemu_jax.text import findings

SIZE = 32
GROUPS = ("A", "B", "C")
WORSE, BETTER = "New {}.", "Resolved {}."


def draw(state, seed, size=SIZE):
    """A blurry chest with one bright spot a finding; the background depends on the patient only."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    image = 90 + 50 * np.sin(3 * x + rng.uniform(0, 6)) * np.cos(4 * y + rng.uniform(0, 6))
    image += rng.normal(0, 2, image.shape)
    for k, severity in enumerate(state):
        cy, cx = 0.2 + 0.2 * (k // 2), 0.25 + 0.5 * (k % 2)
        image += 90 * severity * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.004)
    return np.clip(image, 0, 255).astype(np.uint8)


def masks_of(seed, size=SIZE):
    """Six rectangles that depend on the patient: bool [6, size, size]."""
    rng = np.random.default_rng(seed)
    out = np.zeros((6, size, size), bool)
    for k in range(6):
        a, b = rng.integers(0, size // 2, 2)
        out[k, a : a + size // 3, b : b + size // 3] = True
    return out


def words(before, after, only=None):
    """A sentence a changed finding (of `only`, if given), then persisting ones."""
    out = []
    for f, b, a in zip(findings.FINDINGS, before, after, strict=True):
        if abs(a - b) >= findings.PRESENT and (only is None or f in only):
            out.append((WORSE if a > b else BETTER).format(f))
    if only is None:
        same = zip(findings.FINDINGS, before, after, strict=True)
        out += [f"Unchanged {f}." for f, b, a in same if a == b and a >= findings.PRESENT]
    return " ".join(out) or "No significant change."


class Cohort:
    """Cases with states 0 or 0.6; about a third of the findings change between studies."""

    def __init__(self, patients=40, pairs=2, seed=0, size=SIZE):
        rng = np.random.default_rng(seed)
        self.size = size
        self.rows, self.before, self.after, self.seeds = [], [], [], []
        for p in range(patients):
            group, age, sex = GROUPS[rng.integers(3)], float(rng.integers(20, 90)), "FM"[rng.integers(2)]
            for k in range(pairs):
                before = 0.6 * (rng.random(8) < 0.4)
                after = np.where(rng.random(8) < 0.3, 0.6 - before, before)
                changes = {
                    f: int(np.sign(a - b)) for f, b, a in zip(findings.FINDINGS, before, after, strict=True) if a != b
                }
                named = dict(list(changes.items())[:2])  # the prompt keeps the two leading changes
                pair = f"p{p:03d}-{k}"
                self.rows.append(
                    {
                        "pair_id": pair, "patient_id": f"p{p:03d}", "split": "test", "source": "phantom",
                        "prior": f"images/{pair}-prior.png", "followup": f"images/{pair}-followup.png",
                        "counterfactual": f"images/{pair}-counterfactual.png",
                        "prompt": words(before, after, named), "interpretation": words(before, after),
                        "states_before": dict(zip(findings.FINDINGS, before.tolist(), strict=True)),
                        "states_after": dict(zip(findings.FINDINGS, after.tolist(), strict=True)),
                        "labels_before": {}, "labels_after": {}, "prompt_changes": named,
                        "group": group, "age": age, "sex": sex,
                        "masks_prior": f"masks/{pair}-prior.npz",
                        "masks_followup": f"masks/{pair}-followup.npz",
                    }
                )  # fmt: skip
                self.before.append(before)
                self.after.append(after)
                self.seeds.append(1000 * seed + p)

    def write_references(self, root):
        (root / "images").mkdir(parents=True)
        (root / "masks").mkdir()
        for row, before, after, seed in zip(self.rows, self.before, self.after, self.seeds, strict=True):
            for kind, state, s in (
                ("prior", before, seed),
                ("followup", after, seed + 7),
                ("counterfactual", after, seed),
            ):
                Image.fromarray(draw(state, s, self.size)).save(root / row[kind])
            for which in ("prior", "followup"):
                np.savez_compressed(root / row[f"masks_{which}"], masks=masks_of(seed, self.size))
        self.write_rows(root)
        return root

    def write_rows(self, root):
        (root / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in self.rows))

    def write_predictions(self, root, states, texts=None, samples=1, images=True, noise=0, prompts=None):
        (root / "images").mkdir(parents=True)
        rng = np.random.default_rng(3)
        lines = []
        for i, row in enumerate(self.rows):
            for s in range(samples):
                name = f"images/{row['pair_id']}-{s}.png"
                prompt = prompts[i] if prompts else row["prompt"]
                line = {"pair_id": row["pair_id"], "sample": s, "seed": s, "prompt": prompt,
                        "checkpoint": "none", "sampling": {"top_k": 1}}  # fmt: skip
                if images:
                    picture = draw(states[i], self.seeds[i], self.size).astype(int)
                    picture += rng.integers(-noise, noise + 1, picture.shape)
                    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(root / name)
                    line["image"] = name
                if texts is not None:
                    line["text"] = texts[i]
                lines.append(json.dumps(line))
        (root / "predictions.jsonl").write_text("\n".join(lines) + "\n")
        return root

    def scores(self, states, seed=0, noise=1.0, samples=1, person=True, **changed):
        """Arrays of a score file for images that show `states`; `noise` 0 is a perfect, deterministic scorer.

        The noise belongs to the case, not to the file: one image scored twice gets one answer.
        """
        rng = np.random.default_rng(seed)
        n = len(self.rows)
        logit = 10 * (np.array(states) - 0.3) + noise * rng.normal(size=(n, 8))
        probability = 1 / (1 + np.exp(-logit))
        group = np.array([[r["group"] == g for g in GROUPS] for r in self.rows], float)
        group = 0.8 * group + 0.2 * rng.random(group.shape) if person else rng.random(group.shape)
        age = np.array([r["age"] for r in self.rows]) + 5 * rng.normal(size=n)
        sex = np.array([float(r["sex"] == "F") for r in self.rows]) * 0.6 + 0.4 * rng.random(n)
        masks = np.stack([masks_of(s, self.size) for s in self.seeds])
        # Features and saliency belong to what is shown and to the person; a case scored twice gets one answer.
        features = np.concatenate([probability, group, age[:, None] / 50, rng.normal(size=(n, 4))], axis=1)
        saliency = 0.1 * rng.random((n, 8, 4, 4))
        saliency[:, np.arange(8), np.arange(8) // 4, np.arange(8) % 4] += 0.9 * probability
        repeat = lambda x: np.repeat(x, samples, axis=0)  # noqa: E731
        out = {
            "pair_id": repeat(np.array([r["pair_id"] for r in self.rows])),
            "sample": np.tile(np.arange(samples), n),
            "findings": np.array(findings.FINDINGS),
            "finding_prob": repeat(probability).astype(np.float32),
            "groups": np.array(GROUPS),
            "group_prob": repeat(group / group.sum(1, keepdims=True)).astype(np.float32),
            "age": repeat(age if person else rng.permutation(age)).astype(np.float32),
            "sex_prob": repeat(sex).astype(np.float32),
            "organs": np.array(findings.ORGANS),
            "masks": np.packbits(repeat(masks)),
            "mask_shape": np.array([n * samples, 6, self.size, self.size]),
            "features": repeat(features).astype(np.float32),
            "backbone": np.array("invented"),
            "saliency": repeat(saliency).astype(np.float16),
        }
        return {k: v for k, v in {**out, **changed}.items() if v is not None}

    def write_scores(self, path, states, **options):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **self.scores(states, **options))
        return path


def one_line(match, function, *arguments):
    with pytest.raises(UserError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


def estimate(value, **more):
    return {"value": value, "low": None, "high": None, "undefined_resamples": 0, "flags": [], **more}
