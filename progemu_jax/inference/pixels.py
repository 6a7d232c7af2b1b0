"""Images in any form -> pixels of a model: gray at its size, or RGB as Emu3's image processor resizes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pil

from progemu_jax.data import images
from progemu_jax.errors import UserError
from progemu_jax.inference import request


def read(image: Any, mode: str) -> np.ndarray:
    """Pixels of an image in any form: a path (PNG or JPEG), a PIL image, or an array [H, W], [H, W, 1] or [H, W, 3],
    uint8 or float in [0, 1].

    Colour and alpha are reduced to luminance for mode "L", alpha is dropped for "RGB"; 16-bit and float files are
    windowed from their least to their greatest value. An array must be scaled by its owner.

    Returns:
      uint8 [H, W] for mode "L", [H, W, 3] for "RGB".

    Raises:
      UserError: what is wrong, in one line.
    """

    def convert(opened: Any) -> np.ndarray:
        deep = opened.mode.startswith(("I", "F"))
        if mode == "L":
            return images.to_gray(opened)
        return np.asarray((pil.fromarray(images.to_gray(opened)) if deep else opened).convert(mode))

    if isinstance(image, (str, os.PathLike)):
        try:
            return images.read(Path(image), convert)
        except images.BrokenImage as error:
            raise UserError(f"{image}: {error}; give a PNG or JPEG of a radiograph") from None
    if isinstance(image, pil.Image):
        try:
            return convert(image)
        except (images.BrokenImage, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"image: {error or type(error).__name__}; give a radiograph") from None
    image = request.array("image", image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.size == 0 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        alpha = "; drop alpha: image[..., :3]" if image.ndim == 3 and image.shape[-1] == 4 else ""
        raise UserError(f"image: expected [H, W] or [H, W, 3], got shape {image.shape}{alpha}")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise UserError("image: floats must be finite and in [0, 1]; scale it or pass uint8")
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"image: expected uint8 or float in [0, 1], got {image.dtype}; scale it to 8 bits")
    return np.asarray(pil.fromarray(image).convert(mode))


def gray(image: Any, size: tuple[int, int]) -> np.ndarray:
    """A radiograph in any form that `read` takes -> uint8 [H, W] of `size`, resized as training images were.

    Raises UserError also for one that is blank or too small to be a radiograph.
    """
    pixels = read(image, "L")
    least = min(images.LEAST, *size)
    if min(pixels.shape) < least:
        raise UserError(f"image: {pixels.shape[0]} x {pixels.shape[1]} pixels, at least {least} a side are needed")
    if pixels.min() == pixels.max():
        raise UserError(f"image: blank, every pixel is {pixels.min()}; give a radiograph")
    return images.resize(pixels, size)


def luma(rgb: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] -> gray uint8 [...], by the weights and rounding of PIL's `convert("L")`."""
    weights = np.asarray([19595, 38470, 7471], np.uint32)
    return ((rgb.astype(np.uint32) @ weights + 0x8000) >> 16).astype(np.uint8)


def to_gray(images: np.ndarray) -> np.ndarray:
    """uint8 [..., C] of one channel, or of three (luminance) -> [...]."""
    return luma(images) if images.shape[-1] == 3 else images[..., 0]
