"""Does the edit follow the words? Wordings that training had and ones that it never saw, on held-out patients.

    .venv/bin/python benchmarks/wordings.py --run=runs/demo [--cases=48] [--parts trained verb noun frame held-out hand]

trained    the grammar's training part (`text.restate`); verb, noun, frame: with held-out words of that kind alone;
held-out   held-out in all three
hand       60 sentences by hand, written without sight of the grammar (`benchmarks/prompts_test.jsonl`; those of
           --hand=development may be looked at while a grammar is made)
null       "No significant change." in the grammar's wordings: what moves although nothing is asked?
grades     a finding that is absent, asked for as new and mild, moderate, severe in training wordings: share of such
           triples whose severities, as the scorer sees them, strictly ascend; for a scorer with a head for severities

Prints a JSON line for each part and direction (new, worse, better, resolved): share of the named findings whose
probability (the run's evaluating scorer) moved as said by at least 0.05, with 95 % Wilson intervals, and the mean of
the four; `severity_moved` is the same by severity, where the scorer sees it. A prior fits a direction when its true
state does: absent for new; present for the others; its probability under 0.9 for worse, which cannot rise above. Beside
it how far the others moved. Patients are of the test split.

Where the run still has its tree and the phantom's truth, beside each line what the rendered true answers to the same
prompts score (`answer_moved`, `answer_others_still`, ...: the ceiling), and the mean absolute error to them in gray
levels, of the images (`mae`) and of the priors (`mae_copy`: no edit at all).
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np

import progemu_jax
from progemu_jax.data import batches
from progemu_jax.data.answers import Answers
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.text.findings import FINDINGS, GRADES, PRESENT
from progemu_jax.text.restate import Change, restate

MARGIN, BATCH, SURE = 0.05, 48, 0.9
PROBABILITY, SEVERITY = "finding_prob", "finding_severity"
PARTS = ("trained", "verb", "noun", "frame", "held-out", "hand", "null", "grades")
DIRECTIONS = ("new", "worse", "better", "resolved")
HELD = {"verb": {"verb"}, "noun": {"noun"}, "frame": {"frame"}, "held-out": {"verb", "noun", "frame"}}
NAMES = {"edema": "pulmonary edema"}  # of the hand-written prompts
SIZES = {"small": "mild", "large": "severe"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=48, help="of each part and direction")
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--hand", choices=("test", "development"), default="test")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    args = parser.parse_args()
    bench = Bench(args.run, args.split)
    for part in args.parts:
        own = {"hand": bench.hand, "null": bench.null, "grades": bench.grades}
        lines = own.get(part) or partial(bench.part, part)
        for line in lines(args):
            print(json.dumps({"part": part, **line}), flush=True)


class Bench:
    """asked, everywhere below: [(index of the prior, prompt, changes that it says)]; images uint8 [N, S, S]."""

    def __init__(self, run, split):
        self.model, self.scorer = progemu_jax.load(run), PhantomScorer.load(run / "scorer/export")
        pairs = batches.examples(run / "data/shards", "pairs", split)
        states = {}
        with open(run / "data/source/truth/studies.jsonl", encoding="utf-8") as file:
            for row in map(json.loads, file):
                states[str(row["study_id"])] = row
        self.pixels, self.state, self.ids = [], [], []
        for i in range(len(pairs)):
            study = pairs[i]["pair_id"].split("-i")[1].split("s")[1]
            self.ids.append(pairs[i]["pair_id"])
            self.pixels.append(np.asarray(pairs[i]["prior"]).reshape(pairs[i]["prior"].shape[:2]))
            self.state.append(states[study]["states"] if "states" in states[study] else states[study]["state"])
        self.pixels = np.stack(self.pixels)
        self.codes = self.model.tokenize(self.pixels)
        self.before = self.scorer(self.pixels, "phantom")
        self.answers = Answers.of_run(run, self.pixels.shape[1])

    def fits(self, i, change):
        there = self.state[i].get(change.finding, 0.0) >= PRESENT
        if change.direction == "new":
            return not there
        sure = self.before[PROBABILITY][i, FINDINGS.index(change.finding)] >= SURE
        return there and not (change.direction == "worse" and sure)

    def takes(self, i, prompt):
        """Whether the model takes a prompt: a small one has a budget of tokens."""
        try:
            self.model.check(Case("case", self.codes[i], prompt, 0, self.pixels[i]))
        except UserError:
            return False
        return True

    def said(self, i, changes, rng, *part, **held):
        """A wording that the model takes."""
        for _ in range(64):
            prompt = restate(changes, rng, *part, **held)
            if self.takes(i, prompt):
                return prompt
        raise UserError("no wording is short enough for the run's config.progemu.task.prompt_budget")

    def generated(self, asked):
        """What comes out: images."""
        images = []
        for start in range(0, len(asked), BATCH):
            part = asked[start : start + BATCH]
            cases = [
                Case(f"case{start + k}", self.codes[i], prompt, 0, self.pixels[i])
                for k, (i, prompt, _) in enumerate(part)
            ]
            filled = cases + cases[:1] * (BATCH - len(cases))
            images.append(self.model.sample(filled, 0, text=False).images[: len(cases)])
        return np.concatenate(images)

    def rendered(self, asked):
        """What should come out: images, or None where the run cannot render them."""
        if self.answers is None:
            return None
        return np.stack([self.answers.image(self.ids[i], changes) for i, _, changes in asked])

    def part(self, part, args):
        rng, shares = np.random.default_rng(0), []
        for direction in DIRECTIONS:
            asked = []
            for i in rng.permutation(np.arange(len(self.codes)).repeat(len(FINDINGS))):
                change = Change(FINDINGS[rng.integers(len(FINDINGS))], direction)
                if len(asked) < args.cases and self.fits(i, change):
                    held = {} if part == "trained" else {"held": HELD[part]}
                    prompt = self.said(i, [change], rng, "train" if part == "trained" else "held-out", **held)
                    asked.append((i, prompt, [change]))
            yield self.line(direction, asked, shares)
        yield {"direction": "mean", "moved": round(float(np.mean(shares)), 3), "least": round(min(shares), 3)}

    def hand(self, args):
        rng, shares = np.random.default_rng(1), []
        rows = list(records.read_rows(Path(__file__).parent / f"prompts_{args.hand}.jsonl"))
        by, long = {d: [] for d in DIRECTIONS}, 0
        for row in (r for r in rows if r["changes"]):
            changes = [change_of(c) for c in row["changes"]]
            fitting = [i for i in rng.permutation(len(self.codes)) if all(self.fits(i, c) for c in changes)]
            if not self.takes(0, row["prompt"]):
                long += 1
                continue
            by[changes[0].direction] += [(i, row["prompt"], changes) for i in fitting[:4]]
        for direction, asked in by.items():
            if asked:
                yield self.line(direction, asked, shares)
        yield {"direction": "mean", "moved": round(float(np.mean(shares)), 3), "least": round(min(shares), 3),
               "too_long": long}  # fmt: skip

    def null(self, args):
        rng = np.random.default_rng(2)
        order = rng.permutation(len(self.codes))[: 2 * args.cases]
        asked = [(int(i), self.said(i, [], rng, "held-out"), []) for i in order]
        images, priors = self.generated(asked), self.priors(asked)
        error = np.square(images.astype(np.float64) - priors).mean((1, 2))
        psnr = float(np.median(10 * np.log10(255**2 / np.maximum(error, 1e-3))))
        figures = self.figures(asked, images)
        yield {"cases": len(asked), "others_still": figures["others_still"], "psnr_to_prior": round(psnr, 2),
               **self.beside(asked, images)}  # fmt: skip

    def grades(self, args):
        if SEVERITY not in self.before:
            yield {"skipped": "the run's scorer has no head for severities"}
            return
        rng, asked = np.random.default_rng(3), []
        for i in rng.permutation(np.arange(len(self.codes)).repeat(len(FINDINGS))):
            finding = FINDINGS[rng.integers(len(FINDINGS))]
            changes = [Change(finding, "new", grade) for grade in GRADES]
            if len(asked) < len(GRADES) * args.cases and self.fits(i, changes[0]):
                asked += [(i, self.said(i, [change], rng), [change]) for change in changes]
        images = self.generated(asked)
        hits = self.ascending(asked, images)
        beside = self.beside(asked, images)
        if self.answers is not None:
            beside["answer_ascending"] = round(float(self.ascending(asked, self.rendered(asked)).mean()), 3)
        yield {"triples": len(hits), "ascending": round(float(hits.mean()), 3),
               "interval": wilson(hits.sum(), len(hits)), **beside}  # fmt: skip

    def ascending(self, asked, images):
        """bool [N / 3]: whether the severity of each triple's finding strictly ascends."""
        columns = [FINDINGS.index(changes[0].finding) for _, _, changes in asked]
        severity = self.scorer(images, "phantom")[SEVERITY][np.arange(len(asked)), columns]
        return (np.diff(severity.reshape(-1, len(GRADES)), axis=1) > 0).all(1)

    def line(self, direction, asked, shares):
        images = self.generated(asked)
        figures = self.figures(asked, images)
        shares.append(figures["moved"])
        rounded = {key: round(value, 3) for key, value in figures.items() if key != "named"}
        interval = wilson(round(figures["moved"] * figures["named"]), figures["named"])
        return {"direction": direction, "cases": len(asked), "moved": rounded.pop("moved"), "interval": interval,
                **rounded, **self.beside(asked, images)}  # fmt: skip

    def figures(self, asked, images):
        """What the scorer sees: shares that moved as said, how many are `named`, and the others that stayed."""
        rows, now = [i for i, _, _ in asked], self.scorer(images, "phantom")
        named = [[FINDINGS.index(c.finding) for c in changes] for _, _, changes in asked]
        out = {
            "named": sum(map(len, named)),
            "others_still": still(now[PROBABILITY], self.before[PROBABILITY][rows], named),
        }
        for name, key in (("moved", PROBABILITY), ("severity_moved", SEVERITY)):
            if key in now and out["named"]:
                out[name] = float(np.mean(list(moved(now[key], self.before[key][rows], asked))))
        return out

    def beside(self, asked, images):
        """The rendered answers' own figures, and the error to them; {} where the run cannot render them."""
        answers = self.rendered(asked)
        if answers is None:
            return {}
        figures = {f"answer_{k}": round(v, 3) for k, v in self.figures(asked, answers).items() if k != "named"}
        return {**figures, "mae": apart(images, answers), "mae_copy": apart(self.priors(asked), answers)}

    def priors(self, asked):
        return self.pixels[[i for i, _, _ in asked]]


