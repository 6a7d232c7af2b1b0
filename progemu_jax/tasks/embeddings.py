"""What embeddings start as: of image codes the tokenizer's vectors, of words those of a language model."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from progemu_jax.tasks.word_vectors import WordVectors


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


def word_embeddings(params: Any, words: WordVectors, seed: int) -> Any:
    """Parameters whose embeddings of words are a rotation of their vectors, at the table's own scale.

    Args:
      params: of the transformer, untrained.
      words: tokens and f32 [N, D] vectors, whose columns beyond the model's width, which say least, are left out.
      seed: of the rotation, without which the first coordinates would say most.
    """
    old = params["embed_tokens"]
    vectors = words.vectors[:, : old.shape[1]]
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((old.shape[1], vectors.shape[1])))[0].T
    rows = vectors @ rotation
    rows = jnp.asarray(rows * (float(old.std()) / rows.std()), old.dtype)
    return {**params, "embed_tokens": old.at[words.tokens].set(rows)}
