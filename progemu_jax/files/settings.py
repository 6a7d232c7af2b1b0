"""Nested dicts <-> frozen dataclasses. An unknown key or a value of the wrong type is an error that names it."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from progemu_jax.errors import UserError
from progemu_jax.files.records import normal


def from_dict(cls: type, values: Any, path: str = "config") -> Any:
    """Builds the frozen dataclass `cls` from nested mappings.

    Args:
      cls: a dataclass type.
      values: mapping (a ConfigDict too) from field name to value; missing fields keep their default.
      path: where `values` stands, for messages.

    Raises:
      UserError: on an unknown key or a value of the wrong type, naming the key.
    """
    if dataclasses.is_dataclass(values) and not isinstance(values, type):
        values = dataclasses.asdict(values)
    if not hasattr(values, "items"):
        raise UserError(f"{path}: expected a section, got {values!r}; write it as a nested mapping")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kwargs = {}
    for key, value in values.items():
        if key not in fields:
            raise _unknown(path, str(key), fields)
        kwargs[key] = _coerce(hints[key], value, f"{path}.{key}")
    try:
        return cls(**kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def known_key(values: Mapping[str, Any], name: str) -> None:
    """Raises UserError unless `name` ("config.data.root") is a key of the nested mapping `values`."""
    path, *keys = name.split(".")
    for key in keys:
        if not isinstance(values, Mapping) or key not in values:
            raise _unknown(path, key, values if isinstance(values, Mapping) else ())
        path, values = f"{path}.{key}", values[key]


def _unknown(path: str, key: str, known: Iterable[str]) -> UserError:
    known = list(known)
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known) or 'none, it is a value'}"
    return UserError(f"{path}.{key}: unknown key; {hint}")


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise UserError(f"{path}: expected a list, got {value!r}")
        inner = typing.get_args(hint)[0]
        return tuple(_coerce(inner, v, f"{path}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool):
        if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
            raise UserError(f"{path}: expected {hint.__name__}, got {value!r}")
        return value
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """The plain nested dict of a config dataclass, or of a dict of such: JSON-ready (tuples become lists)."""
    return normal(config)


def filled(kind: Any, old: Any, new: Any) -> Any:
    """`old`, with every key that it lacks and `new` has at its default: a record from before the key was there.

    A default is the one that the dataclass declares. A key without one stays absent; so does what `kind` does not say.
    Where a run derives the key's value from others, what it derives is compared: anything but the default differs.

    Args:
      kind: the dataclass that both were plain dicts of, or an instance of it; or a dict of such, by key; None: unknown.
      old: of an earlier version of the dataclass. It may leave out keys, as `new` may.
      new: of today's.
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [filled(kind, a, b) for a, b in zip(old, new, strict=True)]
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old
    kinds, defaults = _kinds(kind), _defaults(kind)
    out = dict(old)
    for key, value in new.items():
        if key in old:
            out[key] = filled(kinds.get(key), old[key], value)
        elif key in defaults:
            out[key] = _shared(defaults[key], value)
    return out


def _kinds(kind: Any) -> dict[str, Any]:
    """What is known of each key: a dataclass (of a list: of its items), or None."""
    if isinstance(kind, Mapping):
        return dict(kind)
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = typing.get_type_hints(kind if isinstance(kind, type) else type(kind))
    return {f.name: _dataclass_in(hints[f.name]) for f in dataclasses.fields(kind)}


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of a hint `D`, `D | None` or `tuple[D, ...]`."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next(filter(None, map(_dataclass_in, typing.get_args(hint))), None)


def _defaults(kind: Any) -> dict[str, Any]:
    """The defaults that a dataclass declares, by key, as JSON has them; a key without one is not there."""
    if isinstance(kind, Mapping):
        return {key: found for key, inner in kind.items() if (found := _defaults(inner))}
    found = {}
    for f in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if f.default is not dataclasses.MISSING:
            found[f.name] = normal(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = normal(f.default_factory())
    return found


def _shared(default: Any, new: Any) -> Any:
    """A default section without the keys that `new` leaves out."""
    if not isinstance(default, dict) or not isinstance(new, dict):
        return default
    return {key: _shared(default[key], value) for key, value in new.items() if key in default}
