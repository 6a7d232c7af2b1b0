"""What all sources share: roots that are none, files that are needed, options, and patients left out."""

import gzip
import os

import pytest
from support.cohorts import QUIET, read

from progemu_jax.data import tree
from progemu_jax.data.build import build_tree
from progemu_jax.data.sources import SOURCES, inside, needed_files, open_source, read_report, read_table, safe_id
from progemu_jax.errors import UserError
from progemu_jax.files import records

HASH = {"split": "hash", "validation": 0.3, "test": 0.3}


@pytest.mark.parametrize("name", [n for n in SOURCES if n != "phantom"])
def test_roots_that_are_none_and_files_that_are_needed(name, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source(name, tmp_path / "nowhere")
    with pytest.raises(UserError, match="empty"):
        open_source(name, tmp_path)
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"missing|neither"):
        read(name, tmp_path)
    lines = needed_files(name, {"root": str(tmp_path)})
    assert all(line.endswith(("[missing]", "[absent, optional]")) for line in lines)
    assert len(lines) == len(SOURCES[name].files)


def test_an_option_that_a_source_has_no_use_for_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"config\.data\.mimic_iv: the source open_cxr has no use"):
        open_source("open_cxr", tmp_path, mimic_iv=tmp_path)


def test_patients_on_a_list_are_left_out(plus, tmp_path):
    (tmp_path / "list.txt").write_text("# of a benchmark\npatient00001\n00002\n\n")
    funnel = build_tree("chexpertplus", plus, tmp_path / "t", options=HASH, exclude=tmp_path / "list.txt", **QUIET)
    assert funnel["patients excluded by the list"] == 2
    assert not {p.patient_id for p in tree.read_pairs(tmp_path / "t")} & {"00001", "00002"}
    singles = [row for _, row in records.read_lines(tmp_path / "t/singles.jsonl")]
    assert not {row["patient_id"] for row in singles} & {"00001", "00002"}
    with pytest.raises(UserError, match="does not read"):
        build_tree("chexpertplus", plus, tmp_path / "u", exclude=tmp_path / "none.txt", **QUIET)


def test_paths_and_ids(tmp_path):
    assert inside(tmp_path, "a", "b.jpg") == tmp_path / "a/b.jpg"
    assert inside(tmp_path, "a", "../../x") is None
    assert inside(tmp_path, "/etc/passwd") is None
    assert safe_id("0000-0a.b")
    assert not any(map(safe_id, ("", "..", "a..b", "a/b", ".a", "a\n", "a b", "x" * 200)))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="no regular file"):
        next(read_table(tmp_path / "pipe.csv", ()))
    assert read_report(tmp_path / "pipe.csv") == "the report is no regular file"


def test_a_table_of_blank_lines_is_not_read_to_its_end(tmp_path):
    """gzip packs a hundred million of them into 100 KB."""

    def write(blank):
        with gzip.open(tmp_path / "a.csv.gz", "wb", compresslevel=1) as file:
            file.write(b"a,b\n1,2\n" + b"\r\n" * blank + b"3,4\n")
        return read_table(tmp_path / "a.csv.gz", ("a",))

    assert [row["b"] for _, row in write(9000)] == ["2", "4"]
    with pytest.raises(UserError, match="more than 10000 blank lines in a row"):
        list(write(2_000_000))
