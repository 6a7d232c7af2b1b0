"""Small JSON records that survive a kill: atomic writes, digests, and what differs between two configs."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

_ABSENT = object()


def normal(value: Any) -> Any:
    """`value` as JSON gives it back: tuples become lists, keys strings, and paths their text."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(normal(value), sort_keys=True).encode()).hexdigest()


def write_bytes(path: str | os.PathLike, content: bytes, durable: bool = True) -> None:
    """Writes to a temporary name beside `path`, flushes to the disk, renames: never half a file.

    durable=False leaves the flush to the system: for the many small files that a stage makes again when it is cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Deletes what a killed `write_bytes` left anywhere under `folder`; no other process may be writing there."""
    for path in Path(folder).rglob(".*.tmp"):
        path.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Atomic UTF-8 file; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Atomic JSON file."""
    write_text(path, json.dumps(normal(value), indent=1, sort_keys=True) + "\n")


def write_npz(path: str | os.PathLike, arrays: dict, durable: bool = True) -> None:
    """Atomic compressed `.npz` of NumPy arrays; see `write_bytes`."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue(), durable)


def read_json(path: str | os.PathLike) -> Any | None:
    """The parsed file, or None when it is absent or does not parse."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


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
