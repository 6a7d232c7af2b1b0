"""Labelled phantom images that scorers are trained on: patients of their own."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from progemu_jax.data import foreground, images, phantom
from progemu_jax.files import records
from progemu_jax.text.findings import PRESENT


def labelled_arrays(
    path: str | os.PathLike,
    seed: int,
    start: int,
    n: int,
    render_size: int,
    image_size: int,
    processes: int,
    severity: bool = False,
    dynamics: str = "steps",
) -> dict[str, np.ndarray]:
    """Phantom images `start`..`start + n` of the scorer's own patients, as a cohort's chain would make them.

    Rendered at `render_size`, cropped to the foreground, resized to `image_size`; kept in `path` once made.

    Returns:
      The arrays of a batch (`ScorerTask`), with n rows; with `severity`, the renderer's severities f32 [n, 8] too.
    """
    path = Path(path)
    if path.exists():
        with records.open_npz(path) as file:
            return dict(file)
    step = 64
    jobs = [(seed, start + i, min(step, n - i), render_size, image_size, severity, dynamics) for i in range(0, n, step)]
    with get_context("spawn").Pool(processes) as pool:
        parts = list(tqdm(pool.imap(_labelled_part, jobs), total=len(jobs), desc=f"render {path.stem}", unit="part"))
    arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    records.write_npz(path, arrays)
    return arrays


def _labelled_part(job: tuple[int, int, int, int, int, bool, str]) -> dict[str, np.ndarray]:
    seed, start, n, render_size, image_size, severity, dynamics = job
    drawn = phantom.labelled_set(seed, n, render_size, start=start, dynamics=dynamics)
    out = {
        "image": np.empty((n, image_size, image_size), np.uint8),
        "masks": np.empty((n, image_size, image_size, drawn["masks"].shape[1]), bool),
        "findings": (drawn["findings"] >= PRESENT).astype(np.float32),
        **({"severity": drawn["findings"]} if severity else {}),
        **{k: drawn[k] for k in ("group", "age", "sex")},
    }
    for i, image in enumerate(drawn["image"]):
        corners = foreground.rectangle(image)

        def place(x: np.ndarray, corners: np.ndarray | None = corners) -> np.ndarray:
            return images.resize(x if corners is None else foreground.warp(x, corners), image_size)

        out["image"][i] = place(image)
        for organ, mask in enumerate(drawn["masks"][i]):
            out["masks"][i, :, :, organ] = place(mask.astype(np.uint8) * 255) >= 128
    return out
