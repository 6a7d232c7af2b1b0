"""The leaderboard: rows are added once, rows that may not be compared stand apart, other files are refused."""

import json

import numpy as np
import pytest
from support.eval_cohort import one_line

from progemu_jax.eval.__main__ import main
from progemu_jax.eval.leaderboard import add


@pytest.fixture
def result(result):
    """metrics.json of two systems and a control, as far as the leaderboard reads it."""
    ours = {**result["systems"]["ours"], "info": {"checkpoint": "abc"}}
    theirs = {**ours, "metrics": {"finding_auroc": ours["metrics"]["finding_auroc"]}, "features": {}}
    systems = {"ours": ours, "th|eirs": theirs, "null_edit": {**result["systems"]["null_edit"], "info": {}}}
    return {**result, "references": "5f" * 32, "sources": ["phantom"], "splits": ["test"], "systems": systems}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_systems_are_added_once(result, tmp_path):
    path = tmp_path / "new/board.jsonl"
    add(path, result)
    first = path.read_bytes()
    assert [row["system"] for row in rows(path)] == ["ours", "th|eirs"]  # no control
    assert rows(path)[0]["metrics"]["fid"]["value"] == 29.21
    assert "bleu_3" not in rows(path)[0]["metrics"]
    assert (rows(path)[0]["backbone"], rows(path)[0]["checkpoint"], rows(path)[0]["cases"]) == ("net", "abc", 9)
    add(path, result)
    assert path.read_bytes() == first


def test_a_new_system_goes_to_the_end_and_the_others_stay(result, tmp_path):
    path = tmp_path / "board.jsonl"
    add(path, result)
    add(path, {**result, "systems": {"later": result["systems"]["ours"]}})
    assert [row["system"] for row in rows(path)] == ["ours", "th|eirs", "later"]
    text = path.with_suffix(".md").read_text()
    assert text.index("| ours | 0.805 [0.790, 0.820]") < text.index("| later |")
    assert "| th\\|eirs | 0.805 [0.790, 0.820] |" in text


def test_other_cases_and_other_backbones_stand_in_other_tables(result, tmp_path):
    path = tmp_path / "board.jsonl"
    add(path, result)
    assert path.with_suffix(".md").read_text().count("## phantom, split test: 9 cases of 7 patients") == 2
    add(path, {**result, "references": "6a" * 32, "cases": 8})
    assert "8 cases of 7 patients" in path.with_suffix(".md").read_text()
    assert len(rows(path)) == 4


def test_another_result_of_one_name_is_refused_and_nothing_is_written(result, tmp_path):
    path = tmp_path / "board.jsonl"
    add(path, result)
    before = path.read_bytes()
    ours = {**result["systems"]["ours"], "metrics": {}}
    one_line("another row of 'ours'", add, path, {**result, "systems": {"new": ours, "ours": ours}})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": []}, {"metrics": {"fid": 3}}, {"metrics": {"unknown": {}}}, {"cases": "9"}, {"source": None},
        {"metrics": {"fid": {"value": "3", "low": None, "high": None, "flags": []}}}, {"system": 3}, {"references": ""},
    ],
)  # fmt: skip
def test_a_row_of_another_kind_is_one_line(result, tmp_path, change):
    path = tmp_path / "board.jsonl"
    add(path, result)
    path.write_text(json.dumps({**rows(path)[0], **change}) + "\n")
    one_line("leaderboard", add, path, result)


def test_other_files_are_one_line(result, tmp_path):
    one_line("must end in .jsonl", add, tmp_path / "board.md", result)
    (tmp_path / "board.jsonl").write_text("no json\n")
    one_line("line 1 is not JSON", add, tmp_path / "board.jsonl", result)
    (tmp_path / "folder.jsonl").mkdir()
    one_line("folder.jsonl", add, tmp_path / "folder.jsonl", result)


def test_the_command_adds_what_it_judged(small, tmp_path):
    root, cohort = small
    cohort.write_scores(root / "ours/scores.npz", cohort.after, backbone=np.array("net"))
    cohort.write_scores(root / "references/scores/followup.npz", cohort.after, backbone=np.array("net"))
    given = [f"--predictions={root / 'ours'}", f"--references={root / 'references'}", f"--out={root / 'out'}"]
    assert main([*given, "--bootstrap=0", f"--leaderboard={tmp_path / 'b.jsonl'}"]) == 0
    (row,) = rows(tmp_path / "b.jsonl")
    judged = json.loads((root / "out/metrics.json").read_text())
    assert row["references"] == judged["references"]
    assert row["metrics"]["finding_f1"] == judged["systems"]["ours"]["metrics"]["finding_f1"]
    assert row["backbone"] == "net"
    # Other prompts of the same cases are another set.
    cohort.rows[0]["prompt"] = "No change."
    cohort.write_rows(root / "references")
    assert main([*given, "--bootstrap=0"]) == 0
    assert json.loads((root / "out/metrics.json").read_text())["references"] != judged["references"]
