"""Image files as gray images: modes, bit depths, what is broken, too large, or no image."""

import io
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from support import cohorts

from progemu_jax.data import images, radiograph


def _saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


GRAY = cohorts.chest(0)


def test_gray_files_are_read_as_they_are(tmp_path):
    np.testing.assert_array_equal(radiograph.read_gray(_saved(tmp_path, Image.fromarray(GRAY))), GRAY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_other_modes_become_gray(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image = radiograph.read_gray(_saved(tmp_path, Image.fromarray(GRAY).convert(mode), name))
    assert image.dtype == np.uint8
    if mode == "1":
        assert set(np.unique(image)) == {0, 255}
    else:
        assert np.abs(image.astype(int) - GRAY).max() <= (40 if mode == "CMYK" else 2)


def test_a_palette_with_transparency_keeps_its_luminance(tmp_path):
    image = Image.fromarray(GRAY).convert("P")
    image.info["transparency"] = 0
    assert np.abs(radiograph.read_gray(_saved(tmp_path, image)).astype(int) - GRAY).max() <= 2


def test_sixteen_bits_fill_the_range(tmp_path):
    values = GRAY.astype(np.uint16) * 12 + 700  # a 12-bit detector
    image = radiograph.read_gray(_saved(tmp_path, Image.fromarray(values)))
    span = (values - values.min()) * (255 / np.ptp(values))
    np.testing.assert_array_equal(image, np.round(span).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_broken(tmp_path, name, share):
    path = _saved(tmp_path, Image.fromarray(GRAY), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(images.BrokenImage, match=r"decode|neither"):
        radiograph.read_gray(path)


def test_unusable_files_name_the_reason(tmp_path):
    blank = _saved(tmp_path, Image.new("L", (64, 64), 7), "blank.png")
    tiny = _saved(tmp_path, Image.fromarray(GRAY[:16]), "tiny.png")
    gif = _saved(tmp_path, Image.fromarray(GRAY), "a.gif")
    for path, reason in (
        (blank, "blank"),
        (tiny, "64 x 16"),
        (gif, "neither"),
        (tmp_path / "no.png", "missing"),
    ):
        with pytest.raises(images.BrokenImage, match=reason):
            radiograph.read_gray(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(images.BrokenImage, match="no regular file"):
            radiograph.read_gray(path)


@pytest.mark.parametrize(("tag", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_film_that_was_held_on_its_side_is_turned(tmp_path, tag, turns):
    """EXIF's orientation: 6 is to be turned a quarter clockwise."""
    exif = Image.Exif()
    exif[0x0112] = tag
    path = _saved(tmp_path, Image.fromarray(GRAY[:48]), exif=exif)
    np.testing.assert_array_equal(radiograph.read_gray(path), np.rot90(GRAY[:48], turns))


def test_decompression_bombs_are_refused_before_decoding(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(images.BrokenImage, match="refused"):
        radiograph.read_gray(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(images.BrokenImage, match="64 x 64 pixels, more than 1000"):
        radiograph.read_gray(_saved(tmp_path, Image.fromarray(GRAY)), max_pixels=1000)


def test_resizing_averages_down_and_keeps_the_range_up():
    small = images.resize(GRAY, 32)
    means = GRAY.reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(small - means).max() <= 1  # rows, then columns: each pass rounds
    assert images.resize(GRAY, 100).shape == (100, 100)
    assert images.resize(GRAY[:40], 64).shape == (64, 64)
    assert images.resize(GRAY, 64) is GRAY
