"""Forecast metrics against hand-computed values and their definitions."""

import numpy as np
import pytest

from progemu_jax.eval.metrics import forecast


def test_brier_by_hand():
    np.testing.assert_allclose(forecast.brier([0.9, 0.2, 0.5], [1, 0, 1]), [0.01, 0.04, 0.25])


def test_crps_is_its_definition():
    rng = np.random.default_rng(0)
    draws, truth = rng.normal(size=(7, 3, 2)), rng.normal(size=(3, 2))
    pairs = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / (7 * 6)
    np.testing.assert_allclose(forecast.crps(draws, truth), np.abs(draws - truth).mean(0) - 0.5 * pairs)


def test_crps_of_a_sure_forecast_is_its_error():
    np.testing.assert_allclose(forecast.crps(np.full((4, 2), 0.3), [0.5, 0.3]), [0.2, 0])


def test_crps_is_fair():
    """Its expectation does not depend on how many draws there are: the truth's own draws score the same."""
    rng = np.random.default_rng(1)
    few, many = (forecast.crps(rng.normal(size=(count, 20000)), rng.normal(size=20000)).mean() for count in (2, 32))
    assert abs(few - many) < 0.02
    assert abs(many - 1 / np.sqrt(np.pi)) < 0.02  # of a standard normal


def test_reliability_has_bins_of_equal_count():
    said, came, count = forecast.reliability([0.1, 0.9, 0.2, 0.8], [0, 1, 1, 1], bins=2)
    np.testing.assert_allclose(said, [0.15, 0.85])
    np.testing.assert_allclose(came, [0.5, 1])
    assert count.tolist() == [2, 2]


def test_calibration_error_by_hand():
    assert forecast.calibration_error([0.1, 0.9, 0.2, 0.8], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)


def test_a_calibrated_forecast_has_a_small_error_and_a_sure_one_a_large():
    rng = np.random.default_rng(2)
    p = rng.random(20000)
    y = rng.random(20000) < p
    assert forecast.calibration_error(p, y) < 0.02
    assert forecast.calibration_error(p > 0.5, y) > 0.2


def test_without_cases():
    assert np.isnan(forecast.calibration_error([], []))


def test_in_order():
    assert forecast.in_order([[1, 2, 3], [1, 1, 2], [3, 2, 1]]).tolist() == [True, False, False]
