"""The command line of a module: flags whose mistakes are one line. What a command ends with: `errors.exit_status`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from progemu_jax.errors import say

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, of what a file system takes


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line and status 2, and a flag takes no empty value (`--out=$RUN`, RUN not set).

    Args:
      doc: the module's docstring; it is the help, and its first line that names one ("python -m ...") the command.
    """

    def __init__(self, doc: str):
        line = next(line.split() for line in doc.splitlines() if "python -m " in line)
        prog = " ".join(line[line.index("python") :][:3])
        super().__init__(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.register("type", None, _text)
        self.register("type", Path, lambda text: Path(_text(text)))

    def error(self, message: str) -> NoReturn:
        say(f"{message.removeprefix('argument ')}; --help lists the flags")
        sys.exit(2)


def _text(value: str) -> str:
    """A flag's value: a word, or a path that a file system could hold."""
    if not value.strip():
        raise argparse.ArgumentTypeError("is empty; give a value")
    if not value.isprintable():
        raise argparse.ArgumentTypeError(f"{value[:40]!r}: holds a character that cannot be printed")
    encoded = value.encode(errors="surrogateescape")
    if len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise argparse.ArgumentTypeError(f"{value[:40]!r}...: is too long for a path")
    return value
