"""Utility: a linear classifier fitted to generated images of some patients, tested on real ones of others."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import utility


class TestFit:
    def test_by_hand(self):
        # x = -1, 1 (spread 1), y = -1, 1: x'x = 2, penalty 2, x'y = 2: a weight of 1/2; another scale divides it.
        assert utility.fit([[-1.0], [1.0]], [0, 1]) == pytest.approx([0.5])
        assert utility.fit([[10.0], [14.0]], [0, 1]) == pytest.approx([0.25])

    def test_more_features_than_images_is_the_same_problem(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(12, 5)), np.arange(12) % 2
        wide = np.pad(x, ((0, 0), (0, 20)))  # features that never vary
        assert utility.fit(wide, y)[:5] == pytest.approx(utility.fit(x, y))
        assert (utility.fit(wide, y)[5:] == 0).all()

    def test_labels_that_are_all_alike_teach_nothing(self):
        assert (utility.fit(np.random.default_rng(1).normal(size=(9, 3)), np.ones(9)) == 0).all()


class TestTransfer:
    def test_what_separates_there_is_tested_here(self):
        train, test = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[-5.0], [0.5], [9.0]])
        labels = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]], float)
        asked = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 1]], float)
        # The first in order; the second the other way round; the third was never seen.
        np.testing.assert_array_equal(utility.transfer(train, labels, test, asked), [1, 0, math.nan])

    def test_unknown_labels_are_left_out(self):
        train, test = np.array([[0.0], [1.0], [50.0]]), np.array([[0.0], [1.0], [-9.0]])
        labels, asked = np.array([[0], [1], [math.nan]]), np.array([[0], [1], [math.nan]])
        assert utility.transfer(train, labels, test, asked) == [1]
        assert np.isnan(utility.transfer(train, labels, test, np.full((3, 1), math.nan)))


class TestUtility:
    rng = np.random.default_rng(2)
    labels = (rng.random((80, 2)) < 0.5).astype(float)
    real = np.concatenate([labels + 0.3 * rng.normal(size=labels.shape), rng.normal(size=(80, 3))], axis=1)
    patient = np.arange(80) // 2

    def of(self, made, labels=None, **options):
        labels = self.labels if labels is None else labels
        return utility.utility(made, labels, self.patient, self.real, self.labels, self.patient, **options)

    def test_images_as_good_as_real_teach_as_much_and_noise_nothing(self):
        made = self.real + 0.1 * np.random.default_rng(3).normal(size=self.real.shape)
        assert self.of(made)[0] == pytest.approx(self.of(self.real)[0], abs=0.02)
        assert self.of(made)[0] > 0.95
        noise = np.random.default_rng(4).normal(size=self.real.shape)
        assert abs(self.of(noise)[0] - 0.5) < 0.15
        assert self.of(made, 1 - self.labels)[0] < 0.05  # findings that the images show the wrong way

    def test_no_patient_is_on_both_sides(self):
        """Features that name the patient: who was trained on would be known."""
        own = np.eye(40)[self.patient]
        labels = np.repeat((np.random.default_rng(5).random((40, 1)) < 0.5).astype(float), 2, axis=0)
        got = utility.utility(own, labels, self.patient, own, labels, self.patient)
        assert got[0] == pytest.approx(0.5)

    def test_mean_of_the_halves(self):
        got = self.of(self.real, splits=5)
        assert len(got) == 6
        assert got[0] == pytest.approx(got[1:].mean())
        assert len(self.of(self.real, splits=99)) == 1 + utility.SPLITS

    def test_few_patients_have_none(self):
        got = utility.utility(self.real, self.labels, self.patient // 20, self.real, self.labels, self.patient // 20)
        assert len(got) == 1
        assert math.isnan(got[0])
