"""What the controls of a phantom-trained model do on held-out patients; prints JSON lines.

    .venv/bin/python benchmarks/control.py --run=runs/phantom [--patients=160] [--parts dial mask explain]

dial       does severity follow the dial? "New <finding>." in three grades, same seed, one absent finding a patient. Two
           measures on each image: the phantom scorer's probability of that finding, which is of presence and saturates,
           and the mean absolute change from the prior (gray levels). Shares with 95 % Wilson intervals. "true" is the
           phantom itself, rendered with that finding at 0.27, 0.5 and 0.8 and put through the tokenizer.
mask       the references' prompts with and without the automatic mask: share of codes that are free, directional
           accuracy of named findings, mean absolute change of pixels outside the mask (gray levels).
explain    text of the real pair, prompt empty: share of the true changes that it names with side and direction, and
           of the changes that it names that are true, beside another patient's follow-up.
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
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.text import rules
from progemu_jax.text.findings import FINDINGS, GRADES, PRESENT

BATCH = 48
SEVERITIES = (0.27, 0.5, 0.8)  # of GRADES


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=160)
    parser.add_argument("--parts", nargs="+", default=["dial", "mask", "explain"])
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
        self.images = {k: [read_gray(folder / row[k]) for row in rows] for k in ("prior", "followup")}
        self.codes = {k: self.model.tokenize(np.stack([self.resized(x) for x in v])) for k, v in self.images.items()}

    def resized(self, image):
        side = self.model.layout.height * self.model.tokenizer.config.factor
        return resize(image, side)

    def sample(self, cases, text=False, **options):
        """One batch shape for all: the last batch is filled up."""
        images, texts = [], []
        for start in range(0, len(cases), BATCH):
            at = np.minimum(np.arange(start, start + BATCH), len(cases) - 1)
            n = min(BATCH, len(cases) - start)
            out = self.model.sample([cases[i] for i in at], 0, text=text, **{k: v[at] for k, v in options.items()})
            images.append(out.images[:n])
            texts += out.texts[:n] if text else []
        return np.concatenate(images), texts

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
                cases.append(Case(row["pair_id"], self.codes["prior"][i], prompt))
            true += [self.rendered(row, chosen[-1], severity) for severity in (0.0, *SEVERITIES)]
        chosen = np.asarray(chosen)
        images, _ = self.sample(cases)
        prior = self.model.detokenize(self.codes["prior"])
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
        prior = self.codes["prior"]
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
            images, _ = self.sample(cases, keep=keep, codes=prior)
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
        cases = [Case(r["pair_id"], c, "") for r, c in zip(self.rows, self.codes["prior"], strict=True)]
        after = self.codes["followup"]
        said = {"real follow-up": after, "follow-up of another patient": np.roll(after, 1, axis=0)}
        for name, codes in said.items():
            _, texts = self.sample(cases, text=True, keep=np.ones(codes.shape, bool), codes=codes)
            recall, precision = [], []
            for row, text in zip(self.rows, texts, strict=True):
                before, later = row["states_before"], row["states_after"]
                steps = {f: later[f] - before[f] for f in FINDINGS}
                true = {f: int(np.sign(s)) for f, s in steps.items() if abs(s) >= PRESENT}
                told = {f: s for f, s in rules.changes(text).items() if s}
                recall += [told.get(f) == s for f, s in true.items()]
                precision += [true.get(f) == s for f, s in told.items()]
            yield {"pair": name, "n": len(cases), "recall": share(recall), "precision": share(precision)}


def share(hits, z=1.96):
    """[share, low, high, n] with Wilson's interval."""
    n, p = len(hits), float(np.mean(hits))
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [round(float(x), 3) for x in (p, (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n))] + [n]


if __name__ == "__main__":
    main()
