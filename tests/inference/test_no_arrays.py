"""What is no array, no folder or too long is one line, not an error of NumPy's or of the system's."""

import numpy as np
import pytest
from support.errors import fails

import progemu_jax

RAGGED = [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize(
    "path", [None, 3, "", "  ", "a" * 5000, "a\0b", b"\xff" * 300, ["a"]], ids=lambda p: str(p)[:9]
)
def test_load_of_what_names_no_folder(path):
    fails("path=.*: names no folder", progemu_jax.load, path)


def test_arrays_that_are_none(tiny_model):
    prior = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    for ask, words in (
        (lambda: tiny_model.counterfactual(RAGGED, "New edema."), "image: is no array"),
        (lambda: tiny_model.counterfactual(prior, "New edema.", mask=RAGGED), "mask: is no array"),
        (lambda: tiny_model.tokenize(RAGGED), "images: is no array"),
        (lambda: tiny_model.detokenize(RAGGED), "codes: is no array"),
        (lambda: tiny_model.detokenize(["a"]), "codes: is no array"),
        (lambda: tiny_model.detokenize(np.zeros(4, np.int32)), r"codes: expected int32 \[N, h, w\].*\[4\]"),
        (lambda: tiny_model.logits(RAGGED), "tokens: is no array"),
        (lambda: tiny_model.logits(np.ones((1, 113), np.int32)), "tokens: rows of 113, the model has 112"),
    ):
        fails(words, ask)
