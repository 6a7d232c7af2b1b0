"""Retention: does the generated image still show the same person?

Group AUROC (one-vs-rest, macro), age Pearson r, sex AUROC, as in MedJourney; Dice = 2|A and B| / (|A| + |B|)
of six organs. Retention relative to what is possible: (value - chance) / (real follow-up - chance).
"""

import numpy as np


class Correlation:
    """Pearson r of x and y [N] (NaN: left out) under weights [B, N]; NaN where either is constant."""

    def __init__(self, x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        self._index = np.flatnonzero(~np.isnan(x) & ~np.isnan(y))
        x, y = x[self._index], y[self._index]
        # By powers of two, which changes no bit of r: the squares of any numbers are numbers then.
        x, y = (np.ldexp(v, -np.frexp(np.abs(v).max(initial=0))[1]) for v in (x, y))
        if len(x):  # shifting changes nothing, but keeps the sums of squares well conditioned
            x, y = x - x.mean(), y - y.mean()
        self._moments = np.stack([x, y, x * x, y * y, x * y], axis=1)
        self._scale = (float(np.abs(x).max(initial=0)), float(np.abs(y).max(initial=0)))

    @property
    def count(self):
        """Number of usable cases."""
        return len(self._index)

    def __call__(self, weights):
        """float [B, N] -> float [B]."""
        w = np.take(weights, self._index, axis=1)
        n = w.sum(1)
        safe = np.where(n > 0, n, 1)
        mx, my, mxx, myy, mxy = (w @ self._moments / safe[:, None]).T
        vx, vy = mxx - mx * mx, myy - my * my
        # A variance of rounding size is that of a constant.
        varies = (vx > 1e-12 * self._scale[0] ** 2) & (vy > 1e-12 * self._scale[1] ** 2) & (n > 0)
        r = np.full(len(w), np.nan)
        r[varies] = (mxy - mx * my)[varies] / np.sqrt(vx[varies] * vy[varies])
        return np.clip(r, -1, 1)


def pearson(x, y):
    """Pearson correlation of x and y [N]; NaN entries are left out; NaN if either is constant."""
    return float(Correlation(x, y)(np.ones((1, len(np.atleast_1d(x)))))[0])


def dice(a, b):
    """Dice of boolean masks [..., H, W] -> float [...]; NaN where both masks are empty."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape:
        raise ValueError(f"masks {a.shape} and {b.shape} differ in shape")
    total = a.sum((-2, -1), dtype=np.int64) + b.sum((-2, -1), dtype=np.int64)
    both = 2.0 * (a & b).sum((-2, -1), dtype=np.int64)
    return np.divide(both, total, out=np.full(np.shape(total), np.nan), where=total > 0)


def packed_dice(a, b):
    """Dice of packed masks uint8 [N, organs, bytes] -> float [N, organs]; NaN where both are empty."""
    count = lambda x: np.bitwise_count(x).sum(-1, dtype=np.int64)  # noqa: E731
    total = count(a) + count(b)
    return np.divide(2.0 * count(a & b), total, out=np.full(total.shape, np.nan), where=total > 0)


def map_correlation(a, b):
    """Pearson r over pixels of maps float [..., h, w] -> float [...]; NaN where either is constant."""
    a, b = (np.asarray(x, np.float64).reshape(*x.shape[:-2], -1) for x in (a, b))
    constant = (np.ptp(a, axis=-1) == 0) | (np.ptp(b, axis=-1) == 0)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    safe = np.where(constant, 1.0, scale)
    return np.where(constant, np.nan, np.clip((a * b).sum(-1) / safe, -1, 1))


def normalised(value, ceiling, chance):
    """(value - chance) / (ceiling - chance), float [B]; NaN where the ceiling is not above chance."""
    value, ceiling = np.asarray(value, np.float64), np.asarray(ceiling, np.float64)
    room = ceiling - chance
    return np.divide(value - chance, room, out=np.full(value.shape, np.nan), where=room > 0)
