"""The patient bootstrap against explicit resampling, and the coverage of its intervals."""

import numpy as np

from progemu_jax.eval.bootstrap import Bootstrap, estimate
from progemu_jax.eval.metrics.retention import Correlation
from progemu_jax.eval.metrics.roc import Ranking, auroc


def test_counts_are_draws_of_patients():
    counts = Bootstrap(7, 300, seed=1).counts
    assert counts.shape == (301, 7)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 7).all()
    assert abs(counts[1:].mean() - 1) < 1e-12
    np.testing.assert_allclose(counts[1:].var(0).mean(), 6 / 7, atol=0.1)  # multinomial: n p (1 - p)


def test_seed_decides():
    a, b, c = (Bootstrap(20, 50, seed=s).counts for s in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_equals_explicit_resampling_of_patients():
    rng = np.random.default_rng(0)
    patient = np.sort(rng.integers(0, 15, 40))
    patient = np.unique(patient, return_inverse=True)[1]
    scores, labels, values = rng.random(40).round(1), (rng.random(40) < 0.4).astype(float), rng.random(40)
    boot = Bootstrap(patient.max() + 1, 20, seed=0)
    ranking = Ranking(scores, labels)
    got = boot.distributions(patient, {"mean": (values, np.ones(40))}, {"auroc": ranking.auroc})
    for b, counts in enumerate(boot.counts):
        cases = np.concatenate([np.repeat(np.flatnonzero(patient == p), n) for p, n in enumerate(counts)])
        np.testing.assert_allclose(got["mean"][b], values[cases].mean(), atol=1e-12)
        np.testing.assert_allclose(got["auroc"][b], auroc(scores[cases], labels[cases]), atol=1e-12)


def test_undefined_stays_undefined():
    assert estimate(np.full(11, np.nan)).value is None
    got = estimate(np.r_[0.7, np.full(50, 0.6), np.full(50, np.nan)])
    assert got.value == 0.7
    assert got.undefined == 0.5
    assert any("undefined in 50%" in f for f in got.flags)


def test_one_patient_has_no_interval():
    boot = Bootstrap(1, 100)
    got = estimate(boot.distributions(np.zeros(3, int), {"m": (np.arange(3.0), np.ones(3))}, {})["m"])
    assert (got.value, got.low, got.high) == (1.0, None, None)


def test_intervals_widen_when_cases_of_a_patient_are_copies():
    rng = np.random.default_rng(2)
    values = np.repeat(rng.random(50), 4)
    clustered = Bootstrap(50, 500).distributions(np.repeat(np.arange(50), 4), {"m": (values, np.ones(200))}, {})["m"]
    naive = Bootstrap(200, 500).distributions(np.arange(200), {"m": (values, np.ones(200))}, {})["m"]
    assert clustered[1:].std() > 1.6 * naive[1:].std()  # twice, in theory


def test_coverage_of_auroc_and_correlation():
    """400 cohorts of 150 patients: binomial noise of the coverage itself is about 1.1 points (one sigma)."""
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for cohort in range(400):
        labels = (rng.random(150) < 0.4).astype(float)
        scores = rng.normal(size=150) + 1.0 * labels  # AUROC = Phi(1 / sqrt 2)
        x = rng.normal(size=150)
        y = 0.7 * x + np.sqrt(1 - 0.49) * rng.normal(size=150)
        boot = Bootstrap(150, 300, seed=cohort)
        got = boot.distributions(np.arange(150), {}, {"a": Ranking(scores, labels).auroc, "r": Correlation(x, y)})
        a, r = estimate(got["a"]), estimate(got["r"])
        hits += [a.low <= 0.76025 <= a.high, r.low <= 0.7 <= r.high]
    assert (hits / 400 > 0.915).all()
    assert (hits / 400 < 0.98).all()
