"""Runs a config: `python -m progemu_jax.main --config=configs/demo.py --workdir=runs/demo`.

Config values can be changed on the command line, e.g. `--config.data.root=DIR`.
"""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path

from absl import app, flags, logging

from progemu_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory: everything the run makes goes there.")
_STAGES = flags.DEFINE_list(
    "stages", None, "Stages to run, comma-separated; default all; 'list' prints what each needs and has made."
)


def build_stages(config, config_dict: dict) -> list:
    """The stages of a run: what each reads and writes, and the part of the config it depends on."""
    from progemu_jax import workflow
    from progemu_jax.stages import Stage

    def part(*names: str) -> dict:
        """The named sections; `progemu.model` takes one subsection."""
        out = {"seed": config_dict["seed"]}
        for name in names:
            value = config_dict
            for key in name.split("."):
                value = value[key]
            out[name] = value
        return out

    data = {k: v for k, v in config_dict["data"].items() if k not in ("root", "processes")}
    external = (config.data.root,) if config.data.source != "phantom" else ()
    source = ("data/source",) if config.data.source == "phantom" else ()
    made = ("data/tree", "data/references", "data/shards/icg_cxr/pairs", "data/shards/icg_cxr/single")
    policy = ("sample", "progemu", "vocabulary")
    stages = [
        ("data", (*source, *made), external, {"seed": config.seed, "data": data}),
        ("tokenizer", ("tokenizer",), ("data/shards/icg_cxr/single",), part("tokenizer")),
        ("tokens", ("data/shards/icg_cxr/tokens",), ("data/shards/icg_cxr/pairs", "tokenizer"), part("tokens")),
        ("train", ("train",), ("data/shards/icg_cxr/tokens",), part("progemu", "vocabulary")),
        ("scorer", ("scorer",), (), {**part("scorer"), "phantom": data["phantom"], "image_size": data["image_size"]}),
        ("sample", ("predictions",), ("train", "tokenizer"), part(*policy)),
        ("score", ("scores",), ("predictions", "scorer", "data/references"), part()),
        (
            "evaluate",
            ("report", "metrics.json"),
            ("predictions", "scores", "data/references"),
            part("evaluate", "name"),
        ),
    ]
    return [
        Stage(name, outputs, inputs, slice_, partial(getattr(workflow, name), config))
        for name, outputs, inputs, slice_ in stages
    ]


def run(config_dict, workdir: str | os.PathLike, stages: list[str] | None) -> None:
    """Checks the config, then runs the stages that are not complete yet."""
    from progemu_jax.config import Config, from_dict, to_dict
    from progemu_jax.records import write_json
    from progemu_jax.stages import list_stages, run_stages

    config = from_dict(Config, config_dict)
    plain = to_dict(config)
    todo = build_stages(config, plain)
    workdir = Path(workdir)
    if stages == ["list"]:
        print(list_stages(todo, workdir))
        return
    workdir.mkdir(parents=True, exist_ok=True)
    run_stages(todo, workdir, stages)
    write_json(workdir / "config.json", plain)


def main(argv: list[str]) -> None:
    """absl entry point: a `UserError` ends in one line and status 2."""
    del argv
    logging.set_verbosity(logging.WARNING)
    try:
        run(flags.FLAGS.config, _WORKDIR.value, _STAGES.value)
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def entry() -> None:
    """The command line, before any heavy import."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/demo.py.", lock_config=True)
    flags.mark_flags_as_required(["config", "workdir"])
    _use_all_cores()
    if not sys.stderr.isatty():  # a log wants a line now and then, not ten a second
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    app.run(main, flags_parser=_parse)


def _use_all_cores() -> None:
    """Without an accelerator, one single-threaded CPU device a core (at most 8, a power of two).

    Data parallelism over such devices trains a small model about twice as fast as one device with two threads:
    XLA's CPU backend runs element-wise work on one thread. The flags do nothing on GPU and TPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = 1 << (min(cores, 8).bit_length() - 1)
    flags_now = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags_now:
        ours = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = f"{flags_now} {ours}".strip()


def _parse(argv: list[str]) -> list[str]:
    """Flags and config file, each mistake in one line: an unknown --config.key, a file that does not parse."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        text = str(error).strip() or type(error).__name__
        print(f"error: {text.splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    entry()
