"""NIH ChestX-ray14: order, splits, labels, boxes, every defect, and the whole way to shards."""

import json
import re

import pytest
from support import label_cohorts
from support.cohorts import NIH, QUIET, read
from support.label_cohorts import edit, nih

from progemu_jax.data import tree
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, build_tree, read_cohort
from progemu_jax.data.journeys import Options
from progemu_jax.data.sources import State
from progemu_jax.data.sources.label_findings import NIH as LIST
from progemu_jax.data.texts import TextOptions
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file

TABLE = "Data_Entry_2017_v2020.csv"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return nih(tmp_path_factory.mktemp("nih"))


def test_a_study_has_every_field(cohort):
    studies, rejected = read("nih_cxr14", cohort, views=("PA",))
    assert (len(studies), rejected) == (18, [])
    study = studies[1]
    assert (study.patient_id, study.study_id, study.image_id) == ("00000001", "001", "00000001_001")
    assert study.image_path == cohort / "images/00000001_001.png"
    assert (study.order_key, study.days, study.view, study.age, study.sex) == ((1.0,), None, "PA", 50.0, "F")
    assert study.split == "train_val"
    assert not any(study.report.values())
    assert [name for name, value in study.labels.items() if value] == ["Effusion", "Nodule"]
    assert set(study.labels) == {f.label for f in LIST}
    assert set(study.labels.values()) == {0, 1}  # what is not listed is absent
    assert study.states["cardiomegaly"] == State(False)
    # Boxes are in shares of 1024 pixels; the image's left is the patient's right.
    assert study.boxes == {"pleural effusion": [[100 / 1024, 0.5, 0.25, 0.25]],
                           "nodule": [[600 / 1024, 0.125, 0.0625, 0.0625]]}  # fmt: skip
    assert study.states["pleural effusion"] == State(True, side="right")
    assert study.states["nodule"] == State(True, side="left")
    assert (studies[4].boxes, studies[4].states["nodule"]) == (None, State(True))


def test_films_are_ordered_by_the_follow_up_number_not_by_their_names(cohort):
    found = read_cohort("nih_cxr14", cohort, Options(finding=False))
    assert [s.image_id[-3:] for _, s in found.journeys[0].images] == ["002", "001", "000"]
    assert found.funnel["candidate pairs"] == 12


def test_splits_are_by_patient_and_leave_validation_to_the_hash(cohort):
    found = read_cohort("nih_cxr14", cohort, Options(split="csv", validation=0.5))
    splits = {j.patient_id[-1]: j.split for j in found.journeys}
    assert {p for p, split in splits.items() if split == "test"} == {"3", "6"}
    assert {splits[p] for p in "1245"} == {"train", "validation"}


def test_a_patient_of_both_lists_is_left_out(tmp_path):
    root = nih(tmp_path, patients=4)
    edit(root / "train_val_list.txt", ("00000001_001.png\n", ""))
    with open(root / "test_list.txt", "a") as file:
        file.write("00000001_001.png\n")
    found = read_cohort("nih_cxr14", root, Options(split="csv"))
    assert {r.reason for r in found.rejected} == {"the patient is in several splits"}
    assert "00000001" not in {j.patient_id for j in found.journeys}


def test_archives_and_the_earlier_table_read_alike(cohort, tmp_path):
    old, _ = read("nih_cxr14", nih(tmp_path, archives=True))
    new, _ = read("nih_cxr14", cohort)
    assert [(s.image_id, s.age, s.states) for s in old] == [(s.image_id, s.age, s.states) for s in new]
    assert old[3].image_path == tmp_path / "images_002/images/00000002_002.png"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Effusion|Nodule", "Effusion|Nodules", "spelt in another way"),
        ("Effusion|Nodule", "Effusion|No Finding", "No Finding stands beside"),
        ("Effusion|Nodule", "", "spelt in another way"),
        ("00000001_001.png", "00000001_1.png", "is not <patient>_<number>"),
        ("00000001_001.png", "../../etc/passwd", "is not <patient>_<number>"),
        ("00000001_001.png", "00000002_001.png", "another patient"),
        ("00000001_001.png", "00000001_007.png", "the image file is missing"),
        ("Nodule,1,1,50", "Nodule,one,1,50", "follow-up number"),
        ("Nodule,1,1,50", "Nodule,1,1,50,1", "number of cells"),
    ],
)
def test_a_broken_row_is_rejected_with_its_reason(tmp_path, old, new, reason):
    root = nih(tmp_path, patients=2)
    edit(root / TABLE, (old, new))
    studies, rejected = read("nih_cxr14", root, views=("PA",))
    assert len(studies) == 5
    assert reason in rejected[0].reason
    assert rejected[0].path == f"{TABLE}:3"


