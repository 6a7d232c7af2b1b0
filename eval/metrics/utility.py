"""Utility: are the images good to learn from? A classifier fitted to generated images is tested on real ones.

The classifier is a linear one on the features of a given backbone: ridge regression of the findings' presence, +1 or
-1, on features standardised by the training images, penalty RIDGE an image. It is fitted to the images of one half of
the patients, labelled with what is true after the progression, and its AUROC is taken on the real follow-ups of the
other half, mean over findings and over random halves. The same classifier fitted to real follow-ups says what is to be
reached ("train on synthetic, test on real", Esteban et al. 2017). It says nothing of a network trained from pixels.
"""

import numpy as np

from progemu_jax.eval.metrics.roc import auroc

RIDGE = 1.0
SPLITS = 20


def fit(features, labels):
    """Weights float [D] of a linear classifier, on features less their mean; zeros where all labels are alike.

    features: float [N, D]. labels: float [N], 1 present, 0 absent.
    """
    x, y = np.asarray(features, np.float64), 2 * np.asarray(labels, np.float64) - 1
    spread = x.std(0)
    scale = np.where(spread > 1e-12, spread, np.inf)  # what never varies says nothing
    x, y = (x - x.mean(0)) / scale, y - y.mean()
    if len(x) < x.shape[1]:  # the same, by a system of N equations
        weights = x.T @ np.linalg.solve(x @ x.T + RIDGE * len(x) * np.eye(len(x)), y)
    else:
        weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ y)
    return weights / scale


def transfer(train, train_labels, test, test_labels):
    """AUROC [F] on `test` of classifiers fitted to `train`; NaN where either has one class only.

    Args:
      train, test: float [N, D] and [M, D]. train_labels, test_labels: float [N, F], [M, F]: 1, 0, NaN unknown.
    """
    out = np.full(train_labels.shape[1], np.nan)
    for j in range(len(out)):
        known, asked = np.isfinite(train_labels[:, j]), np.isfinite(test_labels[:, j])
        if len(set(train_labels[known, j])) == 2 and asked.any():
            out[j] = auroc(test[asked] @ fit(train[known], train_labels[known, j]), test_labels[asked, j])
    return out


def utility(made, made_labels, made_patient, real, real_labels, real_patient, splits=SPLITS, seed=0):
    """Distribution float [1 + S] of the mean AUROC: entry 0 the mean of S random halves of patients, the rest they.

    Args:
      made, real: features float [N, D], [M, D]. made_labels, real_labels: float [N, F], [M, F].
      made_patient, real_patient: int [N], [M]: nobody is on both sides.
      splits: at most SPLITS; none, and [NaN], with fewer than four patients.
      seed: of the draws.
    """
    patients = np.unique(real_patient)
    splits = min(splits, SPLITS) if len(patients) >= 4 else 0
    rng, values = np.random.default_rng(seed), []
    for _ in range(splits):
        half = rng.choice(patients, len(patients) // 2, replace=False)
        one, other = np.isin(made_patient, half), ~np.isin(real_patient, half)
        found = transfer(made[one], made_labels[one], real[other], real_labels[other])
        values.append(found[np.isfinite(found)].mean() if np.isfinite(found).any() else np.nan)
    known = [v for v in values if np.isfinite(v)]
    return np.array([np.mean(known) if known else np.nan, *values])
