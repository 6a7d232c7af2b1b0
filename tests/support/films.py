"""Smooth pictures that no two patients share, and one saved again by other hands."""

import numpy as np
from PIL import Image


def chest(seed):
    """A smooth picture of its own for every seed, uint8 [128, 128]."""
    coarse = np.random.default_rng(seed).integers(40, 220, (7, 7), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC))


def saved_again(image):
    """The film at another size, with other gray values and a black frame."""
    small = np.asarray(Image.fromarray(image).resize((150, 150), Image.Resampling.BICUBIC)).astype(float)
    return np.pad(np.clip(20 + 0.8 * small, 0, 255).astype(np.uint8), 25)
