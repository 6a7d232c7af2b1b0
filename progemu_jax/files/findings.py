"""findings.json: the list of findings of a cohort, beside its files; without it, the phantom's eight."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text import findings
from progemu_jax.text.findings import PHANTOM, Finding

NAME = "findings.json"


def read(folder: str | os.PathLike) -> tuple[Finding, ...]:
    """The findings of the folder's cohort. UserError when the file is there and makes no sense."""
    path = Path(folder) / NAME
    if not path.exists():
        return PHANTOM
    try:
        return findings.from_rows(records.read_json(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}; make the folder again") from None


def write(folder: str | os.PathLike, found: tuple[Finding, ...]) -> None:
    """Writes the list beside the folder's files; nothing for the phantom's."""
    path = Path(folder) / NAME
    if found == PHANTOM:
        records.delete(path)
    else:
        records.write_json(path, findings.to_rows(found))


def beside(found: tuple[Finding, ...]) -> dict[str, Callable[[Path], None]]:
    """What writes the file into an export, by its name (`checkpoints.export.export`); {} for the phantom's list."""
    return {} if found == PHANTOM else {NAME: lambda path: write(path.parent, found)}
