"""The language of findings beyond the phantom's eight: read, said and restated for the list of a cohort."""

import numpy as np
import pytest

from progemu_jax.data.sources import label_findings
from progemu_jax.tasks.words import drawn_changes
from progemu_jax.text import rules
from progemu_jax.text.controls import contradicting_sentence
from progemu_jax.text.findings import PHANTOM, has_place
from progemu_jax.text.plain import plain, statements
from progemu_jax.text.prompt_changes import changes_of, restated
from progemu_jax.text.restate import Change, restate
from progemu_jax.text.understood import understood

NIH, PADCHEST = label_findings.NIH, label_findings.PADCHEST
LISTS = {"nih": NIH, "chexpert": label_findings.CHEXPERT, "padchest": PADCHEST}


@pytest.mark.parametrize(
    ("text", "changes", "states"),
    [
        ("Increased infiltration.", {"infiltration": 1}, {"infiltration": True}),
        ("Resolved pneumonia.", {"pneumonia": -1}, {"pneumonia": False}),
        ("New small nodule in the right upper lobe.", {"nodule": 1}, {"nodule": True}),
        ("Masses have grown.", {"mass": 1}, {"mass": True}),
        ("No nodule, mass or hernia.", {}, {"nodule": False, "mass": False, "hiatal hernia": False}),
        ("Unchanged emphysema and fibrosis.", {"emphysema": 0, "pulmonary fibrosis": 0}, {"emphysema": True}),
        ("New left pleural effusion.", {"pleural effusion": 1}, {"pleural effusion": True}),
        ("Subcutaneous emphysema has increased.", {}, {}),
        ("Thickening of the pleura has resolved.", {"pleural thickening": -1}, {"pleural thickening": False}),
    ],
)
def test_findings_of_a_list_are_read(text, changes, states):
    assert rules.changes(text, findings=NIH) == changes
    assert states.items() <= rules.states(text, NIH).items()


def test_a_word_is_the_lists_own_finding_where_it_has_one():
    text = "New infiltrate. Increased volume loss. New left pneumonia."
    assert rules.changes(text, findings=PHANTOM) == {"atelectasis": 1}
    assert rules.changes(text, findings=NIH) == {"infiltration": 1, "atelectasis": 1, "pneumonia": 1}
    assert rules.changes(text, findings=PADCHEST) == {"infiltrates": 1, "volume loss": 1, "pneumonia": 1}
    assert rules.changes("New left effusion.", findings=PADCHEST) == {"left pleural effusion": 1}


def test_a_pneumonia_is_a_consolidation_where_the_list_has_none():
    assert [c.finding for c in changes_of("New left pneumonia.")] == ["consolidation"]
    assert [c.finding for c in changes_of("New left pneumonia.", findings=NIH)] == ["pneumonia"]


@pytest.mark.parametrize("name", LISTS)
def test_the_grammar_says_every_finding_of_a_list_and_the_rules_read_it(name):
    findings, rng = LISTS[name], np.random.default_rng(0)
    said: dict[str, list] = {}
    for _ in range(500):
        changes = drawn_changes(rng, findings)
        if len(changes) == 1:
            text = restate(changes, rng, findings=findings)
            got = changes_of(text, findings=findings)
            read = got and [(c.finding, c.direction) for c in got]
            said.setdefault(changes[0].finding, []).append(read == [(changes[0].finding, changes[0].direction)])
            others = {f for f, sign in rules.changes(text, findings=findings).items() if sign} - {changes[0].finding}
            assert not others, text
    assert said.keys() == {f.name for f in findings}
    assert np.mean([right for each in said.values() for right in each]) > 0.8


@pytest.mark.parametrize("name", LISTS)
def test_plain_words_are_read_back(name):
    findings, rng = LISTS[name], np.random.default_rng(1)
    for _ in range(200):
        # Of atelectasis plain words tell no zone; where one side has it, "bilateral" is no word of its own.
        changes = [c for c in drawn_changes(rng, findings) if not (c.finding == "atelectasis" and c.zone)]
        read = changes_of(plain(changes, findings), findings=findings) if changes else None
        assert read is None or read == tuple(changes)
        assert read is not None or not changes or len(changes) > 1, plain(changes, findings)


def test_held_out_words_are_of_the_further_findings_too():
    change, rng = [Change("nodule", "new")], np.random.default_rng(0)
    held = {restate(change, rng, "held-out", held={"noun"}, findings=NIH) for _ in range(50)}
    assert all("nodular opacity" in text.lower() for text in held)
    assert not any("nodular opacity" in restate(change, rng, findings=NIH).lower() for _ in range(200))


def test_a_prompt_of_a_label_cohort_is_restated():
    rng, told = np.random.default_rng(0), "New infiltration. Stable nodule. No mass."
    texts = {restated("New infiltration.", rng, 1.0, told, findings=NIH) for _ in range(100)}
    assert len(texts) > 60
    signs = [{f: s for f, s in rules.changes(t, findings=NIH).items() if s} for t in texts]
    assert np.mean([s == {"infiltration": 1} for s in signs]) > 0.8
    assert not [s for s in signs if s.keys() - {"infiltration"}]


def test_an_unsided_effusion_is_said_with_and_without_a_side():
    rng = np.random.default_rng(0)
    for side in (None, "left", "both"):
        for _ in range(100):
            text = restate([Change("pleural effusion", "new", side=side)], rng, findings=NIH)
            assert ("left" in text.lower() or re_left(text)) == (side == "left"), text


def re_left(text):
    return any(word in ("L", "lt") for word in text.replace(".", " ").replace(",", " ").split())


def test_what_a_cohort_teaches_is_not_unknown():
    prompt = "New nodule in the right upper lobe and a fracture."
    assert understood(prompt).unknown == ("fracture", "nodule") or understood(prompt).unknown == ("nodule", "fracture")
    read = understood(prompt, NIH)
    assert read.unknown == ("fracture",)
    assert [(r.finding, r.side, r.zone, r.direction) for r in read.read] == [("nodule", "right", "upper", "new")]
    assert understood("New left effusion.", NIH).warning is None
    assert understood("New effusion.", NIH).warning is None  # the list has no sides, so that none is missing
    assert "which side" in understood("New effusion.").warning


def test_a_structured_report_has_a_statement_on_each_finding_of_the_list():
    said = statements("New pneumonia in the left lower lobe. Unchanged large nodule.", NIH)
    assert len(said) == len(NIH)
    assert [text for text, changed in said if changed] == ["New left lower lung pneumonia."]
    assert "Persistent large nodule." in [text for text, _ in said]


def test_a_contradicting_prompt_is_of_the_cohorts_findings():
    before, after = {"nodule": 1.0, "mass": 0.0}, {"nodule": 1.0, "mass": 0.0}
    text, change = contradicting_sentence(before, after, "No significant change.", "case", findings=NIH)
    assert (change.finding, change.direction) == ("nodule", "resolved")
    assert rules.changes(text, {"nodule": True}, NIH)["nodule"] == -1


def test_what_has_a_place():
    assert has_place("nodule")
    assert has_place("pleural effusion")
    assert not any(map(has_place, ("left pleural effusion", "cardiomegaly", "pulmonary edema", "scoliosis")))


def test_a_grade_is_set_in_the_findings_own_words():
    assert rules.with_grade("New nodule.", "severe", NIH) == "New large nodule."
    assert (
        rules.with_grade("Increased infiltration, now mild.", "moderate", NIH)
        == "Increased infiltration, now moderate."
    )
    assert rules.with_grade("New nodule.", "severe") is None
