"""Registration of a follow-up radiograph onto its prior: affine, multi-resolution, deterministic, one thread.

The follow-up always moves and the prior never does. What is compared is local contrast (each pixel less
its neighbourhood's mean, over its standard deviation), so exposure, windowing and diffuse opacities count
little and the borders of the lungs count much; collimated and letterboxed parts count nothing. The pose is
the most probable one: a likelihood with unknown noise (its logarithm, so that good matches decide more and
poor ones less), and a Gaussian prior about the identity, as wide as the poses of one patient on two days.
An exhaustive search over shifts and scales by FFT starts a Levenberg-Marquardt refinement on a pyramid,
and both directions are averaged, so the result does not favour either image.

ProgEmu's flags are kept: 2 alike already, left as it is; 1 moved; 0 left as it is because moving did not
help; -1 no pair (another view, a film on its side, upside down or as a negative, a blank image). Unlike
ProgEmu, "alike" is judged on equalised images (two pale images are alike wherever their lungs are), and "no
pair" on the correlation of local contrast after the move: SSIM tells a chest from a turned chest no better
than from another exposure of itself.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image

from progemu_jax.data import foreground
from progemu_jax.data.itk import itk

LEAST = 32  # pixels a side
ALIKE = 0.9  # SSIM from which a pair is left as it is
UNLIKE = 0.4  # score under which a pair is rejected: frontal pairs have 0.5 and more, turned ones under 0.3
UPRIGHT = 0.8  # score from which a film lies right: upside down or as a negative real ones have 0.7 at most

# Pose of the follow-up: shift x, shift y (frame widths), log scale x, log scale y, rotation (rad), shear.
SPREAD = np.array([0.1, 0.1, 0.1, 0.1, 0.02, 0.005])  # standard deviations of the Gaussian prior
DENSITY = 0.1  # independent parts of a pair, in squared neighbourhoods: far fewer than pixels
SEARCH_SCALES = np.linspace(np.log(0.8), np.log(1.25), 5)
LEVELS = ((48, 0.02, 0.08), (80, 0.015, 0.08))  # pixels a side; smoothing and neighbourhood, frame widths
FINE = (128, 0.006, 0.04)  # one more level, trusted only where
SAME_DETAIL = 0.7  # the correlation of fine detail reaches this: below it, ribs lock on to other ribs
WORTH = 1.0  # gain in log posterior (nats) from which a pair is moved
OVERLAP = 0.4  # least share of the prior that the follow-up must cover
GAINS = (0.8, 1.25)  # of one exposure over another of the same patient


@dataclasses.dataclass(frozen=True)
class Registration:
    """A follow-up moved onto its prior.

    image: uint8 [H, W] in the prior's frame. transform: float64 [2, 3], prior pixel (x, y, 1) ->
    follow-up pixel (x, y). score: correlation of local contrast, prior with the moved follow-up, at most 1.
    flag: see the module.
    """

    image: np.ndarray
    transform: np.ndarray
    score: float
    flag: int


def register(prior: np.ndarray, follow: np.ndarray) -> Registration:
    """Moves `follow` uint8 [h, w] onto `prior` uint8 [H, W]; sizes from 32 pixels, they may differ.

    Raises UserError for anything but two gray uint8 arrays of at least 32 pixels a side. A blank image is
    not an error: the pair comes back unmoved with flag -1.
    """
    foreground.check(prior, "prior", LEAST)
    foreground.check(follow, "follow-up", LEAST)
    still = frame_to_frame(prior.shape, follow.shape)
    unmoved = resample(follow, still, prior.shape)
    if min(prior.std(), follow.std()) < 1:
        return Registration(unmoved, still, 0.0, -1)
    pyramid = [[_view(image, *level) for image in (prior, follow)] for level in LEVELS]
    as_is = _Fit(*pyramid[-1], np.zeros(6))
    if ssim(equalise(prior), equalise(unmoved)) >= ALIKE:
        return Registration(unmoved, still, as_is.correlation, 2)
    pose, gain, score = _estimate(prior, follow, pyramid, as_is)
    if score < UNLIKE or (score < UPRIGHT and _wrong_way(*pyramid[0])):
        return Registration(unmoved, still, score, -1)
    if gain < WORTH:
        return Registration(unmoved, still, as_is.correlation, 0)
    transform = _to_pixels(pose, prior.shape, follow.shape)
    return Registration(resample(follow, transform, prior.shape), transform, score, 1)


def turned(found: Registration, prior: np.ndarray, follow: np.ndarray) -> Registration:
    """The other order of `register(prior, follow)`, without a search: `prior` moved onto `follow` by the inverse.

    The prior is resampled as it is, not what was made of it before. Score and flag stay, for both directions were
    averaged; but a move that shows less than OVERLAP of `follow`, black beyond the film, is none: flag -1.
    """
    still = frame_to_frame(follow.shape, prior.shape)
    if found.flag != 1:
        return dataclasses.replace(found, image=resample(prior, still, follow.shape), transform=still)
    transform = np.linalg.inv(np.vstack([found.transform, [0, 0, 1]]))[:2]
    if _reached(transform, follow.shape, prior.shape).mean() < OVERLAP:
        return Registration(resample(prior, still, follow.shape), still, found.score, -1)
    return dataclasses.replace(found, image=resample(prior, transform, follow.shape), transform=transform)


def _reached(transform: np.ndarray, shape, other_shape) -> np.ndarray:
    """Where a frame `shape`, seen through `transform` [2, 3], lies inside an image of `other_shape`: bool [H, W]."""
    y, x = np.indices(shape)
    u, v = np.einsum("ij,jhw->ihw", transform[:, :2], np.stack([x, y])) + transform[:, 2:, None]
    height, width = other_shape
    return (u >= 1) & (u <= width - 2) & (v >= 1) & (v <= height - 2)


def frame_to_frame(prior_shape, follow_shape) -> np.ndarray:
    """float64 [2, 3] laying a follow-up's frame [h, w] on its prior's [H, W]: the identity of equal sizes."""
    return _to_pixels(np.eye(2, 3), prior_shape, follow_shape)


def resample(image: np.ndarray, transform: np.ndarray, shape, linear: bool = False) -> np.ndarray:
    """`image` [h, w] seen through `transform` [2, 3] (target pixel -> image pixel) on a frame `shape`.

    Cubic B-spline, or linear; outside the image its minimum. uint8 is rounded and stays uint8.
    """
    sitk = itk()

    if image.shape == tuple(shape) and np.array_equal(transform, np.eye(2, 3)):
        return image.copy()
    method = sitk.ResampleImageFilter()
    method.SetSize([int(shape[1]), int(shape[0])])
    method.SetInterpolator(sitk.sitkLinear if linear else sitk.sitkBSpline)
    method.SetDefaultPixelValue(float(image.min()))
    method.SetTransform(sitk.AffineTransform(transform[:, :2].ravel().tolist(), transform[:, 2].tolist()))
    values = sitk.GetArrayFromImage(method.Execute(sitk.GetImageFromArray(image.astype(np.float32))))
    if image.dtype == np.uint8:  # rounded here: the filter would cut decimals off
        values = np.clip(np.round(values), 0, 255)
    return values.astype(image.dtype)


def fill_uncovered(image: np.ndarray, prior: np.ndarray, transform: np.ndarray, follow_shape) -> np.ndarray:
    """The registered follow-up with the prior's pixels where either film shows nothing.

    image, prior: uint8 [H, W]; transform [2, 3] from prior to follow-up pixels; follow_shape: (h, w). A film
    shows nothing beyond its edge and in what `foreground.unexposed` finds: collimation, and air around the
    patient. Left in, as the reference leaves them, frames of random width are the largest change between
    most pairs, and the first thing a model learns to draw.
    """
    reached = _reached(transform, prior.shape, follow_shape)
    nothing = foreground.unexposed(np.where(reached, image, 0)) | foreground.unexposed(prior)
    return np.where(nothing, prior, image)


def match_exposure(image: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The registered follow-up as the prior's exposure would have shown it, and (gain, offset) in gray levels.

    image, prior: uint8 [H, W] in one frame. A straight line is fitted to the gray levels of the pixels that both
    films expose, by Tukey's biweight: what disease changed is an outlier and moves nothing. No prompt speaks
    of exposure, yet it changes the codes of the whole image.
    """
    shown = ~foreground.unexposed(prior) & ~foreground.unexposed(image)
    if shown.mean() < OVERLAP:
        return image, (1.0, 0.0)
    x, y = image[shown].astype(np.float64), prior[shown].astype(np.float64)
    gain, offset = 1.0, float(np.median(y - x))
    for _ in range(12):
        residual = np.abs(y - gain * x - offset)
        weight = np.square(np.clip(1 - np.square(residual / max(4.0, 4.5 * np.median(residual))), 0, None))
        mean_x, mean_y = np.average(x, weights=weight), np.average(y, weights=weight)
        spread = np.sum(weight * np.square(x - mean_x))
        slope = np.sum(weight * (x - mean_x) * (y - mean_y)) / spread if spread > 0 else 1.0
        gain = float(np.clip(slope, *GAINS))
        offset = float(mean_y - gain * mean_x)
    matched = np.clip(np.rint(gain * image + offset), 0, 255).astype(np.uint8)
    return np.where(shown, matched, image), (gain, offset)


