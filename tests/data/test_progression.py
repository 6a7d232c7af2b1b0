"""Progression prompt and interpretation from two reports."""

import numpy as np
import pytest

from progemu_jax.data.phantom import reports
from progemu_jax.data.phantom.patient import sample_patient, sample_trajectory
from progemu_jax.data.progression import progression
from progemu_jax.text import findings, rules, vocabulary
from progemu_jax.text.findings import NO_CHANGE

LE, RE, LP, RP, CM, ED, AT, CO = findings.FINDINGS
SIGN = {"new": 1, "worse": 1, "better": -1, "resolved": -1}


def _moved(found):
    return {name: v for name, v in found.items() if v}


def _pairs(n, seed):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        patient = sample_patient(rng)
        before, after = sample_trajectory(rng, patient, 2)
        first, second = (
            reports.report(rng, patient, before, None),
            reports.report(rng, patient, after, before),
        )
        yield before, after, progression(first, second)


def test_phantom_pairs():
    """200 pairs of known states: all changes right in at least 95 %, and the texts say what was found."""
    right = hidden = 0
    for before, after, made in _pairs(200, seed=11):
        truth = {name: SIGN[s] for name in findings.FINDINGS if (s := reports.status(name, after, before)) in SIGN}
        right += _moved(made.changes) == truth
        assert _moved(rules.changes(made.interpretation)) == _moved(made.changes)
        told = rules.changes(made.prompt)
        assert told.items() <= _moved(made.changes).items()
        assert bool(told) == bool(_moved(made.changes))
        assert (made.prompt == NO_CHANGE) == (not told)
        states = rules.states(made.interpretation)
        hidden += any(v and name not in told for name, v in states.items())
    assert right >= 190
    # Enough interpretations hold a finding that the prompt does not give away.
    assert hidden >= 100


def test_phantom_texts_are_short():
    """Short sequences keep the demo on a CPU: tokens of the built-in vocabulary."""
    v = vocabulary.load()
    made = [m for _, _, m in _pairs(200, seed=12)]
    prompts = [len(v.encode(m.prompt)) for m in made]
    texts = [len(v.encode(m.interpretation)) for m in made]
    assert max(len(m.prompt.split()) for m in made) <= 12
    assert max(len(m.interpretation.split()) for m in made) <= 35
    assert np.percentile(prompts, 95) <= 16
    assert np.median(prompts) <= 12
    assert np.percentile(texts, 99) <= 40
    # Words of these texts are single tokens: no more than one token a word and one a mark.
    for m in made:
        words = len(m.interpretation.split())
        marks = sum(c in ".,-" for c in m.interpretation)
        assert len(v.encode(m.interpretation)) <= words + marks


def test_same_reports_same_texts():
    prior = {"findings": "Small left effusion.", "impression": ""}
    followup = {"findings": "Left effusion is larger. New edema. Stable cardiomegaly.", "impression": ""}
    assert progression(prior, followup) == progression(dict(prior), dict(followup))


def test_wording_varies():
    first = {made.prompt.split()[0] for _, _, made in _pairs(150, seed=5)}
    assert len(first) >= 8


# prior, follow-up, changes; the wording is not that of the phantom.
CASES = [
    ("No effusion.", "There is a moderate left effusion.", {LE: 1}),
    ("Large right effusion.", "Right effusion has been drained and is now small.", {RE: -1}),
    ("Large right effusion.", "No pleural effusion.", {RE: -1}),
    ("Mild cardiomegaly.", "Severe cardiomegaly.", {CM: 1}),
    ("Moderate edema.", "Mild interstitial edema.", {ED: -1}),
    ("Moderate right pneumothorax.", "The pneumothorax has decreased.", {RP: -1}),
    (
        "Small bilateral effusions.",
        "Effusions are bigger, and the lungs are otherwise clear.",
        {LE: 1, RE: 1},
    ),
    ("Left lower lobe consolidation.", "Left lower lobe consolidation, not significantly changed.", {CO: 0}),
    ("No pneumothorax.", "A tiny left pneumothorax cannot be excluded.", {}),
    ("Mild edema.", "Patient rotated.", {}),
]


@pytest.mark.parametrize(("prior", "followup", "changes"), CASES)
def test_cases(prior, followup, changes):
    made = progression({"findings": prior}, {"findings": followup, "impression": ""})
    assert made.changes == changes
    assert rules.changes(made.interpretation) == changes
    assert 1 <= made.confidence <= 5


def test_kinds():
    made = progression({"findings": "No edema. Mild cardiomegaly."}, {"findings": "New edema. Normal heart size."})
    assert made.changes == {ED: 1, CM: -1}
    assert {s.split()[0] for s in rules.sentences(made.prompt)} & {"New", "Interval"}
    assert not rules.states(made.interpretation)[CM]
    assert rules.states(made.interpretation)[ED]


def test_sides_and_places_are_kept():
    made = progression(
        {"findings": "Lungs are clear."},
        {"findings": "Development of severe right upper lobe consolidation."},
    )
    assert rules.sites(made.prompt) == {CO: ("right", "upper")}


def test_confidence():
    certain = progression({"findings": "Small left effusion."}, {"findings": "Left effusion has increased."})
    guessed = progression({"findings": "Normal heart size."}, {"findings": "Small left effusion. Mild edema."})
    assert certain.confidence == 5
    assert guessed.confidence < certain.confidence
    for prior, followup in (
        ({}, {}),
        ({"findings": ""}, {"findings": "Edema."}),
        ({"findings": "Edema."}, {}),
    ):
        assert progression(prior, followup).confidence == 1
    assert progression({}, {}).prompt == NO_CHANGE
    # Reasons are of our making: no report text in them.
    assert "effusion" not in guessed.reason
