"""What a reader is: a sound folder in the smallest size that the format allows, and a function that reads it."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """build: writes the sound folder. read: reads the current folder, which is an edited copy of it, and returns the
    exit status or None for 0, or raises UserError, which counts as 2; nothing of `support.fuzz` needs to be known.
    files: globs of what is edited. writes: folders and files that may change; "." is all of them.
    ends: what read may return, or None for a status of 0 or 2.
    """

    name: str
    build: Callable[[Path], object]
    read: Callable[[], int | None]
    files: tuple[str, ...]
    writes: tuple[str, ...] = ("out",)
    ends: tuple[int, ...] = (0, 2)


def names(reader: Reader, folder: Path) -> list[str]:
    """The files of a sound folder that are edited."""
    found = {path for glob in reader.files for path in folder.glob(glob) if path.is_file()}
    assert found, f"{reader.name}: no file matches {shlex.join(reader.files)}"
    return sorted(path.relative_to(folder).as_posix() for path in found)
