"""Patient-level bootstrap (Efron & Tibshirani 1993, chapter 13: percentile intervals).

Patients, not cases, are drawn with replacement, because a patient's cases are not independent. A resample is
a row of weights: how often each patient was drawn. A statistic maps weights [B, cases] to values [B]; row 0
of the weights is all ones, so entry 0 of every distribution is the point estimate. All systems share one set
of weights, so differences and ratios of their distributions are paired.
"""

from dataclasses import dataclass

import numpy as np

CHUNK = 256


class Bootstrap:
    """Weights of `resamples` draws of `patients` patients.

    counts: uint16 [1 + resamples, patients]; row 0 is ones.
    """

    def __init__(self, patients, resamples, seed=0):
        if patients < 1:
            raise ValueError("no patients to draw from")
        rng = np.random.default_rng(seed)
        self.resamples = resamples if patients > 1 else 0  # one patient has no sampling distribution
        self.counts = np.ones((1 + self.resamples, patients), np.uint16)
        for start in range(1, 1 + self.resamples, CHUNK):
            size = min(CHUNK, 1 + self.resamples - start)
            draws = rng.integers(patients, size=(size, patients)) + np.arange(size)[:, None] * patients
            self.counts[start : start + size] = np.bincount(draws.ravel(), minlength=size * patients).reshape(
                size, patients
            )

    def distributions(self, patient, ratios, functions):
        """Distributions of statistics of one table of cases.

        Args:
          patient: int [N], each case's patient.
          ratios: name -> (numerator [N], denominator [N]): sum(w * numerator) / sum(w * denominator), NaN
            where the denominator is not above zero. A mean over valid cases is (values, valid).
          functions: name -> f(weights float64 [B, N]) -> [B].

        Returns:
          name -> float64 [1 + resamples], entry 0 the point estimate.
        """
        out = {name: np.empty(len(self.counts)) for name in (*ratios, *functions)}
        columns = np.stack([c for pair in ratios.values() for c in pair], axis=1) if ratios else None
        for start in range(0, len(self.counts), CHUNK):
            part = slice(start, start + CHUNK)
            weights = np.take(self.counts[part], patient, axis=1).astype(np.float64)
            if ratios:
                sums = weights @ columns
                top, bottom = sums[:, 0::2], sums[:, 1::2]
                values = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
                for k, name in enumerate(ratios):
                    out[name][part] = values[:, k]
            for name, function in functions.items():
                out[name][part] = function(weights)
        return out


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; None where undefined. `undefined`: share of undefined resamples."""

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: float = 0.0
    flags: tuple = ()

    def to_json(self):
        """Plain dict: value, low, high (null if undefined), undefined_resamples, flags."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "undefined_resamples": round(self.undefined, 4),
            "flags": list(self.flags),
        }


def estimate(distribution, level=0.95, flags=()):
    """Estimate of a distribution float [1 + B] whose entry 0 is the point estimate."""
    value, draws = float(distribution[0]), distribution[1:]
    if not np.isfinite(value):
        return Estimate(None, flags=tuple(flags))
    defined = draws[np.isfinite(draws)]
    undefined = 1 - len(defined) / len(draws) if len(draws) else 0.0
    flags = list(flags)
    if undefined > 0.05:
        flags.append(f"undefined in {undefined:.0%} of resamples")
    if len(defined) < 2:
        return Estimate(value, undefined=undefined, flags=(*flags, "no interval: too few patients"))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), undefined, tuple(flags))
