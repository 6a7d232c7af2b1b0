"""Solvers, guidance and first noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.sampling.diffusion import DiffusionSampling, first_noise, guide, solver_table


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_a_solver_that_is_told_the_true_noise_returns_the_clean_latent(solver):
    table = solver_table(Schedule(last_alpha_one=True), DiffusionSampling(steps=12, solver=solver))
    clean, noise = 0.7, -1.3
    x, before = table["alpha"][0] * clean + table["sigma"][0] * noise, 0.0
    for i in range(12):
        found = (x - table["sigma"][i] * noise) / table["alpha"][i]
        assert found == pytest.approx(clean, abs=1e-4)
        x, before = table["a"][i] * x + table["b"][i] * found + table["c"][i] * before, found
    assert x == pytest.approx(clean, abs=1e-4)


def test_the_timesteps_are_stable_diffusions():
    assert solver_table(Schedule(), DiffusionSampling(steps=50))["time"].tolist() == list(range(981, 0, -20))
    assert solver_table(Schedule(), DiffusionSampling(steps=1000))["time"][0] == 999
    assert solver_table(Schedule(), DiffusionSampling(steps=4, solver="dpm++"))["time"].tolist() == [999, 749, 500, 250]


def exact_error(solver, steps, spread=0.5):
    """Relative error on the exact noise of Gaussian data: x_0 = x_T s / sqrt(alpha^2 s^2 + sigma^2)."""
    table = solver_table(Schedule(last_alpha_one=True), DiffusionSampling(steps=steps, solver=solver))
    x, before = 1.0, 0.0
    alpha, sigma = table["alpha"].astype(float), table["sigma"].astype(float)
    for i in range(steps):
        clean = alpha[i] * spread**2 / (alpha[i] ** 2 * spread**2 + sigma[i] ** 2) * x
        x, before = table["a"][i] * x + table["b"][i] * clean + table["c"][i] * before, clean
    return abs(x * np.hypot(alpha[0] * spread, sigma[0]) / spread - 1)


def test_solvers_converge_and_the_second_order_one_sooner():
    for solver in ("ddim", "dpm++"):
        assert exact_error(solver, 100) < 0.03 < exact_error(solver, 20) < 0.12
    for steps in (10, 20, 50, 100):
        assert exact_error("dpm++", steps) < exact_error("ddim", steps)


def test_two_guidance_scales_are_instruct_pix2pixs_formula():
    full, image, none = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    rows = jnp.concatenate([full, image, none])
    got = guide(rows, DiffusionSampling(guidance=7.5, image_guidance=1.5), True)
    np.testing.assert_allclose(got, none + 1.5 * (image - none) + 7.5 * (full - image), rtol=1e-5, atol=1e-5)
    got = guide(rows[:4], DiffusionSampling(guidance=3.0, image_guidance=1.0), True)
    np.testing.assert_allclose(got, image + 3.0 * (full - image), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guide(jnp.asarray(full), DiffusionSampling(guidance=1.0), False), full)


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"solver": "euler"}, {"guidance": -1.0}, {"image_guidance": float("nan")}, {"steps": 2000}],
)
def test_a_policy_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DiffusionSampling(**values)


def test_first_noise_is_each_cases_own():
    keys = jax.vmap(jax.random.key)(np.asarray([5, 6, 7], np.uint32))
    three, one = first_noise(keys, (4, 4, 4)), first_noise(keys[1:2], (4, 4, 4))
    np.testing.assert_array_equal(three[1], one[0])
    assert abs(float(first_noise(keys, (64, 64, 4)).std()) - 1) < 0.02
