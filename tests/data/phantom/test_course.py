"""Findings that run a course in time, and the true distribution of their futures."""

import functools
import hashlib
import itertools
import json

import numpy as np
import pytest

from progemu_jax.data import phantom
from progemu_jax.data.phantom import course, reports
from progemu_jax.data.phantom.patient import PREVALENCE, days_between
from progemu_jax.data.phantom.scorer_set import labelled_arrays
from progemu_jax.data.sources import phantom as cohort
from progemu_jax.errors import UserError
from progemu_jax.text import findings, rules

EFFUSION = course.TIMES["left pleural effusion"], 0.22


def _population(rng, n, times, share):
    """n stationary states of one finding, of n patients."""
    return course._stationary(rng, np.tile(np.array(times, float), (n, 1)), np.full(n, share))


def test_the_dynamics_of_before_keep_their_bits():
    digest = hashlib.sha256()
    for i in range(10):
        rng, words, before = phantom.generator("cohort", 5, i), phantom.generator("cohort", 5, i, 1), None
        patient = phantom.sample_patient(rng)
        for state in phantom.sample_trajectory(rng, patient, 4):
            place = [state.days, state.atelectasis_side, state.atelectasis_seed, state.consolidation_seed]
            digest.update(state.severities.tobytes() + json.dumps(place).encode())
            digest.update(json.dumps(reports.report(words, patient, state, before)).encode())
            before = state
    assert digest.hexdigest()[:16] == "71c5b93e30a4a4c1"


def test_findings_are_stationary_and_as_frequent_as_in_steps():
    rng = np.random.default_rng(0)
    for name, share in PREVALENCE.items():
        first = _population(rng, 8000, course.TIMES[name], share)
        later = course.advance(rng, first, 300)[0]
        present, after = first.mode != course.ABSENT, later.mode != course.ABSENT
        np.testing.assert_array_equal(present, first.severity >= findings.PRESENT)
        assert ((later.severity >= 0) & (later.severity <= 1)).all()
        error = np.sqrt(share * (1 - share) / 8000)
        assert abs(present.mean() - share) < 4 * error + 0.005, name
        assert abs(present.mean() - after.mean()) < 4 * 2**0.5 * error, name
        modes = [np.bincount(x.mode, minlength=4) / 8000 for x in (first, later)]
        np.testing.assert_allclose(*modes, atol=0.02, err_msg=name)


def test_a_patients_rates_last_and_its_films_move_as_often_as_in_steps():
    rng, moved = np.random.default_rng(1), []
    for _ in range(150):
        studies = phantom.sample_course(rng, phantom.sample_patient(rng), 4)
        for (a, one, _), (b, two, treated) in itertools.pairwise(studies):
            for name in ("growth", "decay", "onset"):
                np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
            np.testing.assert_array_equal(b.severities, two.severity.astype(np.float32))
            assert b.days > a.days
            moved.append((np.abs(b.severities - a.severities) >= findings.PRESENT).sum())
            stays = a.present & b.present
            assert not stays[6] or a.atelectasis_seed == b.atelectasis_seed
            assert not stays[7] or a.consolidation_seed == b.consolidation_seed
            assert set(treated) <= set(findings.FINDINGS)
    assert 0.9 < np.mean(moved) < 1.6


def test_without_jumps_severities_drift(monkeypatch):
    rng = np.random.default_rng(2)
    start = _population(rng, 2000, *EFFUSION)
    ahead = [course.drift(start, days) for days in (0, 7, 30, 90)]
    for mode, sign in ((course.GROWING, 1), (course.RESOLVING, -1), (course.STABLE, 0), (course.ABSENT, 0)):
        steps = np.diff([x[start.mode == mode] for x in ahead], axis=0)
        assert (np.sign(steps) == sign).all() or (sign == 1 and (steps >= 0).all() and (steps[0] > 0).mean() > 0.9)
    g, s = start.growth[start.mode == course.GROWING], start.severity[start.mode == course.GROWING]
    np.testing.assert_allclose(ahead[2][start.mode == course.GROWING], 1 - (1 - s) * np.exp(-30 * g), rtol=1e-6)
    monkeypatch.setattr(course, "_TOTAL", np.full(4, 1e-12))
    reached, treated = course.advance(rng, start, 30)
    stays = ahead[2] >= findings.PRESENT + 1e-6
    np.testing.assert_allclose(reached.severity[stays], ahead[2][stays], rtol=1e-6)
    assert (reached.mode[(start.mode == course.RESOLVING) & ~stays] == course.ABSENT).all()
    assert not treated.any()


