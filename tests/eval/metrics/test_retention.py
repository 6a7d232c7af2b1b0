"""Correlations and Dice by hand."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import retention

NAN = float("nan")


class TestRetention:
    def test_pearson_by_hand(self):
        # Deviations (-1, 0, 1) and (-2/3, -2/3, 4/3): covariance 2, variances 2 and 24/9.
        assert retention.pearson([1, 2, 3], [1, 1, 3]) == pytest.approx(2 / math.sqrt(2 * 24 / 9))
        assert retention.pearson([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)
        assert retention.pearson([1e308, 1.1e308, 1.2e308], [5e-200, 3e-200, 1e-200]) == pytest.approx(-1)

    def test_weights_are_repetitions(self):
        rng = np.random.default_rng(0)
        x, y, w = rng.normal(60, 10, 30), rng.normal(60, 10, 30), rng.integers(0, 4, 30)
        got = retention.Correlation(x, y)(w[None].astype(float))[0]
        assert got == pytest.approx(np.corrcoef(np.repeat(x, w), np.repeat(y, w))[0, 1], abs=1e-12)

    @pytest.mark.parametrize(
        ("x", "y"), [([1, 1, 1], [1, 2, 3]), ([70.1] * 3, [1, 2, 3]), ([1], [2]), ([NAN] * 3, [1, 2, 3])]
    )
    def test_constant_or_empty_is_undefined(self, x, y):
        assert math.isnan(retention.pearson(x, y))

    def test_dice_by_hand(self):
        a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
        a[0, :2], b[0, 1:3] = True, True  # 8 and 8 pixels, 4 shared
        assert retention.dice(a, b)[0] == 0.5
        assert math.isnan(retention.dice(a, b)[1])  # both empty
        b[1, 0, 0] = True
        assert retention.dice(a, b)[1] == 0

    def test_packed_dice_is_dice(self):
        rng = np.random.default_rng(0)
        a, b = (rng.random((2, 5, 6, 8, 16)) < 0.3)[:]
        pack = lambda x: np.packbits(x.reshape(5, 6, -1), axis=-1)  # noqa: E731
        np.testing.assert_array_equal(retention.packed_dice(pack(a), pack(b)), retention.dice(a, b))

    def test_map_correlation_by_hand(self):
        a = np.array([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
        got = retention.map_correlation(a, np.array([[[4.0, 3.0], [2.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]]]))
        assert got[0] == pytest.approx(-1)
        assert math.isnan(got[1])  # a constant map points nowhere

    def test_normalised(self):
        values = retention.normalised(np.array([0.7, 0.7]), np.array([0.9, 0.5]), 0.5)
        assert values[0] == pytest.approx(0.5)
        assert math.isnan(values[1])  # no room above chance
