"""Days and films before the prior, from the request to the codes."""

import functools
import warnings

import jax
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.devices import sharding
from progemu_jax.errors import FilmWarning, UserError
from progemu_jax.files.predictions import Case
from progemu_jax.inference import films
from progemu_jax.inference.expected import expected_course
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.models import transformer, vqgan
from progemu_jax.models.transformer import Transformer
from progemu_jax.sampling.policy import Sampling, guide
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.timeline import Older, Timeline

CODES = 24
LAYOUT = Layout(2, 3, 128, 12, older=2, interval="token")
GREEDY = Sampling(guidance=2.0, keep_prior=True, temperature=0.0, text_temperature=0.0, max_text=4)
RNG = np.random.default_rng(0)
FILMS = RNG.integers(0, CODES, (3, 2, 3)).astype(np.int32)
OLDEST, OLDER, PRIOR = FILMS
PIXELS = RNG.integers(0, 256, (3, 4, 6)).astype(np.uint8)
TIMES = {
    "nothing": None,
    "days": Timeline(60.0),
    "one film": Timeline(None, (Older(OLDER, 30.0),)),
    "all": Timeline(60.0, (Older(OLDEST), Older(OLDER, 30.0))),
}
CASES = [Case(name, PRIOR, "New edema.", timeline=when) for name, when in TIMES.items()]


@functools.cache
def model(layout=LAYOUT, policy=GREEDY):
    words = vocabulary.load(None, CODES)
    config = transformer.TransformerConfig(
        vocab_size=words.size, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, prior_alignment=True, prior_beside=True, initializer_range=0.5, learned_positions=180,
    )  # fmt: skip
    codec = vqgan.VQGANConfig(ch=16, patch=2, ch_mult=(1,), num_res_blocks=1, attn_levels=(), codebook_size=CODES)
    tokenizer = Tokenizer(initial(lambda key: vqgan.init_variables(codec, key), 1), codec)
    params = initial(lambda key: transformer.init_params(config, key), 3)
    return ProgEmu(params, config, layout, words, tokenizer, policy, "toy")


@pytest.fixture(scope="module")
def drawn():
    return model().sample(CASES, 5)


def test_decoding_equals_one_forward_pass(drawn):
    toy = model()

    @jax.jit
    def scores(tokens, positions, aligned, segments):
        hidden, _ = Transformer(toy.config).apply(
            {"params": toy.params}, tokens, positions, aligned=aligned, segments=segments
        )
        return transformer.logits(toy.params, hidden)

    for case, codes, text in zip(CASES, drawn.codes, drawn.texts, strict=True):
        twin = case.timeline and case.timeline.twin
        rows = [
            sequence.pack(toy.vocabulary, LAYOUT, PRIOR, prompt, codes, text, timeline=when)
            for prompt, when in ((case.prompt, case.timeline), ("", twin))
        ]
        for row in rows:
            row["segments"] = (row["kinds"] != Kind.PAD).astype(np.int32)
        batch = {k: np.stack([row[k] for row in rows]) for k in ("tokens", "positions", "aligned", "segments")}
        logits = scores(**batch)
        at = [np.flatnonzero(row["kinds"] == Kind.VISUAL) - 1 for row in rows]
        logits = guide(np.stack([x[places] for x, places in zip(np.asarray(logits), at, strict=True)]), 2.0)[0]
        start = toy.vocabulary.visual_start
        assert (np.asarray(logits)[:, start : start + CODES].argmax(-1) == codes.reshape(-1)).all(), case.pair_id


def test_what_is_told_of_time_changes_what_is_drawn(drawn):
    assert len({codes.tobytes() for codes in drawn.codes}) > 1


def test_a_case_without_times_is_as_in_a_model_that_knows_none(drawn):
    plain = model(Layout(2, 3, 128, 12)).sample(CASES[:1], 5)
    np.testing.assert_array_equal(plain.codes[0], drawn.codes[0])
    assert plain.texts[0] == drawn.texts[0]


def test_the_queue_gives_the_same(drawn):
    (found,) = model().sample_queued([CASES], 5, slots=2)
    np.testing.assert_array_equal([p.image for p in found], drawn.images)
    assert [p.text for p in found] == drawn.texts


@pytest.mark.slow
def test_eight_devices_give_the_same(drawn):
    toy = model()
    many = ProgEmu(toy.params, toy.config, LAYOUT, toy.vocabulary, toy.tokenizer, GREEDY, "toy")
    many = many.on(sharding.make_mesh(data=4, tensor=2)).sample(CASES, 5)
    np.testing.assert_array_equal(many.codes, drawn.codes)
    assert many.texts == drawn.texts


