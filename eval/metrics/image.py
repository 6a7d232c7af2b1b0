"""SSIM, MS-SSIM, PSNR of uint8 gray images.

SSIM: Wang et al. 2004, 11 x 11 Gaussian window, sigma 1.5, K1 = .01, K2 = .03, L = 255, population
covariances, mean over windows that lie inside the image. MS-SSIM: Wang et al. 2003, weights (.0448, .2856,
.3001, .2363, .1333), 2 x 2 average pooling. An image too small for five scales uses the first s of them,
their weights rescaled to sum to one: state s beside the number. PSNR = 10 log10(255^2 / MSE), dB.
"""

import numpy as np

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
STRIP = 32
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _gaussian():
    x = np.arange(WINDOW) - WINDOW // 2
    g = np.exp(-(x**2) / (2 * SIGMA**2))
    return (g / g.sum()).astype(np.float64)


_TAPS = _gaussian()


def _blur(x):
    """Separable Gaussian over the last two axes, valid positions only."""
    for axis in (-2, -1):
        x = np.moveaxis(x, axis, -2)
        n = x.shape[-2] - WINDOW + 1
        out = x[..., WINDOW // 2 : WINDOW // 2 + n, :] * _TAPS[WINDOW // 2]
        for k in range(WINDOW // 2):  # the window is symmetric: one product for two taps
            last = WINDOW - 1 - k
            out += (x[..., k : k + n, :] + x[..., last : last + n, :]) * _TAPS[k]
        x = np.moveaxis(out, -2, axis)
    return x


def _check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"images must be gray and of one size, not {a.shape} and {b.shape}")
    return a.astype(np.float64), b.astype(np.float64)


def _maps(a, b):
    """Maps of SSIM and of its contrast-structure part, float [H - 10, W - 10]."""
    full, contrast = np.empty((2, a.shape[0] - WINDOW + 1, a.shape[1] - WINDOW + 1))
    for top in range(0, len(full), STRIP):  # strips stay in the processor's cache
        out = slice(top, top + STRIP)
        x, y = a[top : top + STRIP + WINDOW - 1], b[top : top + STRIP + WINDOW - 1]
        mx, my, sxx_syy, sxy = _blur(np.stack([x, y, x * x + y * y, x * y]))
        squares, product = mx * mx + my * my, mx * my
        contrast[out] = (2 * (sxy - product) + C2) / (sxx_syy - squares + C2)
        full[out] = contrast[out] * (2 * product + C1) / (squares + C1)
    return full, contrast


def ssim(a, b, where=None):
    """Structural similarity of two uint8 images [H, W]; NaN if smaller than the 11 x 11 window.

    `where`: bool [H, W]; if given, the mean is over windows centred on True (NaN if there are none).
    """
    a, b = _check(a, b)
    if min(a.shape) < WINDOW:
        return float("nan")
    value = _maps(a, b)[0]
    if where is None:
        return float(value.mean())
    half = WINDOW // 2
    inside = np.asarray(where, bool)[half:-half, half:-half]
    return float(value[inside].mean()) if inside.any() else float("nan")


def scales(shape):
    """How many of MS-SSIM's five scales fit an image of this shape (the window must fit the coarsest)."""
    side = min(shape)
    return sum(side >> s >= WINDOW for s in range(len(SCALES)))


def ms_ssim(a, b):
    """Multi-scale SSIM of two uint8 images [H, W]; NaN if not even one scale fits."""
    return similarities(a, b)[1]


def similarities(a, b):
    """(SSIM, MS-SSIM) of two uint8 images [H, W] for little more than the price of one."""
    a, b = _check(a, b)
    count = scales(a.shape)
    if not count:
        return float("nan"), float("nan")
    weights = np.array(SCALES[:count]) / sum(SCALES[:count])
    single, value = float("nan"), 1.0
    for s in range(count):
        full, contrast = (float(m.mean()) for m in _maps(a, b))
        single = full if s == 0 else single
        # A negative mean has no real power; as usual it counts as no similarity.
        value *= max(full if s == count - 1 else contrast, 0.0) ** weights[s]
        a, b = _pool(a), _pool(b)
    return single, value


def _pool(x):
    h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    return x[:h, :w].reshape(h // 2, 2, w // 2, 2).mean((1, 3))


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of two uint8 images [H, W]; infinite if identical."""
    a, b = _check(a, b)
    mse = np.mean((a - b) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def mean_absolute_error(a, b):
    """Mean absolute difference in gray levels (0..255)."""
    a, b = _check(a, b)
    return float(np.abs(a - b).mean())


def unchanged(a, b):
    """bool [H, W]: pixels whose 11 x 11 window holds no difference between uint8 images a and b."""
    a, b = _check(a, b)
    differs = np.pad((a != b).astype(np.int64), WINDOW // 2)
    total = np.pad(differs.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # integral image
    n = WINDOW
    return total[n:, n:] - total[:-n, n:] - total[n:, :-n] + total[:-n, :-n] == 0
