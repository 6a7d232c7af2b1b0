"""Severities and rendered answers: judged where they are there, by hand; everything else as it was."""

import numpy as np
import pytest
from PIL import Image
from support.eval_cohort import Cohort

from progemu_jax.eval import System, evaluate
from progemu_jax.eval.predictions import read_references

COHORT = Cohort(patients=6, pairs=1)
BEFORE, AFTER = np.array(COHORT.before), np.array(COHORT.after)
CHANGED = BEFORE != AFTER


def judged(root, severities, name="ours", prompts=None, prior=True):
    """The result of a system that shows the true follow-up and whose severities float [6, 8] are these, or None."""
    COHORT.write_references(root / "references")
    COHORT.write_predictions(root / name, AFTER, prompts=prompts)

    def scored(path, states, severity):
        column = {} if severity is None else {"finding_severity": severity.astype(np.float32)}
        return COHORT.write_scores(path, states, **column)

    ours = scored(root / f"scores/{name}.npz", AFTER, severities)
    places = {"prior": scored(root / "scores/prior.npz", BEFORE, BEFORE if prior else None)}
    system = {name: System(root / name, ours)}
    return evaluate(
        system, root / "references", places, root / "out", bootstrap=20, cases_shown=0, log=lambda line: None
    )


def values(result, system="ours"):
    return {k: v["value"] for k, v in result["systems"][system]["metrics"].items()}


class TestSeverity:
    def test_half_the_way_is_the_right_direction_and_half_the_error(self, tmp_path):
        got = values(judged(tmp_path, (BEFORE + AFTER) / 2))
        assert got["severity_direction"] == got["severity_still"] == got["severity_own_direction"] == 1
        assert got["severity_mae"] == pytest.approx(0.3 * CHANGED.mean(), abs=1e-6)

    def test_less_than_the_margin_is_no_movement(self, tmp_path):
        result = judged(tmp_path, BEFORE + 0.04 * np.sign(AFTER - BEFORE))
        got = values(result)
        assert (got["severity_direction"], got["severity_own_direction"], got["severity_still"]) == (0, 0, 1)
        assert got["severity_mae"] == pytest.approx(0.56 * CHANGED.mean(), abs=1e-6)
        parts = result["systems"]["ours"]["parts"]
        part = next(f for f, p in parts.items() if p.get("severity_direction", {}).get("value") == 0)
        assert 0 < parts[part]["severity_mae"]["value"] < 0.6

    def test_changes_that_the_prompt_omits_count_and_others_must_stay(self, tmp_path):
        named = np.array([[f in r["prompt_changes"] for f in r["states_before"]] for r in COHORT.rows])
        moved = np.where(named, AFTER, np.where(CHANGED, BEFORE, np.abs(BEFORE - 0.1)))
        got = values(judged(tmp_path, moved))
        assert got["severity_direction"] == pytest.approx((CHANGED & named).sum() / CHANGED.sum())
        assert got["severity_direction"] < 1
        assert (got["severity_own_direction"], got["severity_still"]) == (1, 0)

    def test_a_control_is_judged_by_its_own_prompt(self, tmp_path):
        prompts = ["New cardiomegaly."] * 6
        now = BEFORE.copy()
        now[:2, 4] = 1  # cardiomegaly in two of six
        now[0, 0] = 0.5 - now[0, 0] / 2  # and one of the 42 others
        got = values(judged(tmp_path, now, "contradicting-prompts", prompts), "contradicting")
        assert got["severity_own_direction"] == pytest.approx(2 / 6)
        assert got["severity_still"] == pytest.approx(41 / 42)
        assert not {"severity_direction", "severity_mae"} & set(got)

    def test_without_them_nothing_is_new_and_with_them_nothing_old_moves(self, tmp_path):
        old = judged(tmp_path / "old", None, prior=False)
        new = judged(tmp_path / "new", AFTER)
        for system in old["systems"]:
            a, b = old["systems"][system]["metrics"], new["systems"][system]["metrics"]
            assert {k: b[k] for k in a} == a
            assert not {k for k in a if "severity" in k}
        assert values(new)["severity_mae"] == pytest.approx(0, abs=1e-6)
        alone = judged(tmp_path / "alone", AFTER, prior=False)
        assert values(alone).keys() == values(old).keys()


def test_states_read_from_reports_are_no_severities(tmp_path):
    COHORT.write_references(tmp_path / "r")
    refs = read_references(tmp_path / "r")
    np.testing.assert_array_equal(refs.severity("cardiomegaly"), AFTER[:, 4])
    assert np.isnan(refs.severity("Fracture")).all()
    for row in refs.rows[1:]:
        row["counterfactual"] = None
    np.testing.assert_array_equal(refs.severity("cardiomegaly"), [AFTER[0, 4], *[np.nan] * 5])


