"""The model in the box: a run packed, loaded by name, and judged by the packed scorer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import packed_run
from support.cohorts import chest
from support.tiny_run import PROMPT

import progemu_jax
from progemu_jax import pretrained
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case
from progemu_jax.pretrained import __main__ as packing
from progemu_jax.scorers.__main__ import load as scorer_of
from progemu_jax.scorers.phantom import PhantomScorer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return packed_run.write(tmp_path_factory.mktemp("packed") / "run")


@pytest.fixture(scope="module")
def box(run):
    out = run.parent / "box"
    assert packing.main([f"--run={run}", f"--out={out}"]) == 0
    return out


@pytest.fixture
def in_package(box, monkeypatch):
    monkeypatch.setattr(pretrained, "PLACE", box)


def test_the_packed_model_makes_the_runs_images(run, in_package):
    ours, theirs = progemu_jax.load("phantom"), progemu_jax.load(run)
    assert ours.name.startswith("phantom@")
    assert ours.policy == theirs.policy
    assert ours.vocabulary.hash == theirs.vocabulary.hash
    assert ours.tokenizer.painter is not None
    pixels = [chest(i, 32) for i in range(4)]
    cases = [Case(f"c{i}", theirs.tokenize(image), PROMPT, 0, image) for i, image in enumerate(pixels)]
    a, b = (model.sample(cases, seed=1) for model in (ours, theirs))
    same = a.codes == b.codes
    assert same.mean() > 0.9
    assert np.abs(a.images.astype(int) - b.images)[same.all(axis=(1, 2))].mean() < 1
    assert ours.hash != theirs.hash  # rounded


def test_a_packed_model_has_half_the_bytes(run, box):
    def size(folder):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size(box / "phantom/train/export") < 0.75 * size(run / "train/export")
    assert not list(box.glob("*.tmp"))


def test_the_scorer_of_the_package_scores_as_the_runs(run, in_package):
    images = np.stack([chest(i, 32) for i in range(2)])
    a, b = (PhantomScorer.load(place)(images, "phantom") for place in ("phantom", run / "scorer/export"))
    np.testing.assert_allclose(a["finding_prob"], b["finding_prob"], atol=1e-2)
    assert scorer_of("phantom").identity == PhantomScorer.load("phantom").identity


def test_a_path_is_a_folder_and_the_bare_name_is_not(in_package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert progemu_jax.load("phantom").name.startswith("phantom@")
    for path in ("./phantom", Path("phantom"), str(tmp_path / "phantom")):
        with pytest.raises(UserError, match="no such folder"):
            progemu_jax.load(path)


def test_without_weights_the_error_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "PLACE", tmp_path)
    for read in (progemu_jax.load, PhantomScorer.load):
        with pytest.raises(UserError, match=r"progemu_jax\.pretrained --run=RUN") as caught:
            read("phantom")
        assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_line(box, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "PLACE", shutil.copytree(box, tmp_path / "box"))
    path = tmp_path / "box/phantom/train/export/params.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train/export: the export is damaged.*SHA-256") as caught:
        progemu_jax.load("phantom")
    assert "\n" not in str(caught.value)


class TestRefusals:
    def refused(self, capsys, run, out, *words):
        assert packing.main([f"--run={run}", f"--out={out}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert all(word in error for word in words), error
        assert not list(Path(out).glob("*.tmp"))

    def test_too_large(self, run, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(packing, "LIMIT", 10_000)
        self.refused(capsys, run, tmp_path, "MB packed")
        assert not list(tmp_path.iterdir())

    def test_an_unfinished_run(self, tmp_path, capsys):
        self.refused(capsys, tmp_path / "absent", tmp_path, "train/export")

    def test_a_model_of_patients(self, run, tmp_path, capsys):
        other = shutil.copytree(run, tmp_path / "run")
        (other / "config.json").write_text(json.dumps({"data": {"source": "mimic_cxr"}}))
        self.refused(capsys, other, tmp_path / "box", "mimic_cxr")

    def test_a_folder_of_something_else(self, run, tmp_path, capsys):
        (tmp_path / "scorer").mkdir()
        (tmp_path / "scorer/notes.txt").write_text("mine")
        self.refused(capsys, run, tmp_path, "no packed model")
        assert (tmp_path / "scorer/notes.txt").exists()
        assert not (tmp_path / "phantom").exists()

    def test_an_earlier_pack_is_replaced(self, run, box, tmp_path, capsys):
        again = shutil.copytree(box, tmp_path / "box")
        (again / "phantom/old").write_text("")
        assert packing.main([f"--run={run}", f"--out={again}"]) == 0
        assert not (again / "phantom/old").exists()
