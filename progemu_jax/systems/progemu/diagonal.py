"""Stage `train`, its end: what `Sampling.mode="diagonal"` needs is trained on the finished model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.tasks import diagonal
from progemu_jax.tasks.diagonal import DiagonalConfig, DiagonalTask
from progemu_jax.tasks.progemu import ProgEmuConfig
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import Vocabulary
from progemu_jax.training.loop import TrainConfig

Fit = Callable[[DiagonalTask, TrainConfig, Callable, str, Any], Any]
"""Trains a task by a config on rows that a function makes of packers, in train/NAME, from parameters: those after."""


def fit(
    cfg: DiagonalConfig,
    vocab: Vocabulary,
    layout: Layout,
    model: TransformerConfig,
    task: ProgEmuConfig,
    do: Fit,
    params: Any,
) -> Any:
    """The model's parameters with the diagonal head among them, after both trainings."""
    model = dataclasses.replace(model, lora_rank=0, diagonal=True)
    task = dataclasses.replace(task, weight_prior=0.0, weight_prompt=0.0, weight_structure=0.0, soften=0.0)
    for name, train in (("diagonal_head", cfg.head), ("diagonal", cfg.whole)):
        if train.steps:
            one = DiagonalTask(vocab, layout, cfg, name == "diagonal", model, task, train, vocab.visual_start)
            params = do(one, train, lambda pack: diagonal.packer(pack, layout), name, params)
    return params