class TestAnswers:
    @pytest.fixture
    def folders(self, tmp_path):
        """A control whose images are 100 and 110, answers of 104, priors of 90."""
        COHORT.write_references(tmp_path / "references")
        prompts = ["New cardiomegaly."] * 6
        for name, levels in (("contradicting-prompts", [100, 110] * 3), ("contradicting-prompts-answers", [104] * 6)):
            COHORT.write_predictions(tmp_path / name, AFTER, prompts=prompts)
            for row, level in zip(COHORT.rows, levels, strict=True):
                gray(tmp_path / name / f"images/{row['pair_id']}-0.png", level)
        for row in COHORT.rows:
            gray(tmp_path / "references" / row["prior"], 90)
        return tmp_path

    @staticmethod
    def judge(root, *names, scores=()):
        systems = {name: System(root / name, root / f"scores/{name}.npz" if name in scores else None) for name in names}
        places = {"prior": root / "scores/prior.npz"} if scores else {}
        return evaluate(
            systems, root / "references", places, root / "out", bootstrap=0, cases_shown=0, log=lambda line: None
        )

    def test_error_to_the_answer_beside_the_priors_own(self, folders):
        got = self.judge(folders, "contradicting-prompts", "contradicting-prompts-answers")
        controls = [key for key, system in got["systems"].items() if system["role"] == "control"]
        assert controls == ["contradicting", "contradicting_answers"]
        control, answers = values(got, "contradicting"), values(got, "contradicting_answers")
        assert (control["mae_asked"], control["mae_asked_copy"]) == (5, 14)  # (4 + 6) / 2 and 104 - 90
        assert "mae_asked" not in answers
        assert answers["mae_prior"] == 14

    def test_the_answers_own_movement_is_the_ceiling(self, folders):
        moved = BEFORE.copy()
        moved[:, 4] = 0.9
        COHORT.write_scores(folders / "scores/prior.npz", BEFORE, noise=0)
        COHORT.write_scores(folders / "scores/contradicting-prompts.npz", BEFORE, noise=0)
        COHORT.write_scores(folders / "scores/contradicting-prompts-answers.npz", moved, noise=0)
        names = ("contradicting-prompts", "contradicting-prompts-answers")
        got = self.judge(folders, *names, scores=names)
        assert values(got, "contradicting")["own_direction_margin"] == 0
        assert values(got, "contradicting_answers")["own_direction_margin"] == pytest.approx((BEFORE[:, 4] == 0).mean())

    def test_only_an_answer_to_the_same_prompt_counts(self, folders):
        path = folders / "contradicting-prompts-answers/predictions.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*(x.replace("New card", "Less card") for x in lines[:1]), *lines[1:]]) + "\n")
        got = values(self.judge(folders, "contradicting-prompts", "contradicting-prompts-answers"), "contradicting")
        assert got["mae_asked"] == pytest.approx((2 * 4 + 3 * 6) / 5)

    def test_a_system_is_held_against_the_answers_to_the_references_prompts(self, folders):
        for name, levels in (("ours", [100, 110] * 3), ("answers", [104] * 6)):
            COHORT.write_predictions(folders / name, AFTER)
            for row, level in zip(COHORT.rows, levels, strict=True):
                gray(folders / name / f"images/{row['pair_id']}-0.png", level)
        got = self.judge(folders, "ours", "answers", "contradicting-prompts")
        assert (values(got, "ours")["mae_asked"], values(got, "ours")["mae_asked_copy"]) == (5, 14)
        assert got["systems"]["answers"]["role"] == "ceiling"
        assert not any("mae_asked" in values(got, name) for name in ("answers", "contradicting"))

    def test_without_a_folder_of_answers_the_metric_is_absent(self, folders):
        got = values(self.judge(folders, "contradicting-prompts"), "contradicting")
        assert not {"mae_asked", "mae_asked_copy"} & set(got)

    def test_a_second_systems_control_has_the_same_answers(self, folders):
        systems = {"ours:contradicting": System(folders / "contradicting-prompts")}
        systems["contradicting-prompts-answers"] = System(folders / "contradicting-prompts-answers")
        got = evaluate(systems, folders / "references", {}, folders / "out", bootstrap=0, cases_shown=0, log=print)
        assert values(got, "ours:contradicting")["mae_asked"] == 5


def gray(path, level):
    Image.fromarray(np.full((32, 32), level, np.uint8)).save(path)
