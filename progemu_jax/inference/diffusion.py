"""A latent diffusion model as users meet it: MedJourney, InstructPix2Pix, Stable Diffusion. Built by `load`.

No text comes out of these, and the result says so: `DiffusionCounterfactual`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax import provenance
from progemu_jax.checkpoints import export
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.convert import components, folders
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.diffusers import transfer as diffusers_transfer
from progemu_jax.devices.sharding import in_batches
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import from_dict
from progemu_jax.inference import request
from progemu_jax.inference.pixels import gray, to_bytes, to_gray
from progemu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.pixels import pixels
from progemu_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.sampling.diffusion import DiffusionSampling, first_noise, generate
from progemu_jax.text import text_tokenizers

BATCH = 16  # images that are encoded or decoded at a time


@dataclasses.dataclass(frozen=True)
class DiffusionCounterfactual:
    """images uint8 [S, H, W]. Synthetic: for research only.

    A diffusion model writes no text and has no codes: `texts` holds None for every sample, and `codes` is None.
    """

    images: np.ndarray
    texts: list[None]
    codes: None = None


class Codec:
    """KL autoencoder with its parameters: images <-> latents."""

    def __init__(self, params: Any, config: AutoencoderConfig):
        self.params, self.config = params, config
        net = Autoencoder(config)
        self._encode = jax.jit(lambda p, x: net.apply({"params": p}, pixels(x, config.in_channels), method="encode"))
        self._decode = jax.jit(lambda p, z: net.apply({"params": p}, z / config.scale, method="decode"))

    @classmethod
    def load(cls, folder: Path) -> Codec:
        params, config = export.load_export(folder)
        return cls(params, from_dict(AutoencoderConfig, config["model"], "autoencoder"))

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W] -> the latents' means, float32 [N, h, w, Z], not scaled."""
        sides = images.shape[1:]
        if images.dtype != np.uint8 or len(sides) != 2 or any(s % self.config.factor or not s for s in sides):
            raise UserError(
                f"images: expected uint8 [N, H, W] with sides that are multiples of {self.config.factor}, got "
                f"{images.dtype} {images.shape}"
            )
        return in_batches(lambda x: self._encode(self.params, x), images, batch_size=BATCH)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Scaled latents float32 [N, h, w, Z] -> uint8 [N, H, W]; RGB becomes luminance."""
        images = in_batches(lambda z: self._decode(self.params, z), np.asarray(latents), batch_size=BATCH)
        return to_gray(to_bytes(images))

    def latent_std(self, images: np.ndarray) -> float:
        """Standard deviation of the latents of uint8 [N, H, W]; 1 / that is a good `scale`."""
        return float(np.std(self.encode(images)))


class TextStates:
    """Text encoder with its tokenizer: texts -> states."""

    def __init__(self, params: Any, config: TextEncoderConfig, tokenizer: text_tokenizers.TextTokenizer):
        if tokenizer.size > config.vocab_size:
            raise UserError(
                f"text tokenizer: {tokenizer.size} ids, the text encoder has {config.vocab_size}; use its own"
            )
        self.params, self.config, self.tokenizer = params, config, tokenizer
        net = TextEncoder(config)
        self._encode = jax.jit(lambda p, *x: net.apply({"params": p}, *x))

    def __call__(self, texts: Sequence[str]) -> tuple[jax.Array, np.ndarray]:
        """-> (states [N, S, X], mask bool [N, S]: True = no padding)."""
        tokens, mask = self.tokenizer(texts, self.config.text_length)
        return self._encode(self.params, tokens, mask), mask


class DiffusionModel:
    """UNet, autoencoder, text encoder and noise schedule. Built by `progemu_jax.load`."""

    def __init__(
        self,
        params: Any,
        config: UNetConfig,
        codec: Codec,
        text: TextStates,
        schedule: Schedule,
        policy: DiffusionSampling,
        image_size: int,
        name: str,
    ):
        self.params, self.config, self.codec, self.text = params, config, codec, text
        self.schedule, self.policy, self.image_size, self.name = schedule, policy, image_size, name
        step = config.factor * codec.config.factor
        if image_size % step:
            raise UserError(f"{name}: image_size={image_size}: expected a multiple of {step}")

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the weights of all three parts: the model's identity, wherever its folder lies."""
        parts = {"unet": self.params, "autoencoder": self.codec.params, "text_encoder": self.text.params}
        arrays = {f"{part}.{k}": v for part, params in parts.items() for k, v in flatten(params).items()}
        return provenance.weights_hash(arrays)

    def policy_with(self, **sampling: Any) -> DiffusionSampling:
        """The model's default policy with some fields changed; UserError names an unknown or bad one."""
        return from_dict(DiffusionSampling, {**dataclasses.asdict(self.policy), **sampling}, "sampling")

    def counterfactual(
        self, prior: Any, prompt: str, num_samples: int = 1, seed: int = 0, **sampling: Any
    ) -> DiffusionCounterfactual:
        """What the radiograph would look like.

        Args:
          prior: the prior radiograph: uint8 or float [0, 1] array [H, W], PIL image or path (resized to the model's
            size). A model of text alone does not look at it, and takes None.
          prompt: progression prompt, e.g. "New small left pleural effusion."
          num_samples: S futures.
          seed: 0 <= seed < 2**32; the same seed gives the same futures.
          **sampling: fields of `sampling.diffusion.DiffusionSampling` to change.

        Returns:
          DiffusionCounterfactual with images uint8 [S, H, W], texts [None] * S and codes None.

        Raises:
          UserError: an image, prompt, seed or setting that cannot be used.
        """
        prompt, num_samples = request.prompt(prompt), request.num_samples(num_samples)
        if prior is not None:
            prior = gray(prior, (self.image_size, self.image_size))
        cases = [Case("request", prior, prompt, sample) for sample in range(num_samples)]
        return self.sample(cases, seed, self.policy_with(**sampling))

    def sample(
        self, cases: Sequence[Case], seed: int = 0, policy: DiffusionSampling | None = None
    ) -> DiffusionCounterfactual:
        """One image per case, in one batch; `Case.prior` is an image uint8 [S, S]."""
        seed, policy, prior = request.seed(seed), policy or self.policy, None
        if policy.steps > self.schedule.steps:
            raise UserError(f"sampling.steps={policy.steps}: the model's schedule has {self.schedule.steps}")
        if self.config.conditioned:
            if any(case.prior is None for case in cases):
                raise UserError(f"{self.name}: needs a prior image; give one")
            prior = self.codec.encode(np.stack([case.prior for case in cases]))
        # Equal texts, the empty one among them, are encoded once.
        texts = list(dict.fromkeys([case.prompt for case in cases] + [""]))
        states, mask = self.text(texts)
        rows = np.asarray([texts.index(case.prompt) for case in cases])
        null = texts.index("")
        mask, null_mask = (mask[rows], mask[null]) if self.text.config.masked else (None, None)
        keys = jax.vmap(jax.random.key)(np.asarray([c.fold(seed) for c in cases], np.uint32))
        side = self.image_size // self.codec.config.factor
        noise = first_noise(keys, (side, side, self.config.out_channels))
        latents = generate(
            self.params, self.config, self.schedule, policy, noise, prior, states[rows], states[null], mask, null_mask
        )
        return DiffusionCounterfactual(self.codec.decode(np.asarray(latents)), [None] * len(cases))


