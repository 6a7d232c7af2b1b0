"""Int8 weights as a CPU's decoding reads them, against the weights that they stand for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.models import linear

FEW = linear.FEW_ROWS


@pytest.fixture(scope="module")
def weight():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 24, 40)) * rng.uniform(0.1, 9, (1, 1, 40))  # channels of different sizes
    return linear.quantize({"o_proj": jnp.asarray(w, jnp.float32), "lm_head": jnp.asarray(w[0], jnp.float32)})


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_int8_weights_multiply_as_the_wide_ones_that_they_stand_for(weight, rows, dtype):
    """8 bits of a weight are not 8 bits of what it multiplies, which is off by 1 / 64,516 of its largest number."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 4, 24)).astype(np.float32)
    x[0, 0, 0], x[-1, 1:] = 30.0, 0.0
    x = jnp.asarray(x, dtype)
    for spec, name in (("RND,NDM->RM", "o_proj"), ("RM,VM->RV", "lm_head")):
        value = weight[name]
        given = x if name == "o_proj" else jnp.tile(x[:, 0], 2)[:, :40]
        packed = linear.pack(value, linear.INPUTS[name])
        assert packed.table.dtype == jnp.int8
        found = jax.jit(lambda x, w, spec=spec: linear.einsum(spec, x, w, jnp.float32))(given, packed)
        wide, given = (np.asarray(a, np.float64) for a in (value.values * value.scale, given))
        largest, size = np.abs(given).reshape(rows, -1).max(1), np.abs(wide).sum(tuple(linear.INPUTS[name]))
        bound = np.outer(largest, size) / 64_516
        assert (np.abs(found - np.einsum(spec, given, wide)) <= 1.05 * bound).all()


def test_rows_of_zeros_give_zeros_and_what_is_no_number_shows(weight):
    packed = linear.pack(weight["o_proj"], (0, 1))
    x = np.zeros((3, 4, 24), np.float32)
    x[1, 2, 3], x[2, 0, 1] = np.nan, np.inf
    found = np.asarray(linear.einsum("RND,NDM->RM", jnp.asarray(x), packed))
    assert (found[0] == 0).all()
    assert not np.isfinite(found[1:]).any()


def test_few_rows_read_the_weight_in_8_bits():
    """Read off the compiled program: no wider copy of the weight is made, as it is for many rows."""
    packed = linear.Packed(jnp.ones((320, 256), jnp.int8), (320,), jnp.ones(320))

    def widened(rows):
        run = jax.jit(lambda x: linear.einsum("RM,MF->RF", x, packed)).lower(jnp.ones((rows, 256), jnp.bfloat16))
        return re.findall(r"(?:bf16|f32|s32)\[(?:320,256|256,320)\]", run.compile().as_text())

    assert not widened(1)
    assert not widened(FEW)
    assert widened(FEW + 1)
