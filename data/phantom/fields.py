"""Smooth building blocks of the phantom's pictures: ramps, blobs, tabulated profiles, noise. All float32."""

from functools import lru_cache

import numpy as np

F = np.float32
SPAN = 1.4  # profiles over u or v are tabulated on [-SPAN, SPAN]
AXIS = np.linspace(-SPAN, SPAN, 384)
AXIS.setflags(write=False)


@lru_cache(maxsize=8)
def grid(size: int) -> np.ndarray:
    """float32 [S]: pixel centres in [-1, 1]."""
    centres = (np.arange(size, dtype=F) + F(0.5)) * F(2 / size) - F(1)
    centres.setflags(write=False)
    return centres


def ramp(d, h):
    """0 -> 1 smoothly as the signed distance d goes from -h to h."""
    t = d * F(0.5 / h)
    t += F(0.5)
    np.maximum(t, F(0), out=t)
    np.minimum(t, F(1), out=t)
    out = t * F(-2)
    out += F(3)
    out *= t
    out *= t
    return out


def bump(q):
    """(1 - q)^2 for q < 1, else 0, of a squared distance q: a smooth blob or line profile."""
    out = F(1) - q
    np.maximum(out, F(0), out=out)
    out *= out
    return out


def hill(x, centre, width):
    return np.exp(-(((x - centre) / width) ** 2))


class Places:
    """Where the elements of a float32 array fall on AXIS, so that many profiles are read at one cost."""

    def __init__(self, x):
        t = (x + F(SPAN)) * F((len(AXIS) - 1) / (2 * SPAN))
        np.clip(t, F(0), F(len(AXIS) - 1), out=t)
        self.index = t.astype(np.int32)
        self.rest = t - self.index

    def read(self, profile):
        """Linear interpolation of a profile float [384] over AXIS."""
        profile = np.asarray(profile, F)
        steps = np.append(np.diff(profile), F(0))
        out = steps.take(self.index)
        out *= self.rest
        out += profile.take(self.index)
        return out


def read_cycle(profile, phase):
    """A periodic profile float [n] over one period, read at phases of any value (nearest sample)."""
    n = len(profile)
    index = (phase * F(n) + F(64 * n)).astype(np.int32)
    index %= n
    return np.asarray(profile, F).take(index)


@lru_cache(maxsize=32)  # the studies of one patient share theirs
def _table(seed: int, stream: int, n: int, exponent: float) -> np.ndarray:
    f = np.fft.fftfreq(n)[:, None] * n
    g = np.fft.rfftfreq(n)[None] * n
    radius = np.maximum(np.sqrt(f * f + g * g), 1e-3)
    spectrum = np.where(radius < 2, 0.0, radius**-exponent)
    white = np.random.default_rng([seed, stream]).standard_normal((n, n))
    table = np.fft.irfft2(np.fft.rfft2(white) * spectrum, s=(n, n))
    table /= table.std()
    wrapped = np.empty((n + 1, n + 1), F)  # one more row and column, for the interpolation
    wrapped[:n, :n] = table
    wrapped[n], wrapped[:, n] = wrapped[0], wrapped[:, 0]
    wrapped[n, n] = table[0, 0]
    return wrapped.ravel()


def noise(u, v, *, seed: int, stream: int, n: int, exponent: float, period: float):
    """Smooth noise at (u, v), unit variance, amplitude spectrum ~ 1 / f^exponent.

    n (a power of two) samples span `period` half image widths, after which it repeats. Read bilinearly.
    """
    flat = _table(seed, stream, n, exponent)
    x = u * F(n / period) + F(4 * n)
    y = v * F(n / period) + F(4 * n)
    i, j = y.astype(np.int32), x.astype(np.int32)
    y -= i
    x -= j
    i &= n - 1
    j &= n - 1
    i *= n + 1
    i += j
    top = flat.take(i)
    top += (flat.take(i + 1) - top) * x
    i += n + 1
    bottom = flat.take(i)
    bottom += (flat.take(i + 1) - bottom) * x
    bottom -= top
    bottom *= y
    top += bottom
    return top
