"""Is a forecast of findings right, and as sure as it may be?

A forecast is a probability of each finding at the follow-up, or draws of its severity.

- Brier score: mean (p - y)^2 (Brier 1950), 0 is best; a constant p = prevalence scores its variance.
- CRPS of draws: mean |x - y| less half the mean |x - x'| of two draws, by the fair estimator of S draws (Ferro 2014,
  doi:10.1002/qj.2270), which does not punish a small S; 0 is best, in the unit of what is forecast.
- calibration error: forecasts are put into bins of equal count by p; the mean over bins, weighted by count, of
  |mean p - share of y| (expected calibration error, Naeini et al. 2015, with equal counts). It is above 0 for a perfect
  forecast of finitely many cases: compare with draws of the truth.
- in order: share of rows of values that strictly ascend.
"""

import numpy as np


def brier(probability, outcome):
    """Squared errors f64 [...] of probabilities [...] in [0, 1] and outcomes bool [...]; their mean is the score."""
    return (np.asarray(probability, np.float64) - np.asarray(outcome, bool)) ** 2


def crps(draws, truth):
    """f64 [...] of draws [S, ...], S >= 2, and what came [...]."""
    draws, truth = np.asarray(draws, np.float64), np.asarray(truth, np.float64)
    count = len(draws)
    # Of sorted draws, the sum over pairs of their distance is a weighted sum.
    weight = (2 * np.arange(count) - count + 1).reshape(-1, *[1] * truth.ndim)
    apart = 2 * (np.sort(draws, axis=0) * weight).sum(0) / (count * (count - 1))
    return np.abs(draws - truth).mean(0) - 0.5 * apart


def reliability(probability, outcome, bins=10):
    """(mean probability, share of outcomes, count), each [B] of at most so many bins of equal count, from low to high.

    Equal probabilities may lie in two bins: a bin is of cases in the order of their probability, ties as they come.
    """
    probability, outcome = (np.asarray(x, np.float64).reshape(-1) for x in (probability, outcome))
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return tuple(np.array([f(part) for part in parts]) for f in (
        lambda part: probability[part].mean(), lambda part: outcome[part].mean(), len,
    ))  # fmt: skip


def calibration_error(probability, outcome, bins=10):
    """Expected calibration error in bins of equal count; NaN without cases."""
    said, came, count = reliability(probability, outcome, bins)
    return float((np.abs(said - came) * count).sum() / count.sum()) if len(count) else float("nan")


def in_order(values):
    """bool [N]: rows [N, D] that strictly ascend."""
    return (np.diff(np.asarray(values, np.float64), axis=-1) > 0).all(-1)
