"""Runs a config: `python -m progemu_jax.main --config=configs/demo.py --workdir=runs/demo`.

Config values can be changed on the command line, e.g. `--config.data.root=DIR`.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from progemu_jax import configs
from progemu_jax.config import Config
from progemu_jax.devices import compilation, hosts
from progemu_jax.errors import INTERRUPTED, UserError, disk_trouble, say
from progemu_jax.files.settings import from_dict, known_key
from progemu_jax.run import run

_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory: everything the run makes goes there.")
_STAGES = flags.DEFINE_list(
    "stages",
    None,
    "Stages to run, comma-separated; default all; 'list' prints what each needs and has made; 'plan' compiles training "
    "and sampling for devices that are not here, and says what fits where.",
)
_MULTIHOST = flags.DEFINE_bool("multihost", False, "This process is one of several that make the run together.")


def main(argv: list[str]) -> None:
    """absl entry point: a `UserError`, or a disk that is full or not ours, ends in one line and status 2."""
    if argv[1:]:
        _stop(f"{argv[1]!r}: is no flag; several stages are one word, --stages=data,tokenizer")
    if not _WORKDIR.value.strip():
        _stop("--workdir=: is empty; name a folder")
    if not _WORKDIR.value.isprintable():
        _stop(f"--workdir={_WORKDIR.value}: holds a character that cannot be printed; name another folder")
    logging.set_verbosity(logging.WARNING)
    try:
        if _MULTIHOST.value:
            hosts.start()
        run(flags.FLAGS.config, _WORKDIR.value, _STAGES.value)
    except UserError as error:
        _stop(error)
    except Exception as error:
        if why := disk_trouble(error):
            _stop(f"{_WORKDIR.value}: cannot be written ({why}); mend that, then the same command goes on")
        raise
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on", INTERRUPTED)


def entry() -> None:
    """The command line. What settles how devices are seen comes before the first use of a backend."""
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
    names = {"--config", "-config"}
    at = [i for i, arg in enumerate(argv) if arg.split("=", 1)[0] in names]
    if not at:
        flags.DEFINE_string("config", None, "Config file, e.g. configs/demo.py; --config.key=value changes a key.")
        flags.mark_flag_as_required("config")
        return argv
    first = at[-1]
    long = "=" in argv[first]
    if not long and first + 1 == len(argv):
        raise UserError("--config: name a file or a config of the package, e.g. --config=demo")
    path = argv[first].split("=", 1)[1] if long else argv[first + 1]

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
    """What `get_config()` returns: of a config file, or of the config of the package that has this name."""
    file = Path(path)
    if not os.path.isfile(file):  # False too for what no file system takes
        folder = Path(configs.__file__).parent
        names = sorted(p.stem for p in folder.glob("*.py") if "def get_config" in p.read_text(encoding="utf-8"))
        if path not in names:
            raise UserError(
                f"--config: {path:.200}: no such file, and no config of the package has this name: {', '.join(names)}"
            )
        file = folder / f"{path}.py"
    try:
        return runpy.run_path(str(file))["get_config"]()
    except Exception as error:  # the file is Python: anything can go wrong in it
        text = (str(error).strip() or "?").splitlines()[0]
        raise UserError(f"{path}: does not load as a config file ({type(error).__name__}: {text})") from None


def _stop(error: Exception | str, status: int = 2) -> NoReturn:
    """One line and a status."""
    say(error)
    sys.exit(status)


def use_all_cores() -> None:
    """Without an accelerator, one single-threaded CPU device a core (at most 8, a power of two).

    Data parallelism over such devices trains a small model about twice as fast as one device with two threads:
    XLA's CPU backend runs element-wise work on one thread. Instructions are scheduled for little memory, which such
    devices lose nothing by. The flags do nothing on GPU and TPU.

    A device that waits for the others holds a thread of XLA's pool: with no more threads than devices, other work can
    keep one of them from ever arriving, and XLA aborts. NPROC is what XLA takes for the number of cores when it makes
    its pool. A machine may also sleep: the wait ends after ten minutes, not 40 seconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = 1 << (min(cores, 8).bit_length() - 1)
    flags_now = os.environ.get("XLA_FLAGS", "")
    if "host_platform_device_count" not in flags_now:
        ours = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
        ours += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
        ours += " --xla_cpu_collective_call_warn_stuck_timeout_seconds=60"
        ours += " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        os.environ.setdefault("NPROC", str(max(2 * devices, cores)))
        os.environ["XLA_FLAGS"] = f"{flags_now} {ours}".strip()


def _parse(argv: list[str]) -> list[str]:
    """Flags, each mistake in one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        _stop((str(error).strip() or type(error).__name__).splitlines()[0])


if __name__ == "__main__":
    entry()
