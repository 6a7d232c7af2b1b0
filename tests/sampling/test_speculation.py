"""Speculation is lossless: against plain decoding token by token; its distributions: `test_distribution.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.few_images import build

from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.sampling.speculation import couple

PROMPT = "New edema."
WARM = Sampling(temperature=0.7, top_k=5, guidance=3.0, max_text=3)


@pytest.fixture(scope="module")
def parts():
    return build(codes=24, height=3, width=4)


@pytest.fixture(scope="module")
def priors(parts):
    return [*np.random.default_rng(0).integers(0, 24, (3, 3, 4)), None]


def sample(parts, priors, policy, seeds, slots=64, **given):
    words, layout, config, params = parts
    prompts = [PROMPT, "x", "No significant change."]
    batch = pad_prompts(words, layout, priors, [prompts[i % 3] for i in seeds], policy=policy, slots=slots)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    return jax.tree.map(np.asarray, generate(params, config, layout, Grammar.of(words), policy, batch, keys, **given))


def equal(parts, priors, policy, **draft):
    """Drafts leave the result as it is, with nothing kept and with some codes kept."""
    fast = dataclasses.replace(policy, **draft)
    rng = np.random.default_rng(1)
    keep, codes = rng.random((len(priors), 3, 4)) < 0.4, rng.integers(0, 24, (len(priors), 3, 4))
    for given in ({}, {"keep": keep, "codes": codes}):
        plain = sample(parts, priors, policy, range(len(priors)), **given)
        out = sample(parts, priors, fast, range(len(priors)), **given)
        assert (out.codes == plain.codes).all()
        assert (out.text == plain.text).all()
        assert len(np.unique(out.codes)) > 6
    assert (out.codes == codes)[keep].all()


@pytest.mark.parametrize("draft", ["prior", "jacobi"])
def test_gumbel_coupling_gives_the_tokens_of_plain_decoding(parts, priors, draft):
    equal(parts, priors, dataclasses.replace(WARM, keep_or_change=draft == "prior"), draft=draft, window=4)


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, 5, 17, 60])
@pytest.mark.parametrize("draft", ["prior", "jacobi"])
@pytest.mark.parametrize(
    "policy",
    [Sampling(top_k=0, max_text=3), Sampling(temperature=0.0, guidance=2.0, keep_prior=True, max_text=3)],
)
def test_gumbel_coupling_equals_plain_decoding_at_every_window(parts, priors, policy, draft, window):
    equal(parts, priors, policy, draft=draft, window=window)


def test_rows_go_at_their_own_pace(parts, priors):
    policy = dataclasses.replace(WARM, draft="jacobi", coupling="maximal", window=4)
    keep = np.zeros((4, 3, 4), bool)
    keep[1] = True
    codes, order = np.stack([priors[0]] * 4), [2, 0, 3, 1]
    out = sample(parts, [priors[0]] * 4, policy, range(4), text=False, keep=keep, codes=codes)
    again = sample(parts, [priors[0]] * 4, policy, order, text=False, keep=keep[order], codes=codes[order])
    assert (again.codes == out.codes[order]).all()
    assert (again.passes == out.passes[order]).all()
    assert (out.codes[1] == priors[0]).all()
    assert out.passes[1] == -(-17 // 4)  # all is forced: every pass takes the whole window
    assert (out.passes <= 17).all()


def test_couple_follows_the_target_and_keeps_the_guess_as_often_as_can_be():
    n = 20_000
    scores = jnp.asarray([0.3, -1.0, 1.2, -jnp.inf, 0.0])
    p = np.asarray(jax.nn.softmax(scores))
    q = np.asarray([0.5, 0.1, 0.1, 0.2, 0.1])
    guess = np.random.default_rng(0).choice(5, (n, 1), p=q).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), (n, 1))
    for density, met in ((q, np.minimum(p, q).sum()), (None, (p * q).sum())):  # drawn from q; given, so one point
        rows = jax.nn.one_hot(guess, 5) if density is None else np.broadcast_to(np.float32(q), (n, 1, 5))
        token = jax.jit(couple)(jnp.broadcast_to(scores, (n, 1, 5)), guess, rows, keys)
        counts = np.bincount(token[:, 0], minlength=5)
        assert ((counts - n * p) ** 2 <= 16 * n * p * (1 - p)).all()
        assert abs((token == guess).mean() - met) < 4 * np.sqrt(met * (1 - met) / n)


@pytest.mark.parametrize("bad", [{"draft": "next"}, {"coupling": "none"}, {"window": 1}])
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
