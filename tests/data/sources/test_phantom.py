"""The phantom cohort is laid out as MIMIC-CXR-JPG is, and is the truth."""

import csv
import gzip

import numpy as np
import pytest
from PIL import Image

from progemu_jax.data import phantom
from progemu_jax.data.sources import phantom as cohort
from progemu_jax.errors import UserError
from progemu_jax.text import findings


def _table(path):
    with gzip.open(path, "rt") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom") / "source"
    return cohort.write_cohort(root, patients=30, studies_per_patient=3, size=32, seed=5, progress=False)


def test_cohort_has_mimic_layout(root):
    metadata = _table(root / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert len(metadata) == 90
    assert len({row["study_id"] for row in metadata}) == 90
    assert len({row["subject_id"] for row in metadata}) == 30
    for row in metadata:
        subject, study = row["subject_id"], row["study_id"]
        assert (len(subject), len(study)) == (8, 8)
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
        with Image.open(folder / f"s{study}" / f"{row['dicom_id']}.jpg") as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "L", (32, 32))
        text = (folder / f"s{study}.txt").read_text()
        assert text.index("FINDINGS:") < text.index("IMPRESSION:")
    chexpert = _table(root / "mimic-cxr-2.0.0-chexpert.csv.gz")
    assert list(chexpert[0]) == ["subject_id", "study_id", *findings.CHEXPERT]
    assert {row[name] for row in chexpert for name in findings.CHEXPERT} == {"", "0.0", "1.0", "-1.0"}
    people = {row["subject_id"]: row for row in _table(root / "patients.csv.gz")}
    races = {row["race"] for row in _table(root / "admissions.csv.gz")}
    assert len(people) == 30
    assert races == {"GROUP A", "GROUP B"}


def test_cohort_splits_by_patient(root):
    split_of = {}
    for row in _table(root / "mimic-cxr-2.0.0-split.csv.gz"):
        assert split_of.setdefault(row["subject_id"], row["split"]) == row["split"]
        assert (row["split"] == "test") == row["subject_id"].startswith("19")
    assert set(split_of.values()) == {"train", "validate", "test"}


def test_cohort_dates_increase_and_truth_renders_the_files(root):
    truth = cohort.read_truth(root)
    by_patient = {}
    for row in _table(root / "mimic-cxr-2.0.0-metadata.csv.gz"):
        by_patient.setdefault(row["subject_id"], []).append(row)
    for rows in by_patient.values():
        rows.sort(key=lambda r: truth[r["study_id"]]["order"])
        dates = [(r["StudyDate"], float(r["StudyTime"])) for r in rows]
        assert dates == sorted(set(dates))
    rows = next(iter(by_patient.values()))
    first, second = (truth[r["study_id"]] for r in rows[:2])
    again = phantom.counterfactual(first, first, 32)
    folder = root / "files" / f"p{rows[0]['subject_id'][:2]}" / f"p{rows[0]['subject_id']}"
    file = folder / f"s{rows[0]['study_id']}" / f"{rows[0]['dicom_id']}.jpg"
    assert np.abs(np.asarray(Image.open(file), float) - again).mean() < 2  # JPEG
    assert set(first["state"]) == set(findings.FINDINGS)
    moved = phantom.counterfactual(first, second, 32)
    expected = phantom.render(
        phantom.Patient.from_dict(second["patient"]),
        phantom.State.from_dict(second["disease"]),
        phantom.Acquisition.from_dict(first["acquisition"]),
        32,
    ).image
    np.testing.assert_array_equal(moved, expected)


def test_labels_are_the_truth_but_for_the_stated_noise(tmp_path):
    """Without noise, CheXpert labels are the state's; with it, the stated share is wrong."""
    rng, wrong, doubtful, named = np.random.default_rng(0), 0, 0, 0
    for _ in range(1500):
        patient = phantom.sample_patient(rng)
        state = phantom.sample_trajectory(rng, patient, 1)[0]
        true = {
            name: any(v >= findings.PRESENT for f, v in state.as_mapping().items() if findings.CHEXPERT_OF[f] == name)
            for name in findings.CHEXPERT_OF.values()
        }
        exact = cohort._labels(rng, state, 0.0, 0.0)
        noisy = cohort._labels(rng, state, 0.03, 0.04)
        for name, value in true.items():
            assert exact[name] == 1.0 if value else exact[name] in (0.0, None)
            doubtful += noisy[name] == -1.0
            named += 1
            wrong += noisy[name] is not None and noisy[name] >= 0 and bool(noisy[name]) != value
    assert 0.03 < doubtful / named < 0.05
    assert 0.02 < wrong / named < 0.04


def test_cohort_does_not_depend_on_processes_and_partial_ones_are_redone(root, tmp_path):
    other = tmp_path / "source"
    stale = tmp_path / "source.partial" / "files"
    stale.mkdir(parents=True)
    (stale / "left-over.jpg").write_bytes(b"half a picture")
    arguments = {"patients": 30, "studies_per_patient": 3, "size": 32, "seed": 5, "progress": False}
    cohort.write_cohort(other, processes=2, **arguments)
    files = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    again = {p.relative_to(other): p.read_bytes() for p in other.rglob("*") if p.is_file()}
    assert files == again
    before = (other / "truth" / "cohort.json").stat().st_mtime_ns
    cohort.write_cohort(other, **arguments)  # complete: left alone
    assert (other / "truth" / "cohort.json").stat().st_mtime_ns == before


def test_a_root_that_holds_something_else_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="seed=5"):
        cohort.write_cohort(root, patients=30, studies_per_patient=3, size=32, seed=6, progress=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not a phantom cohort"):
        cohort.write_cohort(tmp_path, patients=2, studies_per_patient=1, size=32, seed=0, progress=False)
    with pytest.raises(UserError, match="patients=0"):
        cohort.write_cohort(tmp_path / "new", patients=0, studies_per_patient=1, size=32, seed=0)


def test_one_split_of_a_cohort_is_what_the_whole_one_holds(root, tmp_path):
    part = tmp_path / "source"
    cohort.write_cohort(part, patients=30, studies_per_patient=3, size=32, seed=5, progress=False, split="test")
    files = {p.relative_to(root): p.read_bytes() for p in (root / "files/p19").rglob("*") if p.is_file()}
    assert files == {p.relative_to(part): p.read_bytes() for p in (part / "files").rglob("*") if p.is_file()}
    held = {study: row for study, row in cohort.read_truth(root).items() if row["split"] == "test"}
    assert cohort.read_truth(part) == held
    with pytest.raises(UserError, match="split=None"):
        cohort.write_cohort(root, patients=30, studies_per_patient=3, size=32, seed=5, progress=False, split="test")