def test_futures_are_those_of_brute_force():
    """Of 400,000 patients, those whose two films happen to look like these."""
    rng, seen = np.random.default_rng(3), (0.62, 0.45)
    start = _population(rng, 400_000, *EFFUSION)
    for k, value in enumerate(seen):
        if k:
            start = course.advance(rng, start, 25)[0]
        start = start[rng.random(start.mode.size) < np.exp(-(((start.severity - value) / course.NOISE) ** 2) / 2)]
    assert start.mode.size > 300
    now = course._filter(rng, course._library(*EFFUSION), (3, 28), seen, 20_000, course.NOISE)
    for days in (7, 60):
        expected, got = (course.advance(rng, x, days)[0].severity for x in (start, now))
        error = 0.5 / np.sqrt(expected.size) + 0.01
        for level in (findings.PRESENT, 0.3, 0.45):
            assert abs((got >= level).mean() - (expected >= level).mean()) < 3 * error, (days, level)


@pytest.fixture(scope="module")
def forecasts():
    """Of 250 effusions present on the second film: {films known: P(present on the third)}, and what came."""
    rng = np.random.default_rng(4)
    start = _population(rng, 4000, *EFFUSION)
    gaps = np.array([[days_between(rng), days_between(rng)] for _ in range(4000)])
    second = course.advance(rng, start, gaps[:, 0])[0]
    came = course.advance(rng, second, gaps[:, 1])[0].mode != course.ABSENT
    kept = np.flatnonzero(second.mode != course.ABSENT)[:250]
    films = np.stack([start.severity, second.severity], 1) + rng.normal(0, course.NOISE, (4000, 2))
    library, out = course._library(*EFFUSION), {1: [], 2: []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "_PARTICLES", 3000)
        for i, (known, told) in itertools.product(kept, out.items()):
            days, seen = np.array([0, gaps[i, 0]])[-known:], films[i, -known:]
            now = course._filter(rng, library, days, seen, 1000, course.NOISE)
            told.append((course.advance(rng, now, gaps[i, 1])[0].mode != course.ABSENT).mean())
    return {known: np.array(told) for known, told in out.items()}, came[kept]


def test_a_second_film_tells_more_than_one_and_one_more_than_that_it_was_there(forecasts):
    told, came = forecasts
    brier = {known: ((p - came) ** 2).mean() for known, p in told.items()}
    assert brier[2] < 0.95 * brier[1]
    assert brier[1] < 0.9 * came.mean() * (1 - came.mean())


def test_forecasts_are_calibrated(forecasts):
    told, came = forecasts
    for known, p in told.items():
        for part in np.array_split(np.argsort(p), 4):
            error = np.sqrt((p[part] * (1 - p[part])).sum()) / len(part)
            assert abs(p[part].mean() - came[part].mean()) < 3 * error + 0.02, known


def test_the_film_before_tells_falling_from_flat(monkeypatch):
    monkeypatch.setattr(course, "_library", functools.cache(course._library.__wrapped__))
    monkeypatch.setattr(course, "_PATIENTS", 10_000)
    rng, patient = np.random.default_rng(5), phantom.sample_patient(np.random.default_rng(0))
    now, falling = np.full(8, 0.4), np.full(8, 0.8)
    drawn = [course.futures(rng, patient, [(0, before), (30, now)], 45, 500) for before in (now, falling)]
    assert {(x.dtype.name, x.shape) for x in drawn} == {("float32", (500, 8))}
    there = [(x >= findings.PRESENT).mean() for x in drawn]
    assert there[0] > there[1] + 0.3


