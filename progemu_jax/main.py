"""Runs a config: `python -m progemu_jax.main --config=configs/demo.py --workdir=runs/demo`.

Config values can be changed on the command line, e.g. `--config.data.root=DIR`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from progemu_jax.devices import compilation
from progemu_jax.errors import UserError, disk_trouble

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory: everything the run makes goes there.")
_STAGES = flags.DEFINE_list(
    "stages",
    None,
    "Stages to run, comma-separated; default all; 'list' prints what each needs and has made; 'plan' compiles training "
    "and sampling for devices that are not here, and says what fits where.",
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "This process is one of several that make the run together.")


def _without(values, keys: tuple[str, ...]):
    """Nested dict without some keys, at any depth."""
    if not isinstance(values, dict):
        return values
    return {k: _without(v, keys) for k, v in values.items() if k not in keys}


def build_stages(config, config_dict: dict) -> list:
    """The stages of a run: what each reads and writes, and the part of the config it depends on."""
    from progemu_jax import places, workflow
    from progemu_jax.data.sources import PLACES
    from progemu_jax.stages import Stage
    from progemu_jax.train import HOUSEKEEPING

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
        kind: (str(places.weights(Path(part.init), kind)),) if part.init else ()
        for kind, part in ((places.TOKENIZER, config.tokenizer), (places.LANGUAGE_MODEL, config.progemu))
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
        from progemu_jax import diffusion_stages

        stages = diffusion_stages.stages(config, part, {name: row for name, *row in stages}, states)
        makers = diffusion_stages.MAKERS
    return [
        Stage(name, outputs, inputs, slice_, partial(makers.get(name) or getattr(workflow, name), config))
        for name, outputs, inputs, slice_ in stages
    ]


def run(config_dict, workdir: str | os.PathLike, stages: list[str] | None) -> None:
    """Checks the config, then runs the stages that are not complete yet."""
    from progemu_jax import hosts, workflow
    from progemu_jax.config import Config, from_dict, to_dict
    from progemu_jax.data.sources import needed_files
    from progemu_jax.predictions import rejections
    from progemu_jax.records import write_json
    from progemu_jax.stages import list_stages

    config = from_dict(Config, config_dict)
    plain, workdir = to_dict(config), Path(workdir)
    if stages == ["plan"]:
        from progemu_jax import plan

        _make(workdir)
        plan.run(config, plain, workdir)
        return
    workflow.check(config)
    todo = build_stages(config, plain)
    if stages == ["list"]:
        print(list_stages(todo, workdir))
        print("\n".join([f"files of {config.data.source}:", *needed_files(config.data.source, plain["data"])]))
        return
    workflow.check_mesh(config)
    hosts.once(lambda: _make(workdir), f"--workdir={workdir}")
    _run_together(todo, workdir, stages)
    hosts.once(lambda: write_json(workdir / "config.json", plain), "config.json")
    if (stages is None or "sample" in stages) and (missing := rejections(workdir / "predictions")):
        raise UserError(missing)


def _run_together(todo: list, workdir: Path, selected: list[str] | None) -> None:
    """`run_stages`; of several hosts the first decides what runs, and the others run it with it."""
    import dataclasses

    from progemu_jax import hosts
    from progemu_jax.stages import run_stages

    if not hosts.first():
        while (number := hosts.told()) >= 0:
            todo[number].run(workdir)
        if number == _FAILED:
            raise UserError("the run has failed in process 0, which says why")
        return

    def led(number: int, stage):
        def both(workdir: Path) -> None:
            hosts.told(number)
            stage.run(workdir)

        return dataclasses.replace(stage, run=both)

    end = _FAILED
    try:
        run_stages([led(number, stage) for number, stage in enumerate(todo)], workdir, selected)
        end = _DONE
    finally:
        hosts.told(end)


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


def main(argv: list[str]) -> None:
    """absl entry point: a `UserError`, or a disk that is full or not ours, ends in one line and status 2."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        if _MULTIHOST.value:
            from progemu_jax import hosts

            hosts.start()
        run(flags.FLAGS.config, _WORKDIR.value, _STAGES.value)
    except UserError as error:
        _stop(error)
    except Exception as error:
        if why := disk_trouble(error):
            _stop(f"{_WORKDIR.value}: cannot be written ({why}); mend that, then the same command goes on")
        raise
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on")


