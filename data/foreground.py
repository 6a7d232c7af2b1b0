"""Foreground crop of a scanned or exported radiograph: the exposed rectangle fills the frame.

The steps are those of ProgEmu's processing (border test, threshold, largest object, minimum-area
rectangle, warp), done with SimpleITK and NumPy.
"""

import numpy as np

from progemu_jax.data.itk import itk
from progemu_jax.errors import UserError

BLACK = 10  # gray level up to which a pixel is background
BORDER_SHARE = 0.30  # more bright border pixels than this: the image already fills its frame


def crop(image: np.ndarray) -> np.ndarray:
    """The foreground of `image` uint8 [H, W], upright and filling the frame; uint8 [H', W'].

    An image whose border is already exposed (over 30 % of border pixels above 10) comes back as it is,
    and so does one without a foreground of at least a tenth of the frame.
    Raises UserError for an array that is not uint8 [H, W].
    """
    corners = rectangle(image)
    return image if corners is None else warp(image, corners)


def rectangle(image: np.ndarray) -> np.ndarray | None:
    """Corners float64 [4, 2] (x, y), from the upper left clockwise, of what `crop` keeps; None: all."""
    check(image)
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    if (border > BLACK).mean() > BORDER_SHARE:
        return None
    return _rectangle(image > BLACK)


def unexposed(image: np.ndarray) -> np.ndarray:
    """bool [H, W]: dark objects of `image` uint8 [H, W] that touch its border, with their soft edge."""
    sitk = itk()

    objects = sitk.ConnectedComponent(sitk.GetImageFromArray((image <= BLACK).astype(np.uint8)), True)
    objects = sitk.GetArrayFromImage(objects)
    touching = np.unique(np.concatenate([objects[0], objects[-1], objects[:, 0], objects[:, -1]]))
    dark = np.isin(objects, touching[touching > 0]).astype(np.uint8)
    radius = max(1, round(min(image.shape) / 64))  # two pixels of 128: interpolation and penumbra
    return sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(dark), [radius] * 2, sitk.sitkBox)) > 0


def check(image, name: str = "image", least: int = 1) -> None:
    """Raises UserError, in one line, unless `image` is uint8 [H, W] of at least `least` pixels a side."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 2:
        dtype, shape = getattr(image, "dtype", type(image).__name__), list(getattr(image, "shape", []))
        raise UserError(f"{name}: expected a gray uint8 array [H, W], got {dtype} {shape}; convert it to 8-bit gray")
    if min(image.shape) < least:
        raise UserError(f"{name}: {image.shape[1]} x {image.shape[0]} pixels, at least {least} a side are needed")


def _rectangle(mask: np.ndarray) -> np.ndarray | None:
    """Corners float64 [4, 2] (x, y), of the largest object's minimum-area rectangle, or None."""
    sitk = itk()

    labels = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    labels = sitk.GetArrayFromImage(sitk.RelabelComponent(labels, sortByObjectSize=True))  # a view would dangle
    largest = labels == 1
    if largest.mean() < 0.1:
        return None
    rows = np.flatnonzero(largest.any(1))
    left, right = largest[rows].argmax(1), largest.shape[1] - 1 - largest[rows, ::-1].argmax(1)
    points = _hull(np.concatenate([np.stack([left, rows], 1), np.stack([right, rows], 1)]).astype(np.float64))
    edges = np.roll(points, -1, 0) - points
    best = None
    for angle in np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2)):
        angle = angle if angle < np.pi / 4 else angle - np.pi / 2  # the image stays upright
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        low, high = (points @ turn.T).min(0), (points @ turn.T).max(0)
        area = np.prod(high - low + 1)
        if best is None or area < best[0] * (1 - 1e-9):
            corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
            best = area, corners @ turn
    return best[1]


def _hull(points: np.ndarray) -> np.ndarray:
    """Convex hull (Andrew's monotone chain) of float64 [N, 2] points."""
    points = np.unique(points, axis=0)
    chains = []
    for ordered in (points, points[::-1]):
        chain = []
        for p in ordered:
            while len(chain) > 1 and _cross(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        chains += chain[:-1] or chain
    return np.array(chains)


def _cross(a, b, c) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def warp(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """What `corners` enclose of `image` uint8 [H, W], upright; uint8 [H', W']. Masks may follow."""
    sitk = itk()

    across, down = corners[1] - corners[0], corners[3] - corners[0]
    width, height = (max(1, round(float(np.hypot(*side)))) + 1 for side in (across, down))
    x, y = across / (width - 1), down / (height - 1)
    transform = sitk.AffineTransform([x[0], y[0], x[1], y[1]], list(map(float, corners[0])))
    resample = sitk.ResampleImageFilter()
    resample.SetSize([width, height])
    resample.SetInterpolator(sitk.sitkLinear)
    resample.SetTransform(transform)
    values = sitk.GetArrayFromImage(resample.Execute(sitk.GetImageFromArray(image.astype(np.float32))))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)  # the filter alone would cut decimals off
