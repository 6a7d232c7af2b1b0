"""What embeddings start as: of image codes the tokenizer's vectors, of words those of a language model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.tasks.word_vectors import WordVectors

PROJECTION = "word_proj"  # of words' vectors onto embeddings, among the parameters while they are trained


def code_embeddings(params: Any, codebook: np.ndarray, visual_start: int, seed: int) -> Any:
    """Parameters whose visual rows of embedding and head are a random projection of the codes' vectors.

    Args:
      params: of the transformer, untrained.
      codebook: f32 [Q, E].
      visual_start: id of code 0.
      seed: of the projection.

    Returns:
      The parameters with rows visual_start..visual_start+Q-1 of both tables replaced, at the tables' own scale.
    """
    rng = np.random.default_rng(seed)
    # One scale for all dimensions keeps distances; with the squared norm, a linear head can prefer what is near.
    codes = (codebook - codebook.mean(0)) / np.sqrt(codebook.var(0).mean())
    norms = np.square(codes).sum(1, keepdims=True)
    codes = np.concatenate([codes, (norms - norms.mean()) / (norms.std() + 1e-6)], axis=1)
    out = dict(params)
    for table in ("embed_tokens", "lm_head"):
        if table not in params:
            continue
        old = params[table]
        rows = codes @ rng.standard_normal((codes.shape[1], old.shape[1])) / np.sqrt(codes.shape[1])
        rows = jnp.asarray(rows * float(old.std()), old.dtype)
        out[table] = old.at[visual_start : visual_start + len(codes)].set(rows)
    return out


def word_embeddings(params: Any, words: WordVectors, projection: jax.Array, scale: float) -> Any:
    """Parameters whose embeddings of words are their vectors, projected.

    Args:
      params: of the transformer.
      words: tokens and f32 [N, D] vectors.
      projection: f32 [D, M]; see `first_projection`.
      scale: of the embeddings, beside a projection's own (`TransformerConfig.initializer_range`).
    """
    table = params["embed_tokens"]
    rows = jnp.asarray(words.vectors) @ projection * scale
    return {**params, "embed_tokens": table.at[words.tokens].set(rows.astype(table.dtype))}


def first_projection(words: WordVectors, width: int, seed: int) -> np.ndarray:
    """f32 [D, width]: a rotation, which keeps angles and spreads what the first columns say, to a variance of 1.

    Of vectors wider than the model it takes the first columns, which have the most variance.
    """
    kept = min(words.vectors.shape[1], width)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, kept)))[0].T
    spread = (words.vectors[:, :kept] @ rotation).std()
    out = np.zeros((words.vectors.shape[1], width), np.float32)
    out[:kept] = rotation / spread
    return out


def known_projection(params: Any, words: WordVectors, scale: float) -> np.ndarray:
    """f32 [D, M]: the projection that `word_embeddings` made the embeddings of trained parameters with.

    Raises:
      UserError: their embeddings of words are no projection of these vectors.
    """
    rows = np.asarray(params["embed_tokens"], np.float32)[words.tokens]
    out = np.linalg.lstsq(words.vectors * scale, rows, rcond=None)[0]
    missed = np.square(words.vectors @ out * scale - rows).mean()
    if missed > 1e-3 * np.square(rows).mean():
        raise UserError(
            "config.progemu.init: these weights were trained without word vectors; "
            "set config.progemu.task.word_vectors=False"
        )
    return out
