"""A latent diffusion model as users meet it: MedJourney, InstructPix2Pix, Stable Diffusion. Built by `load`.

No text comes out of these, and no region can be kept: `texts`, `codes` and `mask` of what they give are None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from progemu_jax import provenance
from progemu_jax.checkpoints import export
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.convert import components, folders
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.diffusers import transfer as diffusers_transfer
from progemu_jax.devices import sharding
from progemu_jax.devices.sharding import in_batches
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.inference import request
from progemu_jax.inference.counterfactual import Counterfactual, Samples
from progemu_jax.inference.pixels import gray, to_gray
from progemu_jax.models import autoencoder, pixels, text_encoder, unet
from progemu_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import TextEncoder, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.sampling.diffusion import DiffusionSampling, first_noise, generate, generate_watched
from progemu_jax.sampling.watch import Watch
from progemu_jax.text import text_tokenizers
from progemu_jax.text.findings import PHANTOM, Finding

BATCH = 16  # images that are encoded or decoded at a time
LARGEST = 8192  # side of an image


# Keywords that ProgEmu takes, and why these models do not.
NOT_TAKEN = {
    "mask": "takes no mask", "keep": "takes no mask", "codes": "has no codes", "text": "writes no text",
    "days": "knows no intervals", "intervals": "knows no intervals", "priors": "takes one prior",
}  # fmt: skip


class Codec:
    """KL autoencoder with its parameters: images <-> latents."""

    def __init__(self, params: Any, config: AutoencoderConfig):
        self.params, self.config = params, config
        self.mesh: jax.sharding.Mesh | None = None
        net = Autoencoder(config)

        def encode(params: Any, images: jax.Array) -> Any:
            return net.apply({"params": params}, pixels.normalize(images, config.in_channels), method="encode")

        self._encode = jax.jit(encode)
        self._decode = jax.jit(lambda p, z: net.apply({"params": p}, z / config.scale, method="decode"))

    @classmethod
    def load(cls, folder: Path) -> Codec:
        params, _, model = _load_part(folder, components.AUTOENCODER)
        return cls(params, model)

    def on(self, mesh: jax.sharding.Mesh) -> Self:
        """Puts the codec on a mesh of this host's devices, in place, and returns it: images over its data axes."""
        self.mesh, self.params = mesh, jax.device_put(self.params, sharding.replicated(mesh))
        return self

    def encode(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W] -> the latents' means, float32 [N, h, w, Z], not scaled."""
        sides = images.shape[1:]
        if images.dtype != np.uint8 or len(sides) != 2 or any(s % self.config.factor or not s for s in sides):
            raise UserError(
                f"images: expected uint8 [N, H, W] with sides that are multiples of {self.config.factor}, got "
                f"{images.dtype} {images.shape}"
            )
        return in_batches(lambda x: self._encode(self.params, x), images, batch_size=BATCH, mesh=self.mesh)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Scaled latents float32 [N, h, w, Z] -> uint8 [N, H, W]; RGB becomes luminance."""
        latents = np.asarray(latents)
        images = in_batches(lambda z: self._decode(self.params, z), latents, batch_size=BATCH, mesh=self.mesh)
        return to_gray(pixels.to_uint8(images))

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

    def on(self, mesh: jax.sharding.Mesh) -> Self:
        """Puts the text encoder on every device of a mesh, in place, and returns it."""
        self.params = jax.device_put(self.params, sharding.replicated(mesh))
        return self

    def __call__(self, texts: Sequence[str]) -> tuple[jax.Array, np.ndarray]:
        """-> (states [N, S, X], mask bool [N, S]: True = no padding)."""
        tokens, mask = self.tokenizer(texts, self.config.text_length)
        return self._encode(self.params, tokens, mask), mask


class DiffusionModel:
    """UNet, autoencoder, text encoder and noise schedule, a `counterfactual.CounterfactualModel`. Built by
    `progemu_jax.load`."""

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
        findings: tuple[Finding, ...] = PHANTOM,
    ):
        self.params, self.config, self.codec, self.text = params, config, codec, text
        self.schedule, self.policy, self.image_size, self.name = schedule, policy, image_size, name
        self.findings = findings  # of the cohort that it was trained on
        self.mesh: jax.sharding.Mesh | None = None
        step = config.factor * codec.config.factor
        if image_size % step or not 0 < image_size <= LARGEST:
            raise UserError(f"{name}: image_size={image_size}: expected a multiple of {step}, at most {LARGEST}")

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the weights of all three parts: the model's identity, wherever its folder lies."""
        parts = {"unet": self.params, "autoencoder": self.codec.params, "text_encoder": self.text.params}
        arrays = {f"{part}.{k}": v for part, params in parts.items() for k, v in flatten(params).items()}
        return provenance.weights_hash(arrays)

    def policy_with(self, **sampling: Any) -> DiffusionSampling:
        """The model's default policy with some fields changed; UserError names an unknown or bad one."""
        return from_dict(DiffusionSampling, {**dataclasses.asdict(self.policy), **sampling}, "sampling")

    def on(self, mesh: jax.sharding.Mesh) -> Self:
        """Puts the model on a mesh of this host's devices, in place, and returns it: cases over its data axes, the
        parameters whole on each device. A batch that does not divide over the data axes runs unsplit."""
        self.mesh, self.params = mesh, jax.device_put(self.params, sharding.replicated(mesh))
        self.codec.on(mesh)
        self.text.on(mesh)
        return self

    def check(self, case: Case) -> None:
        """Raises UserError for a case that cannot be sampled; nothing is computed on the device.

        A prompt may be empty, and is cut at the text encoder's length. A model of text alone looks at no prior.
        """
        request.prompt(case.prompt, empty=True)
        if not self.config.conditioned:
            return
        if case.prior is None:
            raise UserError(f"{self.name}: needs a prior image; give one")
        prior, shape = np.asarray(case.prior), (self.image_size, self.image_size)
        if prior.dtype != np.uint8 or prior.shape != shape:
            raise UserError(f"prior: expected an image, uint8 {list(shape)}, got {prior.dtype} {list(prior.shape)}")

    def counterfactual(
        self,
        prior: Any,
        prompt: str,
        num_samples: int = 1,
        seed: int = 0,
        *,
        watch: Watch | None = None,
        **sampling: Any,
    ) -> Counterfactual:
        """What the radiograph would look like.

        Args:
          prior: the prior radiograph: uint8 or float [0, 1] array [H, W], PIL image or path (resized to the model's
            size). A model of text alone does not look at it, and takes None.
          prompt: progression prompt, e.g. "New small left pleural effusion."
          num_samples: S futures.
          seed: 0 <= seed < 2**32; the same seed gives the same futures.
          watch: is told how far it is, and can end it, as for `counterfactual.CounterfactualModel`.
          **sampling: fields of `sampling.diffusion.DiffusionSampling` to change.

        Returns:
          Counterfactual with images uint8 [S, H, W], and without texts, codes and mask.

        Raises:
          UserError: an image, prompt, seed or setting that cannot be used; a mask or another keyword of ProgEmu's.

        Warns (`errors.PromptWarning`) as `request.warn_unread` says.
        """
        for name, why in NOT_TAKEN.items():
            value = sampling.pop(name, None)
            if value is not None and value is not False:
                raise UserError(f"{name}: a diffusion model {why}")
        read, num_samples, seed = request.prompt(prompt), request.num_samples(num_samples), request.seed(seed)
        policy = self.policy_with(**sampling)
        if prior is not None:
            prior = gray(prior, (self.image_size, self.image_size))
        cases = [Case("request", prior, read, sample) for sample in range(num_samples)]
        self.check(cases[0])
        request.warn_unread(prompt, self.findings)
        return Counterfactual(
            images=self.sample(cases, seed, policy, watch=watch).images,
            texts=None,
            codes=None,
            prior=prior,
            prior_codes=None,
            mask=None,
            prompt=prompt,
            given=prior,
            settings={"seed": seed, "checkpoint": self.name, "sampling": to_dict(policy)},
            model_hash=lambda: self.hash,
            findings=self.findings,
        )

    def sample(
        self,
        cases: Sequence[Case],
        seed: int = 0,
        policy: DiffusionSampling | None = None,
        *,
        watch: Watch | None = None,
    ) -> Samples:
        """One image per case, in one batch; `Case.prior` is an image uint8 [S, S]. watch: as for `counterfactual`.

        UserError names a case that cannot be sampled. The batch is filled up to a `sharding.bucket` with its last case;
        at one bucket of cases and one of texts a case's result depends on nothing but the case and the seed.
        """
        seed, policy, prior = request.seed(seed), policy or self.policy, None
        if policy.steps > self.schedule.steps:
            raise UserError(f"sampling.steps={policy.steps}: the model's schedule has {self.schedule.steps}")
        for case in cases:
            with request.prefix_errors(f"case {case.pair_id}"):
                self.check(case)
        count = len(cases)
        batch = [*cases, *list(cases[-1:]) * (sharding.bucket(count, self.mesh) - count)]
        if self.config.conditioned:
            prior = self.codec.encode(np.stack([np.asarray(case.prior) for case in batch]))
        # Equal texts, the empty one among them, are encoded once.
        texts = list(dict.fromkeys([case.prompt for case in batch] + [""]))
        states, real = self.text(texts + [""] * (sharding.bucket(len(texts)) - len(texts)))
        rows = np.asarray([texts.index(case.prompt) for case in batch])
        null = texts.index("")
        mask, null_mask = (real[rows], real[null]) if self.text.config.masked else (None, None)
        keys = jax.vmap(jax.random.key)(np.asarray([c.fold(seed) for c in batch], np.uint32))
        side = self.image_size // self.codec.config.factor
        noise = first_noise(keys, (side, side, self.config.out_channels))
        run = generate if watch is None else partial(generate_watched, watch=watch)
        latents = run(
            self.params,
            self.config,
            self.schedule,
            policy,
            noise,
            prior,
            states[rows],
            states[null],
            mask,
            null_mask,
            mesh=self.mesh,
        )
        return Samples(self.codec.decode(np.asarray(latents)[:count]))


