"""The divergence by hand, and its two forms."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import divergence


class TestDivergence:
    def test_by_hand(self):
        assert divergence.bernoulli_kl(0.5, 0.25) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
        assert divergence.printed_kl(0.5, 0.25) == pytest.approx(0.5 * math.log(2))

    def test_equal_is_zero_and_extremes_are_finite(self):
        p = np.array([0.0, 0.3, 1.0])
        np.testing.assert_array_equal(divergence.bernoulli_kl(p, p), 0)
        assert np.isfinite(divergence.bernoulli_kl(p, 1 - p)).all()

    def test_printed_form_can_be_negative_but_bernoulli_cannot(self):
        assert divergence.printed_kl(0.5, 0.9) < 0 < divergence.bernoulli_kl(0.5, 0.9)
