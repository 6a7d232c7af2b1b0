"""Trainings of a run: `training.loop.fit` on its shards, on images or on packed examples, and the curriculum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from progemu_jax.data import batches
from progemu_jax.training.loop import Task, TrainConfig, fit

SHOWN = 4  # validation cases whose pictures go to TensorBoard


def process_share() -> dict[str, int]:
    """This process's part of a stream of batches, as `data.batches` takes it."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def first_cases(source: Any) -> list[dict]:
    """The validation cases that pictures are made of."""
    return [source[i] for i in range(min(len(source), SHOWN))]


def fit_on_images(
    task: Task, train: TrainConfig, shards: Path, folder: Path, mesh: Mesh, show: Any = None, **options: Any
) -> dict:
    """Trains on the single images of the training split, evaluates on the images of validation pairs; the final state.

    show: (state, uint8 [N, S, S] follow-ups of the first validation cases) -> pictures, or None. options: of `fit`.
    """
    source = batches.examples(shards, "single", "train")
    held_out = batches.examples(shards, "pairs", "validation")
    followups = np.stack([e["followup"] for e in first_cases(held_out)])
    size = train.batch_size
    return fit(
        task,
        train,
        lambda seed: batches.image_batches(shards, "single", "train", size, seed, source=source, **process_share()),
        lambda: batches.image_batches(shards, "pairs", "validation", size, 0, repeat=False, source=held_out),
        folder,
        mesh=mesh,
        show=show and (lambda state: show(state, followups)),
        **options,
    )


def fit_on_examples(
    task: Task,
    train: TrainConfig,
    sources: tuple[Sequence, Sequence],
    packers: tuple[Callable, Callable],
    folder: Path,
    mesh: Mesh,
    show: Any = None,
    **options: Any,
) -> dict:
    """Trains on packed examples; the final state.

    sources: of training and evaluation. packers: of both (`transform` of `batches.example_batches`). show: (state,
    first validation cases) -> pictures, or None. options: of `fit`.
    """
    (learnt, held_out), size = sources, train.batch_size
    cases = first_cases(held_out) if show else []
    return fit(
        task,
        train,
        lambda seed: batches.example_batches(
            "", "", "", size, seed, transform=packers[0], source=learnt, **process_share()
        ),
        lambda: batches.example_batches("", "", "", size, 0, transform=packers[1], repeat=False, source=held_out),
        folder,
        mesh=mesh,
        show=show and (lambda state: show(state, cases)),
        **options,
    )


def fit_curriculum(stages: Mapping[str, TrainConfig], fit_stage: Callable[[str, TrainConfig, Any], Any]) -> Any:
    """The parameters after all stages in their order; one of no steps is skipped, but not all of them.

    fit_stage: (name, how, parameters of the stage before or None) -> parameters.
    """
    params, last = None, list(stages)[-1]
    for name, train in stages.items():
        if train.steps or (params is None and name == last):
            params = fit_stage(name, train, params)
    return params


def side_by_side(priors: np.ndarray, made: np.ndarray, followups: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S] each -> [N, S, 3 S]: prior, counterfactual and real follow-up."""
    return np.concatenate([priors, made, followups], axis=2)
