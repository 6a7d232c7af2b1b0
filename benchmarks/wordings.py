"""Does the edit follow the words? Wordings that training had and ones that it never saw, on held-out patients.

    .venv/bin/python benchmarks/wordings.py --run=runs/demo [--cases=48] [--parts trained verb noun frame held-out hand]

trained    the grammar's training part (`text.restate`); verb, noun, frame: with held-out words of that kind alone;
held-out   held-out in all three
hand       60 sentences by hand, written without sight of the grammar (`benchmarks/prompts_test.jsonl`; those of
           --hand=development may be looked at while a grammar is made)
null       "No significant change." in the grammar's wordings: what moves although nothing is asked?

Prints a JSON line for each part and direction (new, worse, better, resolved): share of the named findings whose
probability (the run's evaluating scorer) moved as said by at least 0.05, with 95 % Wilson intervals, and the mean of
the four. A prior fits a direction when its true state does: absent for new; present for the others; its probability
under 0.9 for worse, which cannot rise above. Beside it how far the others moved. Patients are of the test split.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

import progemu_jax
from progemu_jax.data import batches
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.text.findings import FINDINGS, PRESENT
from progemu_jax.text.restate import Change, restate

MARGIN, BATCH, SURE = 0.05, 48, 0.9
DIRECTIONS = ("new", "worse", "better", "resolved")
HELD = {"verb": {"verb"}, "noun": {"noun"}, "frame": {"frame"}, "held-out": {"verb", "noun", "frame"}}
NAMES = {"edema": "pulmonary edema"}  # of the hand-written prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=48, help="of each part and direction")
    parser.add_argument("--parts", nargs="+", default=["trained", "verb", "noun", "frame", "held-out", "hand", "null"])
    parser.add_argument("--hand", choices=("test", "development"), default="test")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    args = parser.parse_args()
    bench = Bench(args.run, args.split)
    for part in args.parts:
        lines = {"hand": bench.hand, "null": bench.null}.get(part) or partial(bench.part, part)
        for line in lines(args):
            print(json.dumps({"part": part, **line}), flush=True)


class Bench:
    def __init__(self, run, split):
        self.model, self.scorer = progemu_jax.load(run), PhantomScorer.load(run / "scorer/export")
        pairs = batches.examples(run / "data/shards", "pairs", split)
        states = {}
        with open(run / "data/source/truth/studies.jsonl", encoding="utf-8") as file:
            for row in map(json.loads, file):
                states[str(row["study_id"])] = row
        self.pixels, self.state = [], []
        for i in range(len(pairs)):
            study = pairs[i]["pair_id"].split("-i")[1].split("s")[1]
            self.pixels.append(np.asarray(pairs[i]["prior"]).reshape(pairs[i]["prior"].shape[:2]))
            self.state.append(states[study]["states"] if "states" in states[study] else states[study]["state"])
        self.pixels = np.stack(self.pixels)
        self.codes = self.model.tokenize(self.pixels)
        self.before = self.scorer(self.pixels, "phantom")["finding_prob"]

    def fits(self, i, finding, direction):
        there = self.state[i].get(finding, 0.0) >= PRESENT
        if direction == "new":
            return not there
        return there and (direction != "worse" or self.before[i, FINDINGS.index(finding)] < SURE)

    def after(self, asked):
        """asked: (index, prompt) -> probabilities f32 [N, 8] and images of what comes out."""
        images = []
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            cases = [
                Case(f"case{start + k}", self.codes[i], prompt, 0, self.pixels[i]) for k, (i, prompt) in enumerate(part)
            ]
            filled = cases + cases[:1] * (BATCH - len(cases))
            images.append(self.model.sample(filled, 0, text=False).images[: len(cases)])
        images = np.concatenate(images)
        return self.scorer(images, "phantom")["finding_prob"], images

    def part(self, part, args):
        rng, shares = np.random.default_rng(0), []
        for direction in DIRECTIONS:
            asked, named = [], []
            for i in rng.permutation(np.arange(len(self.codes)).repeat(len(FINDINGS))):
                finding = FINDINGS[rng.integers(len(FINDINGS))]
                if len(asked) < args.cases and self.fits(i, finding, direction):
                    change = Change(finding, direction)
                    held = {} if part == "trained" else {"held": HELD[part]}
                    asked.append((i, restate([change], rng, "train" if part == "trained" else "held-out", **held)))
                    named.append([(finding, direction)])
            yield self.line(direction, asked, named, shares)
        yield {"direction": "mean", "moved": round(float(np.mean(shares)), 3), "least": round(min(shares), 3)}

    def hand(self, args):
        rng, shares = np.random.default_rng(1), []
        rows = list(records.read_rows(Path(__file__).parent / f"prompts_{args.hand}.jsonl"))
        by = {d: ([], []) for d in DIRECTIONS}
        for row in (r for r in rows if r["changes"]):
            named = [(self.name(c), c["direction"]) for c in row["changes"]]
            fitting = [i for i in rng.permutation(len(self.codes)) if all(self.fits(i, *one) for one in named)]
            for i in fitting[:4]:
                by[named[0][1]][0].append((i, row["prompt"]))
                by[named[0][1]][1].append(named)
        for direction, (asked, named) in by.items():
            if asked:
                yield self.line(direction, asked, named, shares)
        yield {"direction": "mean", "moved": round(float(np.mean(shares)), 3), "least": round(min(shares), 3)}

    @staticmethod
    def name(change):
        finding = NAMES.get(change["finding"], change["finding"].replace("_", " "))
        return f"{change['side']} {finding}" if finding in ("pleural effusion", "pneumothorax") else finding

    def null(self, args):
        rng = np.random.default_rng(2)
        asked = [(int(i), restate([], rng, "held-out")) for i in rng.permutation(len(self.codes))[: 2 * args.cases]]
        after, images = self.after(asked)
        before = self.before[[i for i, _ in asked]]
        error = np.square(images.astype(np.float64) - self.pixels[[i for i, _ in asked]]).mean((1, 2))
        psnr = float(np.median(10 * np.log10(255**2 / np.maximum(error, 1e-3))))
        yield {"cases": len(asked), "others_still": still(after, before, None), "psnr_to_prior": round(psnr, 2)}

    def line(self, direction, asked, named, shares):
        after, _ = self.after(asked)
        before, hits = self.before[[i for i, _ in asked]], []
        for k, changes in enumerate(named):
            for finding, way in changes:
                j, sign = FINDINGS.index(finding), 1 if way in ("new", "worse") else -1
                hits.append(sign * (after[k, j] - before[k, j]) >= MARGIN)
        shares.append(float(np.mean(hits)))
        low, high = wilson(sum(hits), len(hits))
        return {
            "direction": direction,
            "cases": len(asked),
            "moved": round(shares[-1], 3),
            "interval": [low, high],
            "others_still": still(after, before, [[FINDINGS.index(f) for f, _ in changes] for changes in named]),
        }


def still(after, before, named):
    """Share of the findings that were not named whose probability stayed within the margin."""
    keep = np.ones(after.shape, bool)
    for k, columns in enumerate(named or ()):
        keep[k, columns] = False
    return round(float((np.abs(after - before) < MARGIN)[keep].mean()), 3)


def wilson(k, n, z=1.96):
    p, d = k / n, 1 + z * z / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return round((p + z * z / (2 * n) - half) / d, 3), round((p + z * z / (2 * n) + half) / d, 3)


if __name__ == "__main__":
    main()
