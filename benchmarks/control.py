"""What the controls of a phantom-trained model do on held-out patients; prints JSON lines.

    .venv/bin/python benchmarks/control.py --run=runs/phantom [--patients=160] [--parts dial mask explain rollout]

dial       does severity follow the dial? "New <finding>." in three grades, same seed, one absent finding a patient. Two
           measures on each image: the phantom scorer's probability of that finding, which is of presence and saturates,
           and the mean absolute change from the prior (gray levels). Shares with 95 % Wilson intervals. "true" is the
           phantom itself, rendered with that finding at 0.27, 0.5 and 0.8 and put through the tokenizer.
mask       the references' prompts with and without the automatic mask: share of codes that are free, directional
           accuracy of named findings, mean absolute change of pixels outside the mask (gray levels).
explain    text of the real pair, prompt empty: share of the true changes that it names with side and direction, and
           of the changes that it names that are true, beside another patient's follow-up and the pair in the other
           order; perfect: a reader that errs in nothing, on the other patient's follow-up; omitted: F1 over the
           findings that the pair's own prompt, which it does not see, leaves out; flip: of the changes that it names,
           the share of which that order's text says the opposite.
rollout    a course of five steps, findings that come and go: AUROC of the patient's group on the image of each step
           (one-vs-rest, macro), beside the prior's own, which is the ceiling.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

import progemu_jax
from progemu_jax.data import phantom
from progemu_jax.data.images import resize
from progemu_jax.data.radiograph import read_gray
from progemu_jax.eval.metrics.direction import MARGIN, TIE, moved
from progemu_jax.eval.metrics.roc import auroc
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.text import rules
from progemu_jax.text.findings import CHEXPERT_OF, FINDINGS, GRADES, PRESENT

PARTS = ("dial", "mask", "explain", "rollout")
BATCH, STEPS = 48, 5
SEVERITIES = (0.27, 0.5, 0.8)  # of GRADES


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    rows = {}
    for row in records.read_rows(args.run / "data/references/references.jsonl"):
        rows.setdefault(row["patient_id"], row)
    bench = Bench(args.run, list(rows.values())[: args.patients])
    for name in args.parts:
        for line in getattr(bench, name)():
            print(json.dumps({"control": name, **line}), flush=True)


class Bench:
    def __init__(self, run, rows):
        self.model, self.rows = progemu_jax.load(run), rows
        with open(run / "data/source/truth/studies.jsonl", encoding="utf-8") as file:
            self.studies = {row["study_id"]: row for row in map(json.loads, file)}
        self.scorer = PhantomScorer.load(run / "scorer/export")
        folder = run / "data/references"
        read = {k: [self.resized(read_gray(folder / row[k])) for row in rows] for k in ("prior", "followup")}
        self.pixels = {k: np.stack(v) for k, v in read.items()}
        self.priors = self.model.tokenize(self.pixels["prior"])

    def resized(self, image):
        side = self.model.layout.height * self.model.tokenizer.config.factor
        return resize(image, side)

    def sample(self, cases, text=False, **options):
        """Images uint8, texts and codes. One batch shape for all: the last batch is filled up."""
        images, texts, codes = [], [], []
        for start in range(0, len(cases), BATCH):
            at = np.minimum(np.arange(start, start + BATCH), len(cases) - 1)
            n = min(BATCH, len(cases) - start)
            out = self.model.sample([cases[i] for i in at], 0, text=text, **{k: v[at] for k, v in options.items()})
            images.append(out.images[:n])
            codes.append(out.codes[:n])
            texts += out.texts[:n] if text else []
        return np.concatenate(images), texts, np.concatenate(codes)

    def probability(self, images):
        return self.scorer(images, "phantom")["finding_prob"]

    def dial(self):
        chosen, cases, true = [], [], []
        for i, row in enumerate(self.rows):
            absent = [f for f in FINDINGS if row["states_before"].get(f, 1) < PRESENT]
            finding = absent[i % len(absent)]
            chosen.append(FINDINGS.index(finding))
            for grade in GRADES:
                prompt = rules.with_grade(f"New {finding}.", grade)
                cases.append(Case(row["pair_id"], self.priors[i], prompt))
            true += [self.rendered(row, chosen[-1], severity) for severity in (0.0, *SEVERITIES)]
        chosen = np.asarray(chosen)
        images, *_ = self.sample(cases)
        prior = self.model.detokenize(self.priors)
        true = self.model.detokenize(self.model.tokenize(np.stack(true))).reshape(len(chosen), 4, *prior.shape[1:])
        images = images.reshape(len(chosen), 3, *prior.shape[1:])
        for system, start, grades in (("ours", prior, images), ("true", true[:, 0], true[:, 1:])):
            yield from self.followed(system, chosen, start, grades)

    def rendered(self, row, finding, severity):
        """The prior study's patient and acquisition with one finding at a severity."""
        study = self.studies[re.search(r"-i\d+s(\d+)-", row["pair_id"])[1]]
        severities = list(study["disease"]["severities"])
        severities[finding] = severity
        later = {"disease": {**study["disease"], "severities": severities}}
        return self.resized(phantom.counterfactual(study, later, study["size"]))

    def followed(self, system, chosen, prior, images):
        flat = images.reshape(-1, *prior.shape[1:])
        prob = np.take_along_axis(self.probability(flat), np.repeat(chosen, 3)[:, None], axis=1).reshape(-1, 3)
        before = self.probability(prior)[np.arange(len(chosen)), chosen]
        change = np.abs(images.astype(float) - prior[:, None]).mean((2, 3))
        for name, at in [("all", chosen >= 0), *((f, chosen == i) for i, f in enumerate(FINDINGS))]:
            line = {"system": system, "finding": name, "n": int(at.sum())}
            for measure, x in (("probability", prob[at]), ("change", change[at])):
                line[measure] = {
                    "severe > mild": share(x[:, 2] > x[:, 0]),
                    "mild < moderate < severe": share((x[:, 0] < x[:, 1]) & (x[:, 1] < x[:, 2])),
                    "means": [round(float(v), 3) for v in x.mean(0)],
                }
            yield {**line, "probability on the prior": round(float(before[at].mean()), 3)}

    def mask(self):
        prior = self.priors
        cases = [Case(r["pair_id"], c, r["prompt"]) for r, c in zip(self.rows, prior, strict=True)]
        free = np.stack([self.model.change_mask(c.prior, c.prompt) for c in cases])
        named = np.zeros((len(cases), len(FINDINGS)))
        for i, row in enumerate(self.rows):
            for finding, sign in rules.changes(row["prompt"]).items():
                named[i, FINDINGS.index(finding)] = sign
        rebuilt = self.model.detokenize(prior)
        before, side = self.probability(rebuilt), rebuilt.shape[1] // free.shape[1]
        outside = ~free.repeat(side, 1).repeat(side, 2)
        for name, keep in (("none", np.zeros_like(free)), ("auto", ~free)):
            images, *_ = self.sample(cases, keep=keep, codes=prior)
            after = self.probability(images)
            hits = {f"moved as named, margin {m}": moved(before, after, named, m) for m in (TIE, MARGIN)}
            change = np.abs(images.astype(float) - rebuilt)
            yield {
                "mask": name,
                "n": len(cases),
                "free": round(float(1 - keep.mean()), 3),
                **{key: share(hit[~np.isnan(hit)] == 1) for key, hit in hits.items()},
                "gray levels of change inside the automatic mask": round(float(change[~outside].mean()), 2),
                "outside": round(float(change[outside].mean()), 2),
            }

    def explain(self):
        before, after = self.pixels["prior"], self.pixels["followup"]
        pairs = {
            "real follow-up": (before, after, 1),
            "follow-up of another patient": (before, np.roll(after, 1, axis=0), 1),
            "the other order": (after, before, -1),
        }
        told = {}
        for name, (first, second, sign) in pairs.items():
            told[name] = self.read(first, second)
            recall, precision = [], []
            for row, said in zip(self.rows, told[name], strict=True):
                true = {f: sign * change for f, change in changes(row).items()}
                recall += [said.get(f) == change for f, change in true.items()]
                precision += [true.get(f) == change for f, change in said.items()]
            yield {"pair": name, "n": len(self.rows), "recall": share(recall), "precision": share(precision)}
        yield {"perfect": "follow-up of another patient", **self.perfect()}
        yield {"omitted": self.omitted(told["real follow-up"])}
        both = zip(told["real follow-up"], told["the other order"], strict=True)
        yield {"flip": share([back.get(f) == -change for said, back in both for f, change in said.items()])}

    def perfect(self):
        """Recall and precision of the changes from a prior's true states to those of another patient's follow-up."""
        right = said = there = 0
        for row, other in zip(self.rows, [self.rows[-1], *self.rows], strict=False):
            true, seen = changes(row), changes({**row, "states_after": other["states_after"]})
            right += sum(seen.get(f) == change for f, change in true.items())
            said, there = said + len(seen), there + len(true)
        return {"recall": round(right / there, 3), "precision": round(right / said, 3)}

    def omitted(self, told):
        """F1 of the changes told of findings that the rows' prompts leave out."""
        right = said = there = 0
        for row, changed in zip(self.rows, told, strict=True):
            true, named = changes(row), {m.finding for m in rules.mentions(row["prompt"])}
            left_out = [f for f in FINDINGS if CHEXPERT_OF[f] not in named]
            right += sum(f in true and changed.get(f) == true[f] for f in left_out)
            said += sum(f in changed for f in left_out)
            there += sum(f in true for f in left_out)
        return round(2 * right / max(said + there, 1), 3)

    def read(self, before, after):
        """The changes of findings, by name, that `explain` tells of each pair of images."""
        first = self.model.tokenize(before)
        second = self.model.tokenize(after, near=first, slack=self.model.slack)
        cases = [Case(r["pair_id"], codes, "") for r, codes in zip(self.rows, first, strict=True)]
        _, texts, _ = self.sample(cases, text=True, keep=np.ones(second.shape, bool), codes=second)
        return [{f: change for f, change in rules.changes(text).items() if change} for text in texts]

    def rollout(self):
        rng, codes, pixels = np.random.default_rng(0), self.priors, self.pixels["prior"]
        courses = [course(row, rng) for row in self.rows]
        ceiling = self.group_auroc(pixels)
        yield {"step": 0, "n": len(codes), "group_auroc": round(ceiling, 3)}
        for step in range(STEPS):
            cases = [
                Case(row["pair_id"], c, prompts[step], step, p)
                for row, prompts, c, p in zip(self.rows, courses, codes, pixels, strict=True)
            ]
            pixels, _, codes = self.sample(cases)
            now = self.group_auroc(pixels)
            kept = (now - 0.5) / (ceiling - 0.5)
            yield {"step": step + 1, "group_auroc": round(now, 3), "of_ceiling": round(now / ceiling, 3),
                   "above_chance_of_ceiling": round(kept, 3)}  # fmt: skip

    def group_auroc(self, images):
        found, groups = self.scorer(images, "phantom"), np.asarray([row["group"] for row in self.rows])
        scores = zip(found["groups"], found["group_prob"].T, strict=True)
        return float(np.mean([auroc(score, (groups == name).astype(float)) for name, score in scores]))


def changes(row):
    """Finding -> +1 or -1, where its true state changed."""
    steps = {f: row["states_after"][f] - row["states_before"][f] for f in FINDINGS}
    return {f: int(np.sign(s)) for f, s in steps.items() if abs(s) >= PRESENT}


def course(row, rng):
    """STEPS prompts: in each a finding comes or goes that no step before has named."""
    chosen = rng.permutation(FINDINGS)[:STEPS]
    there = [row["states_before"].get(f, 0) >= PRESENT for f in chosen]
    return [f"{f.capitalize()} has resolved." if on else f"New {f}." for f, on in zip(chosen, there, strict=True)]


def share(hits, z=1.96):
    """[share, low, high, n] with Wilson's interval."""
    n = len(hits)
    if not n:
        return [None, 0.0, 1.0, 0]
    p = float(np.mean(hits))
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round(float(x), 3) for x in (p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))] + [n]


if __name__ == "__main__":
    main()
