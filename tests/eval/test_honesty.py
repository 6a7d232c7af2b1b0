"""Systems that cheat in known ways are caught; controls are judged by the prompts that they were given."""

import numpy as np
import pytest
from support.eval_cohort import Cohort, words

from progemu_jax.eval import System, evaluate
from progemu_jax.eval.compare import holm, p_value
from progemu_jax.eval.metrics import amplification
from progemu_jax.text import findings, rules
from progemu_jax.text.controls import contradicting_prompt, mean_image
from progemu_jax.text.findings import NO_CHANGE


@pytest.fixture(scope="module")
def cohort():
    return Cohort(patients=40)


def after_prompt(before, prompt):
    """What a system that obeys its prompt, and nothing else, shows: severities [8]."""
    said = rules.changes(prompt)
    return np.array([{1: 1.0, -1: 0.0}.get(said.get(f), b) for f, b in zip(findings.FINDINGS, before, strict=True)])


@pytest.fixture(scope="module")
def result(tmp_path_factory, cohort):
    root = tmp_path_factory.mktemp("honesty")
    cohort.write_references(root / "references")
    prompts = {
        "contradicting-prompts": [
            contradicting_prompt(r["states_before"], r["states_after"], r["prompt"], r["pair_id"]) for r in cohort.rows
        ],
        "null-prompt": [NO_CHANGE] * len(cohort.rows),
    }
    prompts["ignores:contradicting-prompts"] = prompts["contradicting-prompts"]
    shown = {
        "ours": cohort.after, "ignores": cohort.after, "other_person": cohort.after,
        "ignores:contradicting-prompts": cohort.after,
        **{k: [after_prompt(b, p) for b, p in zip(cohort.before, prompts[k], strict=True)]
           for k in ("contradicting-prompts", "null-prompt")},
    }  # fmt: skip
    systems = {}
    for name, states in shown.items():
        folder = root / "predictions" / name.replace(":", "-")
        texts = [words(b, a) for b, a in zip(cohort.before, states, strict=True)]
        cohort.write_predictions(folder, states, texts, prompts=prompts.get(name))
        scores = cohort.scores(states, noise=0.3)
        if name == "other_person":
            scores["age"] = scores["age"] + 8
            scores["group_prob"] = np.roll(scores["group_prob"], 1, axis=1)
        np.savez(folder / "scores.npz", **scores)
        systems[name] = System(folder, folder / "scores.npz")
    places = {}
    for name, states in (("prior", cohort.before), ("followup", cohort.after), ("counterfactual", cohort.after)):
        places[name] = cohort.write_scores(root / "scores" / f"{name}.npz", states, noise=0.3)
    one = cohort.scores(np.full((len(cohort.rows), 8), 0.3), noise=0)
    for key in ("finding_prob", "group_prob", "age", "sex_prob", "features"):
        one[key] = np.repeat(one[key].mean(0, keepdims=True), len(cohort.rows), axis=0)
    np.savez(root / "scores" / "mean.npz", **one)
    places["mean"] = root / "scores" / "mean.npz"
    out = evaluate(
        systems, root / "references", places, root / "out", bootstrap=200, cases_shown=2, log=lambda line: None
    )
    return out


def metric(result, system, key):
    return result["systems"][system]["metrics"][key]


class TestRows:
    def test_controls_are_neither_systems_nor_baselines(self, result):
        roles = {k: s["role"] for k, s in result["systems"].items()}
        assert roles["contradicting"] == roles["ignores:contradicting"] == roles["null_edit"] == "control"
        assert [k for k, role in roles.items() if role == "system"] == ["ours", "ignores", "other_person"]
        assert result["systems"]["ignores:contradicting"]["title"] == "Contradicting prompts (ignores)"

    def test_controls_are_not_judged_by_what_really_happened(self, result):
        for key in ("finding_auroc", "directional_accuracy", "text_right", "ssim_followup", "fid"):
            assert key not in result["systems"]["contradicting"]["metrics"], key


