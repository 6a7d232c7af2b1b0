"""A plain folder of images with a table: every defect, and the whole way to shards."""

import pytest
from support import cohorts
from support.cohorts import QUIET, read

from progemu_jax.data import tree
from progemu_jax.data.build import build, build_tree


def test_a_plain_folder_becomes_shards(tmp_path):
    root = cohorts.plain_folder(tmp_path / "in")
    pairs, rejected = read("folder", root)
    assert (len(pairs), rejected) == (12, [])
    assert pairs[3].interpretation == pairs[3].prompt
    build("folder", root, tmp_path / "out", **QUIET)
    found = list(tree.read_pairs(tmp_path / "out/tree"))
    assert {p.patient_id: p.split for p in found} == {
        f"q{i}": ("train", "validation", "test")[i % 3] for i in range(6)
    }  # the table's splits
    assert all(p.prompt == f"New effusion. {cohorts.SECRET}" for p in found)


def test_each_pair_of_a_patient_has_its_own_follow_up(tmp_path):
    """All pairs of a table are the patient's first and second film by their ordinals."""
    root = cohorts.plain_folder(tmp_path / "in", pairs=6)
    build_tree("folder", root, tmp_path / "out", **QUIET)
    found = list(tree.read_pairs(tmp_path / "out"))
    assert len({p.patient_id for p in found}) == 3
    assert len({p.ours["registration"]["score"] for p in found}) == 6


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("../case0.png,x,q0,train", "plain name"),
        ("/etc/passwd,x,q0,train", "plain name"),
        ("case1.png,x,q0,train", "listed twice"),
        ("caseA.png,,q0,train", "prompt is empty"),
        ("caseA.png,x,q0,holdout", "split is none"),
        ("caseA.png,x,q0", "number of cells"),
        ("outside.png,x,q0,train", "leaves the root"),
    ],
)
def test_a_broken_row_of_a_plain_folder_is_rejected(tmp_path, row, reason):
    root = cohorts.plain_folder(tmp_path / "in", pairs=2)
    (tmp_path / "o.png").write_bytes(b"x")
    (root / "follow/outside.png").symlink_to(tmp_path / "o.png")
    with open(root / "prompts.csv", "a") as file:
        file.write(row + "\n")
    pairs, rejected = read("folder", root)
    assert len(pairs) == 2
    assert [reason in r.reason for r in rejected] == [True]
