"""Paired tests between systems: all of them share the cases and every resample of patients.

The difference of two systems has its own interval, from the distribution of differences. The p-value is the
two-sided bootstrap one: twice the smaller share of resamples on either side of zero, counting zero on both and the
observed value once, so that it is never 0. Over the headline metrics of one pair of systems, p-values are also given
by Holm's step-down procedure (1979).
"""

import numpy as np

from progemu_jax.eval.bootstrap import estimate
from progemu_jax.eval.definitions import METRICS

HEADLINE = ("finding_auroc", "finding_auroc_changed", "finding_f1", "directional_accuracy", "specificity",
            "group_auroc", "age_r", "cmig", "ssim_unchanged", "text_right", "text_change_f1", "fid")  # fmt: skip


def p_value(difference):
    """Two-sided p of a distribution of differences float [1 + B]; None where it cannot be told."""
    draws = difference[1:][np.isfinite(difference[1:])]
    if not np.isfinite(difference[0]) or len(draws) < 20:
        return None
    tail = 1 + min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * tail / (len(draws) + 1)))


def holm(values):
    """Holm's adjusted p-values of {name: p}: {name: p}, in the same order."""
    order = sorted(values, key=values.get)
    out, worst = {}, 0.0
    for rank, name in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * values[name]))
        out[name] = worst
    return {name: out[name] for name in values}


def compare(a, b):
    """Paired differences a - b of two Measured: metric -> estimate, p, intervals_apart, p_holm for headline ones."""
    out = {}
    for key in METRICS:
        x, y = a.distributions.get(key), b.distributions.get(key)
        if x is None or y is None or x.shape != y.shape:
            continue
        ex, ey = estimate(x), estimate(y)
        apart = None not in (ex.low, ey.low, ex.high, ey.high) and (ex.low > ey.high or ey.low > ex.high)
        out[key] = {**estimate(x - y).to_json(), "p": p_value(x - y), "intervals_apart": bool(apart)}
    known = {k: out[k]["p"] for k in HEADLINE if k in out and out[k]["p"] is not None}
    for key, value in holm(known).items():
        out[key]["p_holm"] = value
    return out


def differences(candidates, measured):
    """The first system minus every other row: key -> metric -> comparison. Not the floor: its halves pair with none."""
    first = candidates[0].key
    return {c.key: compare(measured[first], measured[c.key]) for c in candidates[1:] if c.role != "floor"}


def tests(candidates, measured):
    """Every pair of systems given (not baselines), as a list of {"a", "b", "metrics"}: a minus b."""
    keys = [c.key for c in candidates if c.role == "system"]
    return [
        {"a": a, "b": b, "metrics": compare(measured[a], measured[b])}
        for i, a in enumerate(keys)
        for b in keys[i + 1 :]
    ]
