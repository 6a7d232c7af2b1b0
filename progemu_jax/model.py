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

from progemu_jax import checkpoint, vocab
from progemu_jax.config import from_dict
from progemu_jax.errors import UserError
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.models.vqgan import VQGAN, VQGANConfig
from progemu_jax.predictions import Case
from progemu_jax.sampling.engine import Grammar, generate, pad_prompts
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sequence import Layout

TOKENIZER, LANGUAGE_MODEL = "tokenizer/export", "train/export"  # in a run directory


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """images uint8 [S, H, W], texts list of S, codes int32 [S, h, w]. Synthetic: for research only."""

    images: np.ndarray
    texts: list[str]
    codes: np.ndarray


class Tokenizer:
    """VQGAN with its parameters: gray images <-> codes."""

    def __init__(self, variables: Any, config: VQGANConfig):
        self.variables, self.config = variables, config
        net = VQGAN(config)
        self._encode = jax.jit(lambda v, x, *near: net.apply(v, self._pixels(x), *near, method="tokenize"))
        self._decode = jax.jit(lambda v, c: net.apply(v, c, method="detokenize"))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Tokenizer:
        variables, config = checkpoint.load_export(folder)
        return cls(variables, from_dict(VQGANConfig, config["model"], "tokenizer"))

    def _pixels(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W] -> f32 [B, H, W, C] in [-1, 1]."""
        x = images.astype(jnp.float32)[..., None] / 127.5 - 1
        return jnp.repeat(x, self.config.in_channels, axis=-1)

    def tokenize(
        self, images: np.ndarray, batch_size: int = 64, near: np.ndarray | None = None, slack: float = 0.0
    ) -> np.ndarray:
        """Images to codes.

        Args:
          images: uint8 [N, H, W] (or one [H, W]), sides divisible by the spatial factor.
          near: codes to keep where they fit nearly as well, int32 as the result: of the prior, so that the
            follow-up has other codes only where the image has changed.
          slack: how much further than the nearest code they may be, in squared distance (see `error`).

        Returns:
          int32 [N, h, w] (or [h, w]).
        """
        images = np.asarray(images)
        if images.ndim == 2:
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
        if images.dtype != np.uint8 or images.ndim != 3:
            raise UserError(f"images: expected uint8 [N, H, W], got {images.dtype} {images.shape}")
        if any(side % self.config.factor for side in images.shape[1:]):
            raise UserError(
                f"images: sides {images.shape[1:]} are not divisible by {self.config.factor}; resize or pad them"
            )

    def detokenize(self, codes: np.ndarray, batch_size: int = 64) -> np.ndarray:
        """int32 [N, h, w] (or one [h, w]) in [0, codebook size) -> uint8 [N, H, W] (or [H, W])."""
        codes = np.asarray(codes, np.int32)
        if codes.ndim == 2:
            return self.detokenize(codes[None])[0]
        if codes.size and not (codes.min() >= 0 and codes.max() < self.config.codebook_size):
            raise UserError(
                f"codes: values must lie in [0, {self.config.codebook_size}), got {codes.min()}..{codes.max()}"
            )
        images = _batched(lambda c: self._decode(self.variables, c), codes, batch_size=batch_size)
        return np.clip(np.rint((images.mean(-1) + 1) * 127.5), 0, 255).astype(np.uint8)


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
    """Tokenizer, transformer and vocabulary. Built by `progemu_jax.load`."""

    def __init__(
        self,
        params: Any,
        config: TransformerConfig,
        layout: Layout,
        vocabulary: vocab.Vocabulary,
        tokenizer: Tokenizer,
        policy: Sampling,
        name: str,
    ):
        self.params, self.config, self.layout = params, config, layout
        self.vocabulary, self.tokenizer, self.policy, self.name = vocabulary, tokenizer, policy, name
        self.grammar = Grammar.of(vocabulary)
        self.tokenize, self.detokenize = tokenizer.tokenize, tokenizer.detokenize
        self._logits = jax.jit(self._forward)

    def _forward(self, params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = Transformer(self.config).apply({"params": params}, tokens)
        return transformer.logits(params, hidden, (0, self.config.vocab_size))

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Next-token logits f32 [B, T, V] of token ids int32 [B, T], with consecutive positions."""
        tokens = np.asarray(tokens, np.int32)
        if tokens.ndim != 2 or tokens.size == 0:
            raise UserError(f"tokens: expected int32 [B, T], got shape {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
            raise UserError(
                f"tokens: ids must lie in [0, {self.config.vocab_size}), got {tokens.min()}..{tokens.max()}"
            )
        return np.asarray(self._logits(self.params, tokens))

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
        grid = (self.layout.height, self.layout.width)
        if isinstance(prior, np.ndarray) and prior.shape == grid and np.issubdtype(prior.dtype, np.integer):
            if prior.min() < 0 or prior.max() >= self.vocabulary.codebook_size:
                raise UserError(f"prior: codes must lie in [0, {self.vocabulary.codebook_size})")
            return prior.astype(np.int32)
        return self.tokenize(_gray(prior, tuple(side * self.tokenizer.config.factor for side in grid)))

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


def _gray(image: Any, size: tuple[int, int]) -> np.ndarray:
    """Image in any accepted form -> uint8 [H, W] of `size`; UserError names what is wrong."""
    from PIL import Image as pil

    if isinstance(image, (str, os.PathLike)):
        try:
            with pil.open(image) as opened:
                image = opened.convert("L")
        except (OSError, pil.DecompressionBombError, SyntaxError, ValueError) as error:
            raise UserError(f"{image}: not a readable image ({type(error).__name__}); give a PNG or JPEG") from None
    if isinstance(image, pil.Image):
        image = np.asarray(image.convert("L"))
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] in (1, 3):
        image = image.mean(-1).astype(image.dtype)
    if image.ndim != 2 or image.size == 0:
        raise UserError(f"prior: expected an image [H, W], got shape {image.shape}")
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise UserError("prior: a float image must be finite and in [0, 1]; scale it or pass uint8")
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"prior: expected uint8 or float in [0, 1], got {image.dtype}; scale it to 8 bits")
    if image.shape != size:
        image = np.asarray(pil.fromarray(image).resize(size[::-1], pil.Resampling.LANCZOS))
    return image


def load(path: str | os.PathLike) -> Model:
    """Loads a trained model.

    Args:
      path: a run directory of `progemu_jax.main` whose train stage is complete.

    Raises:
      UserError: nothing there that can be loaded, naming what is missing.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run directory, e.g. runs/demo")
    tokenizer = Tokenizer.load(path / TOKENIZER)
    params, config = checkpoint.load_export(path / LANGUAGE_MODEL)
    vocabulary = vocab.load(config["vocabulary"] or None, tokenizer.config.codebook_size)
    if vocabulary.hash != config["vocabulary_hash"]:
        raise UserError(f"{path}: trained with another vocabulary (hash {config['vocabulary_hash'][:12]})")
    return Model(
        params,
        from_dict(TransformerConfig, config["model"], "model"),
        from_dict(Layout, config["layout"], "layout"),
        vocabulary,
        tokenizer,
        from_dict(Sampling, config["policy"], "sampling"),
        name=f"{path.name}@{config['hash'][:12]}",
    )
