"""CheXpert Plus, ICG-CXR as distributed and a plain folder: every field, every defect, and the whole way to shards."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import cohorts

from progemu_jax.data import radiograph, tree
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, build_tree
from progemu_jax.data.sources import SOURCES, Given, Rejected, needed_files, open_source
from progemu_jax.errors import UserError
from progemu_jax.files import records

QUIET = {"size": 64, "processes": 1, "progress": False}
HASH = {"split": "hash", "validation": 0.3, "test": 0.3}


def read(name, root, **options):
    reader = open_source(name, root, **options)
    items = list(reader.pairs() if hasattr(reader, "pairs") else reader.studies())
    return [i for i in items if not isinstance(i, Rejected)], [i for i in items if isinstance(i, Rejected)]


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    return cohorts.chexpertplus(tmp_path_factory.mktemp("plus"))


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    return cohorts.write(tmp_path_factory.mktemp("mimic"), patients=11, studies=2)


@pytest.fixture
def icg(plus, mimic, tmp_path):
    return cohorts.icg_cxr(tmp_path / "icg", plus, mimic)


# CheXpert Plus.


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


# ICG-CXR.


def test_icg_pairs_are_joined_with_images_and_reports(icg, plus, mimic):
    pairs, rejected = read("icg_cxr", icg, mimic_cxr=mimic, chexpertplus=plus, views=("PA",))
    assert (len(pairs), rejected) == (12 + 11, [])
    one, other = pairs[0], pairs[-1]
    assert isinstance(one, Given)
    assert (one.prior.source, one.prior.patient_id, one.ordinals) == ("chexpertplus", "00001", (1, 3))
    assert one.prior.image_path == plus / "PNG/train/patient00001/study1/view1_frontal.png"
    assert one.followup.report["impression"] == "Small left pleural effusion."
    assert (one.prior.labels["No Finding"], one.prior.labels["Edema"]) == (1, None)
    assert (one.prompt, one.confidence) == ("Mild pleural effusion has developed on the left.", 4)
    assert (one.prior.age, one.prior.sex, one.prior.group) == (61.0, "F", "OTHER")
    assert (other.prior.source, other.prior.patient_id) == ("mimic_cxr", "19000009")
    assert other.prior.image_path.exists()
    assert other.prior.report["impression"] == "No pleural effusion."
    assert cohorts.SECRET not in repr(pairs)


def test_icg_ids_may_have_folders_and_endings(icg, plus, mimic):
    """Only some of its JSON files are public; how the ids of the MIMIC branch are written is not known."""
    for branch, form in (("mimic_cxr", "files/p10/x/{}.jpg"), ("chexpertplus", "{}.dcm")):
        for path in (icg / branch).rglob("*.json"):
            meta = json.loads(path.read_text())
            for key in ("reference-dicom-id", "followup-dicom-id"):
                meta[key] = form.format(meta[key])
            path.write_text(json.dumps(meta))
    pairs, rejected = read("icg_cxr", icg, mimic_cxr=mimic, chexpertplus=plus, views=("PA",))
    assert (len(pairs), rejected) == (12 + 11, [])
    assert all(s.image_path.exists() and any(s.report.values()) for p in pairs for s in (p.prior, p.followup))


def test_icg_becomes_shards_in_the_splits_of_both_cohorts(icg, plus, mimic, tmp_path):
    places = {"mimic_cxr": mimic, "chexpertplus": plus}
    options = {"validation": 0.3, "test": 0.3}
    funnel = build("icg_cxr", icg, tmp_path / "out", options=options, source_options=places, **QUIET)["funnel"]
    pairs = list(tree.read_pairs(tmp_path / "out/tree"))
    assert len(pairs) == funnel["pairs kept"] > 15
    assert {p.split for p in pairs if p.source == "mimic_cxr" and p.patient_id.startswith("19")} == {"test"}
    one = next(p for p in pairs if p.patient_id == "00002")
    path = one.prior_path.relative_to(tmp_path / "out/tree")
    assert path.parts[-2:] == ("i01s0001-i03s0002", "i01s0001-i03s0002-ref-reg.png")
    assert one.meta["reg_metric"] == 2165.8  # unknown keys are kept
    assert one.meta["comment"] == {"confidence": 4, "reason": "Consistent observations."}
    assert one.meta["reference-report"]["impression"] == "No pleural effusion."
    assert one.interpretation == "There is blunting of the left costophrenic angle."
    train = Examples(tmp_path / "out/shards", "pairs", "train")
    assert all(e["confidence"] == 4 for e in train)


def test_icg_images_that_are_there_already_are_taken_as_registered(icg, mimic, tmp_path):
    folder = next((icg / "mimic_cxr").rglob("*.json")).parent
    for number, side in enumerate(("ref", "flu")):
        Image.fromarray(cohorts.chest(number)).save(folder / f"{folder.name}-{side}-reg.png")
    funnel = build_tree("icg_cxr", icg, tmp_path / "t", options={"validation": 0.0},
                        source_options={"reports": mimic}, **QUIET)  # fmt: skip
    assert funnel["pairs kept"] == 1
    (pair,) = tree.read_pairs(tmp_path / "t")
    np.testing.assert_array_equal(radiograph.read_gray(pair.followup_path), cohorts.chest(1))
    rejected = [row["reason"] for _, row in records.read_lines(tmp_path / "t/rejected.jsonl")]
    assert any("name the cohort by config.data.chexpertplus" in reason for reason in rejected)


def test_broken_icg_pairs_are_rejected(icg, plus, mimic, tmp_path):
    files = sorted((icg / "chexpertplus").rglob("*.json"))

    def change(number, **keys):
        meta = json.loads(files[number].read_text()) | keys
        files[number].write_text(json.dumps({k: v for k, v in meta.items() if v != "drop"}))

    files[0].write_text("{")
    files[1].write_text("[]")
    files[2].write_text('{"a": "' + "x" * (1 << 20) + '"}')
    files[3].write_text("[" * 100_000)
    change(4, **{"progression-description": "drop"})
    change(5, **{"followup-dicom-id": "../../../etc/passwd"})
    change(6, **{"reference-dicom-id": "/etc/passwd"})
    change(7, view="LATERAL")
    change(9, view="pa")  # the same view in another hand
    target = tmp_path / "x.json"
    files[8].rename(target)
    files[8].symlink_to(target)
    pairs, rejected = read("icg_cxr", icg, mimic_cxr=mimic, chexpertplus=plus, views=("PA",))
    assert len(pairs) == 3 + 11
    reasons = [r.reason.split(" (")[0] for r in rejected]
    assert reasons == [
        "the JSON does not parse", "the JSON is not an object", "the JSON is larger than 1048576 bytes",
        "the JSON does not parse", "key 'progression-description' is missing or not text",
        "the image's path leaves the root", "the image's path leaves the root", "view LATERAL is not asked for",
        "the path leaves the root",
    ]  # fmt: skip


# A plain folder.


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


# All.


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
