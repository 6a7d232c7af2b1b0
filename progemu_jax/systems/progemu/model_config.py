"""The sizes of a ProgEmu run: tokenizer, vocabulary, layout and transformer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from progemu_jax.config import Config
from progemu_jax.convert import lpips
from progemu_jax.convert.components import IN_RUN, LANGUAGE_MODEL, PRIOR_DECODER, TOKENIZER
from progemu_jax.errors import UserError
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.text.vocabulary import TEXT_FILE, VISION_FILE, load


def tokenizer_model(config: Config) -> Any:
    """The VQGAN's config: the run's own, or that of `config.tokenizer.init`."""
    c = config.tokenizer
    return open_folder(c.init, TOKENIZER, c.model).model if c.init else c.model


def load_tokenizer(workdir: Path, painter: bool = False) -> Tokenizer:
    """The run's tokenizer; painter: with the decoder that sees the prior."""
    return Tokenizer.load(workdir / IN_RUN[TOKENIZER], workdir / IN_RUN[PRIOR_DECODER] if painter else None)


def model_parts(config: Config) -> tuple:
    """(vocabulary, layout, transformer config) of a run; those of `config.progemu.init` where it is set."""
    coder, task, model = tokenizer_model(config), config.progemu.task, config.progemu.model
    start = language_start(config)
    side = config.data.image_size // coder.factor
    layout = task.layout(side, side)
    if start is None:
        vocabulary = load(config.vocabulary or None, coder.codebook_size)
        if model.vocab_size not in (0, vocabulary.size):
            raise UserError(
                f"config.progemu.model.vocab_size={model.vocab_size}: the vocabulary has {vocabulary.size}; leave it 0"
            )
        model = dataclasses.replace(model, vocab_size=vocabulary.size, max_length=task.length)
        return vocabulary, layout, _padded(model, config.mesh.tensor)
    where, model = f"config.progemu.init={config.progemu.init}", start.model
    vocabulary = load(config.vocabulary, coder.codebook_size) if config.vocabulary else start.vocabulary
    if vocabulary is None:
        raise UserError(f"{where}: has no text tokenizer; put {TEXT_FILE} and {VISION_FILE} beside it")
    if vocabulary.size > model.vocab_size:
        raise UserError(f"{where}: the model has {model.vocab_size} ids, the vocabulary {vocabulary.size}; use its own")
    if vocabulary.codebook_size != coder.codebook_size:
        raise UserError(
            f"{where}: its vocabulary has {vocabulary.codebook_size} visual tokens, the image tokenizer "
            f"{coder.codebook_size} codes; set config.tokenizer.init to the tokenizer that belongs to it"
        )
    if task.length > model.max_length:
        raise UserError(
            f"config.progemu.task.length={task.length}: the model of {where} was made for {model.max_length}; lower it"
        )
    for key in ("init_from_codebook", "word_vectors"):
        if getattr(task, key):
            raise UserError(f"{where}: its embeddings are trained; set config.progemu.task.{key}=False")
    return vocabulary, layout, _padded(model, config.mesh.tensor)


def _padded(model: Any, parts: int) -> Any:
    """The model with vocabulary tables that divide over the tensor axis; the padding is in no export."""
    if model.padded_vocab_size is None and model.vocab_size % parts:
        return dataclasses.replace(model, padded_vocab_size=-(-model.vocab_size // parts) * parts)
    return model


def resized(params: Any, rows: int) -> Any:
    """Both vocabulary tables with so many rows: cut, or filled up with zeros."""

    def fit_rows(table: Any) -> Any:
        return jnp.pad(table[:rows], ((0, max(rows - len(table), 0)), (0, 0)))

    return {k: fit_rows(v) if k in ("embed_tokens", "lm_head") else v for k, v in params.items()}


def language_start(config: Config) -> Any:
    """`imported.Imported` of `config.progemu.init`, or None."""
    c = config.progemu
    return open_folder(c.init, LANGUAGE_MODEL, c.model) if c.init else None


def perceptual(config: Config) -> Any:
    """LPIPS' parameters where the tokenizer's loss asks for them and names their file, else None."""
    loss = config.tokenizer.loss
    return lpips.load(loss.perceptual_weights) if loss.perceptual and loss.perceptual_weights else None