@pytest.mark.parametrize(
    ("history", "more", "words"),
    [
        ([], {}, "history of 0 films: give"),
        ([(0, np.zeros(7))], {}, "8 severities"),
        ([(5, np.zeros(8)), (5, np.zeros(8))], {}, "days that ascend"),
        ([(0, np.full(8, np.nan))], {}, "finite"),
        ([(0, np.zeros(8))], {"days": -1}, "days=-1"),
        ([(0, np.zeros(8))], {"noise": 0}, "noise=0"),
    ],
)
def test_a_history_that_is_none_is_one_line(history, more, words):
    patient = phantom.sample_patient(np.random.default_rng(0))
    with pytest.raises(UserError, match=words) as caught:
        course.futures(np.random.default_rng(0), patient, history, **{"days": 30, "n": 2} | more)
    assert "\n" not in str(caught.value)


def test_reports_of_a_course_say_what_is_there_and_after_what():
    rng, signs = np.random.default_rng(6), {"new": 1, "worse": 1, "better": -1, "resolved": -1}
    right = total = told = 0
    causes = {cause for each in reports.CAUSES.values() for cause in each}
    for _ in range(80):
        patient = phantom.sample_patient(rng)
        (before, _, _), (after, _, _) = phantom.sample_course(rng, patient, 2)
        written = reports.report(rng, patient, after, before, findings.FINDINGS)
        text = f"{written['findings']} {written['impression']}"
        found, moved = rules.states(text), rules.changes(text)
        told += any(cause in text for cause in causes)
        for name in findings.FINDINGS:
            sign = signs.get(reports.status(name, after, before), 0)
            total += 1
            right += found.get(name, False) == (after[name] >= findings.PRESENT) and (moved.get(name) or 0) == sign
    assert right / total >= 0.98
    assert told > 15


def test_a_cohort_tells_its_course_and_goes_on_from_it(tmp_path):
    arguments = {"patients": 3, "studies_per_patient": 3, "size": 32, "seed": 5, "progress": False}
    root = cohort.write_cohort(tmp_path / "source", **arguments, dynamics="course")
    assert json.loads((root / "truth/cohort.json").read_text())["dynamics"] == "course"
    rows = sorted(cohort.read_truth(root).values(), key=lambda row: (row["patient_id"], row["order"]))
    first, second = rows[:2]
    latent = course.true_state(first)
    assert (latent.severity.shape, latent.mode.dtype, set(second["course"])) == (
        (8,), np.int8, {"mode", "growth", "decay", "onset", "treated"},
    )  # fmt: skip
    np.testing.assert_array_equal(course.drift(latent, 0), np.float32(first["disease"]["severities"]))
    drawn = course.simulate(np.random.default_rng(0), latent, 30, 5)
    assert (drawn.dtype, drawn.shape) == (np.float32, (5, 8))
    assert phantom.counterfactual(first, second, 32).shape == (32, 32)
    with pytest.raises(UserError, match=r"dynamics=course, not steps"):
        cohort.write_cohort(root, **arguments)
    with pytest.raises(UserError, match=r"dynamics='x': choose among steps, course"):
        cohort.write_cohort(tmp_path / "other", **arguments, dynamics="x")
    with pytest.raises(UserError, match=r"study 7: its truth tells no course"):
        course.true_state({"study_id": 7})


def test_a_scorers_set_is_of_the_cohorts_dynamics(tmp_path):
    drawn = labelled_arrays(tmp_path / "a.npz", 7, 2, 3, 48, 32, 1, severity=True, dynamics="course")
    for i in range(3):
        rng = phantom.generator("labelled", 7, 2 + i)
        state = phantom.sample_course(rng, phantom.sample_patient(rng), 1)[0][0]
        np.testing.assert_array_equal(drawn["severity"][i], state.severities)
