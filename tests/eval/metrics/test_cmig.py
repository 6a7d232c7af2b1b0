"""CMIG: the columns of the paper, recomputed."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import cmig

NAN = float("nan")


class TestCmig:
    @pytest.mark.parametrize(
        ("pathology", "race", "age", "expected"),
        [
            (49.90, 77.13, 2.73, 26.91),
            (58.10, 78.25, 17.82, 46.58),
            (79.61, 84.71, 28.91, 62.77),
            (80.54, 97.22, 79.38, 84.11),
        ],
    )
    def test_the_papers_inputs_give_the_recomputed_column(self, pathology, race, age, expected):
        value = cmig.cmig([pathology / 100], [race / 100, age / 100])[0]
        assert 100 * value == pytest.approx(expected, abs=0.006)

    def test_undefined_when_a_term_is_not_positive(self):
        values = cmig.cmig([np.full(4, 0.8)], [np.array([-0.1, 0.0, NAN, 0.5]), np.full(4, 0.9)])
        assert np.isnan(values).tolist() == [True, True, True, False]
        assert values[3] == pytest.approx(math.sqrt(0.8 * math.sqrt(0.5 * 0.9)))