_KINDS: dict[str, tuple[Any, Callable[[Any, jax.Array], Any]]] = {
    components.UNET: (UNetConfig, unet.init_params),
    components.AUTOENCODER: (AutoencoderConfig, autoencoder.init_params),
    components.TEXT_ENCODER: (TextEncoderConfig, text_encoder.init_params),
}


def _load_part(folder: Path, kind: str) -> tuple[Any, dict, Any]:
    config, init = _KINDS[kind]
    return export.load_model(folder, lambda c: from_dict(config, c["model"], f"{folder}: model"), init)


def load(path: Path) -> DiffusionModel:
    """A run directory of a diffusion model, or a Diffusers folder. Raises UserError naming what is missing."""
    if found := folders.exports(path, components.DIFFUSION):
        loaded = {kind: _load_part(folder, kind) for kind, folder in found.items()}
        _require_all_parts(path, loaded)
        config = loaded[components.UNET][1]
        tokenizer = text_tokenizers.load(found[components.TEXT_ENCODER] / components.TEXT_TOKENIZER)
        with export.reading(found[components.UNET]):
            schedule = from_dict(Schedule, config["schedule"], "schedule")
            policy, size = from_dict(DiffusionSampling, config["policy"], "sampling"), int(config["image_size"])
            name = f"{path.name}@{config['hash'][:12]}"
        listed = findings_file.read(found[components.UNET])
        parts = {kind: (params, model) for kind, (params, _, model) in loaded.items()}
        for params, _ in parts.values():
            params.pop(components.UNUSED, None)
    else:
        pipeline = diffusers_folder.open_folder(path)
        _require_all_parts(path, pipeline.parts)
        parts = {kind: (part.params(), part.model) for kind, part in pipeline.parts.items()}
        tokenizer, schedule, policy = pipeline.text_tokens(), pipeline.schedule, DiffusionSampling()
        size, name, listed = diffusers_transfer.image_size(pipeline), path.name, PHANTOM
    if tokenizer is None:
        raise UserError(f"{path}: holds no text tokenizer; put vocab.txt (or vocab.json, merges.txt) into tokenizer/")
    codec, text = Codec(*parts[components.AUTOENCODER]), TextStates(*parts[components.TEXT_ENCODER], tokenizer)
    return DiffusionModel(*parts[components.UNET], codec, text, schedule, policy, size, name, listed)


def _require_all_parts(path: Path, parts: Any) -> None:
    missing = [kind.replace("_", " ") for kind in components.DIFFUSION if kind not in parts]
    if missing:
        raise UserError(f"{path}: holds no {missing[0]}; a diffusion model needs UNet, autoencoder and text encoder")
