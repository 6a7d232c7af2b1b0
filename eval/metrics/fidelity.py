"""Fidelity and diversity of a set of images by features of a given backbone: FID, KID, precision and recall.

- FID (Heusel et al. 2017): squared Frechet distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)),
  with unbiased covariances. Biased upward by small n: compare equal n only.
- KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / d + 1)^3; not biased by n.
- Precision and recall (Kynkaanniemi et al. 2019): share of generated points inside the union of balls around real
  points that reach their k-th nearest real neighbour, and the reverse; k = 3.

A number without its backbone and n means nothing: both travel with it. Intervals: half of the patients drawn
without replacement, at most 50 times. The spread of a half-sample about the mean of half-samples is, to first order,
that of the whole sample about the truth (Shao & Wu 1989), and too wide for KID where the two sets are nearly alike.
Repeats of one point, which a bootstrap makes, would fool KID's unbiasedness and the nearest neighbours.
"""

import numpy as np

NEIGHBOURS = 3
BLOCK = 1024
SUBSAMPLES = 50


def _matrix(features):
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"features {features.shape} must be [N, D]")
    return features


def fid(real, made):
    """Frechet distance of features float [N, D] and [M, D]; NaN with fewer than two of either."""
    real, made = _matrix(real), _matrix(made)
    if min(len(real), len(made)) < 2:
        return float("nan")
    distance = np.sum((real.mean(0) - made.mean(0)) ** 2)
    roots, traces = [], 0.0
    for x in (real, made):
        centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)  # C = centred' centred
        traces += np.sum(centred**2)
        # The D x D factor of the QR decomposition does as well when there are more points than dimensions.
        roots.append(np.linalg.qr(centred, mode="r") if len(x) > x.shape[1] else centred)
    # tr (C1 C2)^(1/2) is the sum of the singular values of root1 root2': no square root of a near-singular matrix.
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(distance + traces - 2 * cross, 0.0))


def kid(real, made):
    """Unbiased squared MMD, cubic kernel, of features float [N, D] and [M, D]; may be negative; NaN below two."""
    real, made = _matrix(real), _matrix(made)
    n, m = len(real), len(made)
    if min(n, m) < 2:
        return float("nan")
    within = (_kernel_sum(real, real, False) / (n * (n - 1)), _kernel_sum(made, made, False) / (m * (m - 1)))
    return float(sum(within) - 2 * _kernel_sum(real, made, True) / (n * m))


def _kernel_sum(x, y, diagonal):
    total = sum(np.sum((x[i : i + BLOCK] @ y.T / x.shape[1] + 1) ** 3) for i in range(0, len(x), BLOCK))
    return total if diagonal else total - np.sum((np.sum(x * y, axis=1) / x.shape[1] + 1) ** 3)


def precision_recall(real, made, k=NEIGHBOURS):
    """(precision, recall) of features float [N, D] and [M, D]; NaN unless both have more than k points."""
    real, made = _matrix(real), _matrix(made)
    if min(len(real), len(made)) <= k:
        return float("nan"), float("nan")
    return _covered(real, made, k), _covered(made, real, k)


def _covered(centres, points, k):
    """Share of points inside any ball around a centre that reaches the centre's k-th nearest neighbour."""
    radius = np.empty(len(centres))
    for i in range(0, len(centres), BLOCK):
        # The centre itself is at distance 0, so the k-th neighbour is entry k.
        radius[i : i + BLOCK] = np.partition(_squared(centres[i : i + BLOCK], centres), k, axis=1)[:, k]
    inside = [(_squared(points[i : i + BLOCK], centres) <= radius).any(1) for i in range(0, len(points), BLOCK)]
    return float(np.concatenate(inside).mean())


def _squared(x, y):
    return np.maximum(np.sum(x**2, 1)[:, None] + np.sum(y**2, 1) - 2 * x @ y.T, 0)


def fidelity(real, made, patient_real, patient_made, subsamples=SUBSAMPLES, seed=0):
    """All four metrics with the spread of half-samples of patients.

    Args:
      real, made: features float [N, D] and [M, D].
      patient_real, patient_made: int [N], [M]; a patient's real and generated images leave and stay together.
      subsamples: how many half-samples (0 or fewer than four patients: no interval).
      seed: of the draws.

    Returns:
      name -> float [1 + S]; entry 0 the value, the rest value + (half-sample - mean of half-samples), so that its
      quantiles are the interval.
    """
    patients = np.unique(np.concatenate([patient_real, patient_made]))
    draws = min(subsamples, SUBSAMPLES) if len(patients) >= 4 else 0
    rng = np.random.default_rng(seed)
    rows = [_all(real, made)]
    for _ in range(draws):
        half = rng.choice(patients, len(patients) // 2, replace=False)
        rows.append(_all(real[np.isin(patient_real, half)], made[np.isin(patient_made, half)]))
    rows = np.array(rows)
    if draws:
        with np.errstate(invalid="ignore"):
            rows[1:] += rows[0] - rows[1:].mean(0)
        rows[1:] = np.clip(rows[1:], (0, -np.inf, 0, 0), (np.inf, np.inf, 1, 1))  # what the metrics can be
    return {name: rows[:, k] for k, name in enumerate(("fid", "kid", "feature_precision", "feature_recall"))}


def _all(real, made):
    return fid(real, made), kid(real, made), *precision_recall(real, made)
