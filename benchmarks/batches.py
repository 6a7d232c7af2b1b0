"""Examples a second out of the shards with 0, 1 and 2 worker processes; prints JSON lines.

    python benchmarks/batches.py --work=DIR [--pairs=2000] [--size=256] [--rounds=3]

Shards of random smooth images are written once. Each round reads with every number of workers in turn, batches of 32
pairs, decoded (no cache) and augmented; the figure is the median over rounds, after one batch of warming up. The last
line says whether an iterator that is taken up again, with every number of workers, gives the same next batches, and
whether two hosts read disjoint halves of an epoch.
"""

import argparse
import json
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data import icg_cxr, journeys, tree
from progemu_jax.data.augment import Augment
from progemu_jax.data.batches import example_batches
from progemu_jax.data.sources import Study

BATCH, COUNT, WORKERS = 32, 20, (0, 1, 2)


class Transform:
    """Both images of an augmented pair, the length of its text, and a number that stands for it."""

    def __call__(self, example, rng):
        out = Augment(flip=0.5)(example, rng)
        number = np.int64(zlib.crc32(out["pair_id"].encode()))
        words = np.int32(len(out["interpretation"]))
        return {"prior": out["prior"], "followup": out["followup"], "words": words, "pair": number}


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
            batches = reader(shards, workers=workers)
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

    same = {workers: taken_up(shards, workers) for workers in WORKERS}
    halves = [seen(shards, args.pairs // BATCH, process_index=i, process_count=2) for i in (0, 1)]
    print(json.dumps({"taken_up_the_same": same, "hosts": [len(h) for h in halves],
                      "in_both": len(halves[0] & halves[1])}))  # fmt: skip


def reader(shards, **options):
    return example_batches(shards, "pairs", "train", BATCH, 0, transform=Transform(), cache=False, **options)


def taken_up(shards, workers):
    """Whether batches 3 and 4 are the same by another iterator that is put at batch 3."""
    first = reader(shards, workers=workers)
    for _ in range(3):
        next(first)
    state = first.get_state()
    second = reader(shards, workers=workers)
    second.set_state(json.loads(json.dumps(state)))
    pairs = [(next(first), next(second)) for _ in range(2)]
    first.close(), second.close()
    return all(np.array_equal(a[key], b[key]) for a, b in pairs for key in a)


def seen(shards, batches, **host):
    """Pairs that a host reads in its share of so many batches of all hosts."""
    found = reader(shards, **host)
    pairs = {int(pair) for _ in range(batches) for pair in next(found)["pair"]}
    found.close()
    return pairs


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
