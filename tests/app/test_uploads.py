"""Uploaded files: what is read, and one sentence for each that is not."""

import numpy as np
import pytest
from PIL import Image
from support import dicoms
from support.cohorts import chest

from progemu_jax.app import uploads
from progemu_jax.data import images
from progemu_jax.errors import UserError


def _text(path):
    path.write_text("this is no image, whatever its name says " * 8)


def _huge(path):
    """200 megapixels in a file of a few KB: only the header is true."""
    Image.new("1", (20_000, 10_000)).save(path)


def _gif(path):
    frames = [Image.fromarray(chest(n, 64)) for n in range(3)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


BAD = {
    "text called .png": (_text, "neither PNG nor JPEG"),
    "200 megapixels": (_huge, "pixels are refused"),
    "animated GIF": (_gif, "GIF"),
    "blank": (lambda path: Image.new("L", (64, 64), 7).save(path), "blank"),
    "tiny": (lambda path: Image.new("L", (8, 8)).save(path), "8 x 8 pixels"),
    "empty": (lambda path: path.write_bytes(b""), "neither PNG nor JPEG"),
    "half a DICOM": (lambda path: path.write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 90), "DICOM"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence_without_its_path(tmp_path, name):
    write, words = BAD[name]
    path = tmp_path / "zebrastripe.png"
    write(path)
    with pytest.raises(UserError) as error:
        uploads.read(path)
    said = str(error.value)
    assert words in said
    assert said.startswith("This file cannot be used: ")
    assert said.endswith("of a radiograph.")
    assert "zebrastripe" not in said
    assert "\n" not in said


def test_png_and_jpeg_are_read_whatever_they_are_called(tmp_path):
    film = chest(0, 64)
    (tmp_path / "film.txt").write_bytes(images.png(film))
    image, note = uploads.read(tmp_path / "film.txt")
    assert np.array_equal(image, film)
    assert note == ""


def test_16_bits_are_stretched_and_that_is_said(tmp_path):
    deep = 1000 + 10 * chest(0, 64).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "film.png")
    image, note = uploads.read(tmp_path / "film.png")
    assert (image.min(), image.max()) == (0, 255)
    assert "16-bit" in note


def test_dicom_is_told_by_its_first_bytes_and_its_header_is_not_repeated(tmp_path):
    path = dicoms.write(tmp_path / "film", 16 * chest(0, 64).astype(np.uint16))
    image, note = uploads.read(path)
    assert image.shape == (64, 64)
    assert "DICOM" in note
    assert "Zebrastripe" not in note


def test_an_upload_is_deleted_with_its_folder_and_a_lost_one_is_a_sentence(tmp_path):
    path = tmp_path / "hash" / "film.png"
    path.parent.mkdir()
    path.write_bytes(images.png(chest(0, 64)))
    uploads.delete(path)
    assert not path.parent.exists()
    uploads.delete(path)
    with pytest.raises(UserError, match="no longer there"):
        uploads.read(path)
