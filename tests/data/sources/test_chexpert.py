"""CheXpert: both sizes' layout, the paper's policy for uncertain labels, every defect, and the whole way to shards."""

import pytest
from support import cohorts
from support.cohorts import QUIET, read
from support.label_cohorts import chexpert, edit

from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, read_cohort
from progemu_jax.data.journeys import Options
from progemu_jax.data.sources import State
from progemu_jax.data.sources.label_findings import CHEXPERT as LIST
from progemu_jax.errors import UserError
from progemu_jax.text.findings import CHEXPERT

SICK = "train/patient00001/study2/view1_frontal.jpg,Female,60,Frontal,PA,"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return chexpert(tmp_path_factory.mktemp("chexpert"))


def test_a_study_has_every_field(cohort):
    studies, rejected = read("chexpert", cohort, views=("PA",))
    assert (len(studies), len(rejected)) == (18, 6)
    assert {r.reason for r in rejected} == {"view LATERAL is not asked for"}
    study = studies[1]
    assert (study.patient_id, study.study_id, study.image_id) == ("00001", "00002", "p00001-view1_frontal")
    assert study.image_path == cohort / "train/patient00001/study2/view1_frontal.jpg"
    assert (study.order_key, study.days, study.age, study.sex, study.split) == ((2.0,), None, 60.0, "F", "train")
    assert studies[-1].split == "validation"
    assert not any(study.report.values())
    assert set(study.labels) == {f.label for f in LIST} == set(CHEXPERT) - {"No Finding"}


def test_uncertain_and_blank_labels_follow_the_paper(cohort):
    well, sick = read("chexpert", cohort, views=("PA",))[0][:2]
    raw = {name: value for name, value in sick.labels.items() if value is not None}
    assert raw == {"Pleural Effusion": 1, "Cardiomegaly": -1, "Edema": -1}
    # U-Ones for edema; apart from yes and no for cardiomegaly; nothing of what is blank.
    assert sick.states == {
        "pleural effusion": State(True), "pulmonary edema": State(True), "cardiomegaly": State(None),
    }  # fmt: skip
    # "No Finding" is the absence of all but devices.
    assert well.states == {f.name: State(False) for f in LIST if f.label != "Support Devices"}
    assert set(well.labels.values()) == {None}


def test_both_sizes_read_alike(cohort, tmp_path):
    small, _ = read("chexpert", chexpert(tmp_path, name="CheXpert-v1.0-small"))
    large, _ = read("chexpert", cohort)
    assert [(s.image_id, s.states) for s in small] == [(s.image_id, s.states) for s in large]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f"CheXpert-v1.0/{SICK}", f"/etc/passwd,{SICK.partition(',')[2]}", "the image's path is not"),
        ("patient00001/study2", "patient00001/..", "the image's path is not"),
        ("patient00001/study2", "patient00001/study", "the image's path is not"),
        ("patient00001/study2", "patient00001/study9", "the image file is missing"),
        (SICK, f"{SICK}1.0", "No Finding stands beside a finding"),
        (f"{SICK},1.0", f"{SICK},yes", "a label is none of 1, 0, -1"),
        (SICK, f"{SICK},", "number of cells"),
    ],
)
def test_a_broken_row_is_rejected_with_its_reason(tmp_path, old, new, reason):
    root = chexpert(tmp_path, patients=2)
    edit(root / "train.csv", (old, new))
    studies, rejected = read("chexpert", root, views=("PA",))
    assert len(studies) == 5
    assert [r.path for r in rejected if reason in r.reason] == ["train.csv:4"]


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    root = chexpert(tmp_path / "root", patients=2)
    image = root / "train/patient00001/study2/view1_frontal.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    rejected = read("chexpert", root, views=("PA",))[1]
    assert [r.reason for r in rejected if not r.reason.startswith("view ")] == ["the image's path leaves the root"]


def test_a_wrong_root_is_one_line(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=r"train\.csv: the file is missing"):
        read("chexpert", tmp_path)
    (tmp_path / "train.csv").write_text("Path\n")
    with pytest.raises(UserError, match="train: no such folder"):
        read("chexpert", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="column 'Sex' is missing"):
        read("chexpert", tmp_path)


def test_splits_of_the_source_have_no_test(cohort):
    found = read_cohort("chexpert", cohort, Options(split="csv"))
    assert [j.split for j in found.journeys] == ["train"] * 5 + ["validation"]


def test_to_shards(tmp_path):
    root = chexpert(tmp_path / "root", patients=12)
    broken = root / "train/patient00001/study1/view1_frontal.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    options = {"validation": 0.3, "test": 0.3}
    result = build("chexpert", root, tmp_path / "out", image_size=32, options=options, **QUIET)
    assert result["funnel"]["pairs kept"] == 23
    examples = [Examples(tmp_path / "out/shards", "pairs", split)[0] for split in ("train", "validation", "test")]
    assert {e["labels_before"].shape for e in examples} == {(13,)}
    columns = [f.label for f in LIST]
    for e in examples:
        before, after = e["labels_before"], e["labels_after"]
        sick, well = (after, before) if "New" in e["prompt"] else (before, after)
        assert (sick[columns.index("Pleural Effusion")], sick[columns.index("Edema")]) == (1, -1)
        assert set(well) == {-2}
        assert "ardiomegaly" not in e["prompt"] + e["interpretation"]  # the source is uncertain
    assert not any(cohorts.SECRET in str(e) for e in examples)
