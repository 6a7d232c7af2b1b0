"""Score files as CSV and NPZ, hostile references and predictions: each defect is one line that names the cases."""

import json

import numpy as np
import pytest
from PIL import Image
from support.eval_cohort import Cohort

from progemu_jax.errors import UserError
from progemu_jax.eval.__main__ import find_reference_scores, find_scores, main
from progemu_jax.eval.predictions import organs_of, read_predictions, read_references
from progemu_jax.eval.scores import read_scores
from progemu_jax.text import findings


def one_line(match, function, *arguments):
    with pytest.raises(UserError, match=match) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


class TestCsv:
    def write(self, path, text):
        path.write_text(text)
        return path

    def test_equals_the_npz(self, tmp_path):
        cohort = Cohort(patients=4, pairs=1)
        npz = read_scores(cohort.write_scores(tmp_path / "a.npz", cohort.after))
        lines = [
            ",".join(["pair_id", "sample", *findings.FINDINGS, "group:A", "group:B", "group:C", "age", "sex_prob"])
        ]
        for (pair, sample), i in npz.keys.items():
            values = [*npz.finding_prob[i], *npz.group_prob[i], npz.age[i], npz.sex_prob[i]]
            lines.append(",".join([pair, str(sample), *(repr(float(v)) for v in values)]))
        got = read_scores(self.write(tmp_path / "b.csv", "\n".join(lines) + "\n"))
        assert (got.keys, got.findings, got.groups) == (npz.keys, npz.findings, npz.groups)
        for key in ("finding_prob", "group_prob", "age", "sex_prob"):
            np.testing.assert_array_equal(getattr(got, key), getattr(npz, key))
        assert got.masks is None

    def test_other_findings_and_an_empty_column(self, tmp_path):
        got = read_scores(self.write(tmp_path / "a.csv", "pair_id,finding:Nodule,Edema,age\na,0.1,0.2,\nb,0.3,0.4,\n"))
        assert got.findings == ("Nodule", "Edema")
        assert got.age is None
        assert list(got.keys) == [("a", 0), ("b", 0)]

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("pair_id,Edema\na,high\n", "row 2, column 'Edema': 'high' is no number"),
            ("pair_id,Edema\na,0.5\na,0.6\n", "duplicate cases a"),
            ("pair_id,Edema\na,0.5\nb,\n", "NaN in finding_prob for cases b"),
            ("pair_id,Edema\na,0.5\nb,inf\n", "infinity in finding_prob for cases b"),
            ("pair_id,Edema\na,-3.2\n", r"outside \[0, 1\] for cases a"),
            ("pair_id,Edema\na,0.5,0.5\n", "row 2 has 3 columns, the header 2"),
            ("pair_id,colour\na,0.5\n", "column 'colour' is unknown"),
            ("pair_id,sample,Edema\na,one,0.5\n", "sample must hold whole numbers"),
            ("Edema\n0.5\n", "no array 'pair_id'"),
            ("pair_id,Edema\n", "holds no rows"),
            ("", "holds no rows"),
        ],
    )
    def test_defects(self, tmp_path, text, match):
        one_line(match, read_scores, self.write(tmp_path / "a.csv", text))

    def test_bytes_that_are_no_text(self, tmp_path):
        (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00pair")
        one_line("not a readable CSV", read_scores, tmp_path / "a.csv")


class TestNpz:
    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"groups": None}, "group_prob without groups"),
            ({"findings": np.array(["Edema"] * 8)}, "findings holds a name twice"),
            ({"findings": np.array(list("abc"))}, "8 columns, but there are 3 findings"),
            ({"finding_prob": np.zeros(4, np.float32)}, r"finding_prob has shape \(4,\), 2 axes"),
            ({"age": np.array(list("wxyz"))}, "age does not hold numbers"),
            ({"age": np.ones(3)}, "age has 3 rows, pair_id 4"),
            ({"age": np.array([50, np.inf, 40, 30.0])}, "infinity in age for cases p001-0"),
            ({"sample": np.zeros(2, int)}, "sample has 2 rows, pair_id 4"),
            ({"backbone": None}, "features without 'backbone'"),
            ({"features": np.full((4, 3), np.inf)}, "infinity in features for cases p000-0"),
            ({"saliency": np.ones((4, 2, 4, 4))}, "saliency of 2 findings"),
            ({"mask_shape": np.array([4])}, r"mask_shape \(4,\) must be"),
            ({"masks": np.zeros((4, 6, 3), np.uint8)}, "do not fit"),
            ({"pair_id": np.array([{}], object)}, "not a readable npz"),
        ],
    )
    def test_defects(self, tmp_path, changed, match):
        cohort = Cohort(patients=4, pairs=1)
        one_line(match, read_scores, cohort.write_scores(tmp_path / "a.npz", cohort.after, **changed))


@pytest.fixture
def small(tmp_path):
    cohort = Cohort(patients=4, pairs=1)
    cohort.write_references(tmp_path / "references")
    cohort.write_predictions(tmp_path / "ours", cohort.after, [r["prompt"] for r in cohort.rows])
    return tmp_path, cohort


