"""How Emu3's image processor resizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as pil

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

        def need(key: str, good: Callable[[Any], bool], wanted: str) -> None:
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

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [h, w, 3]."""
        if self.resize:
            h, w = smart_resize(*pixels.shape[:2], self.factor, self.min_pixels, self.max_pixels)
            if (h, w) != pixels.shape[:2]:
                pixels = np.asarray(pil.fromarray(pixels).resize((w, h), pil.Resampling.BICUBIC))
        return pixels
