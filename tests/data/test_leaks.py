"""The leak check: patients, images and near-duplicates across splits, and the list of a benchmark's patients."""

import numpy as np
import pytest
from support import cohorts
from support.cohorts import OPEN
from support.films import chest, saved_again

from progemu_jax.data import foreground, images, leaks, radiograph
from progemu_jax.data.build import build_tree
from progemu_jax.data.duplicates import perceptual_hash, thumbnail
from progemu_jax.data.sources import open_source
from progemu_jax.files import records

QUIET = {"size": 64, "processes": 1, "progress": False}


def row(patient, split, image, study="1"):
    small = images.resize(image, 64)
    return {
        "source": "x", "patient_id": patient, "study_id": study, "image_id": "i", "split": split,
        "pixels": thumbnail(small).tobytes().hex(), "hash": perceptual_hash(small),
    }  # fmt: skip


def found(*rows):
    return [(r["what"], r["a"].split("/")[2], r["b"].split("/")[2]) for r in leaks.crossing(rows)]


def test_each_kind_of_leak_is_found_and_nothing_else():
    apart = [row(str(n), ("train", "validation", "test")[n % 3], chest(n)) for n in range(60)]
    assert found(*apart) == []
    assert found(*apart, row("0", "test", chest(99))) == [("patient", "0", "0")]
    assert found(*apart, row("99", "test", chest(0))) == [("image", "99", "0")]
    again = np.clip(20 + 0.8 * chest(0).astype(float), 0, 255).astype(np.uint8)
    assert found(*apart, row("99", "test", again)) == [("near-duplicate", "0", "99")]
    assert found(*apart, row("99", "train", again)) == []  # of the same split


def test_bands_find_exactly_what_a_comparison_of_all_finds():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 18), np.uint8)
    flips = [np.packbits(rng.permutation(144) < n).reshape(18) for n in rng.integers(0, 30, 160)]
    table = np.array([base[i % 40] ^ flip for i, flip in enumerate(flips)])
    groups = [("a", "b")[i] for i in rng.integers(0, 2, 160)]
    every = np.unpackbits(table[:, None] ^ table[None], axis=-1).sum(-1)
    expected = [(i, j, int(every[i, j])) for i in range(160) for j in range(i + 1, 160)
                if every[i, j] <= leaks.NEAR and groups[i] != groups[j]]  # fmt: skip
    assert len(expected) > 10
    assert leaks.near_pairs([r.tobytes().hex() for r in table], groups) == expected


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A cohort in which p19 holds a film of p10, saved again."""
    root = cohorts.write(tmp_path_factory.mktemp("in"), patients=11, studies=2, size=128)
    images_of = [sorted((root / "files").glob(f"{p}/*/*/*.jpg"))[0] for p in ("p10", "p19")]
    from PIL import Image

    copy = np.asarray(Image.open(images_of[0])).astype(float)
    Image.fromarray(np.clip(10 + 0.9 * copy, 0, 255).astype(np.uint8)).save(images_of[1], quality=90)
    out = tmp_path_factory.mktemp("out") / "tree"
    return out, build_tree("mimic_cxr", root, out, options={"validation": 0.2}, **QUIET), root


def test_the_build_counts_leaks_and_the_command_names_them(built, capsys, tmp_path):
    out, funnel, root = built
    assert funnel["leaks between splits"] >= 1
    assert leaks.main([f"--tree={out}", f"--write={tmp_path / 'list.txt'}"]) == 1
    text = capsys.readouterr().out
    assert "near-duplicate: train/mimic_cxr/10000000/50000000/" in text
    assert "test/mimic_cxr/19000009/50000900/" in text
    assert cohorts.SECRET not in text
    again = build_tree("mimic_cxr", root, tmp_path / "t", options={"validation": 0.2}, exclude=tmp_path / "list.txt",
                       **QUIET)  # fmt: skip
    assert again["leaks between splits"] == 0
    assert leaks.main([f"--tree={tmp_path / 't'}"]) == 0
    assert "nothing crosses" in capsys.readouterr().out


def test_patients_of_a_benchmark_may_not_be_trained_on(built, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("11000001\n19000009\n")
    assert leaks.main([f"--tree={built[0]}", f"--subjects={tmp_path / 'list.txt'}"]) == 1
    text = capsys.readouterr().out
    assert "on the list: mimic_cxr/11000001" in text
    assert "mimic_cxr/19000009\n" not in text  # of the test


def test_a_tree_without_hashes_is_one_clear_line(tmp_path, capsys):
    assert leaks.main([f"--tree={tmp_path}"]) == 2
    records.write_lines(tmp_path / "images.jsonl", [{"source": 3}])
    assert leaks.main([f"--tree={tmp_path}"]) == 2
    row = dict.fromkeys(("source", "patient_id", "study_id", "image_id", "split", "pixels"), "x")
    for wrong in ("zz", "abc", "ab"):
        records.write_lines(tmp_path / "images.jsonl", [{**row, "hash": "abcd"}, {**row, "hash": wrong}])
        assert leaks.main([f"--tree={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 5


def test_a_folder_is_no_list(built, tmp_path, capsys):
    assert leaks.main([f"--tree={built[0]}", f"--write={tmp_path}"]) == 2
    assert "is a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_film_saved_again_keeps_its_hash_about():
    def bits(a, b):
        return np.unpackbits(
            np.frombuffer(bytes.fromhex(a), np.uint8) ^ np.frombuffer(bytes.fromhex(b), np.uint8)
        ).sum()

    again = saved_again(chest(3))
    cropped = foreground.warp(again, foreground.rectangle(again))
    assert bits(perceptual_hash(chest(3)), perceptual_hash(cropped)) <= leaks.NEAR
    assert bits(perceptual_hash(chest(3)), perceptual_hash(chest(4))) > 3 * leaks.NEAR


@pytest.mark.skipif(not OPEN.is_dir(), reason="the open collection is not here")
def test_the_double_patient_of_the_real_open_collection_is_found_and_nobody_else():
    films = list(open_source("open_cxr", OPEN).studies())
    some = sorted({s.patient_id for s in films} - {"97", "178"})[:8]
    films = [s for s in films if s.patient_id in ("97", "178", *some)]
    rows = []
    for film in films:
        raw = radiograph.read_gray(film.image_path)
        corners = foreground.rectangle(raw)
        cropped = images.resize(raw if corners is None else foreground.warp(raw, corners), 256)
        split = "train" if film.patient_id in ("97", *some[:4]) else "test"
        rows.append(row(film.patient_id, split, cropped, film.study_id) | {"hash": perceptual_hash(cropped)})
    pairs = {(what, *sorted((a, b))) for what, a, b in found(*rows)}
    assert {names[1:] for names in pairs} == {("178", "97")}
