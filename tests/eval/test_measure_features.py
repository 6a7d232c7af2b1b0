"""Features in a whole evaluation: the floor of real against real follow-ups, and fidelity finding by finding."""

import json

import numpy as np
import pytest
from support.eval_cohort import Cohort, one_line

from progemu_jax.eval import System, evaluate
from progemu_jax.eval.metrics import fidelity
from progemu_jax.text import findings

FEATURES = {"fid", "fid_half", "kid", "utility_auroc", *fidelity.NAMES}


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


def test_utility_is_that_of_the_images_fitted_to(judged):
    """The invented scorer's features hold its probabilities: whoever shows the truth teaches as much as real images."""
    ours, real = (judged[2]["systems"][name]["metrics"]["utility_auroc"]["value"] for name in ("ours", "real_halves"))
    assert ours == pytest.approx(real, abs=0.05)
    assert ours > 0.8


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


class TestFeaturesFile:
    """--features: features of another network in one file, in place of the score files'."""

    @pytest.fixture
    def given(self, judged, tmp_path):
        """(arrays of the file, path, a function that evaluates by it)."""
        root, cohort, _ = judged
        n, rng = len(cohort.rows), np.random.default_rng(0)
        arrays = {
            "system": np.repeat(["ours", "followup", "prior", "another"], n)[::-1].copy(),
            "pair_id": np.tile([r["pair_id"] for r in cohort.rows], 4)[::-1].copy(),
            "features": rng.normal(size=(4 * n, 5)).astype(np.float32), "backbone": np.array("rad-dino"),
        }  # fmt: skip

        def run(scores=None, log=lambda line: None, **changed):
            kept = {k: v for k, v in {**arrays, **changed}.items() if v is not None}
            np.savez(tmp_path / "features.npz", **kept)
            return evaluate(
                {"ours": System(root / "ours", scores)}, root / "references", None, tmp_path / "out", bootstrap=20,
                subsamples=5, features=tmp_path / "features.npz", log=log,
            )  # fmt: skip

        return arrays, run

    def test_takes_the_place_of_the_score_files(self, judged, given):
        arrays, run = given
        of = {
            name: arrays["features"][arrays["system"] == name].astype(float) for name in ("ours", "followup", "prior")
        }
        for scores in (None, judged[0] / "ours/scores.npz"):
            result = run(scores)
            ours = result["systems"]["ours"]
            assert ours["metrics"]["fid"]["value"] == pytest.approx(fidelity.fid(of["followup"], of["ours"]))
            assert ours["features"]["backbone"] == "rad-dino"
            assert ours["parts"]["cardiomegaly"]["kid"]["value"] is not None
            copy = result["systems"]["copy"]["metrics"]["kid"]["value"]
            assert copy == pytest.approx(fidelity.kid(of["followup"], of["prior"]))
            assert "kid" in result["systems"]["real_halves"]["metrics"]
            assert "fid" not in result["systems"]["counterfactual"]["metrics"]
        assert "finding_auroc" in result["systems"]["ours"]["metrics"]

    def test_a_system_without_any_is_named(self, given):
        lines = []
        names = np.where(given[0]["system"] == "ours", "mine", given[0]["system"])
        result = given[1](system=names, log=lines.append)
        assert "fid" not in result["systems"]["ours"]["metrics"]
        assert any("no features of Ours in the file" in line for line in lines)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"backbone": None}, "no array backbone"),
            ({"system": None, "pair_id": None}, "no array system, pair_id"),
            ({"system": np.array(["ours"])}, "system has 1 rows"),
            ({"features": np.zeros((3, 5))}, "features has 3 rows"),
            ({"features": np.full((160, 5), np.inf)}, "infinity in features"),
            ({"features": np.zeros(160)}, "2 axes are wanted"),
            ({"backbone": np.array("")}, "name of the backbone"),
            ({"system": np.repeat("ours", 160)}, "duplicate cases"),
            ({"system": np.repeat(["ours", "a", "b", "c"], 40)}, "no rows of system 'followup'"),
            ({"sample": np.repeat("x", 160)}, "whole numbers"),
            ({"pair_id": np.array([f"p{i}" for i in range(160)])}, "no scores for cases"),
        ],
    )
    def test_other_files_are_one_line(self, given, change, match):
        one_line(match, lambda: given[1](**change))
