"""How often the 95 % intervals hold the truth: AUROC, Pearson r and CMIG over simulated cohorts; prints JSON lines.

    python benchmarks/coverage.py [--cohorts=2000] [--patients=300] [--resamples=1000]

A patient has one case or two, whose scores share half of their variance, so that cases are not independent. Findings
and groups are binormal with known AUROC, ages bivariate normal with known r; CMIG follows by its formula. Every
cohort has at least 50 positives and 50 negatives. The last line gives the coverages; their own standard error is
sqrt(.95 * .05 / cohorts), 0.5 points for 2,000. Status 1 when one is outside 93-97 %.
"""

import argparse
import json
import sys
from math import erf, sqrt

import numpy as np

from progemu_jax.eval.bootstrap import Bootstrap, estimate
from progemu_jax.eval.metrics.cmig import cmig
from progemu_jax.eval.metrics.retention import Correlation
from progemu_jax.eval.metrics.roc import Ranking

SHIFT, GROUP_SHIFT, R = 1.2, 2.0, 0.8  # distance of the classes in standard deviations; correlation of the ages


def truths():
    """name -> true value; AUROC = Phi(shift / sqrt 2)."""
    auroc, group = (0.5 * (1 + erf(shift / 2)) for shift in (SHIFT, GROUP_SHIFT))
    return {"auroc": auroc, "r": R, "cmig": float(cmig([auroc], [group, R])[0])}


def cohort(rng, patients):
    """(patient int [N], statistics) of one simulated cohort; N is about 1.5 patients."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 3, patients))
    shared = lambda: (rng.normal(size=patients)[patient] + rng.normal(size=len(patient))) / sqrt(2)  # noqa: E731
    labels, groups = ((rng.random(patients) < p).astype(float)[patient] for p in (0.35, 0.5))
    x = shared()
    y = R * x + sqrt(1 - R * R) * shared()
    return patient, Ranking(shared() + SHIFT * labels, labels), Ranking(shared() + GROUP_SHIFT * groups, groups), (x, y)


def coverage(cohorts, patients, resamples, seed=0):
    """name -> share of cohorts whose interval holds the truth."""
    rng, true = np.random.default_rng(seed), truths()
    hits, done = dict.fromkeys(true, 0), 0
    while done < cohorts:
        patient, finding, group, ages = cohort(rng, patients)
        if min(finding.positives, finding.negatives, group.positives, group.negatives) < 50:
            continue
        functions = {"auroc": finding.auroc, "group": group.auroc, "r": Correlation(*ages)}
        got = Bootstrap(patients, resamples, seed=done).distributions(patient, {}, functions)
        got["cmig"] = cmig([got["auroc"]], [got["group"], got["r"]])
        for name, value in true.items():
            e = estimate(got[name])
            hits[name] += e.low <= value <= e.high
        done += 1
        if done % 250 == 0:
            print(json.dumps({"cohorts": done, **{k: round(v / done, 4) for k, v in hits.items()}}), flush=True)
    return {name: count / cohorts for name, count in hits.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--patients", type=int, default=300)
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    got = coverage(args.cohorts, args.patients, args.resamples)
    good = all(0.93 <= v <= 0.97 for v in got.values())
    print(json.dumps({**vars(args), "coverage": got, "within_93_97": good}))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
