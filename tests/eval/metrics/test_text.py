"""Claims of a text against what changed."""

import numpy as np
import pytest

from progemu_jax.eval.metrics import text
from progemu_jax.text import findings

NAN = float("nan")


def row(**said):
    """float [1, 8]: values of the named findings (underscores for spaces)."""
    out = np.zeros((1, 8))
    for name, value in said.items():
        out[0, findings.FINDINGS.index(name.replace("_", " "))] = value
    return out


class TestText:
    everywhere = np.ones((1, 8), bool)

    def test_other_side(self):
        names = [findings.FINDINGS[i] if i >= 0 else None for i in findings.other_sides(findings.PHANTOM)]
        assert names[:4] == [
            "right pleural effusion",
            "left pleural effusion",
            "right pneumothorax",
            "left pneumothorax",
        ]
        assert names[4:] == [None] * 4

    def test_claims_are_read_from_words(self):
        changes, states = text.claims(["New left pleural effusion. Stable cardiomegaly.", ""], findings.PHANTOM)
        np.testing.assert_array_equal(changes, np.concatenate([row(left_pleural_effusion=1), np.zeros((1, 8))]))
        assert states[0, 0] == 1
        assert states[0, findings.FINDINGS.index("cardiomegaly")] == 1
        assert np.isnan(states[1]).all()

    def test_change_counts(self):
        claimed = row(left_pleural_effusion=1, cardiomegaly=1, atelectasis=-1)
        true = row(left_pleural_effusion=1, cardiomegaly=-1, consolidation=1)
        # Right: effusion. Wrong: cardiomegaly (direction), atelectasis. Missed: cardiomegaly, consolidation.
        assert [c[0] for c in text.change_counts(claimed, true, self.everywhere)] == [1, 2, 2]

    def test_omitted_findings_only(self):
        claimed = true = row(left_pleural_effusion=1)
        assert [c[0] for c in text.change_counts(claimed, true, claimed == 0)] == [0, 0, 0]

    def test_state_counts(self):
        claimed = np.array([[1, 1, 0, NAN, 1, 0, NAN, NAN]])
        true = np.array([[1, 0, 1, 1, NAN, 0, 0, NAN]])
        assert [c[0] for c in text.state_counts(claimed, true, self.everywhere)] == [1, 2, 2]

    @pytest.mark.parametrize(
        ("claimed", "expected"),
        [
            (row(left_pleural_effusion=1), 1),
            (row(left_pleural_effusion=-1), 0),  # direction
            (row(right_pleural_effusion=1), 0),  # side
            (row(left_pleural_effusion=1, right_pleural_effusion=1), 0),  # both sides, one is wrong
            (row(left_pleural_effusion=1, atelectasis=1), 1),  # something else besides
            (row(), 0),
        ],
    )
    def test_right_finding_and_side(self, claimed, expected):
        named = true = row(left_pleural_effusion=1)
        assert text.right_finding_and_side(claimed, named, true, findings.PHANTOM)[0] == expected

    def test_right_side_is_not_held_against_a_true_change_there(self):
        named, true = row(left_pleural_effusion=1), row(left_pleural_effusion=1, right_pleural_effusion=1)
        assert text.right_finding_and_side(true, named, true, findings.PHANTOM)[0] == 1

    def test_no_change_named_is_undefined(self):
        assert np.isnan(text.right_finding_and_side(row(), row(), row(), findings.PHANTOM)[0])

    def test_agreement_with_the_image(self):
        states = np.array([[1, NAN, 0, 0, 1, NAN, NAN, NAN]])
        prob = np.array([[0.9, 0.9, 0.8, 0.1, 0.2, 0.9, 0.9, 0.9]])
        agree, count = text.agreement_counts(states, prob, findings.FINDINGS, self.everywhere, findings.PHANTOM)
        assert (agree[0], count[0]) == (2, 4)

    def test_agreement_with_chexpert_columns(self):
        # Effusion present on the left only: the observation is present. Pneumothorax absent on both sides.
        states = np.array([[1, 0, 0, 0, NAN, NAN, NAN, NAN]])
        agree, count = text.agreement_counts(
            states, np.array([[0.9, 0.9]]), ("Pleural Effusion", "Pneumothorax"), self.everywhere, findings.PHANTOM
        )
        assert (agree[0], count[0]) == (1, 2)
