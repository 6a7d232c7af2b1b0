"""progemu-jax COMMAND [flags ...]: the commands of the package by one name, beside `python -m progemu_jax...`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from progemu_jax.errors import INTERRUPTED, say


class Command(NamedTuple):
    """module: what `python -m` would run; flags: those that come before the user's, which win."""

    module: str
    what: str
    flags: tuple[str, ...] = ()


_DEMO = ("--config=demo", "--workdir=runs/demo")
COMMANDS = {
    "demo": Command("progemu_jax.main", "cohort to judged counterfactuals on the phantom, to runs/demo", _DEMO),
    "run": Command("progemu_jax.main", "the same of any config: --config=NAME|FILE --workdir=DIR"),
    "try": Command("progemu_jax.gallery", "pictures by the model in the package, to runs/try"),
    "app": Command("progemu_jax.app", "a page in the browser that edits films (the extra [app])"),
    "eval": Command("progemu_jax.eval", "scores predictions of any system"),
    "convert": Command("progemu_jax.convert", "weights of others in and out"),
    "publish": Command("progemu_jax.publish", "a run's model to the Hugging Face Hub"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names, in this process; returns a status (2: no such command)."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        print("progemu-jax COMMAND [flags]; progemu-jax COMMAND --help lists its flags\n")
        print("\n".join(f"  {name:8} {one.what} (python -m {one.module})" for name, one in COMMANDS.items()))
        return 0
    if name == "--version":
        print(version("progemu-jax"))
        return 0
    if name not in COMMANDS:
        say(f"{name:.100}: no such command; choose among {', '.join(COMMANDS)}")
        return 2
    command = COMMANDS[name]
    sys.argv[1:] = [*command.flags, *rest]
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)  # ends in sys.exit
    except KeyboardInterrupt:  # while importing: the module cannot catch it yet
        say("interrupted")
        return INTERRUPTED
    return 0
