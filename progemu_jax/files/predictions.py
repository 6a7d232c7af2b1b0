"""The predictions folder: `predictions.jsonl`, one row a sample, and its PNG files. Written so that a kill loses
at most the batch in flight."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax import provenance
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.timeline import Timeline
from progemu_jax.text.understood import understood

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class Case:
    """One thing to predict: the prior (None: no prior), the prompt, and its seed's parts.

    The prior is its codes int32 [h, w]; for a diffusion model, the image uint8 [S, S]. pixels: uint8 [S, S], the image
    that the codes are of, for a tokenizer that paints with it; None: the plain decoder. timeline: films before the
    prior, and days; None: neither.
    """

    pair_id: str
    prior: np.ndarray | None
    prompt: str
    sample: int = 0
    pixels: np.ndarray | None = None
    timeline: Timeline | None = None

    def fold(self, seed: int) -> int:
        """The case's own seed, of `seed`, its id and its sample number: not of its place in a batch."""
        return zlib.crc32(f"{seed}/{self.pair_id}/{self.sample}".encode())


@dataclass(frozen=True)
class Prediction:
    """image uint8 [H, W] or None; text or None."""

    image: np.ndarray | None
    text: str | None


Predict = Callable[[list[list[Case]]], Iterable[list[Prediction | UserError]]]
"""Batches of cases -> what became of each batch, in order. It may draw ahead: batches are read before they are due."""


def write_predictions(
    folder: str | os.PathLike,
    cases: Sequence[Case],
    predict: Predict,
    *,
    batch_size: int,
    seed: int,
    checkpoint: str,
    sampling: dict[str, Any],
    model: str = "",
    check: Callable[[Case], None] = lambda case: None,
    name: str = "sampling",
    findings: tuple[Finding, ...] = PHANTOM,
) -> Path:
    """Predicts all cases, batch by batch, into `folder`; goes on where an earlier, killed call stopped.

    Batches are cut from `cases` in their order, so a resumed run computes the same batches. Rows:
    pair_id, sample, seed, prompt, text, image (path in the folder or null), checkpoint, sampling. PNG files carry the
    same, `model`, the hash of the weights, and what the rules read in the prompt (`progemu_jax.provenance`).

    predict: gets all batches that are left; `map(f, batches)` for an f of one. check: raises UserError for a case that
    cannot be asked for. Such a case, and one that came to an error, is named in `rejected.jsonl` and the others go on;
    when `check` leaves none, that is a UserError. findings: of the cohort.

    Returns the path of predictions.jsonl.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    cases, rejected = _accepted(folder, cases, check)
    path = folder / "predictions.jsonl"
    rows = _read_whole_batches(path, cases, batch_size)
    with (
        open(path, "w", encoding="utf-8") as file,
        tqdm(total=len(cases), initial=len(rows), desc=name, unit="case") as bar,
    ):
        file.writelines(line + "\n" for line in rows)
        left = [cases[start : start + batch_size] for start in range(len(rows), len(cases), batch_size)]
        for batch, made in zip(left, predict(left), strict=True):
            for case, out in zip(batch, made, strict=True):
                if isinstance(out, UserError):
                    rejected.append(_rejection(case, out))
                    _write_rejected(folder, rejected)
                    continue
                facts = {
                    "sample": case.sample,
                    "seed": seed,
                    "prompt": case.prompt,
                    "checkpoint": checkpoint,
                    "sampling": {**sampling, **case.timeline.summary()} if case.timeline else sampling,
                }
                image = None
                if out.image is not None:
                    image = f"images/{case.pair_id}-{case.sample}.png"
                    read = understood(case.prompt, findings).summary()
                    provenance.write_png(folder / image, out.image, model=model, understood=read, **facts)
                row = {"pair_id": case.pair_id, **facts, "text": out.text, "image": image}
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))
    return path


def _accepted(
    folder: Path, cases: Sequence[Case], check: Callable[[Case], None]
) -> tuple[list[Case], list[dict[str, Any]]]:
    """The cases that pass, and rows of the others, which are written to rejected.jsonl."""
    accepted, rejected = [], []
    for case in cases:
        try:
            check(case)
            accepted.append(case)
        except UserError as error:
            rejected.append(_rejection(case, error))
    _write_rejected(folder, rejected)
    if rejected and not accepted:
        raise UserError(
            f"{folder / REJECTED}: no case can be predicted; the first, {rejected[0]['pair_id']}: "
            f"{rejected[0]['reason']}"
        )
    return accepted, rejected


def _rejection(case: Case, error: UserError) -> dict[str, Any]:
    return {"pair_id": case.pair_id, "sample": case.sample, "reason": str(error)}


def _write_rejected(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """rejected.jsonl, which is absent when there are none."""
    if rows:
        records.write_text(folder / REJECTED, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        records.delete(folder / REJECTED)


def rejections(root: str | os.PathLike) -> str | None:
    """One line that says which cases the predictions folders under `root` lack and why; None when none are missing."""
    rows = []
    for path in sorted(Path(root).glob(f"*/{REJECTED}")):
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not rows:
        return None
    return (
        f"{root}: {len(rows)} cases could not be predicted, the others are complete; the first, "
        f"{rows[0]['pair_id']}: {rows[0]['reason']} (all: */{REJECTED})"
    )


def merge_predictions(shards: Sequence[Path], folder: str | os.PathLike, cases: Sequence[Case]) -> Path:
    """One predictions folder from the shards of several hosts: rows in the order of `cases`, images moved.

    The rows are written last, at once; the shards go then. Raises UserError for a case that no shard holds or rejects.
    """
    folder, rows, rejected = Path(folder), {}, {}
    for shard in shards:
        for name, found in (("predictions.jsonl", rows), (REJECTED, rejected)):
            path = shard / name
            for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
                row = json.loads(line)
                found[row["pair_id"], row["sample"]] = line
    keys = [(case.pair_id, case.sample) for case in cases]
    lost = [key[0] for key in keys if key not in rows and key not in rejected]
    if lost:
        raise UserError(
            f"{folder}: no host has predicted {lost[0]} and {len(lost) - 1} more; run the same command again"
        )
    for shard in shards:
        for image in (shard / "images").rglob("*.png"):
            target = folder / image.relative_to(shard)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.replace(target)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.jsonl"
    _write_rejected(folder, [json.loads(rejected[key]) for key in keys if key not in rows])
    records.write_text(path, "".join(f"{rows[key]}\n" for key in keys if key in rows))
    for shard in shards:
        shutil.rmtree(shard)
    return path


def _read_whole_batches(path: Path, cases: Sequence[Case], batch_size: int) -> list[str]:
    """The lines of complete batches of an earlier call; a batch cut short is predicted again."""
    if not path.exists():
        return []
    kept = []
    for line, case in zip(path.read_text(encoding="utf-8").splitlines(), cases, strict=False):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if (row.get("pair_id"), row.get("sample")) != (case.pair_id, case.sample):
            break
        kept.append(line)
    if len(kept) < len(cases):
        kept = kept[: len(kept) // batch_size * batch_size]
    return kept