class TestRequest:
    def test_films_and_days(self, drawn):
        made = model().counterfactual(
            prompt="New edema.", priors=[OLDEST, OLDER, PRIOR], intervals=[None, 30], days=60, text=False
        )
        np.testing.assert_array_equal(made.codes[0], drawn.codes[3])
        assert made.settings["sampling"]["days"] == 60
        assert made.settings["sampling"]["older"] == [None, 30]
        np.testing.assert_array_equal(made.prior_codes, PRIOR)

    def test_one_film_in_a_list_is_one_prior(self):
        one, alone = (model().counterfactual(prompt="New edema.", text=False, **x) for x in (
            {"prior": PRIOR}, {"priors": [PRIOR]},
        ))  # fmt: skip
        np.testing.assert_array_equal(one.codes, alone.codes)
        assert one.settings == alone.settings
        assert "days" not in one.settings["sampling"]

    def test_over_days_is_one_counterfactual_for_each(self):
        found = model().over_days(PRIOR, "New edema.", (7, 60), text=False)
        assert list(found) == [7, 60]
        for days, made in found.items():
            alone = model().counterfactual(PRIOR, "New edema.", days=days, text=False)
            np.testing.assert_array_equal(made.codes, alone.codes)
            assert made.settings["sampling"]["days"] == days

    def test_no_prompt_but_days_is_what_is_expected(self):
        assert model().counterfactual(PRIOR, days=60, text=False).codes.shape == (1, 2, 3)
        with pytest.raises(UserError, match="prompt: empty"):
            model().counterfactual(PRIOR)

    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({"prior": PRIOR, "days": -3}, "days=-3: expected days, 0 to 36525"),
            ({"prior": PRIOR, "days": float("nan")}, "days=nan: expected days"),
            ({"prior": PRIOR, "days": "a week"}, "days=a week: expected days"),
            ({"prior": PRIOR, "days": True}, "days=True: expected days"),
            ({"prior": PRIOR, "priors": [PRIOR]}, "prior, priors: give one"),
            ({"prior": PRIOR, "intervals": [3]}, "intervals: are of several films"),
            ({"priors": []}, "priors: expected a list"),
            ({"priors": PIXELS[0]}, "priors: expected a list"),
            ({"priors": [None, PRIOR]}, "priors: expected a list"),
            ({"priors": [PRIOR] * 4}, "priors: 4 films, the model takes at most 3 films"),
            ({"priors": [OLDER, PRIOR], "intervals": [-30]}, r"intervals\[0\]=-30: the films are out of order"),
            ({"priors": [OLDER, PRIOR], "intervals": [30, 60]}, "intervals: expected 1 for 2 films"),
            ({"priors": [OLDER, PRIOR], "intervals": 30}, "intervals: expected 1 for 2 films"),
            ({"priors": [OLDER, PRIOR], "intervals": ["x"]}, r"intervals\[0\]=x: expected days"),
            ({"priors": ["nowhere.png", PRIOR]}, r"priors\[0\]: nowhere.png"),
        ],
    )
    def test_bad_input_is_one_clear_line(self, given, named):
        with pytest.raises(UserError, match=named) as error:
            model().counterfactual(prompt="New edema.", **given)
        assert "\n" not in str(error.value)

    def test_a_model_without_times_says_so(self):
        plain = model(Layout(2, 3, 128, 12))
        with pytest.raises(UserError, match="days: the model was trained without intervals"):
            plain.counterfactual(PRIOR, "New edema.", days=60)
        with pytest.raises(UserError, match="priors: 2 films, the model takes one film"):
            plain.counterfactual(prompt="New edema.", priors=[OLDER, PRIOR])


class TestStranger:
    class Network:
        image_size = 8

        @staticmethod
        def unlike(first, second):
            return abs(first.mean() - second.mean()) > 50

    def test_a_film_unlike_the_newest_is_warned_of(self):
        dark, light = np.full((8, 8), 20, np.uint8), np.full((8, 8), 200, np.uint8)
        with pytest.warns(FilmWarning, match=r"priors\[0\]: may be of another patient"):
            films.warn_stranger(self.Network(), light, dark, "priors[0]")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            films.warn_stranger(self.Network(), light, light, "priors[0]")
            films.warn_stranger(None, light, dark, "priors[0]")


class TestExpected:
    @staticmethod
    def reader(images, source):
        bright = images.reshape(len(images), -1).mean(1) / 255
        return {"findings": np.array(["bright", "dark"]), "finding_prob": np.stack([bright, 1 - bright], 1)}

    def test_the_probability_is_the_mean_over_futures(self):
        found = expected_course(model(), self.reader, priors=[OLDER, PRIOR], intervals=[30], days=60, futures=4)
        assert found.futures.codes.shape == (4, 2, 3)
        assert found.futures.settings["sampling"]["guidance"] == 1
        assert found.probability["bright"] == pytest.approx(found.futures.images.mean() / 255, abs=1e-6)
        assert sum(found.probability.values()) == pytest.approx(1)
        assert found.severity is None

    def test_it_needs_days(self):
        with pytest.raises(UserError, match="days=None: an expected course is of a time"):
            expected_course(model(), self.reader, PRIOR, days=None)
