"""One run: the config is checked, then the stages that are not complete are made, by one host or several."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progemu_jax import systems
from progemu_jax.config import RANGES, Config
from progemu_jax.data.journeys import SPLITS
from progemu_jax.data.phantom import DYNAMICS
from progemu_jax.data.sources import SOURCES, needed_files
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import rejections
from progemu_jax.files.records import write_json
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.files.stages import Stage, list_stages, run_stages
from progemu_jax.plan import plan
from progemu_jax.systems import meshes
from progemu_jax.systems.interface import Slices
from progemu_jax.training import loop
from progemu_jax.training.optim import make_optimizer


def run(config_dict: Mapping[str, Any], workdir: str | os.PathLike, stages: list[str] | None) -> None:
    """Checks the config, then runs the stages that are not complete yet.

    Args:
      config_dict: nested, as `Config` has it.
      stages: names; None: all; ["list"]: prints what each needs and has made; ["plan"]: compiles for other devices.
    Raises:
      UserError: whatever stands in the way, before any work where it can be known.
    """
    config, workdir = from_dict(Config, config_dict), Path(workdir)
    plain = to_dict(config)
    if stages == ["plan"]:
        _make(workdir)
        plan.run(config, plain, workdir)
        return
    check(config)
    todo = build_stages(config)
    if stages == ["list"]:
        print(list_stages(todo, workdir))
        print("\n".join([f"files of {config.data.source}:", *needed_files(config.data.source, plain["data"])]))
        return
    system = systems.of(config)
    system.check_mesh(config, meshes.check_meshes(config, system.trained(config)))
    hosts.on_first_host(lambda: _make(workdir), f"--workdir={workdir}")
    _run_together(todo, workdir, stages)
    hosts.on_first_host(lambda: write_json(workdir / "config.json", plain), "config.json")
    if (stages is None or "sample" in stages) and (missing := rejections(workdir / "predictions")):
        raise UserError(missing)


def check(config: Config) -> None:
    """Raises UserError for values that make no sense or do not go together, before any work is done."""
    if config.data.source not in SOURCES:
        raise UserError(f"config.data.source={config.data.source!r}: choose among {', '.join(SOURCES)}")
    if config.data.phantom.dynamics not in DYNAMICS:
        raise UserError(
            f"config.data.phantom.dynamics={config.data.phantom.dynamics!r}: choose among {', '.join(DYNAMICS)}"
        )
    for key, (least, most) in RANGES.items():
        value = operator.attrgetter(key)(config)
        if not least <= value <= most:
            wanted = f"{least} to {most}" if most < math.inf else f"at least {least}"
            raise UserError(f"config.{key}={value}: expected {wanted}")
    if config.sample.split not in SPLITS:
        raise UserError(f"config.sample.split={config.sample.split!r}: choose among {', '.join(SPLITS)}")
    if not config.sample.systems:
        raise UserError("config.sample.systems is empty: name what is sampled")
    system = systems.of(config)
    for name, part in system.trained(config).items():
        try:
            loop.check(part)
            make_optimizer(part)
        except UserError as error:
            raise UserError(f"config.{name}: {error}") from None
    system.check(config)


def build_stages(config: Config) -> list[Stage]:
    """The stages of a run: what each reads and writes, and the part of the config it depends on."""
    stages = systems.of(config).stages(config, Slices(config))
    return [dataclasses.replace(stage, kind=stage.kind or Config) for stage in stages]


_DONE, _FAILED = -1, -2  # what the first host sends instead of the number of a stage


def _run_together(todo: list[Stage], workdir: Path, selected: list[str] | None) -> None:
    """`run_stages`; of several hosts the first decides what runs, and the others run it with it."""
    if not hosts.is_first():
        while (number := hosts.broadcast()) >= 0:
            todo[number].run(workdir)
        if number == _FAILED:
            raise UserError("the run has failed in process 0, which says why")
        return

    def led(number: int, stage: Stage) -> Stage:
        def both(workdir: Path) -> None:
            hosts.broadcast(number)
            stage.run(workdir)

        return dataclasses.replace(stage, run=both)

    end = _FAILED
    try:
        run_stages([led(number, stage) for number, stage in enumerate(todo)], workdir, selected)
        end = _DONE
    finally:
        hosts.broadcast(end)


def _make(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be made ({error.strerror}); choose another") from None
    try:
        with tempfile.TemporaryFile(dir=workdir) as file:  # before hours of work, whose results have no place
            file.write(bytes(2**16))
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written ({error.strerror}); choose another") from None
