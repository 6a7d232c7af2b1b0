"""Vectors of words: what a language model that read much English makes of each word by itself.

Words of like meaning have like vectors, so that a model whose embeddings of words are these, and stay these, takes a
word that no prompt of its training had for those near to it. `word_vectors.npz` stands beside a vocabulary's files:
`tokens` int32 [N] ids, `rows` uint16 [N] which vector each has, `vectors` int8 [W, D], `scale` f32 []; columns go from
much variance to little. `python -m progemu_jax.convert.english_vocabulary` makes that of `english`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.files.records import open_npz
from progemu_jax.text.vocabulary import BUILT_IN, NAMES

FILE = "word_vectors.npz"


class WordVectors(NamedTuple):
    """tokens: int32 [N] ids, ascending. vectors: f32 [N, D], of variance 1 in all."""

    tokens: np.ndarray
    vectors: np.ndarray


def packed(words: Mapping[int, str], rows: Mapping[str, int], vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of the file. words: {token: word}. rows: {word: row of `vectors`, f32 [W, D]}."""
    scale = np.float32(np.abs(vectors).max() / 127)
    ids = sorted(words)
    return {
        "tokens": np.array(ids, np.int32),
        "rows": np.array([rows[words[i]] for i in ids], np.uint16),
        "vectors": np.rint(vectors / scale).astype(np.int8),
        "scale": scale,
    }


def load(vocabulary: str | Path | None, text_size: int) -> WordVectors:
    """The vectors beside a vocabulary.

    Args:
      vocabulary: as `text.vocabulary.load` takes it.
      text_size: ids below it are text.

    Raises:
      UserError: no file, or one that does not fit.
    """
    path = (BUILT_IN / str(vocabulary) if str(vocabulary) in NAMES else Path(vocabulary or BUILT_IN)) / FILE
    try:
        with open_npz(path) as arrays:
            tokens, rows, vectors, scale = (arrays[name] for name in ("tokens", "rows", "vectors", "scale"))
    except FileNotFoundError:
        raise UserError(f"{path}: there are no word vectors; set config.progemu.task.word_vectors=False") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); make it again") from None
    whole = all(x.dtype.kind in "iu" for x in (tokens, rows, vectors)) and scale.dtype.kind == "f"
    shaped = vectors.ndim == 2 and scale.shape == () and tokens.shape == rows.shape == (tokens.size,)
    fits = whole and shaped and tokens.size and vectors.any() and scale > 0 and (np.diff(tokens) > 0).all()
    if not fits or tokens[0] < 0 or tokens[-1] >= text_size or rows.min() < 0 or rows.max() >= len(vectors):
        raise UserError(f"{path}: does not fit a vocabulary of {text_size} text tokens; make it again")
    found = vectors[rows].astype(np.float32) * float(scale)
    return WordVectors(tokens.astype(np.int32), found / found.std())
