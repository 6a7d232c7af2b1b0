"""Vectors of words beside a vocabulary: what is written comes back, what does not fit is one line."""

import numpy as np
import pytest
from support.errors import fails

from progemu_jax.tasks import word_vectors

WORDS = {3: "grow", 5: "shrink", 9: "grow"}


def arrays(**other):
    vectors = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    return {**word_vectors.packed(WORDS, {"grow": 0, "shrink": 1}, vectors), **other}


def test_tokens_of_one_word_share_its_vector(tmp_path):
    np.savez(tmp_path / word_vectors.FILE, **arrays())
    found = word_vectors.load(tmp_path, 10)
    assert found.tokens.tolist() == [3, 5, 9]
    np.testing.assert_array_equal(found.vectors[0], found.vectors[2])
    expected = np.random.default_rng(0).standard_normal((2, 4))[[0, 1, 0]]
    np.testing.assert_allclose(found.vectors, expected / expected.std(), atol=0.02)  # eight bits


@pytest.mark.parametrize(
    ("other", "size", "words"),
    [
        ({}, 9, "does not fit a vocabulary of 9"),
        ({"rows": np.array([0, 1, 2], np.uint16)}, 10, "does not fit"),
        ({"rows": np.array([0, 1], np.uint16)}, 10, "does not fit"),
        ({"tokens": np.array([3, 3, 9], np.int32)}, 10, "does not fit"),
        ({"tokens": np.array([-1, 3, 9], np.int32)}, 10, "does not fit"),
        ({"rows": np.array([0, 1, -1], np.int16)}, 10, "does not fit"),
        ({"vectors": np.ones(2, np.int8)}, 10, "does not fit"),
        ({"vectors": np.zeros((2, 4), np.int8)}, 10, "does not fit"),
        ({"scale": np.float32(np.nan)}, 10, "does not fit"),
        ({"tokens": np.zeros(0, np.int32), "rows": np.zeros(0, np.uint16)}, 10, "does not fit"),
        ({"vectors": np.ones((2, 4), object)}, 10, "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path, other, size, words):
    np.savez(tmp_path / word_vectors.FILE, **arrays(**other))
    fails(words, word_vectors.load, tmp_path, size)


def test_a_vocabulary_without_vectors_says_so(tmp_path):
    fails("there are no word vectors; set config.progemu.task.word_vectors=False", word_vectors.load, tmp_path, 9)
    fails("there are no word vectors", word_vectors.load, None, 9)
    fails("there are no word vectors", word_vectors.load, "radiology", 9)
    np.savez_compressed(tmp_path / word_vectors.FILE, **arrays())
    whole = (tmp_path / word_vectors.FILE).read_bytes()
    for content in (b"PK", b"", whole[:300], whole[:90] + bytes(40) + whole[130:]):
        (tmp_path / word_vectors.FILE).write_bytes(content)
        fails("cannot be read", word_vectors.load, tmp_path, 10)
