"""The phantom: what is rendered is what the state says, and the cohort is laid out as MIMIC-CXR-JPG is."""

import dataclasses
import json
import time

import numpy as np
import pytest

from progemu_jax.data import phantom

S = 128

LEFT, RIGHT = 1, -1


def _healthy(seed=0):
    """A patient without the traits that mimic disease, no disease, a straight acquisition."""
    rng = np.random.default_rng(seed)
    patient = dataclasses.replace(phantom.sample_patient(rng), blunting=0.0, scar=0.0)
    state = dataclasses.replace(
        phantom.sample_trajectory(rng, patient, 1)[0], severities=np.zeros(8), atelectasis_side=LEFT
    )
    straight = {"angle": 0.0, "shift_x": 0.0, "shift_y": 0.0, "scale": 1.0, "skin_fold": 0.0, "noise": 0.003}
    border = {f"border_{side}": 0.0 for side in ("left", "right", "top", "bottom")}
    acquisition = dataclasses.replace(phantom.sample_acquisition(rng), view="PA", **straight, **border)
    return patient, state, acquisition


def _with(state, **severities):
    values = np.zeros(8, np.float32)
    for name, value in severities.items():
        values[phantom.FINDINGS.index(name.replace("_", " "))] = value
    return dataclasses.replace(state, severities=values)


def _pair(seed=0, size=S, **severities):
    """(healthy, diseased) as float images, and both sets of masks by organ."""
    patient, state, acquisition = _healthy(seed)
    a = phantom.render(patient, state, acquisition, size)
    b = phantom.render(patient, _with(state, **severities), acquisition, size)
    organs = [dict(zip(phantom.ORGANS, r.masks, strict=True)) for r in (a, b)]
    return a.image.astype(float), b.image.astype(float), *organs


def test_the_same_arguments_give_the_same_picture_and_json_keeps_them():
    rng = np.random.default_rng(3)
    patient = phantom.sample_patient(rng)
    state, acquisition = phantom.sample_trajectory(rng, patient, 1)[0], phantom.sample_acquisition(rng)
    first = phantom.render(patient, state, acquisition, 64)
    rows = [json.loads(json.dumps(x.to_dict())) for x in (patient, state, acquisition)]
    kinds = (phantom.Patient, phantom.State, phantom.Acquisition)
    again = phantom.render(*(kind.from_dict(row) for kind, row in zip(kinds, rows, strict=True)), 64)
    assert first.image.dtype == np.uint8
    assert first.image.shape == (64, 64)
    assert first.masks.dtype == bool
    assert first.masks.shape == (6, 64, 64)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    other = phantom.render(phantom.sample_patient(np.random.default_rng(4)), state, acquisition, 64)
    assert (other.image != first.image).mean() > 0.5


def test_every_size_shows_the_same_patient():
    patient, state, acquisition = _healthy(1)
    state = _with(state, left_pleural_effusion=0.5, consolidation=0.6)
    acquisition = dataclasses.replace(acquisition, noise=0.0, angle=0.04, shift_x=0.05)
    large = phantom.render(patient, state, acquisition, 512)
    for size in (64, 128):
        small = phantom.render(patient, state, acquisition, size)
        k = 512 // size
        shrunk = large.image.reshape(size, k, size, k).mean((1, 3))
        assert np.abs(shrunk - small.image).mean() < 4.0  # gray levels of 255
        halves = large.masks.reshape(6, size, k, size, k).mean((2, 4)) > 0.5
        for a, b in zip(halves, small.masks, strict=True):
            assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95