def equalise(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] -> uint8 [H, W], histogram-equalised: two exposures of one chest become comparable."""
    counts = np.bincount(image.ravel(), minlength=256)
    rank = (np.cumsum(counts) - counts / 2) / image.size
    return np.round(255 * rank).astype(np.uint8)[image]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two uint8 [H, W] (Wang et al. 2004: 11 x 11 Gaussian, sigma 1.5)."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    mean_a, mean_b, aa, bb, ab = (_window(m) for m in (a, b, a * a, b * b, a * b))
    var = aa - mean_a**2 + bb - mean_b**2
    cov = ab - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    s = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var + c2))
    return float(s.mean(dtype=np.float64))


def _window(image: np.ndarray) -> np.ndarray:
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2)).astype(np.float32)
    taps /= taps.sum()
    for _ in range(2):  # rows, then columns
        n = image.shape[0] - 10
        image = sum(t * image[i : i + n] for i, t in enumerate(taps)).T
    return image


# Estimation, in frame coordinates: [-0.5, 0.5] across and down each image, whatever its size.


def _estimate(prior, follow, pyramid, as_is) -> tuple[np.ndarray, float, float]:
    """Frame of the prior -> frame of the follow-up [2, 3], its gain in log posterior over none, its score."""
    there = _search(*pyramid[0])
    back = np.concatenate([-there[:2] / np.exp(there[2:4]), -there[2:]])
    for fixed, moving in pyramid:
        best = _refine(fixed, moving, there)
        there, back = best.pose, _refine(moving, fixed, back).pose
    gain = as_is.cost - best.cost
    if min(prior.shape + follow.shape) < 2 * FINE[0]:  # no finer detail in there
        return _both_ways(there, back), gain, best.correlation
    fixed, moving = (_view(image, *FINE) for image in (prior, follow))
    fits = _refine(fixed, moving, there), _refine(moving, fixed, back)
    if min(fit.correlation for fit in fits) >= SAME_DETAIL:
        there, back = (fit.pose for fit in fits)
        gain = _Fit(fixed, moving, np.zeros(6)).cost - fits[0].cost
    return _both_ways(there, back), gain, best.correlation


def _both_ways(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    reverse = np.linalg.inv(np.vstack([_matrix(back), [0, 0, 1]]))[:2]
    return (_matrix(there) + reverse) / 2


class _View:
    """An image at one level: local contrast and its weight, float32 [n, n]; 0 where nothing was exposed."""

    def __init__(self, image: np.ndarray, size: int, smooth: float, wide: float):
        self.size, self.evidence = size, DENSITY / wide**2
        small = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        gray = _blur(equalise(small).astype(np.float32) / 255, smooth * size)
        contrast = gray - _blur(gray, wide * size)
        contrast /= np.sqrt(_blur(contrast**2, wide * size) + 0.003)  # flat parts are not blown up
        exposed = _blur((small > foreground.BLACK).astype(np.float32), 0.02 * size) > 0.8
        if exposed.mean() < 0.1:  # a dark export
            exposed[:] = True
        u = _axis(size)
        self.x, self.y = (a.ravel() for a in np.meshgrid(u, u))
        central = np.exp(-(u[:, None] ** 2 + u**2) / (2 * 0.45**2))  # lungs are seldom at the very border
        self.contrast, self.weight = contrast, (exposed * central).astype(np.float32)
        self.planes = np.stack([self.contrast, self.weight])
        slope_y, slope_x = np.gradient(contrast)
        self.slopes = np.stack([slope_x, slope_y]) * size


def _view(image: np.ndarray, *level: float) -> _View:
    """`_View`, made once for an image that is in several pairs of a patient."""
    return _kept_view(image.tobytes(), image.shape, level)


@functools.lru_cache(16)  # four studies of a patient at each level
def _kept_view(pixels: bytes, shape: tuple[int, int], level: tuple) -> _View:
    return _View(np.frombuffer(pixels, np.uint8).reshape(shape), *level)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    sitk = itk()

    method = sitk.SmoothingRecursiveGaussianImageFilter()
    method.SetSigma(sigma)
    return sitk.GetArrayFromImage(method.Execute(sitk.GetImageFromArray(image)))


def _axis(size: int) -> np.ndarray:
    return ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)


def _sample(stack: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear values [C, N] of `stack` [C, n, n] at frame coordinates [N], and whether each is inside."""
    n = stack.shape[-1]
    x, y = (x + 0.5) * n - 0.5, (y + 0.5) * n - 0.5
    inside = (x >= 0) & (x <= n - 1) & (y >= 0) & (y <= n - 1)
    x, y = np.clip(x, 0, n - 1.001), np.clip(y, 0, n - 1.001)
    column, row = np.floor(x), np.floor(y)
    x, y = x - column, y - row
    flat, k = stack.reshape(len(stack), -1), (row * n + column).astype(np.intp)
    upper, lower = ((1 - x) * flat.take(i, 1) + x * flat.take(i + 1, 1) for i in (k, k + n))
    return (1 - y) * upper + y * lower, inside


