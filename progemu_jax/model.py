"""`progemu_jax.load`: a trained model as users meet it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax import checkpoint, image_processor, places, vocab
from progemu_jax.config import from_dict
from progemu_jax.convert import huggingface, run
from progemu_jax.errors import UserError
from progemu_jax.image_processor import ImageProcessor
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.models.vqgan import VQGAN, VQGANConfig
from progemu_jax.predictions import Case, Counterfactual
from progemu_jax.sampling.engine import Grammar, generate, pad_prompts
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sequence import Layout


class Tokenizer:
    """VQGAN with its parameters: gray or RGB images <-> codes.

    `processor` is Emu3's image processor for checkpoints that came with it, else None.
    """

    def __init__(self, variables: Any, config: VQGANConfig, processor: ImageProcessor | None = None):
        self.variables, self.config, self.processor = variables, config, processor
        net = VQGAN(config)
        self._encode = jax.jit(lambda v, x, *near: net.apply(v, self._pixels(x), *near, method="tokenize"))
        self._decode = jax.jit(lambda v, c: net.apply(v, c, method="detokenize"))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Tokenizer:
        variables, config = checkpoint.load_export(folder)
        processor = config.get("image") and from_dict(ImageProcessor, config["image"], "image")
        return cls(variables, from_dict(VQGANConfig, config["model"], "tokenizer"), processor)

    def _pixels(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W] or [B, H, W, 3] -> f32 [B, H, W, C] in [-1, 1]."""
        x = images.astype(jnp.float32) / 127.5 - 1
        return x if x.ndim == 4 else jnp.repeat(x[..., None], self.config.in_channels, axis=-1)

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
        images = np.asarray(images)
        if images.ndim == 2 or (images.ndim == 3 and images.shape[-1] == 3 and self.config.in_channels == 3):
            return self.tokenize(images[None], 1, None if near is None else near[None], slack)[0]
        self._check(images)
        if near is None:
            return _batched(lambda x: self._encode(self.variables, x)[0], images, batch_size=batch_size)
        return _batched(
            lambda x, near: self._encode(self.variables, x, near, slack)[0], images, near, batch_size=batch_size
        )

    def error(self, images: np.ndarray, batch_size: int = 64) -> float:
        """Mean squared distance of latents from their codes, over images uint8 [N, H, W]."""
        self._check(images)
        return float(_batched(lambda x: self._encode(self.variables, x)[1], images, batch_size=batch_size).mean())

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
        return (self.processor or ImageProcessor(factor=self.config.factor))(image)

    def detokenize(self, codes: np.ndarray, batch_size: int = 64, rgb: bool = False) -> np.ndarray:
        """int32 [N, h, w] (or one [h, w]) in [0, codebook size) -> uint8 [N, H, W] (or [H, W]).

        rgb: keep the channels of a model of RGB images, [..., 3]; else they become luminance.
        """
        codes = np.asarray(codes, np.int32)
        if codes.ndim == 2:
            return self.detokenize(codes[None], rgb=rgb)[0]
        if codes.size and not (codes.min() >= 0 and codes.max() < self.config.codebook_size):
            raise UserError(
                f"codes: values must lie in [0, {self.config.codebook_size}), got {codes.min()}..{codes.max()}"
            )
        images = _batched(lambda c: self._decode(self.variables, c), codes, batch_size=batch_size)
        images = np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
        if rgb:
            return images
        return image_processor.luma(images) if images.shape[-1] == 3 else images[..., 0]


def _batched(function: Any, *items: np.ndarray, batch_size: int) -> np.ndarray:
    """Maps over slices of one size (the last padded), so that one program is compiled."""
    count = len(items[0])
    size = min(batch_size, count)
    parts = []
    for start in range(0, count, size):
        chunk = [x[start : start + size] for x in items]
        n = len(chunk[0])
        padded = [np.concatenate([x, np.repeat(x[:1], size - n, axis=0)]) for x in chunk]
        parts.append(np.asarray(function(*padded))[:n])
    return np.concatenate(parts)


