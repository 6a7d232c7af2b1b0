"""Convolutions in the forms that a CPU is fast at are convolutions; kernels are transformed once a sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.kernels import convolution
from progemu_jax.kernels.convolution import conv2d
from progemu_jax.models import unet
from progemu_jax.models.conv_layers import Conv
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.sampling.diffusion import DiffusionSampling, generate


def reference(x, kernel):
    """float64, by the definition."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    H, W = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + H, j : j + W] @ kernel[i, j] for i in range(3) for j in range(3))


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


@jax.jit
def winograd(x, kernel):
    return convolution.winograd_conv2d(x, convolution.transform_kernel(kernel))


@pytest.mark.parametrize("shape", [(1, 2, 2, 1), (2, 4, 10, 3), (3, 16, 6, 24)])
@pytest.mark.parametrize("features", [1, 5, 32])
def test_winograd_is_a_convolution(shape, features):
    x, kernel = drawn(*shape), drawn(3, 3, shape[-1], features)
    want = reference(x, kernel)
    found = winograd(x, kernel)
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 2, 3, 16), (2, 5, 4, 64), (1, 8, 8, 8)])  # fewer pixels than channels; not
def test_products_of_pixels_are_a_convolution(shape, dtype):
    x, kernel = drawn(*shape).astype(dtype), drawn(3, 3, shape[-1], 7).astype(dtype)
    want = reference(x, kernel)
    found = jax.jit(conv2d)(x, kernel)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, want, atol={"float32": 2e-6, "bfloat16": 4e-3}[dtype] * np.abs(want).max())


def test_in_bfloat16_the_error_is_that_of_the_dtype():
    """Kernels and tiles are rounded once more than in the plain convolution, by the dtype's precision."""
    x, kernel = (a.astype(jnp.bfloat16) for a in (drawn(2, 16, 16, 64), drawn(3, 3, 64, 64)))
    want = reference(x, kernel)
    found = np.asarray(winograd(x, kernel), np.float64)
    assert np.sqrt(np.mean(np.square(found - want)) / np.mean(np.square(want))) < jnp.finfo(jnp.bfloat16).eps


@pytest.mark.parametrize(
    ("size", "stride", "used"), [((32, 32), 1, True), ((31, 32), 1, False), ((32, 32), 2, False), ((8, 8), 1, False)]
)
def test_transformed_kernels_are_used_where_they_pay(size, stride, used):
    """Wrong ones show where."""
    conv, x = Conv(4, stride=stride), drawn(1, *size, 3)
    params = {"kernel": drawn(3, 3, 3, 4), "bias": drawn(4)}
    wrong = jax.tree.map(jnp.zeros_like, jax.eval_shape(convolution.kernels, params))
    apply = jax.jit(conv.apply)
    found = apply({"params": params, convolution.COLLECTION: wrong}, x)
    assert np.array_equal(found, apply({"params": params}, x)) is not used


def test_only_kernels_of_3_by_3_are_transformed_at_their_places():
    params = {"a": {"conv": {"kernel": drawn(3, 3, 2, 5), "bias": drawn(5)}}, "b": {"kernel": drawn(1, 1, 2, 5)}}
    params["c"] = {"kernel": drawn(2, 5), "scale": drawn(3, 3, 1, 1)}
    found = convolution.kernels(params)
    assert set(found) == {"a"}
    assert [k.shape for k in found["a"]["conv"]["kernel"]] == [(2, 5)] * 16


def test_sampling_with_transformed_kernels_is_sampling(monkeypatch):
    cfg = unet.UNetConfig(in_channels=8, channels=(16, 32), heads=2, cross_attention_dim=16)
    params = initial(lambda key: unet.init_params(cfg, key))
    for name in ("conv_in", "conv_out"):
        params[name]["kernel"] = 0.1 * drawn(*params[name]["kernel"].shape)
    inputs = (drawn(2, 8, 8, 4), drawn(2, 8, 8, 4), drawn(2, 3, 16), drawn(3, 16))
    # A case's three rows of 8 x 8: always, never.
    results, products = [], []
    for tiles in (0, 10**9):
        monkeypatch.setattr(convolution, "TILES", tiles)
        generate.clear_cache()
        lowered = generate.lower(params, cfg, Schedule(), DiffusionSampling(steps=3), *inputs)
        products.append(lowered.as_text().count("dot_general"))
        results.append(lowered.compile()(params, *inputs))
    generate.clear_cache()
    assert products[0] > products[1] + 100
    np.testing.assert_allclose(results[0], results[1], atol=1e-5 * np.abs(results[1]).max())
