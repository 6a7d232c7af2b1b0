"""SSIM, MS-SSIM, PSNR of uint8 gray images, whole or outside a changed region.

SSIM: Wang et al. 2004, 11 x 11 Gaussian window, sigma 1.5, K1 = .01, K2 = .03, L = 255, population
covariances, mean over windows that lie inside the image. MS-SSIM: Wang et al. 2003, weights (.0448, .2856,
.3001, .2363, .1333), 2 x 2 average pooling. An image too small for five scales uses the first s of them,
their weights rescaled to sum to one: state s beside the number. PSNR = 10 log10(255^2 / MSE), dB.

Outside a changed region, SSIM and MS-SSIM are means over windows that touch none of it, PSNR over its outside pixels.
"""

from functools import cached_property

import numpy as np

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
STRIP = 32
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _band():
    """float [STRIP, STRIP + 10]: row i holds the Gaussian from column i on."""
    x = np.arange(WINDOW) - WINDOW // 2
    g = np.exp(-(x**2) / (2 * SIGMA**2))
    out = np.zeros((STRIP, STRIP + WINDOW - 1))
    for i in range(STRIP):
        out[i, i : i + WINDOW] = g / g.sum()
    return out


_BAND = _band()
_BAND_T = np.ascontiguousarray(_BAND.T)


def _blur(x):
    """Separable Gaussian of float64 [H, W], valid positions only: strips times a banded matrix, the fastest on CPU."""
    edge = WINDOW - 1
    height, width = x.shape[0] - edge, x.shape[1] - edge
    rows, out = np.empty((height, x.shape[1])), np.empty((height, width))
    for r in range(0, height, STRIP):
        n = min(STRIP, height - r)
        np.matmul(_BAND[:n, : n + edge], x[r : r + n + edge], out=rows[r : r + n])
    for c in range(0, width, STRIP):
        n = min(STRIP, width - c)
        np.matmul(rows[:, c : c + n + edge], _BAND_T[: n + edge, :n], out=out[:, c : c + n])
    return out


def _check(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"images {a.shape} and {b.shape} must be gray and of one size")
    return a.astype(np.float64), b.astype(np.float64)


def _pool(x):
    h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    return (x[0:h:2, 0:w:2] + x[1:h:2, 0:w:2] + x[0:h:2, 1:w:2] + x[1:h:2, 1:w:2]) / 4


class Level:
    """One scale of an image: pixels float64 [H, W] and, once asked for, its windows' means and mean squares."""

    def __init__(self, pixels):
        self.pixels = pixels

    @cached_property
    def moments(self):
        """(blurred pixels, blurred squares), float64 [H - 10, W - 10]."""
        return _blur(self.pixels), _blur(self.pixels * self.pixels)

    def maps(self, other):
        """(SSIM map, contrast-structure map), float64 [H - 10, W - 10]."""
        (mx, xx), (my, yy) = self.moments, other.moments
        contrast = _blur(self.pixels * other.pixels)
        full = np.empty_like(contrast)
        for top in range(0, len(full), STRIP):  # strips stay in the processor's cache
            part = slice(top, top + STRIP)
            x, y, cs = mx[part], my[part], contrast[part]
            product, squares = x * y, x * x
            squares += y * y
            cs -= product
            cs *= 2
            cs += C2
            cs /= xx[part] + yy[part] - squares + C2
            product *= 2
            product += C1
            squares += C1
            product /= squares
            np.multiply(product, cs, out=full[part])
        return full, contrast


