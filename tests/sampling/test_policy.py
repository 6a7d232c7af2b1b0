"""Policies against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.sampling.policy import Sampling, draw, guide, top_k_threshold


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


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"guidance": float("nan")}, {"top_k": -2}, {"max_text": 0}])
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
