"""What embeddings start as: like codes and like words together."""

import jax.numpy as jnp
import numpy as np

from progemu_jax.tasks.embeddings import code_embeddings, first_projection, word_embeddings
from progemu_jax.tasks.word_vectors import WordVectors

ROWS, WIDTH = 40, 16


def params(seed=0):
    table = np.random.default_rng(seed).standard_normal((ROWS, WIDTH)).astype(np.float32) * 0.02
    return {"embed_tokens": jnp.asarray(table), "lm_head": jnp.asarray(table)}


def test_code_embeddings_put_like_codes_together():
    start, codes = 20, 12
    codebook = np.random.default_rng(1).standard_normal((codes, 4)).astype(np.float32)
    codebook[1] = codebook[0] + 1e-3
    new = code_embeddings(params(), codebook, start, 0)
    rows = np.asarray(new["embed_tokens"][start : start + codes])
    distances = np.linalg.norm(rows - rows[0], axis=1)
    assert distances[1] < 0.05 * distances[2:].min()
    assert (new["embed_tokens"][:start] == params()["embed_tokens"][:start]).all()


def test_word_embeddings_keep_angles_at_the_tables_scale():
    tokens = np.array([2, 5, 9, 30], np.int32)
    for width in (8, 16, 24):  # fewer and more columns than the model has
        words = WordVectors(tokens, np.random.default_rng(2).standard_normal((4, width)).astype(np.float32))
        projection = first_projection(words, WIDTH, 3)
        new = np.asarray(word_embeddings(params(), words, projection, 0.02)["embed_tokens"])
        rows, kept = new[tokens], words.vectors[:, :WIDTH]
        scale = np.square(rows).sum() / np.square(kept).sum()
        np.testing.assert_allclose(rows @ rows.T, scale * kept @ kept.T, atol=1e-5)
        np.testing.assert_allclose(rows.std(), 0.02, rtol=1e-4)
        others = np.setdiff1d(np.arange(ROWS), tokens)
        np.testing.assert_array_equal(new[others], np.asarray(params()["embed_tokens"])[others])
        np.testing.assert_array_equal(first_projection(words, WIDTH, 3), projection)
