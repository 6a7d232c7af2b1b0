"""One run: the config is checked, then the stages that are not complete are made, by one host or several."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from functools import partial
from pathlib import Path

from progemu_jax.config import Config
from progemu_jax.convert import components, folders
from progemu_jax.data.sources import PLACES, needed_files
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import rejections
from progemu_jax.files.records import write_json
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.files.stages import Stage, list_stages, run_stages
from progemu_jax.plan import plan
from progemu_jax.systems import meshes, shared_stages
from progemu_jax.systems.progemu import system
from progemu_jax.training.loop import HOUSEKEEPING


def _without(values, keys: tuple[str, ...]):
    """Nested dict without some keys, at any depth."""
    if not isinstance(values, dict):
        return values
    return {k: _without(v, keys) for k, v in values.items() if k not in keys}


def build_stages(config, config_dict: dict) -> list:
    """The stages of a run: what each reads and writes, and the part of the config it depends on."""

    def part(*names: str) -> dict:
        """The seed and the named sections, without what only says how often a loop reports and saves."""
        silent = (*HOUSEKEEPING, "init", "perceptual_weights")
        return {"seed": config.seed, **{name: _without(config_dict[name], silent) for name in names}}

    roots = ("root", *PLACES, "exclude")  # what lies there counts, not where it is
    asking = ("endpoint", "key_variable", "parallel", "timeout", "retries", "price_in", "price_out", "acknowledge")
    data = _without(config_dict["data"], (*roots, "processes", "beam"))
    data["texts"] = _without(data["texts"], asking)
    external = () if config.data.source == "phantom" else tuple(filter(None, (getattr(config.data, p) for p in roots)))
    # A prompt that contradicts the real course needs the states before and after.
    states = ("data/references",) if "contradicting-prompts" in config.sample.systems else ()
    source = ("data/source",) if config.data.source == "phantom" else ()
    made = ("data/tree", "data/references", "data/shards/icg_cxr/pairs", "data/shards/icg_cxr/single")
    # Weights to start from are inputs: their content counts, not where they lie.
    starts = {
        kind: (str(folders.weights(Path(part.init), kind)),) if part.init else ()
        for kind, part in ((components.TOKENIZER, config.tokenizer), (components.LANGUAGE_MODEL, config.progemu))
    }
    if config.tokenizer.loss.perceptual:
        starts["tokenizer"] += (config.tokenizer.loss.perceptual_weights,)
    stages = [
        ("data", (*source, *made), external, {"seed": config.seed, "data": data}),
        ("tokenizer", ("tokenizer",), ("data/shards/icg_cxr/single", *starts["tokenizer"]), part("tokenizer")),
        ("tokens", ("data/shards/icg_cxr/tokens",), ("data/shards/icg_cxr/pairs", "tokenizer"), part("tokens")),
        (
            "train",
            ("train",),
            ("data/shards/icg_cxr/tokens", *starts["language_model"]),
            part("progemu", "vocabulary"),
        ),
        ("scorer", ("scorer",), (), {**part("scorer"), "phantom": data["phantom"], "image_size": data["image_size"]}),
        ("sample", ("predictions",), ("train", "tokenizer", *states), part("sample")),
        ("score", ("scores",), ("predictions", "scorer", "data/references"), part()),
        (
            "evaluate",
            ("report", "metrics.json"),
            ("predictions", "scores", "data/references"),
            part("evaluate", "name"),
        ),
    ]
    makers = {}
    if config.system == "diffusion":
        from progemu_jax.systems.diffusion import system

        stages = system.stages(config, part, {name: row for name, *row in stages}, states)
        makers = system.MAKERS
    return [
        Stage(name, outputs, inputs, slice_, partial(makers.get(name) or getattr(shared_stages, name), config))
        for name, outputs, inputs, slice_ in stages
    ]


def run(config_dict, workdir: str | os.PathLike, stages: list[str] | None) -> None:
    """Checks the config, then runs the stages that are not complete yet."""
    config = from_dict(Config, config_dict)
    plain, workdir = to_dict(config), Path(workdir)
    if stages == ["plan"]:
        _make(workdir)
        plan.run(config, plain, workdir)
        return
    system.check(config)
    todo = build_stages(config, plain)
    if stages == ["list"]:
        print(list_stages(todo, workdir))
        print("\n".join([f"files of {config.data.source}:", *needed_files(config.data.source, plain["data"])]))
        return
    meshes.check_mesh(config)
    hosts.on_first_host(lambda: _make(workdir), f"--workdir={workdir}")
    _run_together(todo, workdir, stages)
    hosts.on_first_host(lambda: write_json(workdir / "config.json", plain), "config.json")
    if (stages is None or "sample" in stages) and (missing := rejections(workdir / "predictions")):
        raise UserError(missing)


def _run_together(todo: list, workdir: Path, selected: list[str] | None) -> None:
    """`run_stages`; of several hosts the first decides what runs, and the others run it with it."""
    if not hosts.is_first():
        while (number := hosts.broadcast()) >= 0:
            todo[number].run(workdir)
        if number == _FAILED:
            raise UserError("the run has failed in process 0, which says why")
        return

    def led(number: int, stage):
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


_DONE, _FAILED = -1, -2  # instead of the number of a stage


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
