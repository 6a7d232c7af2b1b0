"""The ProgEmu sequence against the layout written in the reference, by hand."""

import numpy as np
import pytest

from progemu_jax.errors import UserError
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.sequence import Kind, Layout


@pytest.fixture(scope="module")
def words():
    return vocabulary.load(None, 16)


PRIOR = np.array([[1, 2, 3], [4, 5, 6]])
TARGET = np.array([[1, 2, 9], [4, 0, 6]])
LAYOUT = Layout(height=2, width=3, length=64)


def test_pack_is_the_reference_layout(words):
    row = sequence.pack(words, LAYOUT, PRIOR, "New edema.", TARGET, "Edema is new.")
    v = words.visual_start
    image = lambda c: [  # noqa: E731
        words.boi, *words.encode("2*3"), words.img,
        *(c[0] + v), words.eol, *(c[1] + v), words.eol, words.eof, words.eoi,
    ]  # fmt: skip
    expected = [
        words.bos, *image(PRIOR), *words.encode("New edema."), *image(TARGET),
        *words.encode("Edema is new."), words.eos,
    ]  # fmt: skip
    n = len(expected)
    assert row["tokens"][:n].tolist() == expected
    assert (row["tokens"][n:] == words.pad).all()
    assert (row["kinds"][n:] == Kind.PAD).all()
    assert row["kinds"][n - 1] == Kind.EOS
    assert row["positions"][:n].tolist() == list(range(n))


def test_every_visual_token_and_nothing_else_is_visual(words):
    row = sequence.pack(words, LAYOUT, PRIOR, "New edema.", TARGET, "x")
    visual = row["tokens"][row["kinds"] == Kind.VISUAL]
    assert visual.tolist() == (TARGET.reshape(-1) + words.visual_start).tolist()


def test_aligned_holds_the_priors_token_one_step_ahead(words):
    row = sequence.pack(words, LAYOUT, PRIOR, "New edema.", TARGET, "x")
    before = np.flatnonzero(row["kinds"] == Kind.VISUAL) - 1
    assert row["aligned"][before].tolist() == (PRIOR.reshape(-1) + words.visual_start).tolist()
    assert (np.delete(row["aligned"], before) == -1).all()


def test_null_prompt_drops_prior_and_prompt(words):
    row = sequence.pack(words, LAYOUT, None, "New edema.", TARGET, "x")
    assert row["tokens"][:2].tolist() == [words.bos, words.boi]
    assert (row["aligned"] == -1).all()
    assert not np.isin(row["kinds"], [Kind.PRIOR, Kind.PROMPT]).any()


@pytest.mark.parametrize("prompt", ["Edema.", "New large left pleural effusion."])
def test_prompt_budget_fixes_the_distance_between_the_images(words, prompt):
    layout = Layout(2, 3, 64, prompt_budget=20)
    row = sequence.pack(words, layout, PRIOR, prompt, TARGET, "x")
    first = lambda kind: row["positions"][np.flatnonzero(row["kinds"] == kind)[0]]  # noqa: E731
    head = 2 + len(words.encode("2*3"))
    assert first(Kind.VISUAL) - first(Kind.PRIOR) == 2 * head + LAYOUT.image_tokens + 20


@pytest.mark.parametrize("prior", [PRIOR, None])
def test_unpack_is_the_inverse(words, prior):
    row = sequence.pack(words, LAYOUT, prior, "New edema.", TARGET, "Edema is new.")
    out = sequence.unpack(words, LAYOUT, row["tokens"])
    assert (out.target == TARGET).all()
    assert out.text == "Edema is new."
    if prior is None:
        assert out.prior is None
    else:
        assert (out.prior == prior).all()
        assert out.prompt == "New edema."


def test_unpack_refuses_a_row_off_the_grammar(words):
    row = sequence.pack(words, LAYOUT, PRIOR, "New edema.", TARGET, "x")["tokens"]
    row[row == words.eof] = words.eol
    with pytest.raises(ValueError, match="grammar"):
        sequence.unpack(words, LAYOUT, row)


def test_too_long_is_an_error_never_a_cut(words):
    with pytest.raises(UserError, match="exceed"):
        sequence.pack(words, LAYOUT, PRIOR, "edema " * 100, TARGET, "x")
    with pytest.raises(UserError, match="exceed"):
        sequence.pack(words, LAYOUT, PRIOR, "edema", TARGET, "edema " * 100)
    with pytest.raises(UserError, match="exceed"):
        sequence.prompt_tokens(words, Layout(2, 3, 200, prompt_budget=2), PRIOR, "edema " * 10)


def test_codes_outside_the_codebook_are_refused(words):
    with pytest.raises(UserError, match="must lie in"):
        sequence.pack(words, LAYOUT, PRIOR + 12, "x", TARGET, "x")
