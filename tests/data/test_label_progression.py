"""Texts from the labels of two studies: kinds, places, grades, what is uncertain or unknown, and the inverse."""

import itertools

import numpy as np
import pytest
from support.trees import study

from progemu_jax.data import answers
from progemu_jax.data.journeys import Options, Pair, journeys
from progemu_jax.data.label_progression import (
    SEVERITY,
    label_progression,
    severities,
    single_text,
    states_of_labels,
)
from progemu_jax.data.sources import State
from progemu_jax.data.sources.label_findings import CHEXPERT, NIH, PADCHEST
from progemu_jax.data.texts import TextOptions, text_of
from progemu_jax.text import findings, rules
from progemu_jax.text.findings import NO_CHANGE, PHANTOM

YES, NO, UNSURE = State(True), State(False), State(None)


def compare(prior, followup, name="pair", of=NIH):
    return label_progression(prior, followup, of, name)


def all_absent(**there):
    return {f.name: NO for f in NIH} | {name.replace("_", " "): state for name, state in there.items()}


@pytest.mark.parametrize(
    ("was", "now", "change"),
    [
        (NO, YES, 1), (YES, NO, -1), (YES, YES, 0), (NO, NO, None),
        (UNSURE, YES, None), (YES, UNSURE, None), (None, YES, 1), (YES, None, -1), (None, NO, None),
        (State(True, "mild"), State(True, "severe"), 1), (State(True, "severe"), State(True, "mild"), -1),
        (State(True, "mild"), State(True, "mild"), 0), (State(True, "mild"), YES, 0),
    ],
)  # fmt: skip
def test_kinds_of_changes(was, now, change):
    prior, followup = ({"nodule": s} if s else {} for s in (was, now))
    found = compare(prior, followup)
    assert found.changes == ({} if change is None else {"nodule": change})
    assert found.asked == ({"nodule": change} if change else {})
    assert (found.prompt == NO_CHANGE) == (not change)
    other = compare(followup, prior)
    assert other.changes == {name: -value for name, value in found.changes.items()}


def test_what_is_uncertain_is_said_nowhere():
    states = [all_absent(pneumonia=state) for state in (UNSURE, YES, NO)]
    for prior, followup in itertools.permutations(states, 2):
        if UNSURE.present in (prior["pneumonia"].present, followup["pneumonia"].present):
            for name in map(str, range(20)):
                found = compare(prior, followup, name)
                assert "neumonia" not in found.prompt + found.interpretation
    assert all("neumonia" not in single_text(states[0], NIH, str(i)) for i in range(50))


def test_confidence_falls_with_what_one_study_leaves_out():
    assert compare(all_absent(), all_absent(nodule=YES)).confidence == 4
    assert compare({"mass": NO}, {"mass": YES, "nodule": YES}).confidence == 3
    assert compare({}, {"nodule": YES}).confidence == 2
    assert compare({}, {}).confidence == 1


@pytest.mark.parametrize(
    ("was", "now", "words", "sign"),
    [
        (NO, State(True, side="left"), {"left consolidation"}, 1),
        (NO, State(True, side="both"), {"bilateral consolidation"}, 1),
        (NO, State(True, side="right", zone="lower"), {"right lower lung consolidation"}, 1),
        (State(True, side="left"), NO, {"left consolidation"}, -1),
        (State(True, side="left"), YES, {"left consolidation"}, 0),
        (State(True, side="left"), State(True, side="both"), {"right consolidation", "left consolidation"}, 1),
        (State(True, side="both"), State(True, side="left"), {"right consolidation", "left consolidation"}, -1),
        (State(True, side="left"), State(True, side="right"), {"right consolidation", "left consolidation"}, 0),
    ],
)
def test_places_are_named_and_a_side_may_move(was, now, words, sign):
    found = compare({"consolidation": was}, {"consolidation": now})
    assert found.changes == {"consolidation": sign}
    assert all(word in found.interpretation.lower() for word in words)
    if (was.side, now.side) == ("left", "both"):
        assert found.prompt.lower().endswith("right consolidation.")


def test_grades_are_said_in_the_finding_s_words():
    found = compare(
        {"nodule": NO, "emphysema": NO}, {"nodule": State(True, "severe"), "emphysema": State(True, "mild")}
    )
    assert "large nodule" in found.prompt
    assert "mild emphysema" in found.interpretation
    states = {"nodule": State(True, "severe"), "mass": YES, "hiatal hernia": NO, "pneumonia": UNSURE}
    assert severities(states, whole=True) == {"nodule": SEVERITY["severe"], "mass": 1.0, "hiatal hernia": 0.0}
    assert tuple(SEVERITY.values()) == answers.LEVELS[1:]