def _spectra(planes: np.ndarray) -> np.ndarray:
    """Planes [2, n, n] of a view -> what `_by_shift` multiplies; padded, so that half a frame does not wrap around."""
    contrast, weight = planes
    side = len(weight) + len(weight) // 2
    return np.fft.rfft2(np.stack([contrast * weight, contrast**2 * weight, weight]), s=(side, side))


def _by_shift(first: np.ndarray, second: np.ndarray, least: float) -> np.ndarray:
    """Correlation of local contrast at every shift, float32 [P, P]; -inf where less than `least` overlaps."""
    second, side = second.conj(), first.shape[1]
    products = [first[0] * second[0], first[1] * second[2] + first[2] * second[1], first[2] * second[2]]
    cross, energy, overlap = np.fft.irfft2(np.stack(products), s=(side, side))
    return np.where(overlap < least, -np.inf, 2 * cross / np.maximum(energy, 1e-3))


def _shifts(fixed: "_View") -> np.ndarray:
    side = fixed.size + fixed.size // 2
    return np.fft.fftfreq(side, 1 / side) / fixed.size


def _cost(fixed: "_View", correlation: np.ndarray, deviations) -> np.ndarray:
    """Minus the log posterior of poses; deviations: from the identity, in standard deviations of the prior."""
    misfit = fixed.evidence / 2 * np.log(np.clip(1 - correlation, 1e-4, None))
    return misfit + sum(d**2 for d in deviations) / 2