class Model:
    """Tokenizer, transformer and vocabulary. Built by `progemu_jax.load`.

    A part that the folder did not hold is None, and what needs it is a UserError. `stops`: ids that end a text
    (None: EOS).
    """

    def __init__(
        self,
        params: Any,
        config: TransformerConfig | None,
        layout: Layout | None,
        vocabulary: vocab.Vocabulary | None,
        tokenizer: Tokenizer | None,
        policy: Sampling,
        name: str,
        stops: tuple[int, ...] | None = None,
    ):
        self.params, self.config, self.layout = params, config, layout
        self.vocabulary, self.tokenizer, self.policy, self.name = vocabulary, tokenizer, policy, name
        self.grammar = vocabulary and Grammar.of(vocabulary, stops)
        self._logits = jax.jit(self._forward)

    def tokenize(self, images: np.ndarray, **options: Any) -> np.ndarray:
        """Images to codes; see `Tokenizer.tokenize`."""
        return self._need("tokenizer").tokenize(images, **options)

    def detokenize(self, codes: np.ndarray, **options: Any) -> np.ndarray:
        """Codes to images; see `Tokenizer.detokenize`."""
        return self._need("tokenizer").detokenize(codes, **options)

    def resize(self, image: Any) -> np.ndarray:
        """An image as Emu3's image processor resizes it; see `Tokenizer.resize`."""
        return self._need("tokenizer").resize(image)

    def _need(self, part: str) -> Any:
        value = getattr(self, part)
        if value is None:
            remedy = {
                "tokenizer": "an image tokenizer; give its folder, load(DIR, tokenizer=DIR2)",
                "params": "a language model; load the folder of one and give this as tokenizer=",
                "vocabulary": f"a text tokenizer; put {vocab.TEXT_FILE} and {vocab.VISION_FILE} beside the weights",
            }
            raise UserError(f"{self.name}: holds no {remedy[part].removeprefix('an ').removeprefix('a ')}")
        return value

    def _forward(self, params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = Transformer(self.config).apply({"params": params}, tokens)
        return transformer.logits(params, hidden, (0, self.config.vocab_size))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Next-token logits f32 [B, T, V] of token ids int32 [B, T], with consecutive positions."""
        params = self._need("params")
        tokens = np.asarray(tokens, np.int32)
        if tokens.ndim != 2 or tokens.size == 0:
            raise UserError(f"tokens: expected int32 [B, T], got shape {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise UserError(
                f"tokens: ids must lie in [0, {self.config.vocab_size}), got {tokens.min()}..{tokens.max()}"
            )
        return np.asarray(self._logits(params, tokens))

    def counterfactual(
        self, prior: Any, prompt: str, num_samples: int = 1, seed: int = 0, **sampling: Any
    ) -> Counterfactual:
        """What the radiograph would look like, and the text that explains it.

        Args:
          prior: the prior radiograph: uint8 or float [0, 1] array [H, W], PIL image or path (resized to the model's
            size), or its codes, int32 [h, w].
          prompt: progression prompt, e.g. "New small left pleural effusion."
          num_samples: S futures.
          seed: 0 <= seed < 2**32; the same seed gives the same futures.
          **sampling: fields of `sampling.policy.Sampling` to change.

        Raises:
          UserError: an image, prompt, seed or setting that cannot be used.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError("prompt: empty; say what changed, e.g. 'New small left pleural effusion.'")
        if not 1 <= num_samples <= 1024:
            raise UserError(f"num_samples={num_samples}: expected 1..1024")
        codes = self.prior_codes(prior)
        cases = [Case("request", codes, prompt, sample) for sample in range(num_samples)]
        return self.sample(cases, seed, self.policy_with(**sampling))

    def policy_with(self, **sampling: Any) -> Sampling:
        """The model's default policy with some fields changed; UserError names an unknown or bad one."""
        return from_dict(Sampling, {**dataclasses.asdict(self.policy), **sampling}, "sampling")

    def prior_codes(self, prior: Any) -> np.ndarray:
        """int32 [h, w] codes of a prior given in any of the forms that `counterfactual` takes."""
        tokenizer = self._need("tokenizer")
        self._need("params")
        self._need("vocabulary")
        grid = (self.layout.height, self.layout.width)
        if isinstance(prior, np.ndarray) and prior.shape == grid and np.issubdtype(prior.dtype, np.integer):
            if prior.min() < 0 or prior.max() >= self.vocabulary.codebook_size:
                raise UserError(f"prior: codes must lie in [0, {self.vocabulary.codebook_size})")
            return prior.astype(np.int32)
        return self.tokenize(image_processor.gray(prior, tuple(side * tokenizer.config.factor for side in grid)))

    def sample(self, cases: Sequence[Case], seed: int = 0, policy: Sampling | None = None) -> Counterfactual:
        """One counterfactual per case, in one batch; a case's prior of None drops prior and prompt (null prompt)."""
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(f"seed={seed!r}: expected an integer in 0..{2**32 - 1}")
        policy = policy or self.policy
        prompts = pad_prompts(
            self.vocabulary,
            self.layout,
            [c.prior for c in cases],
            [c.prompt for c in cases],
            policy=policy,
        )
        keys = jax.vmap(jax.random.key)(np.asarray([c.fold(seed) for c in cases], np.uint32))
        out = generate(self.params, self.config, self.layout, self.grammar, policy, prompts, keys)
        codes = np.asarray(out.codes)
        texts = [self.vocabulary.decode([int(t) for t in row if t >= 0]).strip() for row in np.asarray(out.text)]
        return Counterfactual(self.detokenize(codes), texts, codes)


def load(path: str | os.PathLike, tokenizer: str | os.PathLike | None = None) -> Model:
    """Loads a model; a `diffusion.DiffusionModel` where the folder holds one.

    Args:
      path: a run directory of `progemu_jax.main` (complete up to its train stage), an export, or a Hugging Face
        folder of Emu3 or ProgEmu, in either dialect, or of Diffusers.
      tokenizer: the folder of the image tokenizer, of the same kinds, where `path` holds the language model alone.

    Raises:
      UserError: nothing there that can be loaded, naming what is missing.
    """
    if places.is_diffusion(Path(path)):
        if tokenizer is not None:
            raise UserError(f"tokenizer={tokenizer}: {path} is a diffusion model with an autoencoder of its own")
        from progemu_jax import diffusion

        return diffusion.load(Path(path))
    parts = _load_parts(Path(path))
    if tokenizer is not None:
        other = _load_parts(Path(tokenizer), huggingface.TOKENIZER)
        if "tokenizer" not in other:
            raise UserError(f"{tokenizer}: holds no image tokenizer; give the folder of one as tokenizer=")
        parts["tokenizer"] = other["tokenizer"]
    found = parts.get("vocabulary")
    if found and "tokenizer" in parts and found.codebook_size != parts["tokenizer"].config.codebook_size:
        raise UserError(
            f"{path}: its vocabulary has {found.codebook_size} visual tokens, the image tokenizer "
            f"{parts['tokenizer'].config.codebook_size} codes; use those that belong together"
        )
    if found and found.size > parts["config"].vocab_size:
        raise UserError(
            f"{path}: its vocabulary has {found.size} ids, the model {parts['config'].vocab_size}; use its own"
        )
    names = ("params", "config", "layout", "vocabulary", "tokenizer", "stops")
    name = f"{Path(path).name}@{parts['hash'][:12]}"
    return Model(**{key: parts.get(key) for key in names}, policy=parts.get("policy", Sampling()), name=name)


def _load_parts(path: Path, only: str | None = None) -> dict[str, Any]:
    """What a folder holds, as arguments of `Model` (and "hash"); only: one of its parts."""
    if places.detect(path) == places.HUGGING_FACE:
        return _load_hugging_face(huggingface.open_folder(path), only)
    parts: dict[str, Any] = {}
    for part, folder in places.exports(path).items():
        if only not in (None, part):
            continue
        if part == huggingface.TOKENIZER:
            parts = {"hash": checkpoint.read_export_config(folder).get("hash", ""), **parts}
            parts["tokenizer"] = Tokenizer.load(folder)
            continue
        params, config = checkpoint.load_export(folder)
        parts |= {
            "params": params,
            "config": from_dict(TransformerConfig, config["model"], "model"),
            "layout": from_dict(Layout, config["layout"], "layout"),
            "policy": from_dict(Sampling, config["policy"], "sampling"),
            "vocabulary": places.vocabulary(folder, config),
            "stops": tuple(config["stops"]) if config.get("stops") else None,
            "hash": config["hash"],
        }
    return parts


def _load_hugging_face(folder: huggingface.Folder, only: str | None) -> dict[str, Any]:
    parts: dict[str, Any] = {"hash": ""}
    for kind, part in folder.parts.items():
        if only not in (None, kind):
            continue
        if kind == huggingface.TOKENIZER:
            processor = from_dict(ImageProcessor, run.tokenizer_settings(folder)["image"], "image")
            parts["tokenizer"] = Tokenizer(part.params(), part.model, processor)
            continue
        settings = run.language_settings(folder)
        parts |= {
            "params": part.params(),
            "config": part.model,
            "layout": from_dict(Layout, settings["layout"], "layout"),
            "policy": from_dict(Sampling, settings["policy"], "sampling"),
            "vocabulary": folder.vocabulary(),
            "stops": tuple(settings["stops"]) or None,
        }
    return parts
