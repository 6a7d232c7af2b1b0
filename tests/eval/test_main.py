"""The command line of the evaluation: which files it finds, and options out of range."""

import json

import pytest
from support.eval_cohort import one_line

from progemu_jax.eval.__main__ import find_reference_scores, find_scores, main


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
        for wrong in (float("inf"), 10**400, float("nan")):
            (root / "ours/memorisation.json").write_text(json.dumps(audit | {"same": wrong}))
            assert main([*given, "--bootstrap=0"]) == 2
            assert "memorisation.json: holds a number" in capsys.readouterr().err.splitlines()[-1]
        (root / "ours/memorisation.json").write_text("[]")
        assert main([*given, "--bootstrap=0"]) == 2
        assert "is no audit" in capsys.readouterr().err.splitlines()[-1]

    def test_out_that_cannot_be_written(self, small, capsys):
        root = small[0]
        (root / "file").write_text("")
        given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'file'}"]
        assert main([*given, "--bootstrap=0"]) == 2
        assert "cannot be written" in capsys.readouterr().err
