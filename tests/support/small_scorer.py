"""The phantom's scorer in a small size, with random weights."""

import jax.numpy as jnp

from progemu_jax.models.scorer import ScorerNet, ScorerNetConfig
from progemu_jax.scorers.phantom import PhantomScorer
from support.initial import initial

SMALL = ScorerNetConfig(widths=(8, 8, 8))


def phantom():
    params = initial(lambda key: ScorerNet(SMALL).init(key, jnp.zeros((1, 32, 32))))["params"]
    return PhantomScorer(params, SMALL, 32)
