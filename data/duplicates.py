"""Patients who are one: public collections list the same films under two patients, and splits must not part them."""

from collections.abc import Iterable, Sequence

import numpy as np

from progemu_jax.data import foreground, images, radiograph
from progemu_jax.data.sources import Study

SIDE = 32  # pixels of the thumbnails compared
SAME = 0.99  # correlation; in the open collection two films of one patient reach .93, one film twice .9999


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Gray uint8 [H, W] -> float32 [SIDE * SIDE], cropped to its foreground, mean 0 and length 1 (or all 0)."""
    corners = foreground.rectangle(image)
    return _normal(image if corners is None else foreground.warp(image, corners))


def _normal(image: np.ndarray) -> np.ndarray:
    values = images.resize(image, SIDE).astype(np.float32).ravel()
    values -= values.mean()
    return values / max(float(np.linalg.norm(values)), 1e-6)


def perceptual_hash(image: np.ndarray) -> str:
    """Cropped gray uint8 [H, W] -> 36 hex digits: which of its 143 lowest frequencies are above their median.

    Films that look alike differ in few bits (`leaks.NEAR`), whatever their size and exposure.
    """
    k = np.arange(SIDE)
    cosines = np.cos(np.pi * k[:12, None] * (2 * k[None] + 1) / (2 * SIDE))
    waves = (cosines @ _normal(image).reshape(SIDE, SIDE) @ cosines.T).ravel()[1:]  # without the mean
    return np.packbits(waves > np.median(waves)).tobytes().hex()


def same_patients(studies: Iterable[Study], block: int = 1024) -> dict[str, str]:
    """Patient -> the first (by name) of those it shares a film with; who shares none is left out.

    Every image is read; those that do not read share nothing. Quadratic in the number of images: for
    collections of some ten thousand.
    """
    patients, thumbnails = [], []
    for study in studies:
        try:
            thumbnails.append(thumbnail(radiograph.read_gray(study.image_path, window=study.window)))
        except images.BrokenImage:
            continue
        patients.append(study.patient_id)
    if not patients:
        return {}
    table = np.stack(thumbnails)
    links = set()
    for start in range(0, len(table), block):
        for i, j in zip(*np.nonzero(table[start : start + block] @ table.T > SAME), strict=True):
            a, b = patients[start + i], patients[j]
            if a < b:
                links.add((a, b))
    return _first_of_each(sorted(links))


def _first_of_each(links: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Links (a < b), sorted -> member of a connected group -> the group's least member."""
    first = {}

    def find(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for a, b in links:
        one, other = sorted((find(a), find(b)))
        first[other] = one
    return {name: find(name) for name in first}
