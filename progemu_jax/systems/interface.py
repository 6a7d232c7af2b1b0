"""What a run needs of a system, and what every system's stages share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from progemu_jax.config import Config
from progemu_jax.devices import hosts
from progemu_jax.training.loop import TrainConfig

SHOWN = 4  # validation cases whose pictures go to TensorBoard


def processes(config: Config) -> int:
    return config.data.processes or os.cpu_count() or 1


def trained(config: Config) -> dict[str, TrainConfig]:
    """Everything that is trained, by its place in the config."""
    if config.system == "diffusion":
        return {
            "autoencoder.train": config.autoencoder.train,
            "diffusion.stage1": config.diffusion.stage1,
            "diffusion.stage2": config.diffusion.stage2,
            "scorer.train": config.scorer.train,
        }
    return {
        "tokenizer.train": config.tokenizer.train,
        "progemu.stage1": config.progemu.stage1,
        "progemu.stage2": config.progemu.stage2,
        "scorer.train": config.scorer.train,
    }


def by_one_host(stage: Callable[[Config, Path], None]) -> Callable[[Config, Path], None]:
    """A stage that needs no accelerator: process 0 does it, the others wait."""

    @functools.wraps(stage)
    def once(config: Config, workdir: Path) -> None:
        hosts.on_first_host(lambda: stage(config, workdir), f"stage {stage.__name__}")

    return once