def change_of(row):
    """The Change of a hand-written one."""
    finding, side = NAMES.get(row["finding"], row["finding"].replace("_", " ")), row["side"]
    if finding in ("pleural effusion", "pneumothorax"):
        finding, side = f"{side} {finding}", None
    grade = None if row["direction"] == "resolved" else SIZES.get(row["grade"], row["grade"])
    return Change(finding, row["direction"], grade, side)


def moved(after, before, asked):
    """For each named finding whether it moved as said by at least the margin."""
    for k, (_, _, changes) in enumerate(asked):
        for change in changes:
            j, sign = FINDINGS.index(change.finding), 1 if change.direction in ("new", "worse") else -1
            yield bool(sign * (after[k, j] - before[k, j]) >= MARGIN)


def still(after, before, named):
    """Share of the findings that were not named whose probability stayed within the margin."""
    keep = np.ones(after.shape, bool)
    for k, columns in enumerate(named):
        keep[k, columns] = False
    return round(float((np.abs(after - before) < MARGIN)[keep].mean()), 3)


def apart(a, b):
    """Mean absolute difference of uint8 images, gray levels."""
    return round(float(np.abs(a.astype(np.int16) - b).mean()), 2)


def wilson(k, n, z=1.96):
    p, d = k / n, 1 + z * z / n
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return round((p + z * z / (2 * n) - half) / d, 3), round((p + z * z / (2 * n) + half) / d, 3)


if __name__ == "__main__":
    main()
