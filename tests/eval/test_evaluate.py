"""The evaluation end to end: systems of known quality come out where they belong; bad input is one line."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.eval_cohort import GROUPS, Cohort, words

from progemu_jax.errors import UserError
from progemu_jax.eval import System, evaluate
from progemu_jax.eval.__main__ import main
from progemu_jax.eval.definitions import METRICS
from progemu_jax.eval.page_images import difference_map
from progemu_jax.eval.predictions import read_predictions, read_references
from progemu_jax.eval.scores import read_scores
from progemu_jax.text import findings

NAMES = ("perfect", "null", "shuffled")
REFERENCE_IMAGES = ("prior", "followup", "counterfactual", "reconstruction")


def quiet(line):
    """A log that nobody reads."""


@pytest.fixture(scope="module")
def cohort():
    return Cohort(patients=30)


@pytest.fixture(scope="module")
def run(tmp_path_factory, cohort):
    """Perfect, null and shuffled systems, scored by a perfect scorer."""
    root = tmp_path_factory.mktemp("run")
    cohort.write_references(root / "references")
    order = np.random.default_rng(0).permutation(len(cohort.rows))
    shuffled = [cohort.after[k] for k in order]
    states = {"perfect": cohort.after, "null": cohort.before, "shuffled": shuffled}
    texts = {
        "perfect": [words(b, a) for b, a in zip(cohort.before, cohort.after, strict=True)],
        "null": ["No significant change."] * len(order),
        "shuffled": [words(cohort.before[k], cohort.after[k]) for k in order],
    }
    for name, shown in states.items():
        cohort.write_predictions(root / "predictions" / name, shown, texts[name])
        cohort.write_scores(root / "scores" / f"{name}.npz", shown, noise=0.3)
    for name in REFERENCE_IMAGES:
        shown = cohort.before if name == "prior" else cohort.after
        cohort.write_scores(root / "scores" / f"{name}.npz", shown, noise=0.3)
    result = evaluate(
        {k: System(root / "predictions" / k, root / "scores" / f"{k}.npz") for k in states},
        root / "references",
        {k: root / "scores" / f"{k}.npz" for k in REFERENCE_IMAGES},
        root / "out",
        bootstrap=100,
        caveats=["Invented <cohort>."],
        cases_shown=3,
    )
    return root, result


def value(result, system, metric):
    return result["systems"][system]["metrics"][metric]["value"]


class TestKnownSystems:
    def test_rows_and_order(self, run):
        assert list(run[1]["systems"]) == [
            "perfect", "null", "copy", "mean_image", "shuffled", "echo", "reconstruction", "followup", "counterfactual",
            "real_halves",
        ]  # fmt: skip

    def test_perfect_is_at_the_ceiling(self, run):
        one = (
            "finding_auroc", "finding_auroc_changed", "finding_auprc", "gap_closed", "directional_accuracy",
            "directional_accuracy_margin", "specificity", "edit_success", "group_auroc", "sex_auroc",
            "dice_prior", "group_retention", "age_retention", "text_right", "text_change_f1",
            "text_omitted_change_f1", "text_omitted_state_f1", "text_image_agreement", "finding_f1", "others_still",
            "own_direction", "ssim_counterfactual", "saliency_r", "flip_rate",
        )  # fmt: skip
        for key in one:
            assert value(run[1], "perfect", key) == pytest.approx(1), key
        for key in ("kl_bernoulli", "group_flip", "sex_flip", "age_shift_abs"):
            assert value(run[1], "perfect", key) == 0, key
        for key in (
            "ssim_unchanged",
            "ms_ssim_unchanged",
            "psnr_unchanged",
            "finding_auroc_soft",
            "fid",
            "kid",
            "feature_recall",
        ):
            assert value(run[1], "perfect", key) == pytest.approx(value(run[1], "counterfactual", key)), key
        assert value(run[1], "perfect", "mae_counterfactual") == value(run[1], "perfect", "tea_amplification") == 0
        assert value(run[1], "perfect", "tea_effectiveness") == 1
        assert value(run[1], "perfect", "cmig") == pytest.approx(value(run[1], "followup", "cmig"))

    @pytest.mark.parametrize("system", ["null", "copy"])
    def test_no_edit_fails_accuracy_but_not_retention(self, run, system):
        for key in (
            "finding_auroc_changed",
            "gap_closed",
            "directional_accuracy",
            "directional_accuracy_margin",
            "edit_success",
            "effect",
            "flip_rate",
            "finding_shift",
            "tea_effectiveness",
            "tea_amplification",
        ):
            assert value(run[1], system, key) == pytest.approx(0, abs=1e-9), key
        assert 0.5 < value(run[1], system, "finding_auroc") < 0.9
        for key in ("specificity", "group_auroc", "dice_prior", "ssim_prior"):
            assert value(run[1], system, key) == pytest.approx(1), key

    def test_shuffled_prompts_fail_direction(self, run):
        ours = run[1]["systems"]["shuffled"]["metrics"]["directional_accuracy"]
        assert ours["high"] < 0.7
        assert value(run[1], "shuffled", "text_right") < 0.2
        assert value(run[1], "shuffled", "finding_auroc_changed") < 0.7

    def test_echo_names_the_prompt_and_nothing_else(self, run):
        assert value(run[1], "echo", "text_right") == 1
        assert value(run[1], "echo", "text_change_precision") == 1
        assert value(run[1], "echo", "text_omitted_change_f1") == 0
        assert value(run[1], "echo", "text_omitted_state_f1") == 0
        assert "finding_auroc" not in run[1]["systems"]["echo"]["metrics"]

    def test_a_text_of_no_change_claims_nothing(self, run):
        assert value(run[1], "null", "text_right") == 0
        assert value(run[1], "null", "text_change_recall") == 0
        assert value(run[1], "null", "text_change_precision") is None  # no claims: undefined, not 0

    def test_identical_images_have_no_psnr(self, run):
        entry = run[1]["systems"]["perfect"]["metrics"]["psnr_counterfactual"]
        assert entry["value"] is None
        assert "identical" in entry["flags"][0]

    def test_intervals_hold_their_value(self, run):
        for system in run[1]["systems"].values():
            for entry in system["metrics"].values():
                if entry["low"] is not None:
                    assert entry["low"] <= entry["value"] + 1e-9
                    assert entry["value"] - 1e-9 <= entry["high"]

    def test_paired_differences(self, run):
        entry = run[1]["differences"]["copy"]["directional_accuracy"]
        assert (entry["value"], entry["intervals_apart"]) == (1, True)
        assert run[1]["differences"]["counterfactual"]["finding_auroc"]["value"] == 0

    def test_few_positives_are_flagged(self, run):
        counts = run[1]["systems"]["perfect"]["parts"]["atelectasis"]["counts"]
        assert counts["changed_positives"] < 20
        flags = run[1]["systems"]["perfect"]["metrics"]["finding_auroc_changed"]["flags"]
        assert any("atelectasis" in f and "fewer than 20" in f for f in flags)
        part = run[1]["systems"]["perfect"]["parts"]["atelectasis"]
        assert min(counts["positives"], counts["negatives"]) >= 20
        assert part["finding_auroc"]["flags"] == []
        assert "fewer than 20" in part["finding_auroc_changed"]["flags"][0]
        assert "fewer than 20" in part["gap_closed"]["flags"][0]


class TestOutputs:
    def test_files(self, run):
        root, result = run
        assert json.loads((root / "out" / "metrics.json").read_text()) == result
        assert set(result["definitions"]) == set(METRICS)
        table = (root / "out" / "tables.md").read_text()
        assert "| Copy the prior |" in table
        assert "undefined" in table

    def test_page_is_self_contained_and_escaped(self, run):
        page = (run[0] / "out" / "report" / "index.html").read_text()
        assert page.count('<div class="case">') == 3
        assert page.count('<div class="maps case">') == 6
        assert page.count("data:image/png;base64,") == 5 * 3 + 4 * 6
        assert "<svg" in page
        assert "not for diagnosis" in page
        assert "Invented &lt;cohort&gt;." in page
        for outside in ('src="http', 'href="http', "src='http", "@import", "<script"):
            assert outside not in page

    def test_difference_map(self):
        before, after = np.full((1, 3), 100, np.uint8), np.array([[100, 255, 0]], np.uint8)
        same, brighter, darker = difference_map(after, before)[0].astype(int)
        assert same.tolist() == [255, 255, 255]
        assert brighter[0] > brighter[2]
        assert darker[2] > darker[0]

    def test_same_input_same_output(self, run, tmp_path):
        root, result = run
        again = evaluate(
            {
                k: System(root / "predictions" / k, root / "scores" / f"{k}.npz")
                for k in ("perfect", "null", "shuffled")
            },
            root / "references",
            {k: root / "scores" / f"{k}.npz" for k in ("prior", "followup", "counterfactual", "reconstruction")},
            tmp_path,
            bootstrap=100,
            caveats=["Invented <cohort>."],
            cases_shown=3,
        )
        assert again == result
        page = (root / "out" / "report" / "index.html").read_text()
        assert (tmp_path / "report" / "index.html").read_text() == page

    def test_jax_is_never_imported(self):
        code = (
            "import sys, progemu_jax.eval.__main__, progemu_jax.eval.report\n"
            "heavy = {'jax', 'jaxlib', 'flax', 'matplotlib', 'scipy'}\n"
            "print(sorted(heavy & {m.split('.')[0] for m in sys.modules}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


@pytest.fixture
def small(tmp_path):
    """References of four patients and one system, fresh for each test."""
    cohort = Cohort(patients=4, pairs=1)
    cohort.write_references(tmp_path / "references")
    cohort.write_predictions(tmp_path / "predictions" / "ours", cohort.after, [r["prompt"] for r in cohort.rows])
    return tmp_path, cohort


def judge(root, **options):
    scores = root / "scores"
    given = {k: scores / f"{k}.npz" for k in ("prior", "followup") if (scores / f"{k}.npz").is_file()}
    ours = scores / "ours.npz"
    system = System(root / "predictions" / "ours", ours if ours.is_file() else None)
    return evaluate({"ours": system}, root / "references", given, root / "out", bootstrap=20, **options)


def edit_rows(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = change(rows)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


class TestLittleIsThere:
    def test_no_scores_at_all(self, small):
        lines = []
        result = judge(small[0], log=lines.append)
        assert "finding_auroc" not in result["systems"]["ours"]["metrics"]
        assert "copy" in result["systems"]
        assert value(result, "ours", "ssim_counterfactual") == pytest.approx(1)
        assert value(result, "ours", "text_right") == 1
        assert any("no scores" in line for line in lines)
        assert (small[0] / "out" / "report" / "index.html").is_file()

    def test_real_data_without_truth(self, small):
        root, cohort = small
        for row in cohort.rows:
            row.update(states_before=None, states_after=None, counterfactual=None, masks_prior=None,
                       masks_followup=None, group=None, age=None, sex=None, source="mimic_cxr")  # fmt: skip
        cohort.write_rows(root / "references")
        result = judge(root, log=quiet)
        assert "counterfactual" not in result["systems"]
        assert value(result, "ours", "psnr_followup") > 0
        assert "ssim_counterfactual" not in result["systems"]["ours"]["metrics"]
        assert "Real follow-up" in (root / "out" / "report" / "index.html").read_text()

    def test_chexpert_columns(self, small):
        root, cohort = small
        names = ("Cardiomegaly", "Pleural Effusion")
        for k, row in enumerate(cohort.rows):
            row["labels_before"] = {"Cardiomegaly": k % 2, "Pleural Effusion": -1}
            row["labels_after"] = {"Cardiomegaly": (k + 1) % 2, "Pleural Effusion": None}
            row["prompt_changes"] = {
                "cardiomegaly": -1 if k % 2 else 1,
                "left pleural effusion": 1,
                "right pleural effusion": -1,
            }
        cohort.write_rows(root / "references")
        after = np.array([[0.9 - 0.8 * (k % 2), 0.5] for k in range(4)], np.float32)
        for name, prob in (("ours", after), ("prior", 1 - after), ("followup", after)):
            cohort.write_scores(
                root / "scores" / f"{name}.npz",
                cohort.after,
                findings=np.array(names),
                finding_prob=prob,
                saliency=None,
            )
        result = judge(root, log=quiet)
        parts = result["systems"]["ours"]["parts"]
        assert parts["Cardiomegaly"]["finding_auroc"]["value"] == 1
        assert parts["Pleural Effusion"]["finding_auroc"]["value"] is None  # uncertain and blank labels
        # The prompt's effusions contradict each other as one observation: left out.
        assert parts["Pleural Effusion"]["counts"]["named"] == 0
        assert value(result, "ours", "directional_accuracy") == 1
        assert value(result, "copy", "directional_accuracy") == 0

    def test_images_without_text_and_text_without_images(self, small):
        root, cohort = small
        cohort.write_predictions(root / "predictions" / "silent", cohort.after)
        cohort.write_predictions(root / "predictions" / "blind", cohort.after, ["Stable."] * 4, images=False)
        systems = {k: System(root / "predictions" / k) for k in ("ours", "silent", "blind")}
        result = evaluate(systems, root / "references", None, root / "out", bootstrap=20, log=quiet)
        assert "text_right" not in result["systems"]["silent"]["metrics"]
        assert "ssim_prior" not in result["systems"]["blind"]["metrics"]
        page = evaluate(
            {"blind": systems["blind"]},
            root / "references",
            None,
            root / "o2",
            bootstrap=0,
            log=quiet,
        )
        assert page["systems"]["blind"]["metrics"]["text_right"]["low"] is None

    def test_one_class_only_is_undefined(self, small):
        root, cohort = small
        for row in cohort.rows:
            row["states_after"] = dict.fromkeys(findings.FINDINGS, 0.6)
            row["group"] = GROUPS[0]
        cohort.write_rows(root / "references")
        for name in ("ours", "prior", "followup"):
            cohort.write_scores(root / "scores" / f"{name}.npz", cohort.after)
        result = judge(root, log=quiet)
        assert value(result, "ours", "finding_auroc") is None
        assert value(result, "ours", "group_auroc") is None
        assert value(result, "ours", "cmig") is None
        assert "undefined" in (root / "out" / "report" / "index.html").read_text()

    def test_several_samples_of_a_case(self, small):
        root, cohort = small
        cohort.write_predictions(root / "predictions" / "many", cohort.after, ["Stable."] * 4, samples=3)
        for name in ("prior", "followup"):
            cohort.write_scores(root / "scores" / f"{name}.npz", cohort.before)
        cohort.write_scores(root / "scores" / "many.npz", cohort.after, samples=3)
        system = System(root / "predictions" / "many", root / "scores" / "many.npz")
        given = {"prior": root / "scores" / "prior.npz"}
        result = evaluate({"many": system}, root / "references", given, root / "out", bootstrap=20, log=quiet)
        assert result["systems"]["many"]["samples"] == 12
        assert result["cases"] == 4
        assert value(result, "many", "dice_prior") == 1

    def test_missing_cases_are_named_and_left_out_for_all(self, small):
        root, cohort = small
        cohort.write_predictions(root / "predictions" / "whole", cohort.after)
        edit_rows(root / "predictions" / "ours" / "predictions.jsonl", lambda rows: rows[1:])
        lines = []
        systems = {k: System(root / "predictions" / k) for k in ("ours", "whole")}
        result = evaluate(systems, root / "references", None, root / "out", bootstrap=0, log=lines.append)
        assert [result["systems"][k]["samples"] for k in ("ours", "whole", "copy", "echo")] == [3] * 4
        assert "predictions/ours: 1 of 4 cases missing (p000-0)" in lines[0]
        assert lines[0] == "evaluate: " + result["warnings"][0]

    def test_cases_that_no_system_sampled_are_one_warning(self, small):
        root, cohort = small
        cohort.write_predictions(root / "predictions" / "shuffled-prompts", cohort.before)
        for name in ("ours", "shuffled-prompts"):
            edit_rows(root / "predictions" / name / "predictions.jsonl", lambda rows: rows[:3])
        systems = {k: System(root / "predictions" / k) for k in ("ours", "shuffled-prompts")}
        result = evaluate(systems, root / "references", None, root / "out", bootstrap=0, log=quiet)
        assert [w for w in result["warnings"] if "p003-0" in w] == [
            "1 of 4 cases of the references were not sampled (p003-0)"
        ]
        assert (result["systems"]["shuffled"]["role"], result["systems"]["ours"]["role"]) == (
            "baseline",
            "system",
        )


class TestBadInput:
    def fails(self, root, match):
        with pytest.raises(UserError, match=match) as caught:
            judge(root)
        assert "\n" not in str(caught.value)

    def test_missing_folder(self, small):
        with pytest.raises(UserError, match=r"no predictions\.jsonl"):
            evaluate({"ours": System(small[0] / "nowhere")}, small[0] / "references", None, small[0] / "out")

    def test_empty_and_broken_lines(self, small):
        path = small[0] / "predictions" / "ours" / "predictions.jsonl"
        whole = path.read_text()
        path.write_text(whole + '{"pair_id": ')
        self.fails(small[0], "line 5 is not JSON")
        path.write_text("\n")
        self.fails(small[0], "holds no rows")

    def test_duplicate_case(self, small):
        edit_rows(small[0] / "predictions" / "ours" / "predictions.jsonl", lambda rows: rows + rows[:1])
        self.fails(small[0], r"duplicate cases p000-0 \(sample 0\)")

    def test_unknown_case(self, small):
        def change(rows):
            rows[2]["pair_id"] = "elsewhere"
            return rows

        edit_rows(small[0] / "predictions" / "ours" / "predictions.jsonl", change)
        self.fails(small[0], "does not hold: elsewhere")

    def test_no_case_in_common(self, small):
        root, cohort = small
        cohort.write_predictions(root / "predictions" / "other", cohort.after)
        edit_rows(root / "predictions" / "ours" / "predictions.jsonl", lambda rows: rows[:2])
        edit_rows(root / "predictions" / "other" / "predictions.jsonl", lambda rows: rows[2:])
        systems = {k: System(root / "predictions" / k) for k in ("ours", "other")}
        with pytest.raises(UserError, match="no case is in all of"):
            evaluate(systems, root / "references", None, root / "out")

    def test_lost_and_broken_images(self, small):
        image = small[0] / "predictions" / "ours" / "images" / "p001-0-0.png"
        whole = image.read_bytes()
        image.write_bytes(whole[: len(whole) // 2])
        self.fails(small[0], r"p001-0-0\.png: cannot be read as an image \(case p001-0\)")
        image.unlink()
        self.fails(small[0], "image files missing for cases p001-0")

    def test_image_of_another_size(self, small):
        Image.new("L", (40, 32)).save(small[0] / "predictions" / "ours" / "images" / "p001-0-0.png")
        self.fails(small[0], r"image is 40 x 32, the references' are 32 x 32 \(case p001-0\)")

    def test_some_texts_missing(self, small):
        def change(rows):
            rows[3]["text"] = None
            return rows

        edit_rows(small[0] / "predictions" / "ours" / "predictions.jsonl", change)
        self.fails(small[0], "no text for cases p003-0")

    def test_nan_scores(self, small):
        root, cohort = small
        prob = cohort.scores(cohort.after)["finding_prob"]
        prob[2, 1] = np.nan
        cohort.write_scores(root / "scores" / "ours.npz", cohort.after, finding_prob=prob)
        self.fails(root, "NaN in finding_prob for cases p002-0")

    def test_logits_for_probabilities(self, small):
        root, cohort = small
        prob = cohort.scores(cohort.after)["finding_prob"] * 4
        cohort.write_scores(root / "scores" / "ours.npz", cohort.after, finding_prob=prob)
        self.fails(root, r"finding_prob outside \[0, 1\] for cases p000-0")

    def test_scores_of_other_cases(self, small):
        root, cohort = small
        cohort.write_scores(root / "scores" / "ours.npz", cohort.after, pair_id=np.array(list("abcd")))
        self.fails(root, r"no scores for cases p000-0, p001-0, p002-0, p003-0; run")

    def test_scores_that_are_no_npz(self, small):
        (small[0] / "scores").mkdir()
        (small[0] / "scores" / "ours.npz").write_bytes(b"PK\x03\x04 broken")
        self.fails(small[0], "not a readable npz score file")

    def test_scorers_must_agree(self, small):
        root, cohort = small
        cohort.write_scores(root / "scores" / "ours.npz", cohort.after)
        cohort.write_scores(root / "scores" / "prior.npz", cohort.after, findings=np.array(list("abcdefgh")))
        self.fails(root, "name different findings")

    def test_references(self, small):
        path = small[0] / "references" / "references.jsonl"
        edit_rows(path, lambda rows: rows + rows[:1])
        self.fails(small[0], "duplicate cases p000-0")
        edit_rows(path, lambda rows: [{**rows[0], "interpretation": None}])
        self.fails(small[0], "row 1 lacks interpretation")

    def test_masks_of_another_size(self, small):
        root, cohort = small
        masks = np.packbits(np.zeros((4, 6, 16, 16), bool))
        cohort.write_scores(
            root / "scores" / "ours.npz", cohort.after, masks=masks, mask_shape=np.array([4, 6, 16, 16])
        )
        self.fails(root, "masks of case p000-0")


class TestReading:
    def test_masks_packed_flat_or_by_row(self, tmp_path):
        cohort = Cohort(patients=2, pairs=1, size=24)
        flat = read_scores(cohort.write_scores(tmp_path / "a.npz", cohort.after))
        masks = np.unpackbits(cohort.scores(cohort.after)["masks"]).reshape(2, 6, 24, 24).astype(bool)
        rows = np.packbits(masks, axis=-1)
        by_row = read_scores(cohort.write_scores(tmp_path / "b.npz", cohort.after, masks=rows))
        np.testing.assert_array_equal(flat.masks, by_row.masks)
        assert flat.mask_shape == (24, 24)

    def test_sizes_that_do_not_fill_bytes(self, tmp_path):
        cohort = Cohort(patients=3, pairs=1, size=19)
        scores = read_scores(cohort.write_scores(tmp_path / "a.npz", cohort.after))
        assert scores.masks.shape == (3, 6, -(-19 * 19 // 8))
        assert np.bitwise_count(scores.masks[0, 0]).sum() == 6 * 6  # a rectangle of 19 // 3 pixels a side

    def test_a_part_that_is_all_nan_is_absent(self, tmp_path):
        cohort = Cohort(patients=2, pairs=1)
        path = cohort.write_scores(tmp_path / "a.npz", cohort.after, age=np.full(2, np.nan), sex_prob=None)
        assert read_scores(path).age is None
        assert read_scores(path).sex_prob is None

    def test_rows_come_in_the_order_of_the_references(self, small):
        root, _ = small
        edit_rows(root / "predictions" / "ours" / "predictions.jsonl", lambda rows: rows[::-1])
        refs = read_references(root / "references")
        assert read_predictions(root / "predictions" / "ours", refs).case.tolist() == [0, 1, 2, 3]

    def test_change_of_a_severity_within_present(self, small):
        root, cohort = small
        cohort.rows[0]["states_before"]["atelectasis"], cohort.rows[0]["states_after"]["atelectasis"] = (
            0.3,
            0.8,
        )
        cohort.rows[1]["states_before"]["atelectasis"], cohort.rows[1]["states_after"]["atelectasis"] = (
            0.3,
            0.4,
        )
        cohort.write_rows(root / "references")
        refs = read_references(root / "references")
        assert refs.changed("atelectasis")[:2].tolist() == [1, 0]
        assert refs.present("atelectasis", "before")[:2].tolist() == [1, 1]


class TestCommandLine:
    def test_finds_scores_in_a_run_directory(self, run, tmp_path, capsys):
        root, result = run
        arguments = [f"--predictions={root / 'predictions' / k}" for k in ("perfect", "null", "shuffled")]
        status = main([*arguments, f"--references={root / 'references'}", f"--out={tmp_path}", "--bootstrap=100"])
        assert status == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "report" / "index.html")
        assert json.loads((tmp_path / "metrics.json").read_text())["systems"] == result["systems"]

    def test_bad_input_is_one_line_and_status_two(self, small, capsys):
        status = main(
            [
                f"--predictions={small[0] / 'nowhere'}",
                f"--references={small[0] / 'references'}",
                f"--out={small[0]}",
            ]
        )
        assert status == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1

    def test_two_folders_of_one_name(self, small, capsys):
        folder = small[0] / "predictions" / "ours"
        given = [f"--predictions={folder}", f"--predictions={folder}"]
        assert main([*given, f"--references={small[0] / 'references'}", f"--out={small[0]}"]) == 2
        assert "give NAME=DIR" in capsys.readouterr().err
