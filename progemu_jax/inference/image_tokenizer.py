"""The image tokenizer as users meet it: pixels <-> codes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from progemu_jax.checkpoints import export
from progemu_jax.convert.emu3.image_processor import ImageProcessor
from progemu_jax.devices import sharding
from progemu_jax.devices.sharding import in_batches
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.inference import request
from progemu_jax.inference.pixels import read, to_gray
from progemu_jax.models import pixels, prior_decoder, vqgan
from progemu_jax.models.prior_decoder import PriorDecoder, PriorDecoderConfig, code_distance
from progemu_jax.models.vqgan import VQGAN, VQGANConfig


@lru_cache(maxsize=8)
def _programs(config: VQGANConfig, painter: PriorDecoderConfig | None) -> tuple[Callable, Callable, Callable]:
    """Encoder, decoder, decoder that sees the prior: compiled once for all tokenizers of these configs."""
    net = VQGAN(config)

    def normalize(images: jax.Array) -> jax.Array:
        return pixels.normalize(images, config.in_channels)

    def encode(variables: Any, images: jax.Array, *near: Any) -> Any:  # codes, squared distances
        return net.apply(variables, normalize(images), *near, method="tokenize")

    def decode(variables: Any, codes: jax.Array) -> Any:
        return net.apply(variables, codes, method="detokenize")

    def paint(variables: Any, params: Any, codes: jax.Array, prior: jax.Array, near: jax.Array) -> jax.Array:
        assert painter is not None  # else nobody calls it
        decoded, decoded_prior = (decode(variables, c).mean(-1) for c in (codes, near))
        table: Any = net.apply(variables, method="table")
        apart, gray = code_distance(table, codes, near), normalize(prior).mean(-1)
        painted: Any = PriorDecoder(painter).apply({"params": params}, decoded, gray, decoded_prior, apart)
        return painted[..., None]

    return jax.jit(encode), jax.jit(decode), jax.jit(paint)


class Tokenizer:
    """VQGAN with its parameters: gray or RGB images <-> codes.

    `processor` is Emu3's image processor for checkpoints that came with it, else None. `painter`: parameters and config
    of what paints a follow-up from codes and the prior's pixels (`models.prior_decoder`), or None.
    """

    def __init__(
        self,
        variables: Any,
        config: VQGANConfig,
        processor: ImageProcessor | None = None,
        painter: tuple[Any, PriorDecoderConfig] | None = None,
    ):
        self.variables, self.config, self.processor, self.painter = variables, config, processor, painter
        self.mesh: jax.sharding.Mesh | None = None
        self._encode, self._decode, self._paint = _programs(config, painter[1] if painter else None)

    @classmethod
    def load(cls, folder: str | os.PathLike, painter: str | os.PathLike | None = None) -> Tokenizer:
        """From the folders of exports; painter: of a prior decoder, or None."""
        variables, config, model = export.load_model(
            folder, lambda c: from_dict(VQGANConfig, c["model"], "tokenizer"), vqgan.init_variables
        )
        paints = None
        if painter is not None:
            params, _, values = export.load_model(
                painter, lambda c: from_dict(PriorDecoderConfig, c["model"], "decoder"), prior_decoder.init_params
            )
            paints = params, values
        with export.reading(folder):
            processor = config.get("image") and from_dict(ImageProcessor, config["image"], "image")
            return cls(variables, model, processor, paints)

    def on(self, mesh: jax.sharding.Mesh) -> Tokenizer:
        """Puts the tokenizer on a mesh of this host's devices, in place: images over its data axes, parameters on each.

        Returns the tokenizer itself.
        """
        self.mesh, self.variables = mesh, jax.device_put(self.variables, sharding.replicated(mesh))
        if self.painter:
            self.painter = jax.device_put(self.painter[0], sharding.replicated(mesh)), self.painter[1]
        return self

    def tokenize(
        self, images: np.ndarray, batch_size: int = 64, near: np.ndarray | None = None, slack: float = 0.0
    ) -> np.ndarray:
        """Images to codes.

        Args:
          images: uint8 [N, H, W] (or one [H, W]), for a model of RGB images also [N, H, W, 3] (or [H, W, 3]); sides
            divisible by the spatial factor. Their size is kept: `resize` gives the one that Emu3 would use.
          near: codes to keep where they fit nearly as well, int32 as the result: of the prior, so that the
            follow-up has other codes only where the image has changed.
          slack: how much further than the nearest code they may be, in squared distance (see `error`).

        Returns:
          int32 [N, h, w] (or [h, w]).
        """
        images = request.array("images", images)
        if images.ndim == 2 or (images.ndim == 3 and images.shape[-1] == 3 and self.config.in_channels == 3):
            return self.tokenize(images[None], 1, None if near is None else near[None], slack)[0]
        self._check(images)
        how: dict[str, Any] = {"batch_size": batch_size, "mesh": self.mesh}
        if near is None:
            return in_batches(lambda x: self._encode(self.variables, x)[0], images, **how)
        return in_batches(lambda x, near: self._encode(self.variables, x, near, slack)[0], images, near, **how)

    def error(self, images: np.ndarray, batch_size: int = 64) -> float:
        """Mean squared distance of latents from their codes, over images uint8 [N, H, W]."""
        self._check(images)
        errors = in_batches(lambda x: self._encode(self.variables, x)[1], images, batch_size=batch_size, mesh=self.mesh)
        return float(errors.mean())

    def _check(self, images: np.ndarray) -> None:
        rgb = images.ndim == 4 and images.shape[-1] == self.config.in_channels == 3
        if images.dtype != np.uint8 or not (images.ndim == 3 or rgb):
            shapes = "[N, H, W] or [N, H, W, 3]" if self.config.in_channels == 3 else "[N, H, W]"
            raise UserError(f"images: expected uint8 {shapes}, got {images.dtype} {images.shape}")
        if any(side % self.config.factor or not side for side in images.shape[1:3]):
            raise UserError(
                f"images: sides {images.shape[1:3]} are not divisible by {self.config.factor}; resize or pad them"
            )

    def resize(self, image: Any) -> np.ndarray:
        """An image in any form (array, PIL, path) -> uint8 [H, W, 3] of the size that Emu3's processor gives it."""
        return (self.processor or ImageProcessor(factor=self.config.factor))(read(image, "RGB"))

    def detokenize(
        self,
        codes: np.ndarray,
        batch_size: int = 64,
        rgb: bool = False,
        prior: np.ndarray | None = None,
        prior_codes: np.ndarray | None = None,
    ) -> np.ndarray:
        """int32 [N, h, w] (or one [h, w]) in [0, codebook size) -> uint8 [N, H, W] (or [H, W]).

        rgb: keep the channels of a model of RGB images, [..., 3]; else they become luminance.
        prior: uint8 as the result, the pixels of the radiographs that the codes follow, registered: what codes lose of
          the patient is painted back, where the tokenizer has a `painter`. None, or without one: the plain decoder.
        prior_codes: int32 as `codes`, those of the prior; None: they are made of its pixels.
        """
        codes = request.array("codes", codes, np.int32)
        if codes.ndim not in (2, 3):
            raise UserError(f"codes: expected int32 [N, h, w] or [h, w], got shape {list(codes.shape)}")
        if codes.ndim == 2:
            first = (None if x is None else np.asarray(x)[None] for x in (prior, prior_codes))
            return self.detokenize(codes[None], batch_size, rgb, *first)[0]
        if codes.size and not (codes.min() >= 0 and codes.max() < self.config.codebook_size):
            raise UserError(
                f"codes: values must lie in [0, {self.config.codebook_size}), got {codes.min()}..{codes.max()}"
            )
        how: dict[str, Any] = {"batch_size": batch_size, "mesh": self.mesh}
        if prior is None or self.painter is None:
            images = in_batches(lambda c: self._decode(self.variables, c), codes, **how)
        else:
            self._check(prior)
            near = self.tokenize(prior, batch_size) if prior_codes is None else np.asarray(prior_codes, np.int32)
            paint = partial(self._paint, self.variables, self.painter[0])
            images = in_batches(paint, codes, prior, near, **how)
        images = pixels.to_uint8(images)
        return images if rgb else to_gray(images)
