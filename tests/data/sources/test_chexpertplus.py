"""CheXpert Plus: every field, every defect, and the whole way to shards."""

import gzip
from pathlib import Path

import pytest
from support import cohorts
from support.cohorts import QUIET, read

from progemu_jax.data import tree
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build
from progemu_jax.errors import UserError

HASH = {"split": "hash", "validation": 0.3, "test": 0.3}


def edit(root, old, new):
    table = root / "df_chexpert_plus_240401.csv"
    table.write_text(table.read_text().replace(old, new, 1))


def test_a_study_of_chexpert_plus_has_every_field(plus):
    studies, rejected = read("chexpertplus", plus, views=("PA",))
    assert (len(studies), len(rejected)) == (36, 12)
    assert {r.reason for r in rejected} == {"view LATERAL is not asked for"}
    study = studies[1]
    assert (study.source, study.patient_id, study.study_id, study.image_id) == (
        "chexpertplus", "00001", "00002", "p00001-view1_frontal",
    )  # fmt: skip
    assert study.dicom_id == "train/patient00001/study2/view1_frontal"
    assert study.image_path == plus / "PNG/train/patient00001/study2/view1_frontal.png"
    assert (study.order_key, study.days) == ((3.0,), None)
    assert study.report == {
        "findings": f"Small left pleural effusion. {cohorts.SECRET}.", "impression": "Small left pleural effusion.",
    }  # fmt: skip
    assert (study.labels["Pleural Effusion"], study.labels["Edema"]) == (1, None)
    assert (study.age, study.sex, study.group, study.split) == (60.0, "F", "WHITE", "train")
    assert studies[3].group == "BLACK"
    assert cohorts.SECRET not in repr(studies)


def test_labels_come_from_our_rules_where_there_is_no_file(tmp_path):
    root = cohorts.chexpertplus(tmp_path, patients=1)
    given = [s.labels["Pleural Effusion"] for s in read("chexpertplus", root, views=("PA",))[0]]
    (root / "chexbert_labels/impression_fixed.json").unlink()
    assert [s.labels["Pleural Effusion"] for s in read("chexpertplus", root, views=("PA",))[0]] == given == [0, 1, 0]


def test_the_table_may_be_compressed(tmp_path):
    root = cohorts.chexpertplus(tmp_path, patients=1)
    table = root / "df_chexpert_plus_240401.csv"
    Path(f"{table}.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    assert len(read("chexpertplus", root)[0]) == 4


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("train/patient00001/study1/view1_frontal.jpg", "/etc/passwd", "the image's path"),
        ("train/patient00001/study1/view1_frontal.jpg", "train/patient00001/../view1_frontal.jpg", "the image's path"),
        ("train/patient00001/study1/view1_frontal.jpg", "train/patient00002/study1/view1_frontal.jpg", "image's path"),
        (",patient00001,1,", ",patient00001,first,", "order of the report"),
        (",patient00001,1,", ",patient00001,1,extra,", "number of cells"),
    ],
)
def test_a_broken_row_of_chexpert_plus_is_rejected(tmp_path, old, new, reason):
    root = cohorts.chexpertplus(tmp_path, patients=2, studies=2)
    edit(root, old, new)
    studies, rejected = read("chexpertplus", root, views=("PA",))
    assert len(studies) == 3
    assert any(reason in r.reason for r in rejected)


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    root = cohorts.chexpertplus(tmp_path / "root", patients=1)
    (tmp_path / "elsewhere.png").write_bytes(b"x")
    image = root / "PNG/train/patient00001/study1/view1_frontal.png"
    image.unlink()
    image.symlink_to(tmp_path / "elsewhere.png")
    assert "the image's path leaves the root" in [r.reason for r in read("chexpertplus", root, views=("PA",))[1]]


@pytest.mark.parametrize("content", ["{", '["a"]', '{"path_to_image": 3}'])
def test_labels_that_do_not_read_are_one_clear_line(tmp_path, content):
    root = cohorts.chexpertplus(tmp_path, patients=1)
    (root / "chexbert_labels/impression_fixed.json").write_text(content)
    with pytest.raises(UserError, match=r"impression_fixed\.json: line 1 is no JSON"):
        read("chexpertplus", root)


def test_chexpert_plus_becomes_shards(plus, tmp_path, capsys):
    funnel = build("chexpertplus", plus, tmp_path, options=HASH, **QUIET | {"progress": True})["funnel"]
    assert (funnel["images in the source"], funnel["of another view"], funnel["candidate pairs"]) == (48, 12, 24)
    pairs = list(tree.read_pairs(tmp_path / "tree"))
    assert len(pairs) == funnel["pairs kept"] > 15
    one = next(p for p in pairs if p.patient_id == "00001")
    assert one.pair_id.startswith("chexpertplus-pa-p00001-i01s00001-i02s00002")
    assert one.meta["reference-dicom-id"] == "train/patient00001/study1/view1_frontal"
    assert Examples(tmp_path / "shards", "pairs", "train")[0]["prior"].shape == (64, 64)
    singles = [e["image_id"] for e in Examples(tmp_path / "shards", "single", "train")]
    assert len(set(singles)) == len(singles)  # token shards take them as keys
    output = capsys.readouterr()
    assert cohorts.SECRET not in output.out + output.err + (tmp_path / "tree/rejected.jsonl").read_text()