def _search(fixed: "_View", moving: "_View") -> np.ndarray:
    """The most probable pose [6] among all shifts and a grid of scales, without rotation and shear."""
    shift, first, least = _shifts(fixed), _spectra(fixed.planes), OVERLAP * fixed.weight.sum()
    best, lowest = np.zeros(6), np.inf
    for scale_x in SEARCH_SCALES:
        for scale_y in SEARCH_SCALES:
            values, inside = _sample(moving.planes, fixed.x * np.exp(scale_x), fixed.y * np.exp(scale_y))
            values[1] *= inside
            correlation = _by_shift(first, _spectra(values.reshape(moving.planes.shape)), least)
            # Shifting the scaled follow-up by s moves the point it is read at by -s times the scale.
            down, across = -shift[:, None] * np.exp(scale_y), -shift * np.exp(scale_x)
            deviations = (across / SPREAD[0], down / SPREAD[1], scale_x / SPREAD[2], scale_y / SPREAD[3])
            cost = _cost(fixed, correlation, deviations)
            i, j = np.unravel_index(cost.argmin(), cost.shape)
            if cost[i, j] < lowest:
                lowest = cost[i, j]
                best = np.array([across[j], down[i, 0], scale_x, scale_y, 0, 0])
    return best


def _wrong_way(fixed: "_View", moving: "_View") -> bool:
    """Whether the follow-up fits clearly better on its side, upside down or as a negative than as it is.

    Only shifts are tried. A chest mirrored left to right is too like itself to be told.
    """
    shift, first, least = _shifts(fixed), _spectra(fixed.planes), OVERLAP * fixed.weight.sum()
    deviations = (shift / SPREAD[0], shift[:, None] / SPREAD[1])
    turns = [np.rot90(moving.planes, k, (1, 2)) for k in range(4)] + [moving.planes[:, ::-1]]
    planes = [*turns, moving.planes * np.array([-1, 1], np.float32)[:, None, None]]
    upright, *others = (_cost(fixed, _by_shift(first, _spectra(p), least), deviations).min() for p in planes)
    return min(others) < upright - WORTH