def test_the_prompt_s_changes_are_those_that_it_names():
    """The first two of five, or one; never what the interpretation alone tells."""
    prior = all_absent()
    there = ("nodule", "mass", "pneumonia", "emphysema", "hiatal hernia")
    followup = prior | dict.fromkeys(there, YES)
    lengths = set()
    for i in range(20):
        found = compare(prior, followup, str(i))
        lengths.add(len(found.asked))
        assert set(found.asked) == {name for name in there if name in found.prompt.lower()}
        assert set(found.changes) == set(there)
    assert lengths == {1, 2}


def test_sides_of_their_own_merge():
    """A list with a finding a side, as the phantom's: both sides of one fate are bilateral, and both are asked for."""
    both = {"left pleural effusion": YES, "right pleural effusion": YES}
    found = compare(dict.fromkeys(both, NO), both, of=PHANTOM)
    assert "bilateral pleural effusions" in found.prompt
    assert found.asked == {"left pleural effusion": 1, "right pleural effusion": 1}


@pytest.mark.parametrize("of", [NIH, CHEXPERT, PADCHEST])
def test_the_rules_read_what_they_have_names_for(of):
    """Of the phantom's eight, whose sides these lists leave open, in every kind of change and in single texts."""
    known = ("cardiomegaly", "pulmonary edema", "atelectasis", "consolidation")
    for name, i in itertools.product(known, range(10)):
        new = compare({name: NO}, {name: YES}, f"{name}{i}", of)
        gone = compare({name: YES}, {name: NO}, f"{name}{i}", of)
        assert dict(rules.changes(new.prompt)) == {name: 1}
        assert dict(rules.changes(gone.prompt)) == {name: -1}
        assert rules.states(single_text({name: YES}, of, str(i))) == {name: True}
        assert rules.states(single_text({name: NO}, of, str(i))) == {name: False}
        same = compare({name: YES}, {name: YES}, f"{name}{i}", of)
        assert (same.prompt, dict(rules.changes(same.interpretation))) == (NO_CHANGE, {name: 0})


def test_grammar_of_nouns_in_the_plural():
    phrases = {compare({"infiltrates": YES}, {"infiltrates": NO}, str(i), PADCHEST).prompt for i in range(30)}
    assert "Infiltrates have resolved." in phrases
    phrases = {compare({"kyphosis": YES}, {"kyphosis": NO}, str(i), PADCHEST).prompt for i in range(30)}
    assert "Kyphosis has resolved." in phrases


def test_the_name_settles_the_wording():
    prior, followup = all_absent(), all_absent(nodule=YES, mass=YES)
    made = [compare(prior, followup, str(i)) for i in range(30)]
    assert made == [compare(prior, followup, str(i)) for i in range(30)]
    assert len({m.interpretation for m in made}) > 5


def test_a_single_text_tells_what_is_there_and_some_of_what_is_not():
    text = single_text(all_absent(nodule=State(True, "mild", "left"), pleural_effusion=YES), NIH, "x")
    assert text.startswith("Pleural effusion. Small left nodule. No ")
    assert single_text({"nodule": UNSURE}, NIH, "x") == single_text({}, NIH, "x") == ""


def test_states_of_a_shard_s_labels():
    labels = np.full(len(NIH), 0, np.int8)
    labels[:3] = 1, -1, -2
    states = states_of_labels(labels, "", NIH)
    assert (states["pleural effusion"], states["pneumothorax"], states["atelectasis"]) == (YES, UNSURE, NO)
    assert "cardiomegaly" not in states
    # A column for both sides: the text has the side.
    labels = np.zeros(len(findings.label_columns(PADCHEST)), np.int8)
    labels[0] = 1
    states = states_of_labels(labels, "Left pleural effusion. No pneumonia.", PADCHEST)
    assert (states["left pleural effusion"], states["right pleural effusion"]) == (YES, UNSURE)
    assert (states["left pneumothorax"], states["right pneumothorax"]) == (NO, NO)


def test_columns_of_labels():
    assert findings.label_columns(PHANTOM) == findings.CHEXPERT
    assert findings.label_columns(NIH)[:2] == ("Effusion", "Pneumothorax")
    sided = (*PHANTOM, *CHEXPERT[-1:])
    assert findings.label_columns(sided)[:2] == ("Pleural Effusion", "Pneumothorax")  # one for both sides


def test_a_pair_of_states_needs_no_report_and_states_that_settle_nothing_are_no_pair():
    def labelled(number, states):
        return study(number=number, day=float(number), report={"findings": "", "impression": ""}, states=states)

    films = [labelled(1, {"nodule": NO}), labelled(2, {"nodule": YES}), labelled(3, {"nodule": UNSURE})]
    found = journeys([*films], Options(finding=False))
    pairs = found.journeys[0].pairs
    assert [p.name for p in pairs] == ["i01s1-i02s2"]
    assert found.funnel["dropped: the labels settle no finding"] == 1
    text = text_of(pairs[0], TextOptions(), None, NIH)
    assert (text.asked, text.changed, text.reason) == ({"nodule": 1}, True, "labels")
    back = text_of(Pair.turned(pairs[0]), TextOptions(), None, NIH)
    assert back.asked == {"nodule": -1}
