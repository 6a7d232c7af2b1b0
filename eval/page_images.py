"""Pictures for the page: PNG data URIs, difference maps, saliency overlays, and which cases are drawn."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

COLD, WARM = (33, 102, 172), (178, 24, 43)  # darker than the prior, brighter than the prior
DIFFERENCE = 96  # gray levels at full colour
SHOWN = 256  # images larger than this are reduced for the page


def data_uri(image):
    """PNG data URI of a uint8 image [H, W] or [H, W, 3], reduced to at most 256 pixels a side."""
    picture = Image.fromarray(image)
    if max(picture.size) > SHOWN:
        picture.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def difference_map(after, before):
    """Signed difference of two uint8 images [H, W] as uint8 RGB: white none, red brighter, blue darker."""
    step = np.clip((after.astype(np.float32) - before.astype(np.float32)) / DIFFERENCE, -1, 1)[..., None]
    end = np.where(step > 0, np.array(WARM, np.float32), np.array(COLD, np.float32))
    return np.round(255 + (end - 255) * np.abs(step)).astype(np.uint8)


def overlay(image, heat):
    """A uint8 image [H, W] under a heat map float [h, w] in [0, 1], resized bilinearly: uint8 RGB [H, W, 3]."""
    height, width = image.shape
    map_ = Image.fromarray(np.asarray(heat, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    strength = 0.6 * np.clip(np.asarray(map_), 0, 1)[..., None]
    return np.round(image[..., None] * (1 - strength) + np.array(WARM) * strength).astype(np.uint8)


def figure(image, caption):
    if image is None:
        return f"<figure><figcaption>{escape(caption)}: none</figcaption></figure>"
    shown = f'<img alt="{escape(caption)}" src="{data_uri(image)}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def drawn_cases(rows, shown, seed):
    """Rows (int [<= shown]) of the first samples of cases drawn at random, the same for a seed whatever `shown`."""
    return np.random.default_rng(seed).permutation(first_rows(rows))[:shown]


def first_rows(rows):
    return np.flatnonzero(np.r_[True, np.diff(rows.case) != 0]) if len(rows) else np.array([], int)
