"""Diversity and calibration of several draws, by hand."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import image, uncertainty


class TestUncertainty:
    def test_diversity(self):
        rng = np.random.default_rng(0)
        a, b = (image.Pyramid(rng.integers(0, 256, (32, 32), dtype=np.uint8)) for _ in range(2))
        assert uncertainty.diversity([a, a, a]) == pytest.approx(0, abs=1e-12)
        assert uncertainty.diversity([a, a, b]) == pytest.approx((0 + 2 * (1 - a.ms_ssim(b))) / 3)
        assert math.isnan(uncertainty.diversity([a]))

    def test_sums_by_hand(self):
        # Pixel 1: samples 10, 14, variance 8, predicted 8 * 1.5 = 12, error (12 - 15)^2 = 9. Pixel 2: no spread.
        sums = uncertainty.calibration_sums(np.array([[[10, 7]], [[14, 7]]], np.uint8), np.array([[15, 9]], np.uint8))
        k = np.searchsorted(uncertainty.EDGES, math.sqrt(12), side="right") - 1
        assert sums[:, k].tolist() == [1, 12, 9]
        assert sums[:, uncertainty.BINS].tolist() == [1, 0, 4]
        assert sums.sum() == 1 + 12 + 9 + 1 + 0 + 4
        assert uncertainty.ence(sums) == pytest.approx(1 - math.sqrt(9 / 12))

    def test_one_more_draw_is_calibrated_and_an_overconfident_map_is_not(self):
        rng = np.random.default_rng(1)
        sigma = rng.uniform(4, 20, (64, 64))
        draw = lambda n, s: np.clip(np.round(128 + s * rng.normal(size=(n, 64, 64))), 0, 255).astype(np.uint8)  # noqa: E731
        sums, wrong = 0, 0
        for _ in range(10):
            sums = sums + uncertainty.calibration_sums(draw(64, sigma), draw(1, sigma)[0])
            wrong = wrong + uncertainty.calibration_sums(draw(64, sigma / 4), draw(1, sigma)[0])
        assert uncertainty.ence(sums) < 0.1
        assert uncertainty.ence(wrong) > 1

    def test_without_spread_it_is_undefined(self):
        same = np.full((3, 8, 8), 90, np.uint8)
        assert math.isnan(uncertainty.ence(uncertainty.calibration_sums(same, same[0])))
        assert math.isnan(uncertainty.error_correlation(same, same[0]))

    def test_spread_where_the_error_is(self):
        samples = np.full((2, 4, 4), 100, np.uint8)
        samples[0, 0], samples[1, 0] = 80, 120
        truth = np.full((4, 4), 100, np.uint8)
        truth[0] = 130
        assert uncertainty.error_correlation(samples, truth) == pytest.approx(1)
