"""Rendered true answers: the state asked for by hand, and the way of the references' true counterfactuals."""

import dataclasses

import numpy as np
import pytest

from progemu_jax.data import answers, phantom, radiograph, tree
from progemu_jax.data.answers import Answers, asked_severity, asked_state
from progemu_jax.data.build import build
from progemu_jax.data.sources.phantom import write_cohort
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import FINDINGS
from progemu_jax.text.restate import Change


def test_levels_are_the_middles_of_trace_and_grades():
    assert pytest.approx((0.075, 0.25, 0.5, 0.825)) == answers.LEVELS


@pytest.mark.parametrize(
    ("before", "direction", "grade", "after"),
    [
        (0.0, "new", None, 0.5),
        (0.0, "new", "mild", 0.25),
        (0.12, "new", "mild", 0.27),  # from a trace it still has to move
        (0.0, "new", "severe", 0.825),
        (0.2, "worse", None, 0.5),
        (0.2, "worse", "severe", 0.825),
        (0.45, "worse", "moderate", 0.6),
        (0.7, "worse", None, 0.85),
        (0.95, "worse", None, 1.0),
        (0.7, "better", None, 0.5),
        (0.7, "better", "mild", 0.25),
        (0.3, "better", None, 0.075),
        (0.16, "better", None, 0.01),
        (0.0, "better", None, 0.0),
        (0.7, "resolved", None, 0.0),
        (0.7, "same", "mild", 0.7),
    ],
)
def test_severity_asked_for(before, direction, grade, after):
    assert asked_severity(before, Change("cardiomegaly", direction, grade)) == pytest.approx(after)


def test_state_changes_where_it_is_asked_and_a_new_finding_takes_the_place_that_is_named():
    rng = np.random.default_rng(0)
    state = phantom.sample_trajectory(rng, phantom.sample_patient(rng), 1)[0]
    clear = dataclasses.replace(state, severities=np.full(8, 0.3, np.float32), consolidation_side=1)
    asked = asked_state(
        clear,
        [Change("consolidation", "new", "severe", "right", "lower"), Change("atelectasis", "worse", side="both")],
    )
    expected = np.array([0.3] * 6 + [0.5, 0.825], np.float32)
    np.testing.assert_allclose(asked.severities, expected)
    assert (asked.consolidation_side, asked.consolidation_zone) == (-1, 5 / 6)
    assert asked.atelectasis_side == clear.atelectasis_side  # it was there already
    assert asked_state(clear, []).to_dict() == clear.to_dict()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    source = root / "data/source"
    write_cohort(source, patients=24, studies_per_patient=2, size=64, seed=3, progress=False)
    sizes = {"size": 64, "image_size": 32}
    build("phantom", source, root / "data", truth=source / "truth", processes=1, progress=False, **sizes)
    return root


def test_the_followups_state_gives_the_references_counterfactual_bit_for_bit(run, monkeypatch):
    rendered = Answers.of_run(run, 32)
    truth = {row["study_id"]: row for row in records.read_rows(run / "data/source/truth/studies.jsonl", "study_id")}
    pairs = {p.pair_id: p for p in tree.read_pairs(run / "data/tree")}
    found = records.read_rows(run / "data/references/references.jsonl", "pair_id")
    assert found
    for row in found:
        pair = pairs[row["pair_id"]]
        after = phantom.State.from_dict(truth[pair.meta["followup-study-id"]]["disease"])
        monkeypatch.setattr(answers, "asked_state", lambda state, changes, after=after: after)
        image = rendered.image(row["pair_id"], [])
        kept = radiograph.read_gray(run / "data/references" / row["counterfactual"])
        np.testing.assert_array_equal(image, kept)


def test_no_change_is_the_prior_and_a_change_is_seen_where_it_belongs(run):
    rendered, row = Answers.of_run(run, 32), records.read_rows(run / "data/references/references.jsonl", "pair_id")[0]
    assert row["pair_id"] in rendered
    assert "another" not in rendered
    prior = radiograph.read_gray(run / "data/references" / row["prior"]).astype(float)
    same = rendered.image(row["pair_id"], []).astype(float)
    assert np.abs(same - prior).mean() < 1.5  # the source is a JPEG
    left = Change(FINDINGS[0], "worse" if row["states_before"][FINDINGS[0]] >= 0.15 else "new", "severe")
    step = np.abs(rendered.image(row["pair_id"], [left]) - same)
    assert step[16:, 16:].mean() > 3 * step[:, :16].mean()  # a patient's left is on the right of the image


def test_without_the_truth_there_is_nothing_to_render(run, tmp_path):
    assert Answers.of_run(tmp_path, 32) is None
    with pytest.raises(UserError, match="missing"):
        Answers(run / "data/tree", tmp_path, 32)
