"""The script of the vocabulary `english` on a small BERT and a small WordNet, and the files that it wrote."""

import json

import numpy as np
import pytest
from support.diffusion_models import BERT_CONFIG, component
from support.errors import fails
from support.wordnet import write

from progemu_jax.convert import english_vocabulary
from progemu_jax.tasks import word_vectors
from progemu_jax.text import vocabulary

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz",
    *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
]
PIECES += ["bloated", "tumefy", "growth", "swell", "increase", "chest", "the"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, WordNet, what was written)."""
    root = tmp_path_factory.mktemp("english")
    model = component(root / "model", BERT_CONFIG | {"vocab_size": len(PIECES), "num_hidden_layers": 3})
    (model / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    wordnet = write(root / "wordnet")
    english_vocabulary.write(model, wordnet, root / "out")
    return model, wordnet, root / "out"


def tokens(folder):
    ranks = vocabulary.read_ranks(folder / vocabulary.TEXT_FILE)
    return sorted(ranks, key=ranks.get)


def test_ids_of_radiology_stay_and_words_of_change_follow(made):
    base, found = tokens(vocabulary.BUILT_IN / "radiology"), tokens(made[2])
    assert found[: len(base)] == base
    new = set(found[len(base) :])
    # Known forms of verbs of change, though no prompt has them; of the dictionary also what begins a sentence.
    assert {b" bloated", b" tumefy"} <= new
    assert {b" dwindling", b"Dwindle", b"Dwindling"} <= new
    assert not {b" bloats", b" chest", b" the", b"Dwindles"} & new
    loaded = vocabulary.load(made[2])
    assert loaded.decode(loaded.encode("It bloated. Dwindling!")) == "It bloated. Dwindling!"


def test_the_same_call_gives_the_same_files(made, tmp_path):
    english_vocabulary.write(*made[:2], tmp_path)
    for path in made[2].iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()


def test_each_word_has_one_vector_in_every_form_of_its_letters(made):
    found, ranked = word_vectors.load(made[2], len(tokens(made[2]))), tokens(made[2])
    by_word = {}
    for token, vector in zip(found.tokens, found.vectors, strict=True):
        by_word.setdefault(ranked[token].strip().lower(), []).append(vector)
    assert max(map(len, by_word.values())) > 1
    for vectors in by_word.values():
        np.testing.assert_array_equal(vectors, [vectors[0]] * len(vectors))
    assert abs(found.vectors.std() - 1) < 1e-3
    assert np.square(found.vectors).mean(0)[0] > np.square(found.vectors).mean(0)[-1]  # by variance


def test_what_is_no_such_model_is_one_line(made, tmp_path):
    model, wordnet, _ = made
    fails("vocab.txt: cannot be read", english_vocabulary.write, tmp_path, wordnet, tmp_path / "out")
    other = component(tmp_path / "vae", {**json.loads((model / "config.json").read_text()), "model_type": "bert"})
    (other / "vocab.txt").write_text("a\n")
    fails("has no .PAD.", english_vocabulary.write, other, wordnet, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_committed_vectors_know_words_that_prompts_hold_out():
    words = vocabulary.load("english")
    found = word_vectors.load("english", words.text_size)
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    rows = {words.decode([token]): row for token, row in zip(found.tokens, unit, strict=True)}
    for word, near, far in (
        (" dwindled", " dwindling", " appeared"), (" diminished", " reduced", " emerged"),
        (" emergence", " appearance", " reduction"), (" vanished", " disappeared", " enlarged"),
        (" intensified", " worsened", " vanished"),
    ):  # fmt: skip
        assert rows[word] @ rows[near] > rows[word] @ rows[far], word