class TestContradiction:
    def test_one_who_obeys_moves_as_its_own_prompt_says(self, result):
        assert metric(result, "contradicting", "own_direction")["value"] == 1
        assert metric(result, "contradicting", "others_still")["value"] == 1
        assert metric(result, "contradicting", "text_image_agreement")["value"] == 1

    def test_one_who_replays_the_usual_course_is_caught(self, result):
        assert metric(result, "ignores", "directional_accuracy")["value"] == 1  # looks perfect without the control
        assert metric(result, "ignores:contradicting", "own_direction")["high"] < 0.3

    def test_prompts_contradict_the_truth(self, cohort):
        for row, before, after in zip(cohort.rows, cohort.before, cohort.after, strict=True):
            prompt = contradicting_prompt(row["states_before"], row["states_after"], row["prompt"], row["pair_id"])
            (finding, way), *more = rules.changes(prompt).items()
            i = findings.FINDINGS.index(finding)
            assert not more
            assert way != np.sign(after[i] - before[i])
            assert way == 1 or before[i] >= findings.PRESENT  # nothing resolves that is not there

    def test_without_states_the_prompt_is_turned_round(self):
        assert contradicting_prompt(None, None, "New pulmonary edema.", "a") == "Resolved pulmonary edema."
        assert contradicting_prompt({}, {}, "Resolved cardiomegaly.", "a") == "Worsening cardiomegaly."
        assert rules.changes(contradicting_prompt(None, None, "Stable.", "a"))
        assert rules.changes(NO_CHANGE).get("cardiomegaly", 0) == 0
        assert not any(rules.changes(NO_CHANGE).values())


class TestNullEdit:
    def test_nothing_asked_nothing_moved(self, result):
        assert metric(result, "null_edit", "others_still")["value"] == 1
        assert metric(result, "null_edit", "mae_prior")["value"] == 0
        assert metric(result, "null_edit", "group_flip")["value"] == 0

    def test_no_prompt_no_direction(self, result):
        assert metric(result, "null_edit", "own_direction")["value"] is None


class TestAmplification:
    def test_by_hand(self):
        before = np.array([[0.7, 0.3], [0.2, 0.8]])
        after = np.array([[0.9, 0.1], [0.6, 0.4]])
        np.testing.assert_array_equal(amplification.group_flip(before, after), [0, 1])
        np.testing.assert_allclose(amplification.group_shift(before, after), [0.2, -0.4])
        np.testing.assert_allclose(amplification.age_shift([60, 50], [65, 40]), [5, -10])
        np.testing.assert_array_equal(amplification.sex_flip([0.4, 0.5], [0.6, 0.9]), [1, 0])

    def test_a_system_that_changes_group_and_age_is_caught(self, result):
        honest, changed = result["systems"]["ours"]["metrics"], result["systems"]["other_person"]["metrics"]
        assert changed["directional_accuracy"]["value"] == honest["directional_accuracy"]["value"] == 1
        assert (changed["group_flip"]["low"], honest["group_flip"]["value"]) == (1, 0)
        assert changed["group_shift"]["high"] < 0 == honest["group_shift"]["value"]
        assert changed["age_shift"]["value"] == pytest.approx(8, abs=1e-4)
        assert changed["age_shift"]["low"] > 7.9
        assert changed["group_auroc"]["high"] < honest["group_auroc"]["low"]


class TestMeanImage:
    def test_fails_retention(self, result):
        assert metric(result, "mean_image", "group_auroc")["value"] == 0.5
        assert metric(result, "mean_image", "age_r")["value"] is None
        assert metric(result, "mean_image", "cmig")["value"] is None
        assert metric(result, "mean_image", "finding_auroc")["value"] == 0.5
        assert metric(result, "mean_image", "feature_recall")["value"] < 0.1
        assert metric(result, "mean_image", "ssim_unchanged")["high"] < metric(result, "ours", "ssim_unchanged")["low"]

    def test_is_the_rounded_mean(self):
        images = [np.array([[0, 1], [255, 3]], np.uint8), np.array([[1, 2], [255, 200]], np.uint8)]
        np.testing.assert_array_equal(mean_image(images), [[0, 2], [255, 102]])
        with pytest.raises(ValueError, match="no images"):
            mean_image([])


class TestPairedTests:
    def test_every_pair_of_systems(self, result):
        pairs = [(t["a"], t["b"]) for t in result["tests"]]
        assert pairs == [("ours", "ignores"), ("ours", "other_person"), ("ignores", "other_person")]

    def test_equal_systems_are_not_told_apart(self, result):
        same = result["tests"][0]["metrics"]["group_auroc"]
        assert (same["value"], same["p"], same["p_holm"]) == (0, 1, 1)

    def test_different_ones_are(self, result):
        got = result["tests"][1]["metrics"]["group_auroc"]
        assert got["value"] > 0
        assert got["p"] == pytest.approx(2 / 201)  # never 0: as many resamples as there are
        assert got["p_holm"] >= got["p"]

    def test_p_value_by_hand(self):
        draws = np.r_[0.5, np.arange(-2, 98) / 10]  # -0.2, -0.1, 0.0, ... : 3 of 100 at or below zero
        assert p_value(draws) == pytest.approx(2 * 4 / 101)
        assert p_value(np.r_[np.nan, np.ones(50)]) is None
        assert p_value(np.ones(5)) is None

    def test_holm_by_hand(self):
        assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
        assert holm({}) == {}
