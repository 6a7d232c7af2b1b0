"""Small JSON records that survive a kill: atomic writes, JSON lines, digests, what differs between two configs."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np

from progemu_jax.errors import UserError

_ABSENT = object()
_HALF, _GREATEST = re.compile("[\ud800-\udfff]"), sys.float_info.max


def normal(value: Any) -> Any:
    """`value` as JSON gives it back: tuples become lists, keys strings, dataclasses dicts, and paths their text."""
    return json.loads(json.dumps(value, sort_keys=True, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return str(value)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(normal(value), sort_keys=True).encode()).hexdigest()


def write_bytes(path: str | os.PathLike, content: bytes, durable: bool = True) -> None:
    """Writes to a temporary name beside `path`, flushes to the disk, renames: never half a file.

    Raises UserError where a folder is in the way.

    durable=False leaves the flush to the system: for the many small files that a stage makes again when it is cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:  # `path` is a folder, the disk is full
        temporary.unlink(missing_ok=True)
        _refuse_folder(path)
        raise


def delete(path: str | os.PathLike) -> None:
    """Deletes a file of ours, if it is there. Raises UserError where a folder has its name."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError:
        _refuse_folder(Path(path))
        raise


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, where a file belongs; move it away") from None


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Deletes what a killed `write_bytes` left anywhere under `folder`; no other process may be writing there."""
    for path in Path(folder).rglob(".*.tmp"):
        if not path.is_dir():
            delete(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Atomic UTF-8 file; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Atomic JSON file."""
    write_text(path, json.dumps(normal(value), indent=1, sort_keys=True) + "\n")


def write_npz(path: str | os.PathLike, arrays: dict, durable: bool = True) -> None:
    """Atomic compressed `.npz` of NumPy arrays; see `write_bytes`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue(), durable)


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a file that others made. OSError also for a pipe or a device, which would be waited for without end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "is no regular file", str(path))
    return os.fdopen(handle, "rb")


@contextlib.contextmanager
def open_npz(path: str | os.PathLike) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a `.npz` that others made; no pickles; see `open_file`."""
    with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


def read_text(path: str | os.PathLike) -> str:
    """A UTF-8 file that others made; see `open_file`."""
    with open_file(path) as file:
        return file.read().decode("utf-8")


def can_be_inside(name: Any) -> bool:
    """Whether a name, which came from outside, is a path that stays in its folder, and that a file can have."""
    if not isinstance(name, str) or "\0" in name or _HALF.search(name):
        return False
    path, lengths = PurePath(name), [len(part.encode()) for part in PurePath(name).parts]
    return not path.is_absolute() and ".." not in path.parts and max(lengths, default=0) <= 255 and sum(lengths) <= 1000


def read_json(path: str | os.PathLike) -> Any | None:
    """The parsed file, or None when it is absent or does not parse."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of a JSON-lines file, streamed; None where a line does not parse. Absent: empty.

    Blank lines are passed over. Raises UserError for a file that cannot be read.
    """
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    yield number, None
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def oddity(value: Any) -> str:
    """What in a value that was read no file of ours could hold again; "" for nothing.

    Python reads more than JSON is: NaN, integers of any length, halves of a character ("\\ud800").
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and _HALF.search(one):
            return "half a character (a lone surrogate)"
        if isinstance(one, int | float) and not abs(one) <= _GREATEST:
            return "a number that is not finite" if isinstance(one, float) else "a number of too many digits"
        if isinstance(one, dict | list):
            left += [*one, *one.values()] if isinstance(one, dict) else one
    return ""


def read_rows(path: str | os.PathLike, *texts: str, remedy: str = "rewrite the file") -> list[dict]:
    """The objects of a JSON-lines file, each with the keys `texts` as text that is not empty.

    Raises UserError, with the `remedy`, where the file is missing or empty, and for the first line that is otherwise.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    rows = []
    for number, row in read_lines(path):
        if row is None:
            raise UserError(f"{path}: line {number} is not JSON; {remedy}")
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object; {remedy}")
        if odd := oddity(row):
            raise UserError(f"{path}: line {number} holds {odd}; {remedy}")
        for key in texts:
            if not isinstance(row.get(key), str) or not row[key]:
                raise UserError(f"{path}: line {number}: {key!r} is missing or not text; {remedy}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no rows; {remedy}")
    return rows


def write_lines(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Writes JSON lines atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def first_difference(old: Any, new: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, old value, new value) of the first place where two JSON-able values differ, or None.

    A key that only one of them has shows as "(absent)" on the other side.
    """
    return _first_difference(normal(old), normal(new), prefix)


def _first_difference(old, new, prefix):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            a, b = old.get(key, _ABSENT), new.get(key, _ABSENT)
            found = _first_difference(a, b, f"{prefix}.{key}" if prefix else key)
            if found:
                return found
        return None
    same = type(old) is type(new) or (_number(old) and _number(new))
    if same and old == new:
        return None
    return prefix, *("(absent)" if v is _ABSENT else v for v in (old, new))


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)