def entry() -> None:
    """The command line, before any heavy import."""
    try:
        argv = _define_config(sys.argv)
    except UserError as error:
        _stop(error)
    flags.mark_flag_as_required("workdir")
    use_all_cores()
    compilation.keep_programs()
    if not sys.stderr.isatty():  # a log wants a line now and then, not ten a second
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    app.run(main, argv=argv, flags_parser=_parse)


def _define_config(argv: list[str]) -> list[str]:
    """Defines the flag --config by the file it names, with every key at its default that the file leaves out.

    So `--config.key=value` may change any key of `Config`, not only those in the file. Returns `argv` without
    the file. Raises UserError for a file that does not load, and for unknown keys in it or in `argv`.
    """
    import dataclasses

    from ml_collections import ConfigDict, config_flags

    names = {"--config", "-config"}
    at = [i for i, arg in enumerate(argv) if arg.split("=", 1)[0] in names]
    if not at:
        flags.DEFINE_string("config", None, "Config file, e.g. configs/demo.py; --config.key=value changes a key.")
        flags.mark_flag_as_required("config")
        return argv
    first = at[-1]
    long = "=" in argv[first]
    if not long and first + 1 == len(argv):
        raise UserError("--config: name a file, e.g. --config=configs/demo.py")
    path = argv[first].split("=", 1)[1] if long else argv[first + 1]

    from progemu_jax.config import Config, from_dict, known_key

    full = dataclasses.asdict(from_dict(Config, _load_config(path)))
    for arg in argv[1:]:
        name = arg.split("=", 1)[0].lstrip("-")
        if arg.startswith("-") and name.startswith("config."):
            known_key(full, name)
    argv = argv[:first] + argv[first + (1 if long else 2) :]
    config_flags.register_flag_parser_for_type(type(None), _Number())  # keys that are None or a number
    config_flags.DEFINE_config_dict("config", ConfigDict(full), sys_argv=argv)
    return argv


class _Number(flags.ArgumentParser):
    def parse(self, argument: str | float | None) -> float | None:
        return None if argument in (None, "None") else float(argument)


def _load_config(path: str):
    """What `get_config()` of a config file returns."""
    import runpy

    if not Path(path).is_file():
        raise UserError(f"--config: {path}: no such file; those of the project are in configs/")
    try:
        return runpy.run_path(path)["get_config"]()
    except Exception as error:  # the file is Python: anything can go wrong in it
        text = (str(error).strip() or "?").splitlines()[0]
        raise UserError(f"{path}: does not load as a config file ({type(error).__name__}: {text})") from None


def _stop(error: Exception | str) -> NoReturn:
    """One line and status 2."""
    sys.stdout.flush()
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def use_all_cores() -> None:
    """Without an accelerator, one single-threaded CPU device a core (at most 8, a power of two).

    Data parallelism over such devices trains a small model about twice as fast as one device with two threads:
    XLA's CPU backend runs element-wise work on one thread. Instructions are scheduled for little memory, which such
    devices lose nothing by. The flags do nothing on GPU and TPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = 1 << (min(cores, 8).bit_length() - 1)
    flags_now = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags_now:
        ours = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
        ours += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
        os.environ["XLA_FLAGS"] = f"{flags_now} {ours}".strip()


def _parse(argv: list[str]) -> list[str]:
    """Flags, each mistake in one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        _stop((str(error).strip() or type(error).__name__).splitlines()[0])


if __name__ == "__main__":
    entry()
