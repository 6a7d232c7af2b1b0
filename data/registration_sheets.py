"""Contact sheets of registered pairs: prior, follow-up before, after, and what is left of the difference.

While pairs are made, a sample chosen by hash leaves a strip each in `<tree>/.sheets/`; at the end the strips become
`<tree>/sheets/`: good.png (a sample), doubtful.png (the least scores that were kept) and rejected.png (flag -1).
"""

import io
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from progemu_jax.data import images
from progemu_jax.files import records

TILE, ROWS, SAMPLE = 192, 12, 240  # pixels; pairs a sheet; strips that are kept to choose from
_FOLDER = ".sheets"


def strip(prior: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """uint8 [TILE, 4 TILE]: prior, follow-up as it was, as it lies on the prior, and 128 + after - prior."""
    small = [images.resize(image, TILE) for image in (prior, before, after)]
    difference = small[2].astype(np.int16) - small[0].astype(np.int16) + 128
    return np.concatenate([*small, np.clip(difference, 0, 255).astype(np.uint8)], axis=1)


def keep(root: Path, kind: str, name: str, score: float, picture: np.ndarray) -> None:
    """Keeps one strip. kind: kept or rejected."""
    # The score leads the name, so that sorting names sorts pairs.
    records.write_bytes(root / _FOLDER / kind / f"{score + 1:.4f}~{name}.png", images.png(picture), durable=False)


def finish(root: Path) -> None:
    """Strips -> sheets; a sheet without a strip is not written."""
    kept = sorted((root / _FOLDER / "kept").glob("[!.]*.png"))
    chosen = {
        "good": sorted(kept[ROWS:], key=lambda p: records.digest(p.name))[:ROWS],
        "doubtful": kept[:ROWS],
        "rejected": sorted((root / _FOLDER / "rejected").glob("[!.]*.png"))[-ROWS:],
    }
    for name, paths in chosen.items():
        if paths:
            records.write_bytes(root / "sheets" / f"{name}.png", _sheet(paths))
    shutil.rmtree(root / _FOLDER, ignore_errors=True)


def _sheet(paths: list[Path]) -> bytes:
    caption = 14
    sheet = Image.new("L", (4 * TILE, len(paths) * (TILE + caption)), 0)
    draw = ImageDraw.Draw(sheet)
    for row, path in enumerate(paths):
        top = row * (TILE + caption)
        score, name = path.stem.split("~", 1)
        draw.text((4, top + 1), f"{float(score) - 1:.2f}  {name}", fill=255)
        sheet.paste(Image.open(path), (0, top + caption))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
