"""Score files of the references' images and of predictions folders, by any scorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from progemu_jax.data.images import BrokenImage, read
from progemu_jax.data.sources import inside
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.controls import mean_image

REFERENCE_IMAGES = ("prior", "followup", "counterfactual")


def read_images(folder: Path, names: list[str]) -> np.ndarray:
    """uint8 [N, H, W] of gray image files of one size."""
    images = []
    for name in names:
        path = inside(folder, name) if isinstance(name, str) else None
        if path is None:
            raise UserError(f"{folder}: image {name!r:.100} is no file in the folder")
        try:
            images.append(read(path, lambda image: np.asarray(image.convert("L"))))
        except BrokenImage as error:
            raise UserError(f"{path}: cannot be read as an image ({error})") from None
        if images[-1].shape != images[0].shape:
            raise UserError(f"{folder / name}: image of {images[-1].shape} pixels, the others' are {images[0].shape}")
    return np.stack(images)


def source_of(rows: list[dict]) -> str:
    """Cohort of a references' file; phantom when every case has its true counterfactual: only there is it known."""
    if all(r.get("counterfactual") for r in rows):
        return "phantom"
    return str(rows[0].get("source"))


def write_reference_scores(scorer: Callable, references: Path, out: Path, source: str) -> None:
    """Scores of prior, followup, counterfactual and of the mean of all priors: `out`/NAME.npz."""
    rows = records.read_rows(references / "references.jsonl", "pair_id", "prior")
    for kind in REFERENCE_IMAGES:
        kept = [r for r in rows if r.get(kind)]
        if kept:
            images = read_images(references, [r[kind] for r in kept])
            _write(scorer, out / f"{kind}.npz", images, [r["pair_id"] for r in kept], [0] * len(kept), source)
            if kind == "prior":
                mean = scorer(mean_image(images)[None], source)
    one = {k: v for k, v in mean.items() if k != "mask_shape"}
    names = ("findings", "groups", "organs", "backbone")
    everywhere = {k: v if k in names else np.repeat(v, len(rows), axis=0) for k, v in one.items()}
    if "mask_shape" in mean:
        everywhere["mask_shape"] = np.array([len(rows), *mean["mask_shape"][1:]])
    ids = {"pair_id": np.asarray([r["pair_id"] for r in rows]), "sample": np.zeros(len(rows), np.int64)}
    records.write_npz(out / "mean.npz", {**ids, **everywhere})


def write_prediction_scores(scorer: Callable, folder: Path, out: Path, source: str) -> None:
    """Scores of a predictions folder: the score file `out`. Nothing for a folder without images."""
    rows = [r for r in records.read_rows(folder / "predictions.jsonl", "pair_id") if r.get("image")]
    for sample in (r.get("sample") or 0 for r in rows):
        if type(sample) is not int or not 0 <= sample < 2**63:
            raise UserError(f"{folder / 'predictions.jsonl'}: sample={sample!r:.40} is no whole number from 0")
    if rows:
        images = read_images(folder, [r["image"] for r in rows])
        _write(scorer, out, images, [r["pair_id"] for r in rows], [r.get("sample") or 0 for r in rows], source)


def _write(scorer, path, images, pairs, samples, source):
    ids = {"pair_id": np.asarray(pairs), "sample": np.asarray(samples)}
    records.write_npz(path, {**ids, **scorer(images, source)})
