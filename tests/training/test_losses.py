"""The adversarial and edge losses against hand-worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.training import losses


def test_hinge_losses_by_hand():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0])
    assert float(losses.hinge_discriminator(real, fake)) == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2))
    assert float(losses.hinge_generator(fake)) == pytest.approx(1.5)


def test_adaptive_weight_equalises_norms_is_bounded_and_passes_no_gradient():
    rec, gan = jnp.full((2, 2), 3.0), jnp.full((4,), 0.5)
    weight = losses.adaptive_weight(rec, gan)
    assert float(weight * jnp.linalg.norm(gan)) == pytest.approx(6.0, rel=1e-3)
    assert float(losses.adaptive_weight(rec, jnp.zeros(4))) == 1e4
    assert float(jax.grad(lambda s: losses.adaptive_weight(s * rec, gan))(1.0)) == 0.0


def test_edge_loss_sees_edges_not_brightness():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 1)), jnp.float32)
    assert float(losses.edge_loss(image, image)) == 0.0
    assert float(losses.edge_loss(image, image + 0.5)) == pytest.approx(0.0, abs=1e-6)
    step = jnp.zeros((1, 4, 4, 1)).at[:, :, 2:].set(1.0)
    # Scale 1: rows do not change, one of three column differences is 1. Scale 2: the only one is 1.
    expected = 0.5 * (0.5 / 3) + 0.5 * (0.5 * 1.0)
    assert float(losses.edge_loss(step, jnp.zeros_like(step), scales=2)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="not divisible"):
        losses.edge_loss(image[:, :6], image[:, :6])
