"""What a model with intervals and history expects of held-out phantom patients, against the truth; JSON lines.

    .venv/bin/python benchmarks/expected.py --run=runs/phantom_course [--patients=240] [--futures=32] [--parts ...]

expected   the newest pair of each patient with films before its prior: 32 futures without a prompt after the true
           interval, read by the run's evaluating scorer; a forecast of a finding is its mean probability. Brier score
           (intervals over patients), calibration error in ten bins of equal count, CRPS of the severity, told one film,
           two, or all. Beside it, on the same pairs: what the scorer sees on the prior (persists); each finding's share
           among the training patients' follow-ups (population); 32 draws of the true distribution given one film or two
           (true: known severities, unknown rates; what no model can beat by more than chance), and the true state with
           its rates (oracle). Paired differences of Brier scores.
days       findings that the truth moves steadily from 7 over 30 to 90 days: shares in which the severity, as the scorer
           sees it, is in that order; by a prompt that says the direction, and by none with two films (means of 8
           futures); rendered: the true images themselves.

Of `data.phantom.dynamics="course"` alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import progemu_jax
from progemu_jax.data import batches, phantom
from progemu_jax.data.images import resize
from progemu_jax.data.phantom import course
from progemu_jax.eval.bootstrap import Bootstrap
from progemu_jax.eval.metrics import forecast
from progemu_jax.files.predictions import Case
from progemu_jax.inference.expected import FREE
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.text.findings import FINDINGS, PRESENT
from progemu_jax.text.restate import Change, restate
from progemu_jax.text.timeline import Timeline, of_example

PARTS, BATCH, SHORT = ("expected", "days"), 64, 8
DAYS, STEP = (7.0, 30.0, 90.0), 0.05
PROBABILITY, SEVERITY = "finding_prob", "finding_severity"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=240)
    parser.add_argument("--futures", type=int, default=32)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    bench = Bench(args)
    for name in args.parts:
        for line in getattr(bench, name)():
            print(json.dumps({"part": name, **line}), flush=True)


class Bench:
    """One pair a patient, the last that has films before its prior; N of them."""

    def __init__(self, args):
        run, self.futures = args.run, args.futures
        self.model, self.scorer = progemu_jax.load(run), PhantomScorer.load(run / "scorer/export")
        with open(run / "data/source/truth/studies.jsonl", encoding="utf-8") as file:
            self.studies = {row["study_id"]: row for row in map(json.loads, file)}
        tokens, pairs = (batches.examples(run / "data/shards", kind, args.split) for kind in ("tokens", "pairs"))
        pixels = {pairs[i]["pair_id"]: pairs[i]["prior"] for i in range(len(pairs))}
        chosen = {e["patient_id"]: e for e in (tokens[i] for i in range(len(tokens))) if len(e["older"])}
        self.cases = list(chosen.values())[: args.patients]
        takes = self.model.layout.older, self.model.layout.interval != ""
        self.told = [of_example(e, *takes) for e in self.cases]
        self.pixels = [pixels[e["pair_id"]] for e in self.cases]
        ids = [[part.split("s")[1] for part in e["pair_id"].split("-")[-2:]] for e in self.cases]
        self.prior, self.followup = ([self.studies[i[side]] for i in ids] for side in (0, 1))
        of_patient = {}
        for row in self.studies.values():
            of_patient.setdefault(row["patient_id"], []).append(row)
        self.history = [  # of each case all studies up to the prior, the oldest first
            [r for r in sorted(of_patient[row["patient_id"]], key=lambda r: r["order"]) if r["order"] <= row["order"]]
            for row in self.prior
        ]
        seen = [r for r in self.studies.values() if r["split"] == "train" and r["order"]]
        self.population = np.mean([severities(r) >= PRESENT for r in seen], axis=0)

    def sample(self, cases, **policy):
        """What the scorer reads on the cases' images: (probability, severity), each [N, 8]."""
        found, how = [], self.model.policy_with(**policy)
        for start in range(0, len(cases), BATCH):
            part = cases[start : start + BATCH]
            images = self.model.sample(part + part[:1] * (BATCH - len(part)), 0, how, text=False).images[: len(part)]
            read = self.scorer(images, "phantom")
            found.append((read[PROBABILITY], read[SEVERITY]))
        return tuple(np.concatenate(x) for x in zip(*found, strict=True))

    def read(self, images):
        read = self.scorer(np.stack(images), "phantom")
        return read[PROBABILITY], read[SEVERITY]

    def expected(self):
        count, rng = len(self.cases), np.random.default_rng(0)
        truth = np.stack([severities(row) for row in self.followup])
        came = truth >= PRESENT
        forecasts, draws = {}, {}
        for films in (1, 2, 1 + self.model.layout.older):
            cases = [
                Case(e["pair_id"], e["prior"], "", k, x, told.cut(films - 1, True))
                for e, x, told in zip(self.cases, self.pixels, self.told, strict=True)
                for k in range(self.futures)
            ]
            shape = count, self.futures, len(FINDINGS)
            p, s = (x.reshape(shape) for x in self.sample(cases, **FREE))
            forecasts[f"model, {films} films"], draws[f"model, {films} films"] = p.mean(1), s
        forecasts["persists"] = self.read(self.pixels)[0]
        forecasts["population"] = np.broadcast_to(self.population, came.shape)
        for films in (1, 2):
            draws[f"true, {films} films"] = np.stack([
                course.futures(rng, phantom.Patient.from_dict(now["patient"]), seen(past[-films:]), days, self.futures)
                for now, past, days in zip(self.prior, self.history, self.days_to_come(), strict=True)
            ])  # fmt: skip
        draws["oracle"] = np.stack([
            course.simulate(rng, course.true_state(now), days, self.futures)
            for now, days in zip(self.prior, self.days_to_come(), strict=True)
        ])  # fmt: skip
        for name in ("true, 1 films", "true, 2 films", "oracle"):
            forecasts[name] = (draws[name] >= PRESENT).mean(1)
        boot = Bootstrap(count, 1000)
        scores = {name: forecast.brier(p, came).mean(1) for name, p in forecasts.items()}
        for name, p in forecasts.items():
            line = {"system": name, "n": count, "brier": interval(boot, scores[name])}
            line["calibration_error"] = round(forecast.calibration_error(p, came), 4)
            if name in draws:
                line["crps"] = interval(boot, forecast.crps(np.moveaxis(draws[name], 1, 0), truth).mean(1))
            present = np.stack([severities(row) for row in self.prior]) >= PRESENT
            for where, at in (("present", present), ("absent", ~present)):
                line[f"brier_{where}"] = round(float(forecast.brier(p, came)[at].mean()), 4)
            yield line
        mine = [name for name in forecasts if name.startswith("model")]
        for a, b in ((mine[0], "persists"), (mine[0], "population"), (mine[1], "persists"), (mine[1], "population"),
                     (mine[1], mine[0]), (mine[-1], mine[0]), ("true, 2 films", "true, 1 films")):  # fmt: skip
            yield {"system": a, "minus": b, "brier": interval(boot, scores[a] - scores[b])}

    def days_to_come(self):
        return [b["disease"]["days"] - a["disease"]["days"] for a, b in zip(self.prior, self.followup, strict=True)]

    def days(self):
        rng, asked, rendered = np.random.default_rng(1), [], []
        for i, row in enumerate(self.prior):
            state = course.true_state(row)
            ahead = np.stack([course.drift(state, days) for days in DAYS])
            now = severities(row)
            for sign, direction in ((1, "worse"), (-1, "better")):
                steady = (np.diff(sign * ahead, axis=0) >= STEP).all(0) & (sign * (ahead[0] - now) > 0)
                for finding in np.flatnonzero(steady & (now >= PRESENT) & (ahead.min(0) >= PRESENT)):
                    prompt = self.said(i, Change(FINDINGS[finding], direction), rng)
                    asked.append((i, finding, sign, prompt))
                    for days in ahead[:, finding]:
                        values = severities(row)
                        values[finding] = days
                        later = {"disease": {**row["disease"], "severities": values.tolist()}}
                        size = self.pixels[i].shape[0]
                        rendered.append(resize(phantom.counterfactual(row, later, row["size"]), size))
        finding, sign = (np.array([a[k] for a in asked]) for k in (1, 2))
        arms = {"rendered": self.read(rendered)[1][:, None]}
        for name, films, spoken, count, policy in (
            ("prompt, 1 film", 1, True, 1, {}),
            ("prompt, 2 films", 2, True, 1, {}),
            ("no prompt, 1 film", 1, False, SHORT, FREE),
            ("no prompt, 2 films", 2, False, SHORT, FREE),
        ):
            cases = []
            for i, _, _, prompt in asked:
                e, older = self.cases[i], self.told[i].cut(films - 1, False).older
                cases += [
                    Case(e["pair_id"], e["prior"], prompt if spoken else "", k, self.pixels[i], Timeline(days, older))
                    for days in DAYS
                    for k in range(count)
                ]
            arms[name] = self.sample(cases, **policy)[1].reshape(len(asked) * len(DAYS), count, len(FINDINGS))
        for name, read in arms.items():
            read = read.mean(1).reshape(len(asked), len(DAYS), len(FINDINGS))
            values = np.take_along_axis(read, finding[:, None, None], 2)[..., 0] * sign[:, None]
            right, patient = forecast.in_order(values), np.array([a[0] for a in asked])
            boot = Bootstrap(len(self.cases), 1000)
            line = {"system": name, "n": len(asked), "in_order": interval(boot, right, patient)}
            for direction, of in (("worse", 1), ("better", -1)):
                line[direction] = round(float(right[sign == of].mean()), 3)
            means = (values * sign[:, None])[sign > 0].mean(0), (values * sign[:, None])[sign < 0].mean(0)
            yield {**line, "worse_means": means[0].round(3).tolist(), "better_means": means[1].round(3).tolist()}

    def said(self, i, change, rng):
        """A training wording that the model takes beside the days."""
        while True:
            prompt = restate([change], rng)
            try:
                case = Case("case", self.cases[i]["prior"], prompt, timeline=Timeline(30.0))
                self.model.check(case)
                return prompt
            except progemu_jax.errors.UserError:
                continue


def severities(row):
    return np.asarray(row["disease"]["severities"], float)


def seen(rows):
    return [(row["disease"]["days"], severities(row)) for row in rows]


def interval(boot, values, patient=None):
    """[mean, low, high] with a 95 % interval over patients."""
    patient = np.arange(len(values)) if patient is None else patient
    found = boot.distributions(patient, {"x": (np.asarray(values, float), np.ones(len(values)))}, {})["x"]
    return [round(float(x), 4) for x in (found[0], *np.nanpercentile(found, [2.5, 97.5]))]


if __name__ == "__main__":
    main()
