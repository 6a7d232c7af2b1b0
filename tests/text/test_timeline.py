"""Films before the prior, and days, in the sequence."""

import dataclasses

import numpy as np
import pytest

from progemu_jax.errors import UserError
from progemu_jax.text import sequence, timeline
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.timeline import Older, Timeline
from progemu_jax.text.vocabulary import load

VOCAB = load(None, 16)
RNG = np.random.default_rng(0)
FILMS = RNG.integers(0, 16, (4, 2, 3))  # oldest, older, prior, target
OLDEST, OLDER, PRIOR, TARGET = FILMS
PLAIN = Layout(2, 3, 96, prompt_budget=20)
TIMED = dataclasses.replace(PLAIN, older=2, interval="token")
TIMES = Timeline(60.0, (Older(OLDEST, 400.0), Older(OLDER, 30.0)))


def start(layout, when, prompt="New edema."):
    return sequence.prompt_tokens(VOCAB, layout, PRIOR, prompt, timeline=when)


class TestScale:
    def test_a_token_stands_for_days_within_a_fifth(self):
        for days in (1, 2, 7, 30, 60, 365, 3650):
            token = timeline.days_token(VOCAB, days)
            assert abs(np.log(timeline.days_of(VOCAB, token) / days)) <= np.log(2) / 4 + 1e-9

    def test_it_is_ordered_and_has_ends(self):
        tokens = [timeline.days_token(VOCAB, d) for d in (0, 0.5, 1, 7, 30, 90, 365, 8192, 1e9)]
        assert tokens == sorted(tokens)
        assert tokens[0] == tokens[2]
        assert tokens[-1] == tokens[-2]
        assert tokens[-1] - tokens[0] == timeline.STEPS - 1

    def test_no_other_token_says_days(self):
        names = [VOCAB.bos, VOCAB.eos, VOCAB.eol, VOCAB.eof, VOCAB.pad, VOCAB.boi, 5, VOCAB.extra(99), VOCAB.extra(127)]
        assert [timeline.days_of(VOCAB, t) for t in names] == [None] * len(names)

    def test_between_two_steps_the_nearer_is_drawn_more_often(self):
        rng = np.random.default_rng(0)
        drawn = np.array([timeline.days_token(VOCAB, 2**2.9, rng) for _ in range(2000)])  # place 5.8
        low, high = np.unique(drawn)
        assert high == low + 1
        assert abs((drawn == high).mean() - 0.8) < 0.03

    def test_a_sentence(self):
        assert timeline.days_sentence(60.2) == "Follow-up after 60 days."
        assert timeline.days_sentence(0) == "Follow-up after 1 day."


