"""Fidelity and diversity of a set of images by features of a given backbone: FID, KID and nearest neighbours.

- FID (Heusel et al. 2017): squared Frechet distance of two Gaussians, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)),
  with unbiased covariances. Biased upward by small n: compare equal n only.
- KID (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / d + 1)^3; not biased by n.
- Precision and recall (Kynkaanniemi et al. 2019): share of generated points inside the union of balls around real
  points that reach their k-th nearest real neighbour, and the reverse; k = 3.
- Density and coverage (Naeem et al. 2020): how many balls around real points hold a generated one, over k, mean of the
  generated points; share of real points whose ball holds a generated one; k = 5, boundaries left out as in their code.
  Recall can rise as diversity falls, for the balls around a few generated points that lie far apart are large and hold
  everything; coverage's balls are those of the real points, whatever was generated. Two samples of one distribution,
  of equal n, have density 1 and coverage 1 - 1/2^5 = 0.97.

A number without its backbone and n means nothing: both travel with it. Intervals: half of the patients drawn
without replacement, at most 50 times. The spread of a half-sample about the mean of half-samples is, to first order,
that of the whole sample about the truth (Shao & Wu 1989), and too wide for KID where the two sets are nearly alike.
Repeats of one point, which a bootstrap makes, would fool KID's unbiasedness and the nearest neighbours.
"""

import numpy as np

NEIGHBOURS = 3
DENSE_NEIGHBOURS = 5  # of density and coverage
NAMES = ("fid", "kid", "feature_precision", "feature_recall", "feature_density", "feature_coverage")
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


def neighbours(real, made, k=NEIGHBOURS, dense=DENSE_NEIGHBOURS):
    """(precision, recall, density, coverage) of features float [N, D] and [M, D].

    k is that of precision and recall, NaN unless both sets have more than k points; `dense` that of density and
    coverage, NaN unless there are more than `dense` real points, and any generated.
    """
    real, made = _matrix(real), _matrix(made)
    precise, thick = min(len(real), len(made)) > k, len(real) > dense and len(made) > 0
    real_reach = _reach(real, [n for n, wanted in ((k, precise), (dense, thick)) if wanted])
    made_reach = _reach(made, [k] if precise else [])
    held, recalled = 0, np.zeros(len(real), bool)
    inside, covered = 0, np.zeros(len(real), bool)
    for i in range(0, len(made), BLOCK):
        distance = _squared(made[i : i + BLOCK], real)
        if precise:
            held += (distance <= real_reach[k]).any(1).sum()
            recalled |= (distance <= made_reach[k][i : i + BLOCK, None]).any(0)
        if thick:
            within = distance < real_reach[dense]
            inside += within.sum()
            covered |= within.any(0)
    return (
        *((held / len(made), recalled.mean()) if precise else (np.nan, np.nan)),
        *((inside / (dense * len(made)), covered.mean()) if thick else (np.nan, np.nan)),
    )


def _reach(points, ks):
    """k -> squared distance [N] of each point to its k-th nearest other, for each of `ks`."""
    out = {k: np.empty(len(points)) for k in ks}
    for i in range(0, len(points) if ks else 0, BLOCK):
        # The point itself is at distance 0, so the k-th neighbour is entry k.
        ordered = np.partition(_squared(points[i : i + BLOCK], points), sorted(ks), axis=1)
        for k in ks:
            out[k][i : i + BLOCK] = ordered[:, k]
    return out


def _squared(x, y):
    return np.maximum(np.sum(x**2, 1)[:, None] + np.sum(y**2, 1) - 2 * x @ y.T, 0)


def fidelity(real, made, patient_real, patient_made, subsamples=SUBSAMPLES, seed=0):
    """All metrics of NAMES with the spread of half-samples of patients.

    Args:
      real, made: features float [N, D] and [M, D].
      patient_real, patient_made: int [N], [M]; a patient's real and generated images leave and stay together.
      subsamples: how many half-samples (0 or fewer than four patients: no interval).
      seed: of the draws.

    Returns:
      name -> float [1 + S]; entry 0 the value, the rest value + (half-sample - mean of half-samples), so that its
      quantiles are the interval. With half-samples also fid_half: entry 0 their mean FID, the rest they themselves.
    """
    patients = np.unique(np.concatenate([patient_real, patient_made]))
    draws = min(subsamples, SUBSAMPLES) if len(patients) >= 4 else 0
    rng = np.random.default_rng(seed)
    rows = [_all(real, made)]
    for _ in range(draws):
        half = rng.choice(patients, len(patients) // 2, replace=False)
        rows.append(_all(real[np.isin(patient_real, half)], made[np.isin(patient_made, half)]))
    rows = np.array(rows)
    halves = {"fid_half": np.r_[rows[1:, 0].mean(), rows[1:, 0]]} if draws else {}
    if draws:
        with np.errstate(invalid="ignore"):
            rows[1:] += rows[0] - rows[1:].mean(0)
        rows[1:] = np.clip(rows[1:], (0, -np.inf, 0, 0, 0, 0), (np.inf, np.inf, 1, 1, np.inf, 1))  # what they can be
    return dict(zip(NAMES, rows.T, strict=True)) | halves


def real_halves(real, patient, splits=SUBSAMPLES, seed=0):
    """The metrics of the real images of one half of the patients against those of the other half.

    Args:
      real: features float [N, D]. patient: int [N].
      splits: how many random halves, at most SUBSAMPLES; none, and {}, with fewer than four patients.
      seed: of the draws.

    Returns:
      name -> float [1 + S]; entry 0 the mean of the splits, the rest they themselves. FID is called fid_half: at n it
      would be lower.
    """
    patients = np.unique(patient)
    splits = min(splits, SUBSAMPLES) if len(patients) >= 4 else 0
    if not splits:
        return {}
    rng, rows = np.random.default_rng(seed), []
    for _ in range(splits):
        one = np.isin(patient, rng.choice(patients, len(patients) // 2, replace=False))
        rows.append(_all(real[one], real[~one]))
    rows = np.array(rows)
    return dict(zip(("fid_half", *NAMES[1:]), np.concatenate([rows.mean(0, keepdims=True), rows]).T, strict=True))


def _all(real, made):
    return fid(real, made), kid(real, made), *neighbours(real, made)
