"""Registration of a follow-up radiograph onto its prior: affine, multi-resolution, deterministic, one thread.

The follow-up always moves and the prior never does. ProgEmu's flags are kept: 2 alike already, left
as it is; 1 moved; 0 left as it is because moving did not help; -1 no pair (another view, a blank image).
"""

import dataclasses

import numpy as np

from progemu_jax.data import foreground

LEAST = 32  # pixels a side
ALIKE = 0.9  # SSIM from which a pair is left as it is
UNLIKE = 0.2  # SSIM under which a pair is rejected


@dataclasses.dataclass(frozen=True)
class Registration:
    """A follow-up moved onto its prior.

    image: uint8 [H, W] in the prior's frame. transform: float64 [2, 3], prior pixel (x, y, 1) ->
    follow-up pixel (x, y). score: SSIM of `image` with the prior. flag: see the module.
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
    before = ssim(prior, unmoved)
    if min(prior.std(), follow.std()) < 1:
        return Registration(unmoved, still, before, -1)
    if before >= ALIKE:
        return Registration(unmoved, still, before, 2)
    transform = _affine(prior, follow, still)
    image = resample(follow, transform, prior.shape)
    after = ssim(prior, image)
    if max(before, after) < UNLIKE:
        return Registration(unmoved, still, before, -1)
    return Registration(image, transform, after, int(transform is not still))


def frame_to_frame(prior_shape, follow_shape) -> np.ndarray:
    """float64 [2, 3] that lays the frame of a follow-up [h, w] on that of a prior [H, W]: the identity of equal sizes."""
    scale = np.array([follow_shape[1] / prior_shape[1], follow_shape[0] / prior_shape[0]])
    return np.column_stack([np.diag(scale), (scale - 1) / 2])


def resample(image: np.ndarray, transform: np.ndarray, shape, linear: bool = False) -> np.ndarray:
    """`image` [h, w] seen through `transform` [2, 3] (target pixel -> image pixel) on a frame `shape`.

    Cubic B-spline, or linear; outside the image its minimum. The dtype of `image` is kept.
    """
    import SimpleITK as sitk

    method = sitk.ResampleImageFilter()
    method.SetNumberOfThreads(1)
    method.SetSize([int(shape[1]), int(shape[0])])
    method.SetInterpolator(sitk.sitkLinear if linear else sitk.sitkBSpline)
    method.SetDefaultPixelValue(float(image.min()))
    method.SetTransform(sitk.AffineTransform(transform[:, :2].ravel().tolist(), transform[:, 2].tolist()))
    return sitk.GetArrayFromImage(method.Execute(sitk.GetImageFromArray(image)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean structural similarity of two uint8 images [H, W] (Wang et al. 2004: 11 x 11 Gaussian, sigma 1.5)."""
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


def _affine(prior: np.ndarray, follow: np.ndarray, still: np.ndarray) -> np.ndarray:
    import SimpleITK as sitk

    size = min(128, max(prior.shape))
    fixed, moving = (_features(_shrink(i, size)) for i in (prior, follow))
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsCorrelation()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-2, 60, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(False)
    start = sitk.AffineTransform(2)
    start.SetCenter([(size - 1) / 2] * 2)
    method.SetInitialTransform(start, inPlace=True)
    try:
        unmoved = method.MetricEvaluate(fixed, moving)
        method.Execute(fixed, moving)
    except RuntimeError:  # the images left each other
        return still
    if not method.GetMetricValue() < unmoved:
        return still
    matrix = np.array(start.GetMatrix()).reshape(2, 2)
    centre = np.array(start.GetCenter())
    offset = centre + start.GetTranslation() - matrix @ centre
    small = np.vstack([np.column_stack([matrix, offset]), [0, 0, 1]])
    to_small = np.vstack([frame_to_frame(prior.shape, (size, size)), [0, 0, 1]])
    from_small = frame_to_frame((size, size), follow.shape)
    return from_small @ small @ to_small


def _shrink(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def _features(image: np.ndarray):
    """Histogram-equalised image in [0, 1]: two exposures of one chest become comparable."""
    import SimpleITK as sitk

    counts = np.bincount(image.ravel(), minlength=256)
    rank = (np.cumsum(counts) - counts / 2) / image.size
    return sitk.GetImageFromArray(rank[image].astype(np.float32))
