"""The meshes of a run: all devices of all hosts for training, this host's own for everything else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
from jax.sharding import Mesh

from progemu_jax.config import Config
from progemu_jax.devices.sharding import check_batch, make_mesh
from progemu_jax.training.loop import TrainConfig


def microbatches(trained: Mapping[str, TrainConfig]) -> dict[str, int]:
    """Rows that go through a model at a time, by the place in the config of what is trained."""
    return {name: part.batch_size // part.accumulate for name, part in trained.items() if part.steps}


def training_mesh(config: Config, trained: Mapping[str, TrainConfig]) -> Mesh:
    """The mesh of training: all devices of all hosts. trained: all that the run trains (`System.trained`)."""
    devices = None
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and config.mesh.data == -1:
        # These devices are cores, of our own making: as many of them as divide every batch.
        others = config.mesh.fsdp * config.mesh.tensor
        parts, rows = jax.device_count() // others, math.gcd(*microbatches(trained).values())
        parts = next((n for n in range(parts, 0, -1) if rows % (n * config.mesh.fsdp) == 0), parts)
        devices = jax.devices()[: parts * others] or None
    return make_mesh(**dataclasses.asdict(config.mesh), devices=devices)


def local_mesh(config: Config) -> Mesh:
    """The mesh of what needs no other host (sampling, tokenising, scoring): this host's devices, cases over them."""
    return make_mesh(tensor=config.mesh.tensor, devices=jax.local_devices())


def check_meshes(config: Config, trained: Mapping[str, TrainConfig]) -> Mesh:
    """The mesh of training; UserError unless both meshes exist here and batches divide over them."""
    mesh = training_mesh(config, trained)
    for name, rows in microbatches(trained).items():
        check_batch(mesh, rows, f"config.{name}: batch_size / accumulate")
    local_mesh(config)
    return mesh