def _refine(fixed: "_View", moving: "_View", pose: np.ndarray, steps: int = 20) -> "_Fit":
    """Levenberg-Marquardt from `pose` [6] to the nearest most probable pose."""
    fit, damping = _Fit(fixed, moving, pose), 1e-2
    for _ in range(steps):
        hessian, gradient = fit.derivatives()
        for _ in range(5):
            move = -np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            trial = _Fit(fixed, moving, fit.pose + move)
            if trial.cost < fit.cost:
                break
            damping *= 5
        else:
            break
        fit, damping = trial, max(damping / 5, 1e-4)
        if np.abs(move).max() < 0.03 / fixed.size:  # a thirtieth of a pixel
            break
    return fit


class _Fit:
    """How well `moving` at a pose explains `fixed`: `cost`, minus the log posterior, and its derivatives."""

    def __init__(self, fixed: _View, moving: _View, pose: np.ndarray):
        self.pose, self.moving = pose, moving
        self.x, self.y = fixed.x, fixed.y
        matrix = _matrix(pose).astype(np.float32)
        self.at = [row[0] * self.x + row[1] * self.y + row[2] for row in matrix]
        (contrast, weight), inside = _sample(moving.planes, *self.at)
        target, weight_of_target = fixed.planes.reshape(2, -1)
        self.weight = weight * weight_of_target * inside
        self.weight /= self.weight.sum() + 1e-6
        self.residual = contrast - target
        self.noise = float((self.weight * self.residual**2).sum()) + 1e-4
        energy = float((self.weight * (contrast**2 + target**2)).sum()) + 1e-4
        covered = weight_of_target[inside].sum() > OVERLAP * weight_of_target.sum()
        self.correlation = 1 - self.noise / energy
        log_likelihood = -fixed.evidence / 2 * np.log(1 - self.correlation) if covered else -np.inf
        self.cost = ((pose / SPREAD) ** 2).sum() / 2 - log_likelihood

    def derivatives(self) -> tuple[np.ndarray, np.ndarray]:
        """Gauss-Newton Hessian [6, 6] and gradient [6] in the pose."""
        (slope_x, slope_y), _ = _sample(self.moving.slopes, *self.at)
        a, b, angle, shear = self.pose[2:]
        turn, quarter = _rotation(angle), _rotation(angle + np.pi / 2)
        parts = [np.diag([np.exp(a), 0]), np.diag([0, np.exp(b)]), _stretch(a, b, shear), _swap(1.0)]
        linear = [(quarter if i == 2 else turn) @ part for i, part in enumerate(parts)]
        jacobian = [slope_x, slope_y] + [
            slope_x * (m[0, 0] * self.x + m[0, 1] * self.y) + slope_y * (m[1, 0] * self.x + m[1, 1] * self.y)
            for m in linear
        ]
        jacobian = np.stack(jacobian).astype(np.float64)
        weighted = jacobian * (self.weight * (self.moving.evidence / self.noise))
        # einsum, unlike a matrix product, stays on this thread.
        hessian = np.einsum("ip,jp->ij", weighted, jacobian) + np.diag(1 / SPREAD**2)
        return hessian, np.einsum("ip,p->i", weighted, self.residual) + self.pose / SPREAD**2


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _swap(shear: float) -> np.ndarray:
    return np.array([[0, shear], [shear, 0]])


def _stretch(a: float, b: float, shear: float) -> np.ndarray:
    return np.diag(np.exp([a, b])) + _swap(shear)


def _matrix(pose: np.ndarray) -> np.ndarray:
    """float64 [2, 3] of a pose [6]: scale and shear first, then rotation, then shift."""
    x, y, a, b, angle, shear = pose
    return np.column_stack([_rotation(angle) @ _stretch(a, b, shear), [x, y]])


def _to_pixels(frame: np.ndarray, prior_shape, follow_shape) -> np.ndarray:
    """Frame coordinates to frame coordinates [2, 3] -> prior pixel (x, y, 1) to follow-up pixel (x, y)."""
    size, target = (np.array(shape[::-1], np.float64) for shape in (prior_shape, follow_shape))
    linear = target[:, None] * frame[:, :2] / size
    return np.column_stack(
        [linear, linear @ np.full(2, 0.5) + target * (frame[:, 2] + 0.5 - frame[:, :2].sum(1) / 2) - 0.5]
    )
