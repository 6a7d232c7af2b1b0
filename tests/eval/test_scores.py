"""Score files as CSV and NPZ: each defect is one line that names the cases."""

import numpy as np
import pytest
from support.eval_cohort import Cohort, one_line

from progemu_jax.eval.scores import read_scores
from progemu_jax.text import findings


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
            ({"finding_severity": np.ones((4, 2))}, "finding_severity of 2 findings"),
            ({"finding_severity": np.full((4, 8), 1.5)}, r"finding_severity outside \[0, 1\] for cases p000-0"),
            ({"mask_shape": np.array([4])}, r"mask_shape \(4,\) must be"),
            ({"mask_shape": np.array([4, 6, np.nan, 32])}, "mask_shape does not hold whole numbers"),
            ({"mask_shape": np.array(["a", "b"])}, "mask_shape does not hold whole numbers"),
            ({"mask_shape": np.array([4, 6, 2**20, 2**20])}, "do not fit"),
            ({"organs": np.array("lung")}, "masks hold 3072 bytes"),
            ({"backbone": np.array([], str)}, "features without 'backbone'"),
            ({"masks": np.zeros((4, 6, 3), np.uint8)}, "do not fit"),
            ({"pair_id": np.array([{}], object)}, "not a readable npz"),
        ],
    )
    def test_defects(self, tmp_path, changed, match):
        cohort = Cohort(patients=4, pairs=1)
        one_line(match, read_scores, cohort.write_scores(tmp_path / "a.npz", cohort.after, **changed))

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"age": np.array([50, 1e300, 40, 30.0])}, "infinity in age for cases p001-0"),
            ({"finding_prob": np.full((4, 8), 0.5 + 1j)}, "finding_prob does not hold numbers"),
        ],
    )
    def test_numbers_that_float32_cannot_hold_are_one_line_without_a_warning(self, tmp_path, changed, match):
        cohort = Cohort(patients=4, pairs=1)
        one_line(match, read_scores, cohort.write_scores(tmp_path / "a.npz", cohort.after, **changed))

    @pytest.mark.parametrize("content", [b"((((", b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x06\x00((((((", None])
    def test_files_that_are_none(self, tmp_path, content):
        if content is None:
            with open(tmp_path / "a.npz", "wb") as file:
                np.save(file, np.zeros(3))
        else:
            (tmp_path / "a.npz").write_bytes(content)
        one_line("not a readable npz", read_scores, tmp_path / "a.npz")