class Region:
    """What is outside a changed region, scale by scale. changed: bool [H, W]."""

    def __init__(self, changed):
        self.outside = [~np.asarray(changed, bool)]
        self._windows = {}

    def pixels(self, scale=0):
        """bool [H, W] of the scale: pixels that hold nothing changed."""
        while len(self.outside) <= scale:
            x = self.outside[-1]
            h, w = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
            self.outside.append(x[:h, :w].reshape(h // 2, 2, w // 2, 2).all((1, 3)))
        return self.outside[scale]

    def windows(self, scale=0):
        """bool [H - 10, W - 10] of the scale: 11 x 11 windows that touch nothing changed."""
        if scale not in self._windows:
            self._windows[scale] = _box(~self.pixels(scale), WINDOW) == 0
        return self._windows[scale]


class Pyramid:
    """A uint8 image [H, W] at each scale of MS-SSIM, its moments kept: an image is compared with several others."""

    def __init__(self, image):
        image = np.asarray(image)
        if image.ndim != 2:
            raise ValueError(f"image {image.shape} must be gray")
        self.shape = image.shape
        self.levels = [Level(image.astype(np.float64))]

    def level(self, scale):
        """Level of a scale, 0 the image itself."""
        while len(self.levels) <= scale:
            self.levels.append(Level(_pool(self.levels[-1].pixels)))
        return self.levels[scale]

    def compare(self, other, regions=(None,), multi=True):
        """[(SSIM, MS-SSIM) for each of `regions`] with another Pyramid of the same size; NaN where no window fits.

        regions: of Region or None (everywhere); in a Region only windows outside it count, on as many scales as have
          one. The maps are made once for all.
        multi: False leaves MS-SSIM out (NaN).
        """
        if self.shape != other.shape:
            raise ValueError(f"images {self.shape} and {other.shape} must be gray and of one size")
        steps, open_ = [[] for _ in regions], set(range(len(regions)))
        for scale in range(scales(self.shape) if multi else min(1, scales(self.shape))):
            masks = {i: None if regions[i] is None else regions[i].windows(scale) for i in open_}
            open_ = {i for i, mask in masks.items() if mask is None or mask.any()}
            if not open_:
                break
            maps = self.level(scale).maps(other.level(scale))
            for i in open_:
                where = True if masks[i] is None else masks[i]
                count = maps[0].size if masks[i] is None else np.count_nonzero(where)
                steps[i].append([float(np.sum(m, where=where)) / count for m in maps])
        return [_combine(s, multi) for s in steps]

    def similarities(self, other, region=None, multi=True):
        """(SSIM, MS-SSIM) with another Pyramid, everywhere or outside one Region; see `compare`."""
        return self.compare(other, (region,), multi)[0]

    def ms_ssim(self, other):
        """Multi-scale SSIM with another Pyramid."""
        return self.similarities(other)[1]


def _combine(steps, multi):
    """(SSIM, MS-SSIM) of the (SSIM, contrast) means of each scale."""
    if not steps:
        return float("nan"), float("nan")
    if not multi:
        return steps[0][0], float("nan")
    weights = np.array(SCALES[: len(steps)])
    if len(steps) < len(SCALES):  # all five stand as printed, though they sum to 1.0001
        weights /= weights.sum()
    # The coarsest scale counts whole, the others by contrast and structure. A negative mean has no real power; as
    # usual it counts as no similarity.
    last = len(steps) - 1
    terms = [max(full if s == last else contrast, 0.0) for s, (full, contrast) in enumerate(steps)]
    return steps[0][0], float(np.prod(np.array(terms) ** weights))


def ssim(a, b, region=None):
    """Structural similarity of two uint8 images [H, W]; NaN if smaller than the 11 x 11 window.

    region: if given, the mean is over windows outside that Region (NaN if there are none).
    """
    return Pyramid(a).similarities(Pyramid(b), region, multi=False)[0]


def scales(shape):
    """How many of MS-SSIM's five scales fit an image of this shape (the window must fit the coarsest)."""
    side = min(shape)
    return sum(side >> s >= WINDOW for s in range(len(SCALES)))


def ms_ssim(a, b, region=None):
    """Multi-scale SSIM of two uint8 images [H, W]; NaN if not even one scale fits."""
    return Pyramid(a).similarities(Pyramid(b), region)[1]


def psnr(a, b, region=None):
    """Peak signal-to-noise ratio in dB of two uint8 images [H, W]; infinite if identical, NaN without pixels."""
    a, b = _check(a, b)
    squares = (a - b) ** 2
    squares = squares if region is None else squares[region.pixels()]
    if not squares.size:
        return float("nan")
    mse = squares.mean()
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def mean_absolute_error(a, b):
    """Mean absolute difference in gray levels (0..255)."""
    a, b = _check(a, b)
    return float(np.abs(a - b).mean())


def tea(image, prior, truth):
    """(effectiveness, amplification) of an edit: TEA (Stanley et al., MICCAI 2025), as its code computes it.

    With edit e = image - prior and true edit t = truth - prior, on intensities from 0 to 1: (e, t) / (t, t), the share
    of the true edit that was made (0 a copy, 1 all of it, above 1 more than that), and the length of the rest, of e
    less effectiveness times t (0 or more; it grows with the number of pixels). (NaN, NaN) where the true edit is none.

    image, prior, truth: gray levels 0 to 255, [H, W].
    """
    image, prior = _check(image, prior)
    edit, step = image - prior, _check(truth, prior)[0] - prior
    length = np.sum(step**2)
    if not length:
        return float("nan"), float("nan")
    effectiveness = np.sum(edit * step) / length
    return float(effectiveness), float(np.linalg.norm(edit - effectiveness * step) / 255)


def _box(x, n):
    """Sums of bool [H, W] over n x n boxes that lie inside: int [H - n + 1, W - n + 1]."""
    total = np.pad(x.astype(np.int32).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    return total[n:, n:] - total[:-n, n:] - total[n:, :-n] + total[:-n, :-n]


def dilate(mask, reach):
    """bool [H, W]: pixels within `reach` rows and columns of a True one."""
    return _box(np.pad(np.asarray(mask, bool), reach), 2 * reach + 1) > 0
