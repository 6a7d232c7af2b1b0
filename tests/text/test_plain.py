"""Plain words say what a report says: read back by the rules, nothing is lost and nothing added."""

import numpy as np

from progemu_jax.data.phantom import patient, reports
from progemu_jax.text import rules
from progemu_jax.text.findings import FINDINGS
from progemu_jax.text.plain import statements


def test_a_report_by_hand():
    said = statements(
        "Moderate left effusion has developed. Cardiomegaly has worsened since the prior study and is severe. "
        "Persistent mild edema. The previously seen right pneumothorax is no longer present."
    )
    assert said == (
        ("New moderate left pleural effusion.", True),
        ("No right pleural effusion.", False),
        ("No left pneumothorax.", False),
        ("Resolved right pneumothorax.", True),
        ("Increased cardiomegaly, now severe.", True),
        ("Persistent mild pulmonary edema.", False),
        ("No atelectasis.", False),
        ("No consolidation.", False),
    )
    assert statements("Effusion is larger.") is None  # on which side?


def test_statements_keep_a_reports_changes_and_states():
    rng, read = np.random.default_rng(0), 0
    for _ in range(80):
        person = patient.sample_patient(rng)
        before, after = patient.sample_trajectory(rng, person, 2)
        report = reports.report(rng, person, after, before)["findings"]
        said = statements(report)
        if said is None:
            continue
        read += 1
        again = " ".join(text for text, _ in said)
        moved = {name: sign for name, sign in rules.changes(report).items() if sign}
        assert {name: sign for name, sign in rules.changes(again).items() if sign} == moved
        assert {name for name, there in rules.states(again).items() if there} == {
            name for name, there in rules.states(report).items() if there
        }
        assert [changed for _, changed in said] == [name in moved for name in FINDINGS]
    assert read > 60
