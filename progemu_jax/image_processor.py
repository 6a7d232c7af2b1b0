"""Images in any form -> pixels of a model: gray at its size, or RGB as Emu3's image processor resizes them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax.data import images
from progemu_jax.errors import UserError


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """A size of about the same shape with sides divisible by `factor` and `min_pixels` to `max_pixels` pixels.

    Emu3's rule (`smart_resize` of its image processor, which follows Qwen2-VL). Raises UserError for a side below
    `factor`, and for one side more than five times the other.
    """
    if min(height, width) < factor or max(height, width) > 5 * min(height, width):
        raise UserError(
            f"image {height} x {width}: expected sides of at least {factor}, neither five times the other; crop it"
        )
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif h * w < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return h, w


@dataclass(frozen=True)
class ImageProcessor:
    """Emu3's: RGB, bicubic to `smart_resize`'s size. Scaling to [-1, 1] (mean and std 0.5) is the tokenizer's."""

    min_pixels: int = 512 * 512
    max_pixels: int = 1024 * 1024
    factor: int = 8
    resize: bool = True

    @classmethod
    def of(cls, path: Path, values: dict[str, Any], factor: int) -> ImageProcessor:
        """From a preprocessor_config.json; UserError for what is not Emu3's processing."""

        def need(key, good, wanted):
            if key in values and not good(values[key]):
                raise UserError(f"{path}: {key}={values[key]!r}: only {wanted} is supported")

        half = (0.5, [0.5] * 3)
        need("image_mean", lambda v: v in half, "0.5")
        need("image_std", lambda v: v in half, "0.5")
        need("rescale_factor", lambda v: isinstance(v, float) and abs(v * 255 - 1) < 1e-6, "1/255")
        need("resample", lambda v: v == 3, "3 (bicubic)")
        need("spatial_factor", lambda v: v == factor, f"the model's factor {factor}")
        for key in ("do_rescale", "do_normalize", "do_convert_rgb"):
            need(key, lambda v: v is True, "true")
        need("do_resize", lambda v: isinstance(v, bool), "true or false")
        sizes = {}
        for key in ("min_pixels", "max_pixels"):
            need(key, lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "a positive whole number")
            if key in values:
                sizes[key] = values[key]
        return cls(**sizes, factor=factor, resize=values.get("do_resize", True))

    def config(self) -> dict[str, Any]:
        """The content of a preprocessor_config.json."""
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": self.resize,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "max_pixels": self.max_pixels,
            "min_pixels": self.min_pixels,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "spatial_factor": self.factor,
        }

    def __call__(self, image: Any) -> np.ndarray:
        """An image in any form that `read` takes -> uint8 [H, W, 3]."""
        from PIL import Image as pil

        pixels = read(image, "RGB")
        if self.resize:
            h, w = smart_resize(*pixels.shape[:2], self.factor, self.min_pixels, self.max_pixels)
            if (h, w) != pixels.shape[:2]:
                pixels = np.asarray(pil.fromarray(pixels).resize((w, h), pil.Resampling.BICUBIC))
        return pixels


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
    from PIL import Image as pil

    def convert(opened: Any) -> np.ndarray:
        deep = opened.mode.startswith(("I", "F"))
        if mode == "L":
            return images.to_gray(opened)
        return np.asarray((pil.fromarray(images.to_gray(opened)) if deep else opened).convert(mode))

    if isinstance(image, (str, os.PathLike)):
        try:
            return images.read(image, convert)
        except images.BrokenImage as error:
            raise UserError(f"{image}: {error}; give a PNG or JPEG of a radiograph") from None
    if isinstance(image, pil.Image):
        try:
            return convert(image)
        except (images.BrokenImage, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"image: {error or type(error).__name__}; give a radiograph") from None
    image = np.asarray(image)
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


def to_bytes(images: np.ndarray) -> np.ndarray:
    """What a decoder gives, f32 [..., C] in [-1, 1], as uint8 [..., C]."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def to_gray(images: np.ndarray) -> np.ndarray:
    """uint8 [..., C] of one channel, or of three (luminance) -> [...]."""
    return luma(images) if images.shape[-1] == 3 else images[..., 0]
