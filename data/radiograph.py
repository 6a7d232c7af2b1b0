"""A radiograph's file, of any kind that is read here, as a gray image."""

from functools import partial
from pathlib import Path

import numpy as np

from progemu_jax.data import dicom, images


def read_gray(
    path: str | Path, *, max_pixels: int = images.MAX_PIXELS, window: tuple[float, float, float] | None = None
) -> np.ndarray:
    """The image of a PNG, JPEG or (by its name, *.dcm) DICOM file as gray uint8 [H, W].

    Colour, palette and alpha are reduced to luminance; 16-bit and float images are windowed from their least
    to their greatest value, as MIMIC-CXR-JPG does, or in the `window` that their source gives (`sources.Study.window`;
    DICOM has its own). Raises BrokenImage for a file that is missing, truncated,
    no PNG or JPEG, blank, under 32 pixels a side, or over `max_pixels` (checked before any decoding).
    """
    if str(path).endswith(".dcm"):
        return dicom.read_gray(path, max_pixels=max_pixels)
    image = images.read(path, partial(images.to_gray, window=window), max_pixels=max_pixels)
    if image.min() == image.max():
        raise images.BrokenImage("the image is blank")
    return image
