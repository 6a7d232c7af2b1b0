"""Patients and their courses."""

import itertools

import numpy as np

from progemu_jax.data import phantom
from progemu_jax.text import findings


def test_trajectories_keep_prevalence_and_persistence():
    rng = np.random.default_rng(0)
    present, changed = [], []
    for _ in range(1500):
        patient = phantom.sample_patient(rng)
        states = phantom.sample_trajectory(rng, patient, 6)
        severities = np.stack([s.severities for s in states])
        assert ((severities >= 0) & (severities <= 1)).all()
        days = [s.days for s in states]
        assert days[0] == 0
        assert (np.diff(days) > 0).all()
        present.append(severities >= findings.PRESENT)
        changed.append((np.abs(np.diff(severities, axis=0)) >= findings.PRESENT).sum(1))
    present, changed = np.stack(present), np.stack(changed)
    prevalence = present.mean((0, 1))
    assert (prevalence > 0.14).all()
    assert (prevalence < 0.31).all()
    # The prevalence does not drift: 4 standard errors of a difference of two shares of 1,500.
    np.testing.assert_allclose(present[:, 0].mean(0), present[:, -1].mean(0), atol=0.06)
    persistence = (present[:, 1:] & present[:, :-1]).sum() / present[:, :-1].sum()
    assert 0.67 < persistence < 0.73
    assert 1.0 < changed.mean() < 2.0


def test_a_persisting_finding_stays_where_it_was():
    rng = np.random.default_rng(2)
    i = phantom.FINDINGS.index("consolidation")
    kept = moved = 0
    for _ in range(200):
        states = phantom.sample_trajectory(rng, phantom.sample_patient(rng), 3)
        for a, b in itertools.pairwise(states):
            if a.present[i] and b.present[i]:
                assert a.consolidation_seed == b.consolidation_seed
                kept += 1
            elif b.present[i]:
                moved += a.consolidation_seed != b.consolidation_seed
    assert kept > 20
    assert moved > 5
