"""Another number of cases compiles nothing new where it has the bucket of one before, and changes no case."""

import jax
import numpy as np
import pytest
from support import tiny_diffusion
from support.tiny_run import CODES, GRID, PROMPT, SIZE

import progemu_jax
from progemu_jax.files.predictions import Case
from progemu_jax.inference import sampler

PROGRAMS = []  # that were compiled, or read from disk, in their order


@pytest.fixture(scope="module", autouse=True)
def count_programs():
    def count(name, seconds, **facts):
        if name == "/jax/core/compile/backend_compile_duration":
            PROGRAMS.append(facts.get("fun_name"))

    jax.clear_caches()  # what other tests of this process have compiled would not be counted
    jax.monitoring.register_event_duration_secs_listener(count)


def test_a_future_more_compiles_nothing_and_the_first_ones_stay(model, prior):
    three = model.counterfactual(prior, PROMPT, num_samples=3, seed=4)
    assert len(three.images) == len(three.texts) == len(three.codes) == 3
    before = len(PROGRAMS)
    four = model.counterfactual(prior, PROMPT, num_samples=4, seed=4)
    assert PROGRAMS[before:] == []
    for name in ("images", "codes"):
        np.testing.assert_array_equal(getattr(four, name)[:3], getattr(three, name))
    assert four.texts[:3] == three.texts
    np.testing.assert_array_equal(four.prior, three.prior)
    model.counterfactual(prior, PROMPT, num_samples=2, seed=4)
    assert "jit(run)" in PROGRAMS[before:]  # another bucket: what is counted are programs


def test_cases_kept_codes_and_texts_do_not_depend_on_what_fills_the_batch(model):
    rng = np.random.default_rng(1)
    priors, given = rng.integers(0, CODES, (2, 8, *GRID))
    keep = rng.random(given.shape) < 0.5
    cases = [Case(f"p{i}", priors[i], ["New edema.", PROMPT][i % 2]) for i in range(8)]
    eight = model.sample(cases, 3, keep=keep, codes=given)
    before = len(PROGRAMS)
    for count in (5, 7):
        some = model.sample(cases[:count], 3, keep=keep[:count], codes=given[:count])
        np.testing.assert_array_equal(some.codes, eight.codes[:count])
        np.testing.assert_array_equal(some.images, eight.images[:count])
        assert some.texts == eight.texts[:count]
    assert PROGRAMS[before:] == []
    np.testing.assert_array_equal(eight.codes[keep], given[keep])
    assert len({codes.tobytes() for codes in eight.codes}) == 8


def test_what_fills_the_batch_goes_the_last_cases_way(model, codes, monkeypatch):
    """So it takes no pass beyond those of the cases."""
    made = []

    def generate(*arguments, **options):
        made.append(sampler_generate(*arguments, **options))
        return made[-1]

    sampler_generate = sampler.generate
    monkeypatch.setattr(sampler, "generate", generate)
    cases = [Case("a", codes, PROMPT, sample) for sample in range(5)]
    keep = np.zeros((5, *GRID), bool)
    keep[4] = True  # a case of few passes
    model.sample(cases, 2, keep=keep, codes=np.stack([codes] * 5))
    (out,) = made
    assert out.passes.shape == (8,)
    assert set(np.asarray(out.passes[5:])) == {int(out.passes[4])} != {int(out.passes[0])}
    assert max(out.passes) == max(out.passes[:5])


def test_images_and_codes_in_buckets(model):
    images = np.random.default_rng(2).integers(0, 256, (8, SIZE, SIZE)).astype(np.uint8)
    codes = model.tokenize(images)
    again = model.detokenize(codes)
    before = len(PROGRAMS)
    np.testing.assert_array_equal(model.tokenize(images[:5]), codes[:5])
    np.testing.assert_array_equal(model.detokenize(codes[:6]), again[:6])
    assert PROGRAMS[before:] == []


def test_a_diffusion_model_has_them_too(tmp_path):
    model, prior = progemu_jax.load(tiny_diffusion.write(tmp_path)), tiny_diffusion.gray(0)
    three = model.counterfactual(prior, PROMPT, num_samples=3, seed=4)
    before = len(PROGRAMS)
    four = model.counterfactual(prior, PROMPT, num_samples=4, seed=4)
    assert PROGRAMS[before:] == []
    np.testing.assert_array_equal(four.images[:3], three.images)