def test_the_patients_left_is_on_the_right_of_the_image():
    _, _, organs, _ = _pair()
    columns = np.arange(S)
    centre = {name: (mask.sum(0) * columns).sum() / mask.sum() for name, mask in organs.items()}
    assert centre["right lung"] < centre["spine"] < centre["left lung"]
    assert centre["heart"] > centre["spine"]  # two thirds of the heart are left of the midline


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_effusion_is_a_meniscus_that_rises_laterally(seed, side):
    healthy, sick, organs, after = _pair(seed, **{f"{side}_pleural_effusion": 0.5})
    lung = organs[f"{side} lung"]
    filled = lung & ~after[f"{side} lung"]
    assert (sick - healthy)[filled].mean() > 30
    # The highest filled row of a column rises (gets smaller) towards the side wall.
    columns = np.flatnonzero(filled.any(0))
    top = filled.argmax(0)[columns]
    if side == "right":
        top = top[::-1]
    assert top[-4:].mean() < top[len(top) // 4 : len(top) // 2].mean() - 5
    other = organs["right lung" if side == "left" else "left lung"]
    assert np.abs(sick - healthy)[other].mean() < 3


@pytest.mark.parametrize("side", ["left", "right"])
def test_pneumothorax_is_dark_without_markings_beyond_a_line(side):
    healthy, sick, organs, _ = _pair(2, **{f"{side}_pneumothorax": 0.5})
    lung = organs[f"{side} lung"]
    darker = lung & (sick < healthy - 6)
    brighter = lung & (sick > healthy + 6)
    assert darker.sum() > 0.10 * lung.sum()
    assert brighter.sum() > 15  # the visceral line
    columns, rows = np.arange(S), np.flatnonzero(lung.any(1))
    lateral = 1 if side == "left" else -1
    lower = slice(rows[len(rows) // 3], None)  # under the apex, free air is lateral
    x = [(m[lower].sum(0) * columns).sum() / m[lower].sum() for m in (darker, lung)]
    assert lateral * (x[0] - x[1]) > 5
    # It starts at the apex, where air goes in an upright chest.
    assert np.flatnonzero(darker.any(1))[0] - np.flatnonzero(lung.any(1))[0] <= 4


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_cardiomegaly_is_a_cardiothoracic_ratio_above_one_half(seed):
    def ratio(organs):
        lungs = np.flatnonzero((organs["left lung"] | organs["right lung"]).any(0))
        return organs["heart"].any(0).sum() / (lungs[-1] - lungs[0] + 1)

    _, _, before, after = _pair(seed, cardiomegaly=0.7)
    assert ratio(before) < 0.5 < ratio(after)
    assert ratio(after) > ratio(before) + 0.08


def test_edema_is_haze_that_is_densest_around_the_hila():
    healthy, sick, organs, after = _pair(1, pulmonary_edema=0.7)
    change = sick - healthy
    lungs = organs["left lung"] | organs["right lung"]
    rows, columns = np.mgrid[:S, :S]
    spine = (organs["spine"].sum(0) * np.arange(S)).sum() / organs["spine"].sum()
    middle = np.abs(columns - spine) < 0.26 * S
    hila = lungs & middle & (np.abs(rows - 0.48 * S) < 0.12 * S)
    apices = lungs & (rows < np.flatnonzero(lungs.any(1))[0] + 12)
    assert change[hila].mean() > 25
    assert change[hila].mean() > 3 * change[apices].mean()
    np.testing.assert_array_equal(organs["heart"], after["heart"])


@pytest.mark.parametrize(("side", "name"), [(LEFT, "left"), (RIGHT, "right")])
def test_atelectasis_is_a_basal_band_with_a_raised_diaphragm(side, name):
    patient, state, acquisition = _healthy(5)
    state = dataclasses.replace(state, atelectasis_side=side)
    a = phantom.render(patient, state, acquisition, S)
    b = phantom.render(patient, _with(state, atelectasis=0.6), acquisition, S)
    i = phantom.ORGANS.index(f"{name} lung")
    lost = a.masks[i] & ~b.masks[i]
    assert lost.sum() > 0.08 * a.masks[i].sum()
    base = b.masks[i] & (np.arange(S)[:, None] > np.flatnonzero(b.masks[i].any(1))[-1] - 22)
    assert (b.image.astype(float) - a.image)[base].mean() > 8
    other = 1 - i
    assert abs(int(a.masks[other].sum()) - int(b.masks[other].sum())) < 0.06 * a.masks[other].sum()


def test_consolidation_is_one_dense_patch_at_its_site():
    patient, state, acquisition = _healthy(6)
    state = dataclasses.replace(state, consolidation_side=RIGHT, consolidation_zone=0.0)
    a = phantom.render(patient, state, acquisition, S)
    b = phantom.render(patient, _with(state, consolidation=0.6), acquisition, S)
    change = b.image.astype(float) - a.image
    left, right = (a.masks[phantom.ORGANS.index(f"{k} lung")] for k in ("left", "right"))
    patch = right & (change > 25)
    assert 0.06 * right.sum() < patch.sum() < 0.7 * right.sum()
    assert np.abs(change)[left].mean() < 3
    assert np.argwhere(patch)[:, 0].mean() < np.argwhere(right)[:, 0].mean()  # zone 0 is the upper lung


def test_every_finding_still_shows_at_64_pixels():
    """A moderate finding moves the picture by far more than the noise of a repeated exposure does."""
    patient, state, acquisition = _healthy(8)
    acquisition = dataclasses.replace(acquisition, noise=0.012)
    a = phantom.render(patient, state, acquisition, 64).image.astype(float)
    again = phantom.render(patient, state, dataclasses.replace(acquisition, seed=1), 64).image
    noise = np.abs(again - a).mean()
    for name in phantom.FINDINGS:
        b = phantom.render(patient, _with(state, **{name.replace(" ", "_"): 0.4}), acquisition, 64).image
        strong = np.abs(b - a) > 6 * noise
        assert strong.sum() >= 30, name


def test_age_and_group_are_diffuse():
    """No trait alone tells them apart: each overlaps between the groups and scatters around its age trend."""
    rng = np.random.default_rng(1)
    people = [phantom.sample_patient(rng) for _ in range(1500)]
    group = np.array([p.group == "B" for p in people])
    age = np.array([p.age for p in people])
    for name in ("bone", "texture", "soft_tissue", "vessels", "aorta", "calcification"):
        value = np.array([getattr(p, name) for p in people])
        order = value.argsort().argsort() + 1
        auroc = (order[group].sum() - group.sum() * (group.sum() + 1) / 2) / (group.sum() * (~group).sum())
        assert max(auroc, 1 - auroc) < 0.95
        assert abs(np.corrcoef(age, value)[0, 1]) < 0.92


def test_rendering_is_fast_enough_for_a_cohort():
    def best(size):
        patient, state, acquisition = _healthy(3)
        state = _with(state, left_pneumothorax=0.5, pulmonary_edema=0.5, consolidation=0.5, atelectasis=0.5)
        times = []
        for _ in range(8):
            start = time.process_time()
            phantom.render(patient, state, acquisition, size)
            times.append(time.process_time() - start)
        return min(times)

    # Three times the target of 3 and 8 ms, since the machine is whatever the tests run on.
    assert best(64) < 0.009
    assert best(128) < 0.024
