"""Broken cohorts through the whole data stage: one clear line, or the study rejected and the run goes on."""

import csv
import errno
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.cohorts import chest

from progemu_jax import run as run_
from progemu_jax.configs import open_cxr
from progemu_jax.errors import UserError, disk_trouble

COLUMNS = ("patientid", "offset", "sex", "age", "view", "modality", "folder", "filename", "clinical_notes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Fourteen patients of two days in the open collection's layout."""
    root = tmp_path_factory.mktemp("whole")
    (root / "images").mkdir()
    rows = []
    for patient in range(14):
        for day, note in enumerate(("Clear lungs, no effusion.", "Small left pleural effusion.")):
            name = f"{patient}-{day}.png"
            Image.fromarray(chest(100 * patient + day, 96)).save(root / "images" / name)
            rows.append((patient, day, "F", 50, "PA", "X-ray", "images", name, note))
    with open(root / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return root


@pytest.fixture
def root(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cohort")


def run(root, workdir, **journeys):
    config = open_cxr.get_config()
    config.data.root = str(root)
    config.data.processes = 1
    config.data.tree_size = config.data.image_size = 64
    config.data.journeys.update(duplicates=False, pairs="consecutive")
    config.data.journeys.update(journeys)
    run_.run(config, workdir, ["data"])
    rejected = (workdir / "data/tree/rejected.jsonl").read_text().splitlines()
    funnel = json.loads((workdir / "data/tree/funnel.json").read_text())["funnel"]
    return [json.loads(line) for line in rejected], funnel


def fails(root, tmp_path, *words, **journeys):
    with pytest.raises(UserError) as caught:
        run(root, tmp_path / "run", **journeys)
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_a_whole_cohort_passes(whole, tmp_path):
    rejected, funnel = run(whole, tmp_path)
    assert rejected == []
    assert funnel["pairs kept"] == 14


def test_an_empty_root(tmp_path):
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", tmp_path, "empty", "is empty")


@pytest.mark.parametrize("content", [np.random.default_rng(0).bytes(9000), b"", b"\x89PNG\r\n", b"a,b\n1,2\n"])
def test_a_table_that_is_none(root, tmp_path, content):
    (root / "metadata.csv").write_bytes(content)
    fails(root, tmp_path, "metadata.csv")


def test_a_table_cut_within_a_quote(root, tmp_path):
    with open(root / "metadata.csv", "a") as file:
        file.write('3,4,"F')
    fails(root, tmp_path, "metadata.csv", "line 29")


def test_a_table_cut_within_a_row(root, tmp_path):
    table = root / "metadata.csv"
    table.write_bytes(table.read_bytes()[:-60])
    rejected, funnel = run(root, tmp_path / "run")
    assert [r["path"] for r in rejected] == ["metadata.csv:29"]
    assert funnel["pairs kept"] == 13


def test_a_note_in_the_column_of_views_is_not_quoted(root, tmp_path):
    table = root / "metadata.csv"
    table.write_text(table.read_text().replace("PA,X-ray,images,0-0.png", "JOHN DOE has a mass,X-ray,images,0-0.png"))
    rejected, _ = run(root, tmp_path / "run")
    assert [r["reason"] for r in rejected] == ["view ? is not asked for"]


def test_every_broken_image_is_named_and_the_others_are_kept(root, tmp_path):
    images = root / "images"
    good = (images / "0-0.png").read_bytes()
    Image.open(images / "0-0.png").save(tmp_path / "x.jpg")
    jpeg = (tmp_path / "x.jpg").read_bytes()
    (images / "0-0.png").write_bytes(good[: len(good) // 2])
    (images / "1-1.png").write_bytes(b"")
    (images / "2-1.png").write_text("hello")
    (images / "3-0.png").unlink()
    (images / "4-0.png").write_bytes(jpeg[: len(jpeg) // 2])
    Image.new("L", (8, 8), 3).save(images / "5-0.png")
    Image.new("L", (96, 96), 9).save(images / "6-1.png")
    rejected, funnel = run(root, tmp_path / "run")
    assert funnel["pairs kept"] == 7
    reasons = {r["reason"].split(": ")[1]: r["reason"] for r in rejected if "of the pair" in r["reason"]}
    expected = {
        "0-0.png": "truncated", "1-1.png": "neither PNG nor JPEG", "2-1.png": "neither PNG nor JPEG",
        "3-0.png": "missing", "4-0.png": "truncated", "5-0.png": "8 x 8 pixels", "6-1.png": "blank",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert all(why in reasons[name] for name, why in expected.items()), reasons


def test_any_size_and_mode_is_read(root, tmp_path):
    for number, mode in enumerate(("RGB", "RGBA", "P", "1", "LA", "CMYK", "I;16")):
        path = root / "images" / f"{number}-0.png"
        gray = Image.open(path).resize((200 + 10 * number, 90))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 200)
        else:
            image = gray.convert(mode)
        image.save(path, "JPEG" if mode == "CMYK" else "PNG")
    rejected, funnel = run(root, tmp_path / "run")
    assert rejected == []
    assert funnel["pairs kept"] == 14


def test_no_image_at_all(root, tmp_path):
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    fails(root, tmp_path, "no pair is left", "rejected.jsonl")


def test_a_split_without_a_pair(whole, tmp_path):
    fails(whole, tmp_path, "no pair of the validation split", validation=0.0)


def test_a_workdir_that_is_a_file(whole, tmp_path):
    (tmp_path / "run").write_text("")
    fails(whole, tmp_path, "--workdir", "choose another")


def test_trouble_with_the_disk_is_told_from_other_errors():
    assert "full.npz" in disk_trouble(OSError(errno.EROFS, "Read-only file system", "full.npz"))
    assert disk_trouble(RuntimeError("write() failed: No space left on device; writing x"))
    assert disk_trouble(OSError(errno.EFBIG, "File too large", "x"))  # ulimit -f, or the file system's own limit
    assert disk_trouble(RuntimeError("shape mismatch")) is None
    assert disk_trouble(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