class TestRow:
    def test_without_times_nothing_changes(self):
        text = (PRIOR, "New edema.", TARGET, "Edema is new.")
        plain = sequence.pack(VOCAB, PLAIN, *text)
        for layout, when in ((TIMED, None), (TIMED, Timeline()), (PLAIN, Timeline())):
            row = sequence.pack(VOCAB, layout, *text, timeline=when)
            assert all((row[key] == plain[key]).all() for key in plain)

    def test_order_of_tokens(self):
        got = start(TIMED, TIMES)["tokens"].tolist()
        day = [timeline.days_token(VOCAB, d) for d in (400, 30, 60)]
        films = [sequence.image_block(VOCAB, codes) for codes in (OLDEST, OLDER, PRIOR)]
        words = VOCAB.encode("New edema.")
        head = sequence.header(VOCAB, 2, 3)
        assert got == [VOCAB.bos, *films[0], day[0], *films[1], day[1], *films[2], *words, day[2], *head]

    def test_what_stands_in_a_row_of_one_prior_keeps_its_position_ids(self):
        plain, timed = start(PLAIN, None), start(TIMED, TIMES)
        more = len(timed["tokens"]) - len(plain["tokens"]) - 1
        words = 1 + len(sequence.image_block(VOCAB, PRIOR)) + len(VOCAB.encode("New edema."))
        kept = np.delete(timed["positions"], range(1, more + 1))
        kept, day = np.delete(kept, words), kept[words]
        assert (kept == plain["positions"]).all()
        assert day == plain["positions"][-len(sequence.header(VOCAB, 2, 3))] - 1
        others = timed["positions"][1 : more + 1]
        assert others.min() >= PLAIN.length + PLAIN.prompt_budget
        assert len(set(others)) == more

    def test_one_older_film_lies_where_the_nearer_of_two_does(self):
        one, two = start(TIMED, TIMES.cut(1, True)), start(TIMED, TIMES)
        block = len(sequence.image_block(VOCAB, PRIOR)) + 1
        assert (one["positions"][1 : block + 1] == two["positions"][block + 1 : 2 * block + 1]).all()

    def test_consecutive_positions_where_the_layout_has_them(self):
        layout = dataclasses.replace(TIMED, prompt_budget=0)
        assert (start(layout, TIMES)["positions"] == np.arange(len(start(layout, TIMES)["tokens"]))).all()

    def test_each_film_has_the_one_before_it_at_its_places(self):
        row = start(TIMED, TIMES)
        got = [(t, a) for t, a in zip(row["tokens"][1:], row["aligned"][:-1], strict=True) if a >= 0]
        pairs = [
            (VOCAB.visual_start + new, VOCAB.visual_start + old)
            for now, before in ((OLDER, OLDEST), (PRIOR, OLDER))
            for new, old in zip(now.reshape(-1), before.reshape(-1), strict=True)
        ]
        assert got == pairs

    def test_kinds_say_films_and_words(self):
        kinds = start(TIMED, TIMES)["kinds"]
        block = len(sequence.image_block(VOCAB, PRIOR))
        assert (kinds[1 : 3 * block + 3] == Kind.PRIOR).all()
        assert (kinds == Kind.PROMPT).sum() == len(VOCAB.encode("New edema.")) + 1

    @pytest.mark.parametrize(
        "when", [TIMES, TIMES.cut(1, False), Timeline(None, (Older(OLDER),)), Timeline(7.0), Timeline()]
    )
    def test_unpack_inverts_pack(self, when):
        row = sequence.pack(VOCAB, TIMED, PRIOR, "New edema.", TARGET, "Edema is new.", timeline=when)
        got = sequence.unpack(VOCAB, TIMED, row["tokens"])
        assert (got.prior == PRIOR).all()
        assert (got.target == TARGET).all()
        assert (got.prompt, got.text) == ("New edema.", "Edema is new.")
        assert len(got.timeline.older) == len(when.older)
        for back, film in zip((*got.timeline.older, got.timeline), (*when.older, when), strict=True):
            assert (back.days is None) == (film.days is None)
            assert film.days is None or abs(np.log2(back.days / film.days)) <= 0.25 + 1e-9
        for back, film in zip(got.timeline.older, when.older, strict=True):
            assert (back.codes == film.codes).all()

    def test_days_as_a_sentence(self):
        layout = dataclasses.replace(PLAIN, interval="text", prompt_budget=0, length=128)
        row = sequence.pack(VOCAB, layout, PRIOR, "New edema.", TARGET, "x", timeline=Timeline(60.0))
        assert sequence.unpack(VOCAB, layout, row["tokens"]).prompt == "New edema. Follow-up after 60 days."

    def test_the_twin_keeps_the_films_and_drops_what_is_asked(self):
        assert TIMES.twin.days is None
        assert TIMES.twin.older is TIMES.older


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("layout", "when", "named"),
        [
            (PLAIN, Timeline(60.0), "days: the model was trained without intervals"),
            (PLAIN, Timeline(None, TIMES.older[:1]), "priors: 2 films, the model takes one film"),
            (dataclasses.replace(TIMED, older=1), TIMES, "priors: 3 films, the model takes at most 2 films"),
        ],
    )
    def test_what_the_model_has_not_learnt(self, layout, when, named):
        with pytest.raises(UserError, match=named):
            start(layout, when)

    def test_days_take_one_token_of_the_budget(self):
        words = "edema " * 3
        budget = len(VOCAB.encode(words))
        layout = dataclasses.replace(TIMED, prompt_budget=budget)
        start(layout, Timeline(), words)
        with pytest.raises(UserError, match=f"prompt: {budget} tokens exceed the model's {budget - 1}"):
            start(layout, Timeline(60.0), words)

    def test_a_row_of_too_many_images(self):
        row = sequence.pack(VOCAB, TIMED, PRIOR, "New edema.", TARGET, "x", timeline=TIMES)["tokens"]
        with pytest.raises(ValueError, match="4 images in the row: expected 1 or 2"):
            sequence.unpack(VOCAB, PLAIN, row)


def test_a_shards_example():
    example = {"days": np.float32(60), "older": FILMS[[1, 0]], "older_days": np.float32([30, np.nan])}
    got = timeline.of_example(example, 2, True)
    assert got.days == 60
    assert [film.days for film in got.older] == [None, 30]
    assert (got.older[0].codes == OLDEST).all()
    assert [film.days for film in timeline.of_example(example, 1, True).older] == [30]
    without = timeline.of_example(example, 2, False)
    assert without.days is None
    assert [film.days for film in without.older] == [None, None]
    assert timeline.of_example(example, 0, False) is None
    assert timeline.of_example({}, 2, True) is None
    unknown = example | {"days": np.float32(np.nan), "older": FILMS[:0], "older_days": np.zeros(0, np.float32)}
    assert timeline.of_example(unknown, 2, True) == Timeline()


def test_what_provenance_says():
    assert TIMES.summary() == {"days": 60.0, "older": [400.0, 30.0]}
    assert Timeline().summary() == {}
    assert Timeline(7).summary() == {"days": 7}
