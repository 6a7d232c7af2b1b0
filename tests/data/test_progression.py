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


THREE = (
    {"findings": "No effusion. Severe pulmonary edema. Mild cardiomegaly."},
    {"findings": "New moderate left effusion. Edema has improved and is now mild. Cardiomegaly is unchanged."},
    {"findings": "Left effusion has increased and is now large. Edema has resolved. Mild cardiomegaly."},
)


@pytest.mark.parametrize(
    ("prior", "followup", "said", "changes"),
    [
        (0, 1, "forward", {LE: 1, ED: -1, CM: 0}),
        (1, 0, "reversed", {LE: -1, ED: 1, CM: 0}),
        (1, 2, "forward", {LE: 1, ED: -1, CM: 0}),
        (2, 1, "reversed", {LE: -1, ED: 1, CM: 0}),
        (0, 2, None, {LE: 1, ED: -1, CM: 0}),
        (2, 0, None, {LE: -1, ED: 1, CM: 0}),
    ],
)
def test_three_reports_in_every_order(prior, followup, said, changes):
    made = progression(THREE[prior], THREE[followup], said)
    assert made.changes == changes
    assert _moved(rules.changes(made.interpretation)) == _moved(changes)


def test_a_reversed_pair_reads_as_if_it_had_happened():
    """What resolved is new, what was new is gone; grades and places are the target's, or of the study that had it."""
    back = progression(THREE[2], THREE[1], "reversed").interpretation
    assert {"mild", "moderate"} <= set(back.lower().replace(",", "").replace(".", "").split())
    assert rules.severities(back).items() >= {LE: 0.5, ED: rules.severities("Mild edema.")[ED]}.items()
    assert "large" not in back
    assert "severe" not in back
    back = progression(THREE[1], THREE[0], "reversed")
    assert rules.states(back.interpretation).items() >= {LE: False, CM: True, ED: True}.items()
    assert rules.severities(back.interpretation)[ED] > 0.65
    first = {"findings": "Right upper lobe consolidation."}
    second = {"findings": "Right upper lobe consolidation has resolved. New left lower lobe consolidation."}
    assert rules.sites(progression(second, first, "reversed").prompt) == {CO: ("right", "upper")}


def test_words_against_another_study_do_not_count():
    """The third study's effusion has decreased since the second, and is larger than in the first."""
    first, third = (
        {"findings": "Small left effusion."},
        {"findings": "Left effusion has decreased and is now moderate."},
    )
    assert progression(first, third).changes == {LE: -1}
    assert progression(first, third, None).changes == {LE: 1}
    assert progression(third, first, None).changes == {LE: -1}
    gone = {"findings": "Resolved edema."}
    assert progression({"findings": "No edema."}, gone, None).changes == {}
    assert progression({"findings": "Mild edema."}, {"findings": "No effusion."}, None).changes == {ED: -1}
    assert progression({"findings": "Mild edema."}, {"findings": "No effusion."}, None).confidence < 4


def _right(pairs):
    """Share of the changes of states that texts say right, and how many they say wrongly, per change."""
    right = said = wrong = 0
    for before, after, made in pairs:
        truth = {name: SIGN[s] for name in findings.FINDINGS if (s := reports.status(name, after, before)) in SIGN}
        said += len(truth)
        right += sum(made.changes.get(name) == v for name, v in truth.items())
        wrong += sum(truth.get(name) != v for name, v in _moved(made.changes).items())
    return right / said, wrong / said


def test_phantom_patients_in_every_order():
    """The other order is as right as the consecutive pair; two reports of other studies tell 97 of 100 changes."""
    rng = np.random.default_rng(5)
    kinds = {"consecutive": [], "reversed": [], "apart": [], "apart, reversed": [], "as all": []}
    for _ in range(60):
        patient = sample_patient(rng)
        a, b, c = sample_trajectory(rng, patient, 3)
        made = [reports.report(rng, patient, s, p) for s, p in ((a, None), (b, a), (c, b))]
        for i, (before, after) in enumerate(((a, b), (b, c))):
            kinds["consecutive"].append((before, after, progression(made[i], made[i + 1])))
            kinds["reversed"].append((after, before, progression(made[i + 1], made[i], "reversed")))
        kinds["apart"].append((a, c, progression(made[0], made[2], None)))
        kinds["apart, reversed"].append((c, a, progression(made[2], made[0], None)))
        kinds["as all"].append((a, c, progression(made[0], made[2])))
        for x, y in (("consecutive", "reversed"), ("apart", "apart, reversed")):
            one, other = kinds[x][-1][2].changes, kinds[y][-1][2].changes
            assert one == {name: -v for name, v in other.items()}
    right = {kind: _right(pairs) for kind, pairs in kinds.items()}
    assert right["reversed"] == right["consecutive"]
    assert right["consecutive"][0] > 0.98
    assert right["apart"][0] > 0.94
    assert right["apart"][1] < 0.05
    assert right["as all"][0] < 0.8
