"""Verification of films against strangers', by hand."""

import numpy as np
import pytest

from progemu_jax.eval.metrics import identity

NAN = float("nan")


def points(*degrees):
    """float [N, 2] on the circle."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_strangers_are_other_patients_of_the_same_sex():
    prior, followup = points(0, 10, 90), points(0, 20, 60)
    patient = np.array([0, 0, 1])
    # Of patients 0 and 1 only: cos of 60, 50 (priors 0 and 10 with follow-up 60) and of 90, 70 (prior 90 with 0, 20).
    every = identity.strangers(prior, followup, patient, np.full(3, NAN))
    np.testing.assert_allclose(every, np.sort(np.cos(np.radians([60, 50, 90, 70]))), atol=1e-12)
    assert len(identity.strangers(prior, followup, patient, np.array([0.0, 0.0, 1.0]))) == 0
    assert len(identity.strangers(prior, followup, patient, np.array([0.0, NAN, 1.0]))) == 2


def test_one_stranger_in_a_hundred_passes_and_a_copy_always():
    rng = np.random.default_rng(0)
    films = rng.normal(size=(2, 60, 8))
    prior, followup = films / np.linalg.norm(films, axis=2, keepdims=True)
    apart = identity.strangers(prior, followup, np.arange(60) % 30, np.full(60, NAN))
    bar = identity.threshold(apart)
    assert (apart > bar).mean() == pytest.approx(0.01, abs=0.001)
    same, below = identity.verified(prior, prior, apart)
    np.testing.assert_array_equal(same, 1)
    np.testing.assert_array_equal(below, 1)


def test_the_mean_of_what_lies_below_is_the_auroc_with_ties():
    apart = np.array([0.0, 0.5, 0.5, 1.0] * 30)
    apart.sort()
    made, prior = np.array([[0.5, 0.0], [0.75, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0]] * 3)
    same, below = identity.verified(made, prior, apart)
    np.testing.assert_allclose(below, [0.25 + 0.5 / 2, 0.75, 0.75 + 0.25 / 2])
    np.testing.assert_array_equal(same, 0)  # nothing is more alike than 1


def test_too_few_strangers_say_nothing():
    assert identity.threshold(np.zeros(identity.LEAST - 1)) is None
