"""The noise schedule."""

import jax.numpy as jnp
import pytest

from progemu_jax.models.noise_schedule import Schedule


def test_noise_has_the_variance_that_the_schedule_says():
    schedule = Schedule()
    alphas = schedule.alphas()
    assert alphas.shape == (1000,)
    assert alphas[0] == pytest.approx(1 - 0.00085)
    assert alphas[-1] == pytest.approx(0.00466, abs=1e-5)  # Stable Diffusion's last one
    noisy = schedule.add_noise(jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), 3.0), jnp.asarray([999]))
    assert float(noisy[0, 0, 0, 0]) == pytest.approx(2 * alphas[-1] ** 0.5 + 3 * (1 - alphas[-1]) ** 0.5, rel=1e-5)
