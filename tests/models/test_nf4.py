"""NF4: levels, bytes and bounds of the 4-bit weights, and products with them."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.devices import sharding
from progemu_jax.models import linear, nf4
from progemu_jax.models.transformer import LOGICAL_AXES

RNG = np.random.default_rng(0)
LARGEST_GAP = 1 - 0.6961928009986877  # between two levels, the lowest


def packed(weight, inputs=1):
    return jax.jit(nf4.pack, static_argnums=1)(jnp.asarray(weight), inputs)


def unpacked(packed, dtype=jnp.float32):
    return np.asarray(jax.jit(nf4.unpack, static_argnums=1)(packed, dtype), np.float32)


def test_the_levels_are_quantiles_of_a_normal_distribution():
    """Appendix E of the paper: 8 below 0 and 7 above, 0 itself, divided by the largest."""
    tail, quantile = 0.9677083, NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(tail, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(tail, 0.5, 8)[:-1]]
    np.testing.assert_allclose(nf4.LEVELS, np.sort([*above, 0, *below]) / quantile(tail), atol=2e-7)


def test_a_block_by_hand():
    """Each level takes its own code, two of them a byte; what lies between goes to the nearer one."""
    block = 3.0 * np.resize(nf4.LEVELS, (64, 1))
    found = packed(block)
    np.testing.assert_array_equal(found.codes[:, 0], [17 * (i % 16) for i in range(32)])
    assert (found.offset[0], found.scale[0]) == (3.0, 0.0)
    np.testing.assert_allclose(unpacked(found), block, rtol=1e-6)
    block = np.zeros((64, 1))
    block[:3, 0], block[32:35, 0] = (2.0, 2 * 0.14, 2 * 0.12), (-2.0, -2 * 0.6, 2 * 0.86)
    assert [f"{byte:02x}" for byte in np.asarray(packed(block).codes[:3, 0])] == ["0f", "29", "e8"]


@pytest.mark.parametrize(
    ("shape", "inputs", "codes"),
    [((128, 4, 32), 1, (64, 4, 32)), ((4, 128, 96), 2, (4, 64, 96)), ((70, 24), 1, (2 * 32 * 24,)),
     ((3, 8, 40), 2, (32 * 40,)), ((192, 513), 1, (96, 513))],
)  # fmt: skip
def test_errors_stay_within_half_a_gap(shape, inputs, codes):
    weight = RNG.normal(size=shape).astype(np.float32) * RNG.exponential(size=shape[-1])
    found = packed(weight, inputs)
    assert (found.codes.shape, found.codes.dtype, found.absmax.dtype) == (codes, jnp.uint8, jnp.uint8)
    error = np.abs(unpacked(found) - weight).reshape(-1, *shape[inputs:])
    rows = np.abs(weight).reshape(-1, *shape[inputs:])
    step = np.asarray(found.scale).max()  # what a magnitude may be off by, twice
    for first in range(0, len(rows), 64):  # as blocks lie in all of these shapes
        largest = rows[first : first + 64].max(0)
        assert (error[first : first + 64] <= LARGEST_GAP / 2 * (largest + step) + step / 2 + 1e-6).all()
    assert error.mean() < 0.1 * rows.mean()


def test_4_bits_and_an_eighth_a_weight():
    found = packed(RNG.normal(size=(512, 512)))
    assert sum(x.nbytes for x in jax.tree.leaves(found)) == 512 * 512 // 2 + 4096 + 16 * 8


def test_zeros_outliers_and_bfloat16():
    weight = np.zeros((64, 256), np.float32)
    np.testing.assert_array_equal(unpacked(packed(weight)), weight)
    weight[5, 7] = -1e4
    np.testing.assert_array_equal(unpacked(packed(weight)), weight)
    exact = packed(RNG.normal(size=(64, 8)))
    np.testing.assert_array_equal(unpacked(exact, jnp.bfloat16), unpacked(exact).astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("spec", "x", "shape", "inputs"),
    [
        ("RM,MND->RND", (5, 128), (128, 2, 3), 1),
        ("RND,NDM->RM", (5, 2, 64), (2, 64, 7), 2),
        ("RF,FM->RM", (5, 9), (9, 4), 1),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_gradients_are_those_of_the_unpacked_weight(spec, x, shape, inputs, dtype):
    weight = packed(RNG.normal(size=shape), inputs)
    plain, x = nf4.unpack(weight, jnp.float32), jnp.asarray(RNG.normal(size=x), dtype)

    def run(weight):
        y, back = jax.vjp(lambda x: linear.einsum(spec, x, weight), x)
        return y, back(jnp.cos(y))[0]

    for found, expected in zip(jax.jit(run)(weight), jax.jit(run)(plain), strict=True):
        assert found.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(
            *(np.asarray(y, np.float32) for y in (found, expected)),
            **({"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 0.02, "atol": 0.05}),
        )


def test_layers_are_packed_one_by_one_and_once():
    layer = {"self_attn": {"o_proj": (2, 64, 8)}, "mlp": {"up_proj": (64, 6)}, "norm": {"scale": (64,)}}
    layers = jax.tree.map(lambda s: RNG.normal(size=(3, *s)), layer, is_leaf=lambda x: isinstance(x, tuple))
    params = {"layers": layers, "lm_head": np.ones((64, 64)), "prior_proj": np.ones((64, 64))}
    params["diagonal_head"] = {"gate_proj": np.ones((64, 64))}
    found = linear.quantize_layers(params)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(found))
    for name in ("lm_head", "prior_proj", "diagonal_head"):  # no layer has them
        assert found[name] is params[name]
    for folder, name, inputs in (("self_attn", "o_proj", 2), ("mlp", "up_proj", 1)):
        stacked = found["layers"][folder][name]
        for i, weight in enumerate(layers[folder][name]):
            one = packed(weight, inputs)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(stacked), strict=True):
                np.testing.assert_array_equal(a, b[i])
    again = linear.quantize_layers(found)
    assert again["layers"]["mlp"]["up_proj"] is found["layers"]["mlp"]["up_proj"]


def test_codes_are_split_over_a_mesh_as_the_weight_is():
    weights = {"q_proj": RNG.normal(size=(128, 4, 16)), "o_proj": RNG.normal(size=(4, 64, 128)),
               "down_proj": RNG.normal(size=(72, 128))}  # fmt: skip
    mesh = sharding.make_mesh(2, 2, 2)
    for params in ({"layers_0": weights}, {"layers": jax.tree.map(lambda x: x[None], weights)}):
        (plain,), (found,) = (
            sharding.param_shardings(tree, LOGICAL_AXES, mesh).values()
            for tree in (params, linear.quantize_layers(params))
        )
        assert "fsdp" in plain["q_proj"].spec
        for name in ("q_proj", "o_proj"):
            assert found[name].codes.spec == plain[name].spec
        for leaf in jax.tree.leaves([found["down_proj"], found["q_proj"].absmax, found["q_proj"].scale]):
            assert leaf.is_fully_replicated
