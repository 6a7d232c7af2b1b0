"""Results of other evaluations: their files read, and shown as theirs."""

import json

import pytest
from support.eval_cohort import one_line

from progemu_jax.eval.__main__ import main
from progemu_jax.eval.external import read_results

BENCHMARK = """FID,FID (RadDino),Precision,Extra Info,Caption Type,Pathology,FRD
54.1,71.25,0.4,ours,annotated_prompt,Edema,2.5
44.0,61.0,0.5,7,annotated_prompt,Edema,
53.0,,nan,ours,annotated_prompt,Fracture,2.75
52.5,70.0,0.6,ours,annotated_prompt,Edema,
"""
M3 = {"fidelity": 0.0731, "fidelity_ci": [0.06, 0.08], "coverage": 0.38, "protocol": "m3-v1", "n_real": 2000,
      "fidelity_floor": None, "fidelity_floor_by_subject": True, "m3score_version": "0.1.0"}  # fmt: skip
RADMATCH = {"metadata": {"radmatch_version": "0.2.2", "n_reports": 9}, "actionable_errors_per_report": 1.25,
            "clinical_safety_summary": {"triage_recall": 0.5, "triage_precision": None}}  # fmt: skip


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_chexgenbench_takes_the_last_row_of_the_system_and_pathology(tmp_path):
    path = write(tmp_path / "r.csv", BENCHMARK)
    assert read_results("chexgenbench", path, "ours") == {
        "FID, Edema": 52.5, "FID (RadDino), Edema": 70.0, "Precision, Edema": 0.6, "FID, Fracture": 53.0,
        "FRD, Fracture": 2.75,
    }  # fmt: skip
    assert set(read_results("chexgenbench", path, "7")) == {"FID, Edema", "FID (RadDino), Edema", "Precision, Edema"}
    one_line('no row has "mine" as Extra Info, but 7, ours', read_results, "chexgenbench", path, "mine")


def test_m3_and_radmatch(tmp_path):
    assert read_results("m3", write(tmp_path / "m.json", M3), "ours") == {
        "fidelity": 0.0731, "coverage": 0.38, "n_real": 2000,
    }  # fmt: skip
    found = read_results("radmatch", write(tmp_path / "r.json", RADMATCH), "ours")
    assert found == {
        "metadata.n_reports": 9, "actionable_errors_per_report": 1.25, "clinical_safety_summary.triage_recall": 0.5,
    }  # fmt: skip


def test_a_csv_gives_the_mean_of_every_column_of_numbers(tmp_path):
    path = write(tmp_path / "e.csv", "edited_image,effect,other\na.png,1,0.5\nb.png,,0.25\nc.png,0,high\n")
    assert read_results("teacsv", path, "ours") == {"effect": 0.5}


@pytest.mark.parametrize(
    ("protocol", "content", "match"),
    [
        ("m3", "{", "no JSON"),
        ("m3", "[1, 2]", "holds no number"),
        ("m3", '{"fidelity": NaN}', "not finite"),
        ("m3", '{"fidelity": 1' + "0" * 400 + "}", "too many digits"),
        ("radmatch", "{" + '"a": {' * 50 + '"b": 1' + "}" * 51, "holds no number"),
        ("teacsv", "a,b\n1,2,3\n", "another number of cells"),
        ("teacsv", "a,b\n", "holds no number"),
        ("chexgenbench", "", "no row has"),
    ],
)
def test_other_files_are_one_line(tmp_path, protocol, content, match):
    one_line(match, read_results, protocol, write(tmp_path / "file", content), "ours")


def test_files_that_are_not_there_are_one_line(tmp_path):
    one_line("no such file", read_results, "m3", tmp_path / "none", "ours")
    one_line("not a readable CSV", read_results, "teacsv", tmp_path / "none", "ours")


class TestCommand:
    def test_results_stand_in_a_table_of_their_own(self, small, capsys):
        root = small[0]
        given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'out'}"]
        m3, radmatch = write(root / "m3.json", M3), write(root / "radmatch.json", RADMATCH)
        assert main([*given, "--bootstrap=0", f"--results=m3={m3}", f"--results=ours:radmatch={radmatch}"]) == 0
        result = json.loads((root / "out/metrics.json").read_text())
        assert result["external"]["ours"]["m3"]["fidelity"] == 0.0731
        text = (root / "out/tables.md").read_text()
        assert "## As measured by M3-Score\n\n| system | fidelity | coverage | n_real |" in text
        assert "| Ours | 0.0731 | 0.38 | 2000 |" in text
        assert "| Ours | 1.25 | 0.5 | 9 |" in text
        assert "As measured by RadMatch" in (root / "out/report/index.html").read_text()

    @pytest.mark.parametrize(
        ("flag", "match"),
        [("m4=x", "with one of chexgenbench"), ("m3", "give PROTOCOL=FILE"), ("theirs:m3=x", "NAME of ours")],
    )
    def test_senseless_flags(self, small, capsys, flag, match):
        root = small[0]
        given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'out'}"]
        assert main([*given, f"--results={flag}"]) == 2
        assert match in capsys.readouterr().err.splitlines()[-1]
