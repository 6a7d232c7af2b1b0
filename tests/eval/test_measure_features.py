"""Features in a whole evaluation: the floor of real against real follow-ups, and fidelity finding by finding."""

import json

import numpy as np
import pytest
from support.eval_cohort import Cohort, one_line

from progemu_jax.eval import System, evaluate
from progemu_jax.eval.metrics import fidelity
from progemu_jax.text import findings

FEATURES = {"fid", "fid_half", "kid", *fidelity.NAMES}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(folder, cohort, metrics.json): 40 patients, a system that shows the truth without texts."""
    root, cohort = tmp_path_factory.mktemp("features"), Cohort(patients=40, pairs=1)
    cohort.write_references(root / "references")
    cohort.write_predictions(root / "ours", cohort.after)
    cohort.write_scores(root / "ours/scores.npz", cohort.after, seed=1)
    cohort.write_scores(root / "scores/followup.npz", cohort.after, seed=2)
    return root, cohort, judge(root)


def judge(root, bootstrap=20):
    return evaluate(
        {"ours": System(root / "ours", root / "ours/scores.npz")}, root / "references",
        {"followup": root / "scores/followup.npz"}, root / "out", bootstrap=bootstrap, subsamples=5,
        log=lambda line: None,
    )  # fmt: skip


def test_the_floor_has_fidelity_alone_and_no_pairs(judged):
    row = judged[2]["systems"]["real_halves"]
    assert row["role"] == "floor"
    assert set(row["metrics"]) == FEATURES - {"fid"}
    assert row["features"]["real"] == row["features"]["generated"] == 20
    assert row["parts"] == {}
    assert "real_halves" not in judged[2]["differences"]
    assert "Real against real follow-ups, halves" in (judged[0] / "out/tables.md").read_text()


def test_without_half_samples_the_floor_has_no_number(judged):
    result = judge(judged[0], bootstrap=0)
    assert result["systems"]["real_halves"]["metrics"] == {}
    assert result["systems"]["ours"]["metrics"]["fid"]["low"] is None
    assert "fid_half" not in result["systems"]["ours"]["metrics"]


def test_by_finding_is_of_the_cases_that_have_it(judged):
    root, cohort, result = judged
    made, real = (
        np.load(p)["features"].astype(float) for p in (root / "ours/scores.npz", root / "scores/followup.npz")
    )
    for j, finding in enumerate(findings.FINDINGS):
        have = np.array(cohort.after)[:, j] > 0
        part = result["systems"]["ours"]["parts"][finding]
        assert part["counts"]["images"] == have.sum()
        assert part["kid"]["value"] == pytest.approx(fidelity.kid(real[have], made[have]))
        assert part["feature_coverage"]["value"] == fidelity.neighbours(real[have], made[have])[3]
        assert bool(part["fid"]["flags"]) == (have.sum() < 20)
    assert "KID by finding" in (root / "out/tables.md").read_text()
    assert "Coverage by finding" in (root / "out/report/index.html").read_text()


def test_a_finding_that_nobody_has_is_undefined(tmp_path):
    cohort = Cohort(patients=6, pairs=1)
    for row in cohort.rows:
        row["states_after"]["atelectasis"] = 0.0
    cohort.write_references(tmp_path / "references")
    cohort.write_predictions(tmp_path / "ours", cohort.after)
    cohort.write_scores(tmp_path / "ours/scores.npz", cohort.after)
    cohort.write_scores(tmp_path / "scores/followup.npz", cohort.after)
    part = judge(tmp_path)["systems"]["ours"]["parts"]["atelectasis"]
    assert part["counts"]["images"] == 0
    assert part["kid"]["value"] is None
    assert json.loads((tmp_path / "out/metrics.json").read_text())


def test_features_of_another_network_are_refused(judged, tmp_path):
    root, cohort, _ = judged
    cohort.write_scores(tmp_path / "scores.npz", cohort.after, backbone=np.array("another"))
    given = {"followup": root / "scores/followup.npz"}
    one_line(
        "use one network", evaluate, {"ours": System(root / "ours", tmp_path / "scores.npz")}, root / "references",
        given, tmp_path,
    )  # fmt: skip
