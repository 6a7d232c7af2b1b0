"""Examples a second out of the shards with 0, 1 and 2 worker processes; prints JSON lines.

    python benchmarks/batches.py --work=DIR [--pairs=2000] [--size=256] [--rounds=3]

Shards of random smooth images are written once. Each round reads with every number of workers in turn, batches of 32
pairs, decoded (no cache) and augmented; the figure is the median over rounds, after one batch of warming up.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data import icg_cxr, journeys, tree
from progemu_jax.data.augment import Augment
from progemu_jax.data.batches import example_batches
from progemu_jax.data.sources import Study

BATCH, COUNT, WORKERS = 32, 20, (0, 1, 2)


class Transform:
    """Both images of an augmented pair, and the length of its text."""

    def __call__(self, example, rng):
        out = Augment(flip=0.5)(example, rng)
        return {"prior": out["prior"], "followup": out["followup"], "words": np.int32(len(out["interpretation"]))}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    shards = write(args.work, args.pairs, args.size)
    rates = {n: [] for n in WORKERS}
    for _ in range(args.rounds):
        for workers in WORKERS:
            batches = example_batches(
                shards, "pairs", "train", BATCH, 0, transform=Transform(), workers=workers, cache=False
            )
            next(batches)
            start = time.perf_counter()
            for _ in range(COUNT):
                next(batches)
            rates[workers].append(BATCH * COUNT / (time.perf_counter() - start))
            batches.close()
    for workers, found in rates.items():
        rate = float(np.median(found))
        print(json.dumps({
            "workers": workers, "size": args.size, "examples_per_second": round(rate, 1),
            "over_none": round(rate / float(np.median(rates[0])), 2), "rounds": [round(r, 1) for r in found],
        }))  # fmt: skip


def write(work, pairs, size):
    if not (work / "shards" / icg_cxr.NAME).exists():
        coarse = np.random.default_rng(0).integers(0, 256, (16, 9, 9), np.uint8)
        pictures = [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in coarse]
        for i in range(pairs):
            study = Study("mimic_cxr", f"1{i:07d}", f"{i}", "a", Path("a"), "PA", (0,), {}, {})
            pair = journeys.Pair(study, study, 1, 2, "pa", "train")
            text = "Small left pleural effusion has increased. Unchanged cardiomegaly. No pneumothorax."
            meta = {"progression-description": "New effusion.", "changes-of-findings": text}
            meta["progemu"] = {"pair_id": pair.pair_id, "split": "train"}
            tree.write_pair(work / "tree", pair, pictures[i % 16], pictures[(i + 1) % 16], meta)
        icg_cxr.build_shards(work / "tree", work / "shards", size)
    return work / "shards"


if __name__ == "__main__":
    main()