class TestReferences:
    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("pair_id", 7, "pair_id is not text"),
            ("age", "old", r"case p001-0\): age is not a number"),
            ("age", float("nan"), "age is not a number"),
            ("group", 3, "group is not text"),
            ("states_after", [0, 1], "states_after is not an object of numbers from 0 to 1"),
            ("states_before", {"cardiomegaly": "yes"}, "states_before is not an object"),
            ("states_before", {"cardiomegaly": 7}, "states_before is not an object"),
            ("prompt_changes", {"cardiomegaly": 2}, "prompt_changes is not an object of numbers from -1 to 1"),
            ("labels_after", "none", "labels_after is not an object"),
            ("prior", "../outside.png", "prior is not a path in the folder"),
            ("masks_prior", "/etc/passwd", "masks_prior is not a path in the folder"),
        ],
    )
    def test_values_that_make_no_sense(self, small, key, value, match):
        root, cohort = small
        cohort.rows[1][key] = value
        cohort.write_rows(root / "references")
        one_line(match, read_references, root / "references")

    def test_bytes_that_are_no_text(self, small):
        (small[0] / "references/references.jsonl").write_bytes(b"\xff\xfe")
        one_line("line 1 is not JSON", read_references, small[0] / "references")

    def test_masks_of_other_organs(self, small):
        root, cohort = small
        np.savez(root / "references" / cohort.rows[2]["masks_prior"], masks=np.zeros((3, 32, 32), bool))
        refs = read_references(root / "references")
        one_line(r"masks \(3, 32, 32\) of case p002-0", refs.masks, 2, "prior")

    def test_images_of_16_bits_are_not_cut_to_8(self, small):
        root, cohort = small
        Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(root / "references" / cohort.rows[0]["prior"])
        refs = read_references(root / "references")
        one_line(r"image of mode I;16 \(case p000-0\); write 8-bit", refs.image, 0, "prior")


class TestPredictions:
    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("sample", "a", "sample is not a whole number from 0 for cases p001-0"),
            ("sample", -1, "sample is not a whole number"),
            ("text", 5, "text is not text for cases p001-0"),
            ("prompt", [], "prompt is not text for cases p001-0"),
            ("image", "../x.png", "image is not a path in the folder for cases p001-0"),
        ],
    )
    def test_values_that_make_no_sense(self, small, key, value, match):
        path = small[0] / "ours/predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1][key] = value
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        one_line(match, read_predictions, small[0] / "ours", read_references(small[0] / "references"))


class TestFindingFiles:
    def test_csv_is_found_and_two_are_ambiguous(self, small):
        root, cohort = small
        (root / "ours/scores.csv").write_text("pair_id,Edema\n")
        assert find_scores(root / "ours") == (root / "ours/scores.csv").resolve()
        cohort.write_scores(root / "ours/scores.npz", cohort.after)
        one_line("which one counts", find_scores, root / "ours")
        (root / "given").mkdir()
        (root / "given/followup.csv").write_text("pair_id,Edema\n")
        assert find_reference_scores([root / "given"]) == {"followup": root / "given/followup.csv"}

    @pytest.mark.parametrize(
        ("option", "match"),
        [
            ("--bootstrap=-1", "must not be negative"),
            ("--subsamples=51", "give 0 to 50"),
            ("--seed=-1", "must not be negative"),
            ("--text-model=chexbert", "package f1chexbert is not there"),
        ],
    )
    def test_options_out_of_range(self, small, capsys, option, match):
        root = small[0]
        given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'out'}"]
        assert main([*given, option]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        assert match in error
        assert not (root / "out/metrics.json").exists()

    def test_an_audit_for_copies_is_shown_without_its_names(self, small, capsys):
        root = small[0]
        given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'out'}"]
        row = {"images": 4, "median": 0.81, "greatest": 0.995, "copies": [{"image": "p000-0#0", "of": "Zebrastripe"}]}
        audit = {"training_images": 1234, "same": 0.99, "generated": row, "real": row | {"copies": []}}
        (root / "ours/memorisation.json").write_text(json.dumps(audit))
        assert main([*given, "--bootstrap=0", "--subsamples=0"]) == 0
        shown = json.loads((root / "out/metrics.json").read_text())["systems"]["ours"]["memorisation"]
        assert shown["generated"] == {"images": 4, "median": 0.81, "greatest": 0.995, "copies": 1}
        assert shown["real"]["copies"] == 0
        assert "| Ours | 4 | 0.810 | 0.995 | 1 |" in (root / "out/tables.md").read_text()
        page = (root / "out/report/index.html").read_text()
        assert "nearest of 1,234 training images" in page
        assert "Zebrastripe" not in page + (root / "out/metrics.json").read_text()
        (root / "ours/memorisation.json").write_text("[]")
        assert main([*given, "--bootstrap=0"]) == 2
        assert "is no audit" in capsys.readouterr().err.splitlines()[-1]

    def test_out_that_cannot_be_written(self, small, capsys):
        root = small[0]
        (root / "file").write_text("")
        given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'file'}"]
        assert main([*given, "--bootstrap=0"]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_organs_in_which_a_finding_may_show():
    assert organs_of("left pleural effusion") == ["left lung", "facies diaphragmatica"]
    assert organs_of("right pneumothorax") == ["right lung"]
    assert organs_of("cardiomegaly") == ["heart", "mediastinum"]
    assert organs_of("pulmonary edema") == ["left lung", "right lung"]
    assert all(organs_of(f) for f in findings.FINDINGS)
