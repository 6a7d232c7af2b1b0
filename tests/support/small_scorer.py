"""The phantom's scorer in a small size, with random weights."""

import jax
import jax.numpy as jnp

from progemu_jax.models.scorer import ScorerNet, ScorerNetConfig
from progemu_jax.scorers.phantom import PhantomScorer

SMALL = ScorerNetConfig(widths=(8, 8, 8))


def phantom():
    params = jax.jit(ScorerNet(SMALL).init)(jax.random.key(0), jnp.zeros((1, 32, 32)))["params"]
    return PhantomScorer(params, SMALL, 32)
