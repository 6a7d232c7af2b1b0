"""Values of a foreign config with their types checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progemu_jax.errors import UserError


class Reader:
    """Values of a config with their types checked; messages name the file and the key."""

    def __init__(self, path: Path, values: Mapping[str, Any]):
        self.path, self.values = path, values

    def refuse(self, key: str, why: str) -> UserError:
        return UserError(f"{self.path}: {key}={self.values.get(key)!r}: {why}")

    def whole(self, key: str, default: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.refuse(key, "expected a positive whole number; use the original config")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
            raise self.refuse(key, "expected a finite number that is not negative; use the original config")
        return float(value)

    def wholes(self, key: str, default: tuple[int, ...], least: int) -> tuple[int, ...]:
        value = self.values.get(key, default)
        ints = isinstance(value, list | tuple) and all(
            isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**31 for v in value
        )
        if not ints:
            raise self.refuse(key, "expected a list of whole numbers; use the original config")
        return tuple(value)

    def only(self, key: str, allowed: tuple, default: Any = None) -> None:
        value = self.values.get(key, default)
        if value not in allowed:
            raise self.refuse(key, f"only {' or '.join(repr(a) for a in allowed)} is supported")