def load(path: Path) -> DiffusionModel:
    """A run directory of a diffusion model, or a Diffusers folder. Raises UserError naming what is missing."""
    if found := folders.exports(path, components.DIFFUSION):
        loaded = {kind: export.load_export(folder) for kind, folder in found.items()}
        _need_all(path, loaded)
        config = loaded[components.UNET][1]
        tokenizer = text_tokenizers.load(found[components.TEXT_ENCODER] / components.TEXT_TOKENIZER)
        schedule = from_dict(Schedule, config["schedule"], "schedule")
        policy, size = from_dict(DiffusionSampling, config["policy"], "sampling"), config["image_size"]
        kinds = {
            components.UNET: UNetConfig,
            components.AUTOENCODER: AutoencoderConfig,
            components.TEXT_ENCODER: TextEncoderConfig,
        }
        parts = {k: (p, from_dict(kinds[k], c["model"], f"{found[k]}: model")) for k, (p, c) in loaded.items()}
        for params, _ in parts.values():
            params.pop(components.UNUSED, None)
        name = f"{path.name}@{config['hash'][:12]}"
    else:
        pipeline = diffusers_folder.open_folder(path)
        _need_all(path, pipeline.parts)
        parts = {kind: (part.params(), part.model) for kind, part in pipeline.parts.items()}
        tokenizer, schedule, policy = pipeline.text_tokens(), pipeline.schedule, DiffusionSampling()
        size, name = diffusers_transfer.image_size(pipeline), path.name
    if tokenizer is None:
        raise UserError(f"{path}: holds no text tokenizer; put vocab.txt (or vocab.json, merges.txt) into tokenizer/")
    codec, text = Codec(*parts[components.AUTOENCODER]), TextStates(*parts[components.TEXT_ENCODER], tokenizer)
    return DiffusionModel(*parts[components.UNET], codec, text, schedule, policy, size, name)


def _need_all(path: Path, parts: Any) -> None:
    missing = [kind.replace("_", " ") for kind in components.DIFFUSION if kind not in parts]
    if missing:
        raise UserError(f"{path}: holds no {missing[0]}; a diffusion model needs UNet, autoencoder and text encoder")
