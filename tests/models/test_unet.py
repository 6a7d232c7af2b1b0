"""The UNet: the prior's channels, and recomputation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_diffusion
from support.tiny_diffusion import MODEL, normal, part

from progemu_jax.convert import components
from progemu_jax.models import unet
from progemu_jax.models.unet import UNet


@pytest.fixture(scope="module")
def params():
    return tiny_diffusion.params()


def test_the_priors_channels_start_at_zero_and_widening_keeps_the_output():
    narrow = dataclasses.replace(MODEL, in_channels=4)
    params = part(unet, narrow, 0)
    params["conv_out"]["kernel"] = normal(params["conv_out"]["kernel"].shape, 1)
    x, prior = normal((2, 1, 8, 8, 4))
    args = (jnp.asarray([10]), jnp.ones((1, 3, 16)))
    before = jax.jit(UNet(narrow).apply)({"params": params}, x, *args)
    after = jax.jit(UNet(MODEL).apply)({"params": unet.widen(params)}, np.concatenate([x, prior], -1), *args)
    np.testing.assert_allclose(after, before, atol=1e-5)
    fresh = part(unet, MODEL, 0)["conv_in"]["kernel"]
    assert not fresh[:, :, 4:].any()
    assert fresh[:, :, :4].any()


@pytest.mark.slow
def test_recomputing_in_the_backward_pass_changes_no_gradient(params):
    x, text = jnp.ones((1, 8, 8, 8)), jnp.ones((1, 3, 16))

    def grad(cfg):
        loss = lambda p: jnp.sum(jnp.square(UNet(cfg).apply({"params": p}, x, jnp.asarray([5]), text)))  # noqa: E731
        return jax.jit(jax.grad(loss))(params[components.UNET])

    plain, saved = grad(MODEL), grad(dataclasses.replace(MODEL, remat=True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(a).max() + 1e-9))
