"""How long the evaluation takes and how much memory, without reading images and without scoring; prints JSON lines.

    python benchmarks/eval.py [--cases=1214] [--size=512] [--resamples=10000]

Cases are invented: images of a pool of 16, texts of the rules' language, scores of eight findings with six organ
masks. For a quarter, half and all of the cases: one system alone, and with copy-the-prior, the mean image and the real
follow-up beside it: seconds (wall, and of all cores) of all metrics with intervals and paired tests; and, on their
own, of FID, KID, precision and recall with 50 half-samples on 1,024 features. The last line sums up.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from progemu_jax.eval.bootstrap import Bootstrap
from progemu_jax.eval.compare import differences
from progemu_jax.eval.evaluate import derive
from progemu_jax.eval.measure import Candidate, Truth, measure
from progemu_jax.eval.measure_features import measure_fidelity
from progemu_jax.eval.predictions import References, Rows
from progemu_jax.eval.scores import Scores
from progemu_jax.text import findings

POOL = 16


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=1214)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--resamples", type=int, default=10_000)
    args = parser.parse_args()
    seconds = {}
    for cases in (args.cases // 4, args.cases // 2, args.cases):
        rows = list(run(cases, args.size, args.resamples))
        for row in rows:
            print(json.dumps(row), flush=True)
        seconds[cases] = rows[0]["seconds"]
    few, _, many = seconds
    print(json.dumps({
        "cases": many, "size": args.size, "resamples": args.resamples,
        "seconds_system": seconds[many], "seconds_four_rows": rows[1]["seconds"],
        "cpu_seconds_system": rows[0]["cpu_seconds"], "cpu_seconds_four_rows": rows[1]["cpu_seconds"],
        "seconds_fidelity_system": rows[0]["seconds_fidelity"],
        "per_case_ratio_all_to_quarter": round(seconds[many] / many / (seconds[few] / few), 3),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }))  # fmt: skip


class Pool(References):
    """References whose images lie in memory."""

    def __init__(self, rows, images):
        super().__init__(Path("."), rows)
        self._pool = images

    def image(self, i, kind, any_size=False):
        return self._pool[kind][i % POOL]


class Made(Candidate):
    """A system whose images lie in memory."""

    @property
    def has_images(self):
        return True

    def image(self, references, r):
        return references.image(int(self.rows.case[r]), self.image_kind or "made")


def pool(size, rng):
    """Smooth images uint8 [POOL, size, size] of each kind; the truth differs from the prior in a corner."""
    y, x = np.mgrid[:size, :size] / size
    base = [90 + 60 * np.sin(9 * x + a) * np.cos(7 * y + b) for a, b in rng.uniform(0, 6, (POOL, 2))]
    noisy = lambda s: np.stack([np.clip(b + s * rng.normal(size=b.shape), 0, 255) for b in base]).astype(np.uint8)  # noqa: E731
    out = {"prior": noisy(3), "followup": noisy(5), "made": noisy(8)}
    out["counterfactual"] = out["prior"].copy()
    out["counterfactual"][:, size // 2 :, : size // 3] = out["followup"][:, size // 2 :, : size // 3]
    out["mean"] = np.repeat(out["prior"].mean(0, keepdims=True).astype(np.uint8), POOL, axis=0)
    return out


def words(before, after):
    """The change in words."""
    said = [f"{'New' if a > b else 'Resolved'} {f}." for f, b, a in zip(findings.FINDINGS, before, after, strict=True)
            if a != b]  # fmt: skip
    return " ".join(said) or "No significant change."


def run(cases, size, resamples):
    """Yields the timings of the system alone and of all rows of the table."""
    rng = np.random.default_rng(0)
    before = 0.6 * (rng.random((cases, 8)) < 0.3)
    after = np.where(rng.random((cases, 8)) < 0.25, 0.6 - before, before)
    made = np.where(rng.random((cases, 8)) < 0.2, before, after)
    states = lambda s: dict(zip(findings.FINDINGS, s.tolist(), strict=True))  # noqa: E731
    rows = [
        {
            "pair_id": f"c{i}", "patient_id": f"p{i * 3 // 4}", "prompt": words(b, a), "interpretation": words(b, a),
            "states_before": states(b), "states_after": states(a), "counterfactual": "yes", "group": "ABC"[i % 3],
            "prompt_changes": dict(zip(findings.FINDINGS, np.sign(a - b).astype(int).tolist(), strict=True)),
            "age": float(20 + i % 70), "sex": "FM"[i % 2],
        }
        for i, (b, a) in enumerate(zip(before, after, strict=True))
    ]  # fmt: skip
    refs = Pool(rows, pool(size, rng))
    scores = {name: invent(rows, shown, size, rng) for name, shown in
              (("prior", before), ("followup", after), ("made", made))}  # fmt: skip
    truth = Truth(refs, scores["prior"], scores["followup"])
    boot = Bootstrap(truth.patients, resamples, 0)
    every = np.arange(cases)
    make = lambda texts: Rows(every, np.zeros(cases, int), [r["prompt"] for r in rows], texts, None)  # noqa: E731
    texts = [words(b, m) for b, m in zip(before, made, strict=True)]
    candidates = [
        Made("ours", "Ours", "system", make(texts), scores["made"]),
        Made("copy", "Copy", "baseline", make(None), scores["prior"], "prior"),
        Made("mean_image", "Mean image", "baseline", make(None), None, "mean"),
        Made(
            "followup",
            "Follow-up",
            "ceiling",
            make([r["interpretation"] for r in rows]),
            scores["followup"],
            "followup",
        ),
    ]
    for name, some in (("system", candidates[:1]), ("system, baselines and ceiling", candidates)):
        start, cpu = time.perf_counter(), time.process_time()
        measured = measure(some, truth, boot)
        derive(measured)
        differences(some, measured)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        for c in some:
            measure_fidelity(c, truth, measured[c.key], 50, 0)
        yield {
            "what": name, "cases": cases, "size": size, "resamples": resamples,
            "metrics": sum(len(m.distributions) for m in measured.values()), "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "seconds_fidelity": round(time.perf_counter() - start - seconds, 2),
        }  # fmt: skip


def invent(rows, shown, size, rng):
    """Scores of images that show the severities `shown`."""
    n = len(rows)
    masks = np.zeros((6, size, size), bool)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = True
    packed = np.repeat(np.packbits(masks.reshape(6, -1), axis=-1)[None], n, axis=0)
    group = np.array([[0.8 if r["group"] == g else 0.1 for g in "ABC"] for r in rows]) + 0.1 * rng.random((n, 3))
    return Scores(
        Path("invented"), {(r["pair_id"], 0): i for i, r in enumerate(rows)}, findings.FINDINGS,
        (1 / (1 + np.exp(-10 * (shown - 0.3) - rng.normal(size=shown.shape)))).astype(np.float32), tuple("ABC"),
        (group / group.sum(1, keepdims=True)).astype(np.float32),
        np.array([r["age"] for r in rows], np.float32) + 5 * rng.normal(size=n).astype(np.float32),
        rng.random(n).astype(np.float32), findings.ORGANS, packed, (size, size),
        rng.normal(size=(n, 1024)).astype(np.float32), "invented",
    )  # fmt: skip


if __name__ == "__main__":
    main()
