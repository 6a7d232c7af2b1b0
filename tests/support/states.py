"""A training state in all dtypes that a checkpoint must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax


def make(seed=0):
    key = jax.random.key(seed)
    params = {"dense": {"kernel": jax.random.normal(key, (64, 33)), "half": jnp.full((3,), 1 / 3, jnp.bfloat16)}}
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "empty": jnp.zeros((0, 4), jnp.int32),
        "count": jnp.asarray(seed, jnp.int32),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
