"""What a saved image says of where it came from."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from support.cohorts import chest
from support.errors import fails
from support.tiny_run import GRID, PROMPT, SIZE

import progemu_jax
from progemu_jax import provenance
from progemu_jax.errors import UserError


@pytest.fixture(scope="module")
def futures(tiny_model):
    return tiny_model.counterfactual(chest(0, SIZE), PROMPT, num_samples=3, seed=4)


class TestProvenance:
    def test_saved_futures_carry_theirs(self, tiny_model, futures, tmp_path, capsys):
        path = futures.save(tmp_path / "out", "case-7")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["sample"] for row in rows] == [0, 1, 2]
        for row, image, text in zip(rows, futures.images, futures.texts, strict=True):
            assert row["text"] == text
            assert row["pair_id"] == "case-7"
            file = path.parent / row["image"]
            with Image.open(file) as opened:
                np.testing.assert_array_equal(np.asarray(opened), image)
                chunks = opened.text
            assert "SYNTHETIC" in chunks["Comment"]
            assert chunks["Software"] == f"progemu_jax {progemu_jax.__version__}"
            assert chunks["progemu:model"] == tiny_model.hash
            assert len(tiny_model.hash) == 64
            assert chunks["progemu:prompt"] == PROMPT
            assert (chunks["progemu:seed"], chunks["progemu:sample"]) == ("4", str(row["sample"]))
            settings = json.loads(chunks["progemu:sampling"])
            assert settings["guidance"] == 2.0
            assert settings["free_codes"] == [GRID[0] * GRID[1]] * 3
            assert provenance.read_png(file) == chunks
        assert provenance.main([str(file)]) == 0
        assert "progemu:prompt: New small left" in capsys.readouterr().out
        with pytest.raises(UserError, match="already"):
            futures.save(tmp_path / "out")

    @pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "", 7])
    def test_a_name_that_is_a_path_writes_nothing(self, futures, tmp_path, name):
        fails("name=", futures.save, tmp_path / "out", name)
        assert not list(tmp_path.iterdir())

    def test_a_file_is_no_folder(self, futures, tmp_path):
        (tmp_path / "file").write_text("keep")
        fails("is no folder", futures.save, tmp_path / "file")

    def test_what_was_understood_is_there_and_bounded(self, futures, tmp_path):
        long = dataclasses.replace(futures, prompt="Frobnicate the spleen. " * 400 + PROMPT)
        assert len(long.understood.rest) > 5000
        long.save(tmp_path)
        found = json.loads(provenance.read_png(tmp_path / "images/request-0.png")["progemu:understood"])
        assert found["read"][0]["finding"] == "pleural effusion"
        assert len(found["rest"]) == 200

    def test_an_image_from_before_is_read_without_it(self, tmp_path):
        provenance.write_png(tmp_path / "old.png", np.zeros((4, 4), np.uint8), prompt=PROMPT, seed=4)
        found = provenance.read_png(tmp_path / "old.png")
        assert {key for key in found if ":" in key} == {"progemu:prompt", "progemu:seed"}

    def test_any_text_survives(self, tmp_path):
        prompt = 'Ergüsse "beidseits" – 胸水\nnew'
        provenance.write_png(tmp_path / "x.png", np.zeros((4, 4), np.uint8), prompt=prompt, checkpoint="röntgen@1")
        found = provenance.read_png(tmp_path / "x.png")
        assert (found["progemu:prompt"], found["progemu:checkpoint"]) == (prompt, "röntgen@1")

    def test_the_evaluation_reads_the_same_pixels(self, futures, tmp_path):
        from progemu_jax.eval.predictions import read_image

        futures.save(tmp_path)
        np.testing.assert_array_equal(read_image(tmp_path / "images/request-2.png"), futures.images[2])

    def test_other_files_are_one_line(self, tmp_path, capsys):
        Image.new("L", (4, 4)).save(tmp_path / "plain.png")
        (tmp_path / "no.png").write_text("x")
        for name in ("plain.png", "no.png", "absent.png"):
            assert provenance.main([str(tmp_path / name)]) == 2
            assert capsys.readouterr().err.count("\n") == 1

    def test_what_a_stranger_wrote_cannot_steer_the_terminal(self, tmp_path, capsys):
        provenance.write_png(tmp_path / "x.png", np.zeros((4, 4), np.uint8), prompt="a\n  progemu:seed: 7\x1b[2J")
        assert provenance.main([str(tmp_path / "x.png")]) == 0
        out = capsys.readouterr().out
        assert r"progemu:prompt: a\n  progemu:seed: 7\x1b[2J" in out
        assert "\x1b" not in out

    def test_a_bomb_is_one_line(self, tmp_path, capsys, monkeypatch):
        provenance.write_png(tmp_path / "x.png", np.zeros((40, 40), np.uint8), prompt="a")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert provenance.main([str(tmp_path / "x.png")]) == 2
        assert "DecompressionBomb" in capsys.readouterr().err

    def test_the_hash_is_of_the_weights_alone(self):
        one = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.int32)}
        assert provenance.weights_hash(one) == provenance.weights_hash(dict(reversed(one.items())))
        changed = [one | {"a": np.ones(3, np.float64)}, one | {"b": np.zeros((4, 1), np.int32)}, {"c": one["a"]}]
        assert len({provenance.weights_hash(x) for x in (one, *changed)}) == 4
