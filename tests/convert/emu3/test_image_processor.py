"""Emu3's sizes of images, by hand."""

import pytest

from progemu_jax.convert.emu3.image_processor import smart_resize
from progemu_jax.errors import UserError


@pytest.mark.parametrize(
    ("size", "want"),
    [((512, 512), (512, 512)), ((500, 500), (512, 512)), ((2000, 1000), (1448, 720)), ((100, 300), (296, 888))],
)
def test_smart_resize_by_hand(size, want):
    assert smart_resize(*size, 8, 512**2, 1024**2) == want


def test_images_that_cannot_be_resized():
    for shape in ((4, 100), (100, 501)):
        with pytest.raises(UserError, match="crop"):
            smart_resize(*shape, 8, 512**2, 1024**2)
