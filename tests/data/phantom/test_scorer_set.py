"""The scorer's training set."""

import numpy as np

from progemu_jax.data import phantom
from progemu_jax.data.phantom.scorer_set import labelled_arrays


def test_labelled_set_is_disjoint_from_cohorts_and_made_in_parts():
    whole = phantom.labelled_set(7, 5, 32)
    assert {k: (v.dtype.name, v.shape) for k, v in whole.items()} == {
        "image": ("uint8", (5, 32, 32)),
        "findings": ("float32", (5, 8)),
        "group": ("int32", (5,)),
        "age": ("float32", (5,)),
        "sex": ("int32", (5,)),
        "masks": ("bool", (5, 6, 32, 32)),
    }
    part = phantom.labelled_set(7, 2, 32, start=3)
    np.testing.assert_array_equal(whole["image"][3:], part["image"])
    draws = {
        phantom.sample_patient(phantom.generator(domain, seed, i)).seed
        for domain in ("cohort", "labelled")
        for seed in range(4)
        for i in range(50)
    }
    assert len(draws) == 400


def test_severities_are_the_renderers_and_only_there_when_asked_for(tmp_path):
    plain = labelled_arrays(tmp_path / "a.npz", 7, 2, 3, 48, 32, 1)
    more = labelled_arrays(tmp_path / "b.npz", 7, 2, 3, 48, 32, 1, severity=True)
    assert set(more) - set(plain) == {"severity"}
    for key, values in plain.items():
        np.testing.assert_array_equal(more[key], values, err_msg=key)
    np.testing.assert_array_equal(more["severity"], phantom.labelled_set(7, 3, 48, start=2)["findings"])
    np.testing.assert_array_equal(more["findings"], more["severity"] >= 0.15)
