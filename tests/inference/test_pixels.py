"""Pixels between files and models."""

import numpy as np

from progemu_jax.inference.pixels import luma


def test_luma_is_pillows():
    from PIL import Image

    rgb = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    np.testing.assert_array_equal(luma(rgb), np.asarray(Image.fromarray(rgb).convert("L")))
