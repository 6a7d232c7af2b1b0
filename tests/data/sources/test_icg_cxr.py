"""ICG-CXR as distributed: joined with the images and reports of two cohorts, every defect, the whole way to shards."""

import json

import numpy as np
from PIL import Image
from support import cohorts
from support.cohorts import QUIET, read

from progemu_jax.data import radiograph, tree
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, build_tree
from progemu_jax.data.sources import Given
from progemu_jax.files import records


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
    change(10, **{"time-interval": 10**400})  # not told
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
