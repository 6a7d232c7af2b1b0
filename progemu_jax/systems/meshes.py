"""The meshes of a run: all devices of all hosts for training, this host's own for everything else."""

from __future__ import annotations

import dataclasses
import math

import jax

from progemu_jax.config import Config
from progemu_jax.devices import sharding
from progemu_jax.devices.sharding import make_mesh
from progemu_jax.models import transformer
from progemu_jax.systems.interface import trained
from progemu_jax.systems.progemu.model_config import model_parts


def microbatches(config: Config) -> dict[str, int]:
    return {name: part.batch_size // part.accumulate for name, part in trained(config).items() if part.steps}


def training_mesh(config: Config):
    """The mesh of training: all devices of all hosts."""
    devices = None
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and config.mesh.data == -1:
        # These devices are cores, of our own making: as many of them as divide every batch.
        others = config.mesh.fsdp * config.mesh.tensor
        parts, rows = jax.device_count() // others, math.gcd(*microbatches(config).values())
        parts = next((n for n in range(parts, 0, -1) if rows % (n * config.mesh.fsdp) == 0), parts)
        devices = jax.devices()[: parts * others] or None
    return make_mesh(**dataclasses.asdict(config.mesh), devices=devices)


def local_mesh(config: Config):
    """The mesh of what needs no other host (sampling, tokenising, scoring): this host's devices, cases over them."""
    return make_mesh(tensor=config.mesh.tensor, devices=jax.local_devices())


def check_mesh(config: Config) -> None:
    """Raises UserError unless the mesh exists here, and batches and parameters divide over it."""
    mesh = training_mesh(config)
    for name, rows in microbatches(config).items():
        sharding.check_batch(mesh, rows, f"config.{name}: batch_size / accumulate")
    local_mesh(config)
    if mesh.size > 1 and config.system == "progemu":
        model = model_parts(config)[2]
        abstract = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
        sharding.param_shardings(abstract, transformer.LOGICAL_AXES, mesh)


def share() -> dict[str, int]:
    """This process's part of a stream of batches."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