def test_an_image_without_a_row_is_counted(tmp_path):
    root = nih(tmp_path, patients=2)
    (root / "images/00000009_000.png").write_bytes(b"")
    _, rejected = read("nih_cxr14", root)
    assert [(r.path, r.reason) for r in rejected] == [("00000009_000.png", "no row of the table names the image")]


def test_an_age_of_no_patient_is_unknown(tmp_path):
    root = nih(tmp_path, patients=1)
    edit(root / TABLE, (",50,", ",411,"))
    assert [s.age for s in read("nih_cxr14", root)[0]] == [None, 50.0, 50.0]


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    root = nih(tmp_path / "root", patients=1)
    image = root / "images/00000001_001.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    assert [r.reason for r in read("nih_cxr14", root)[1]] == ["the image's path leaves the root"]


def test_a_wrong_root_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read("nih_cxr14", tmp_path / "nowhere")
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=r"Data_Entry_2017_v2020\.csv: the file is missing"):
        read("nih_cxr14", tmp_path)
    label_cohorts.table(tmp_path / TABLE, label_cohorts.NIH_HEADER, [])
    with pytest.raises(UserError, match="no image in images/"):
        read("nih_cxr14", tmp_path)
    nih(tmp_path, patients=1)
    edit(tmp_path / TABLE, ("Finding Labels", "Findings"))
    with pytest.raises(UserError, match="column 'Finding Labels' is missing"):
        read("nih_cxr14", tmp_path)


def test_to_shards(cohort, tmp_path):
    """Truncated images are left out; labels of the fourteen columns and states travel to references and shards."""
    root = nih(tmp_path / "root", patients=6)
    broken = root / "images/00000001_002.png"
    broken.write_bytes(broken.read_bytes()[:200])
    out = tmp_path / "out"
    result = build("nih_cxr14", root, out, image_size=32, options={"split": "csv", "validation": 0.5}, **QUIET)
    reasons = [json.loads(line)["reason"] for line in (out / "tree/rejected.jsonl").read_text().splitlines()]
    assert sum("broken" in r for r in reasons) == 2  # the film and its pair
    assert result["funnel"]["pairs kept"] > 4
    for folder in ("tree", "references", "shards"):
        assert findings_file.read(out / folder) == LIST
    row = json.loads((out / "references/references.jsonl").read_text().splitlines()[0])
    assert row["prompt_changes"].items() <= {"pleural effusion": 1, "nodule": 1}.items()
    assert row["prompt_changes"]
    assert (row["states_before"]["nodule"], row["states_after"]["nodule"], len(row["states_after"])) == (0, 1, 14)
    example = Examples(out / "shards", "pairs", "train")[0]
    assert example["labels_after"].shape == (14,)
    assert example["labels_after"][0] == ("New" in example["prompt"]) == 1 - example["labels_before"][0]
    singles = [json.loads(line) for line in (out / "tree/singles.jsonl").read_text().splitlines()]
    assert {row["split"] for row in singles} == {"train", "validation"}
    sick = [row["text"] for row in singles if row["labels"]["Effusion"] == 1]
    assert sick
    assert all(re.match(r"(Pleural effusion|Right pleural effusion)\. (Left n|N)odule\.", text) for text in sick)
    boxes = [p.ours.get("boxes_after") for p in tree.read_pairs(out / "tree")]
    assert all(b is None or set(b) == {"pleural effusion", "nodule"} for b in boxes)


def test_texts_that_need_reports_are_refused(cohort, tmp_path):
    with pytest.raises(UserError, match="has labels and no reports; use rules"):
        build_tree("nih_cxr14", cohort, tmp_path, text_options=TextOptions("impression"), **QUIET)


def test_the_share_of_pairs_without_a_change_is_bounded(tmp_path):
    root = nih(tmp_path / "root", patients=8)
    text = (root / TABLE).read_text().replace("No Finding", "Effusion|Nodule")
    (root / TABLE).write_text(text.replace("00000001_001.png,Effusion|Nodule", "00000001_001.png,Mass"))
    funnel = build_tree("nih_cxr14", root, tmp_path / "out", unchanged=0.0, **QUIET)
    assert (funnel["candidate pairs"], funnel["pairs kept"]) == (16, 2)


@pytest.mark.skipif(not NIH.is_dir(), reason="the part of NIH ChestX-ray14 is not here")
def test_the_real_part_of_nih():
    studies, rejected = read("nih_cxr14", NIH)
    assert (len(studies), len(rejected), len({s.patient_id for s in studies})) == (489, 0, 342)
    found = read_cohort("nih_cxr14", NIH, Options(views=("PA+AP",), finding=False))
    assert found.funnel["candidate pairs"] == 147
    pairs = [p for j in found.journeys for p in j.pairs]
    assert sum(p.prior.view == p.followup.view for p in pairs) == 123
    assert sum(p.prior.labels != p.followup.labels for p in pairs) == 63
