"""Predictions folders of a run: which systems and controls, which prompts, by one host or several."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.files.predictions import Case, merge_predictions, write_predictions
from progemu_jax.text.controls import contradicting_prompt


def others(count: int, seed: int) -> dict[int, int]:
    """For each case another one: a derangement, so that none keeps its own prompt by chance of the permutation."""
    order = np.random.default_rng(seed).permutation(count)
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


def contradictions(workdir: Path, examples: list[dict]) -> dict[str, str]:
    """pair_id -> prompt that contradicts the real course. Raises UserError for a pair that has no reference."""
    prompts = {}
    for _, row in records.read_lines(workdir / "data/references/references.jsonl"):
        states = (row.get("states_before"), row.get("states_after"))
        prompts[row["pair_id"]] = contradicting_prompt(*states, row["prompt"], row["pair_id"])
    lost = [e["pair_id"] for e in examples if e["pair_id"] not in prompts]
    if lost:
        raise UserError(
            f"{workdir / 'data/references'}: does not hold {lost[0]} and {len(lost) - 1} more; "
            "contradicting-prompts needs config.sample.split=test"
        )
    return prompts


def write_shared(folder: Path, cases: list[Case], predict: Callable, *, batch_size: int, **options: Any) -> None:
    """`write_predictions`; with several hosts each writes a shard of whole batches, and process 0 merges them."""
    count = jax.process_count()
    if count == 1:
        write_predictions(folder, cases, predict, batch_size=batch_size, **options)
        return
    if hosts.broadcast(int((folder / "predictions.jsonl").exists())):
        return
    parts = folder.parent / ".parts" / folder.name
    own = hosts.own_share([cases[i : i + batch_size] for i in range(0, len(cases), batch_size)])
    own = list(itertools.chain(*own))
    write_predictions(parts / f"{jax.process_index()}-of-{count}", own, predict, batch_size=batch_size, **options)
    hosts.barrier()
    hosts.on_first_host(lambda: merge_predictions(sorted(parts.glob(f"*-of-{count}")), folder, cases), "stage sample")
