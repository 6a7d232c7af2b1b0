"""Policies against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.sampling.policy import Sampling, draw, guide, restrict, top_k_threshold, two_steps


def test_top_k_threshold_is_the_kth_largest():
    x = jax.random.normal(jax.random.key(0), (6, 500)).at[:, :100].set(-jnp.inf)
    for k in (1, 3, 64, 400):
        assert (top_k_threshold(x, k) == jnp.sort(x, -1)[:, -k][:, None]).all()


def test_draw_follows_the_distribution():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    n = 20_000
    keys = jax.vmap(jax.random.key)(jnp.arange(n, dtype=jnp.uint32))
    for top_k, expected in ((0, [0.5, 0.3, 0.15, 0.05]), (2, [0.625, 0.375, 0, 0])):
        counts = np.bincount(draw(jnp.tile(logits, (n, 1)), keys, 1.0, top_k), minlength=4) / n
        assert np.abs(counts - expected).sum() < 4 * np.sqrt(4 / n)


def test_guide_is_its_formula():
    x = jax.random.normal(jax.random.key(1), (4, 10))
    scores = jax.nn.log_softmax(x)
    np.testing.assert_allclose(guide(x, 1.0), scores[:2], rtol=1e-6)
    np.testing.assert_allclose(guide(x, 3.0), scores[2:] + 3 * (scores[:2] - scores[2:]), rtol=1e-5)


def test_two_steps_weigh_keeping_against_all_changes_together():
    logits = jnp.log(jnp.asarray([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    prior = jnp.asarray([0])

    def drawn(**policy):
        return np.asarray(jax.nn.softmax(two_steps(logits, prior, Sampling(top_k=0, **policy))))[0]

    np.testing.assert_allclose(drawn(), [0.4, 0.2, 0.2, 0.1, 0.1], rtol=1e-5)
    # At temperature 1/2 odds and ratios are squared: 4 to 9 for keeping, 4 to 1 among the others.
    np.testing.assert_allclose(drawn(temperature=0.5), np.array([4, 3.6, 3.6, 0.9, 0.9]) / 13, rtol=1e-4)
    np.testing.assert_allclose(drawn(temperature=0.0)[[0, 3, 4]], 0)
    in_one_step = np.asarray(jax.nn.softmax(restrict(logits, 0.5, 0)))[0]
    assert in_one_step[0] > 0.5 > drawn(temperature=0.5)[0]


def test_two_steps_guide_the_odds_of_a_change():
    cond, null = np.array([0.5, 0.4, 0.1]), np.array([0.8, 0.1, 0.1])
    logits = jnp.log(jnp.asarray([cond, null]))
    got = np.asarray(jax.nn.softmax(two_steps(logits, jnp.asarray([0]), Sampling(guidance=2.0, top_k=0))))[0]
    odds = 0.25 * (1 / 0.25) ** 2  # of a change: 1 to 4 without the prompt, 1 to 1 with it
    np.testing.assert_allclose(got[0], 1 / (1 + odds), rtol=1e-4)
    ratio = (0.1 / 0.1) * ((0.4 / 0.1) / (0.1 / 0.1)) ** 2
    np.testing.assert_allclose(got[1] / got[2], ratio, rtol=1e-4)


def test_without_a_prior_there_is_one_step():
    logits = jax.random.normal(jax.random.key(2), (4, 7))
    policy = Sampling(guidance=2.0, temperature=0.7, top_k=5)
    got = two_steps(logits, jnp.asarray([-1, -1]), policy)
    np.testing.assert_allclose(got, restrict(guide(logits, 2.0), 0.7, 5), rtol=1e-5)


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"guidance": float("nan")}, {"top_k": -2}, {"max_text": 0}])
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
