"""Exports: parameters and the config that builds their model, for use without the training run."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from progemu_jax.checkpoints import packed
from progemu_jax.checkpoints.arrays import abstract, as_text, crc, flatten, shape_and_dtype, unflatten
from progemu_jax.checkpoints.quiet import quiet, reason, storable
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files.records import first_difference, read_text, write_json

_FIRST_FORMAT, _EXPORT_FORMAT = "progemu-jax-export-1", "progemu-jax-export-2"
_MOST = 2**40  # numbers in an array
PART_BYTES = 2**27  # of an export that are written at a time


def export(
    params: Any,
    config: dict,
    directory: str | os.PathLike,
    beside: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Writes parameters and the config that builds their model, for use without the training run.

    Args:
      params: nested dict of arrays. config: JSON-able. directory: must not exist, or be an earlier export
        (which is replaced once the new one is complete). beside: {name: writes a file or folder of that name}. Of
        several hosts every one calls and the first writes.
    """
    with ExportWriter(directory) if hosts.is_first() else contextlib.nullcontext() as writer:
        for name, leaf in flatten(params).items():
            leaf = whole(leaf)  # every host has a hand in it
            if writer:
                writer.add(name, leaf)

        def finish() -> None:
            for name, write in (beside or {}).items():
                write(writer.folder / name)
            writer.finish(config)

        hosts.on_first_host(finish, str(directory))


def whole(tree: Any) -> Any:
    """Arrays whose parts other hosts may hold, in NumPy; the rest as they are. Every host calls."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.tree.map(one, tree)


class ExportWriter:
    """Writes an export array by array; memory holds one part of about PART_BYTES, or one array that is larger.

    Each part is an Orbax checkpoint of some arrays, or of blocks of rows of a large one. Leaving the context
    without `finish` (an error) removes what was written.

    Args:
      directory: must not exist, or be an earlier export, which `finish` replaces.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = storable(directory)
        if self.directory.exists() and not (self.directory / "export.json").exists():
            raise UserError(f"{self.directory}: exists and is not an export: choose another folder")
        self.folder = self.directory.with_name(f"{self.directory.name}.tmp")  # other files may be put there, too
        self._old = self.directory.with_name(f"{self.directory.name}.old")
        for leftover in (self.folder, self._old):
            shutil.rmtree(leftover, ignore_errors=True)
        (self.folder / "params").mkdir(parents=True)
        self._orbax = _checkpointer()
        self._pending: dict = {}
        self._parts: list[dict] = []
        self._tree: dict = {}
        self._sums: dict = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._orbax.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # renamed by now, when complete

    def add(self, name: str, array: Any) -> None:
        """One array; it must not change before the next `add` or `finish` returns."""
        self._tree[name] = shape_and_dtype(array)
        if np.size(array):  # Orbax refuses the empty ones; their shape is in the record
            array = np.asarray(array)
            self._sums[name] = crc(array)
            self._put(name, array, None)

    def add_rows(self, name: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> None:
        """An array as blocks of whole rows (first axis), in order."""
        self._tree[name] = [list(shape), str(jnp.dtype(dtype))]
        start, checksum = 0, 0
        for block in blocks:
            checksum = crc(block, checksum)
            self._put(name, block, [start, start + len(block)])
            start += len(block)
        if start != shape[0]:
            raise ValueError(f"{name}: {start} rows given, {shape[0]} promised")
        self._sums[name] = checksum

    def _put(self, name: str, array: np.ndarray, rows: list[int] | None) -> None:
        if name in self._pending:
            self._flush()
        self._pending[name] = array, rows
        if sum(a.nbytes for a, _ in self._pending.values()) >= PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        self._orbax.save(_part(self.folder, len(self._parts)), {name: a for name, (a, _) in self._pending.items()})
        self._orbax.wait_until_finished()
        self._parts.append({name: rows for name, (_, rows) in self._pending.items()})
        self._pending = {}

    def finish(self, config: dict) -> None:
        """Writes what is left and the record, and gives the folder its name."""
        self._flush()
        record = {
            "format": _EXPORT_FORMAT,
            "config": config,
            "tree": self._tree,
            "crc32": self._sums,
            "parts": self._parts,
        }
        write_json(self.folder / "export.json", record)
        if self.directory.exists():  # moved at once: half of it, left by a kill, would be no export of ours
            self.directory.rename(self._old)
        self.folder.rename(self.directory)
        shutil.rmtree(self._old, ignore_errors=True)


def _checkpointer() -> ocp.StandardCheckpointer:
    """Of exports: of several hosts each works by itself and waits for no other."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"export{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _part(folder: Path, index: int) -> Path:
    return folder / "params" / f"{index:05d}"


def read_export_config(directory: str | os.PathLike) -> dict:
    """The config of an export, without its parameters."""
    return _read_export_record(Path(directory).absolute())["config"]


def read_export_tree(directory: str | os.PathLike) -> dict[str, list]:
    """{name: [shape, dtype]} of an export's arrays."""
    return _read_export_record(Path(directory).absolute())["tree"]


def load_export(directory: str | os.PathLike, template: Any = None) -> tuple[Any, dict]:
    """(params, config) of an export. Raises UserError when it is absent, damaged, or of another model.

    Args:
      template: nested dict of ShapeDtypeStructs (with shardings, when on a mesh) that the parameters must
        match; None takes what is there, on the default device.
    """
    directory = Path(directory).absolute()
    record = _read_export_record(directory)
    tree = record["tree"]
    if template is not None:
        found = first_difference(tree, {name: shape_and_dtype(leaf) for name, leaf in flatten(template).items()})
        if found:
            key, old, new = found
            raise UserError(f"{directory}: array {key} is {as_text(old)} there and {as_text(new)} in this model")
        wanted = {name: abstract(leaf) for name, leaf in flatten(template).items()}
    else:
        structs = {n: jax.ShapeDtypeStruct(tuple(s[0]), jnp.dtype(s[1])) for n, s in tree.items()}
        wanted = {name: abstract(s) for name, s in structs.items()}
    flat: dict = {}
    try:
        for name, rows, array in _read_parts(directory, record, wanted):
            if rows is None:
                flat[name] = array
            else:
                shape, dtype = tree[name]
                if rows[0] == 0:
                    flat[name] = np.empty(shape, jnp.dtype(dtype))
                flat[name][slice(*rows)] = array
                if rows[1] == shape[0]:
                    flat[name] = jax.device_put(flat[name], wanted[name].sharding)
        for name, expected in _sums(record).items():
            if crc(np.asarray(flat[name])) != expected:
                raise ValueError(f"array {name} does not have its checksum")
        for name, array in flat.items():
            if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(np.asarray(array)).all():
                raise ValueError(f"array {name} holds numbers that are not finite")
    except Exception as error:
        raise _damaged(directory, error) from None
    params = {name: flat[name] if name in flat else jnp.zeros(shape, dtype) for name, (shape, dtype) in tree.items()}
    return unflatten(params), record["config"]


def load_model(
    directory: str | os.PathLike, sizes: Callable[[dict], Any], init: Callable[[Any, jax.Array], Any]
) -> tuple[Any, dict, Any]:
    """(params, config, model) of an export whose arrays have the shapes that its config promises.

    Args:
      sizes: the config -> the model's own, a frozen dataclass. init: that and a key -> fresh parameters; only their
        shapes are traced, and before any array is read.

    Raises:
      UserError: as `load_export`, and where sizes and arrays differ, with the file and the value.
    """
    path, config = Path(directory) / "export.json", read_export_config(directory)
    with reading(directory):
        model = sizes(config)
    tree = {n: shape for n, (shape, _) in read_export_tree(directory).items() if not n.startswith(_LEFT_OVER)}
    if problem := too_deep(model, len(tree)):
        raise UserError(f"{path}: model.{problem}: export it again")
    try:
        wanted = _shapes(init, model)
    except Exception as error:  # whatever sizes without sense make the library raise
        raise UserError(f"{path}: model: no model has these sizes ({reason(error)}): export it again") from None
    if found := first_difference(tree, wanted):
        key, old, new = found
        raise UserError(f"{path}: array {key} is {old}, the sizes in model want {new}: export it again")
    params, config = load_export(directory)
    return params, config, model


def too_deep(model: Any, number: int) -> str:
    """The size of a model, a dataclass, that means more layers than there are arrays; "" for none.

    To be asked before anything is traced as often as the sizes say.
    """
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        depth = len(value) if isinstance(value, tuple) else value
        if field.name in _DEPTHS and not 0 <= depth <= number and not getattr(model, "scan_layers", False):
            return f"{field.name}={value!r:.100}: there are {number} arrays"
    return ""


_LEFT_OVER = "unused."  # of other heads and towers, which no model here has (`convert.components.UNUSED`)
_DEPTHS = ("num_layers", "num_res_blocks", "layers", "blocks", "ch_mult", "channels", "widths", "attn_levels")


@functools.lru_cache(64)
def _shapes(init: Callable[[Any, jax.Array], Any], model: Any) -> dict[str, list[int]]:
    tree = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return {name: list(leaf.shape) for name, leaf in flatten(tree).items()}


def iterate_export(directory: str | os.PathLike) -> Iterator[tuple[str, list[int] | None, np.ndarray]]:
    """(name, rows, array) of everything in an export; rows is None, or [start, stop] of a block of rows.

    Blocks of one array come in order. Memory holds one part. UserError for a damaged export, at its end for a
    checksum that is wrong.
    """
    directory = Path(directory).absolute()
    record = _read_export_record(directory)
    sums: dict = {}
    try:
        for name, rows, array in _read_parts(directory, record, None):
            sums[name] = crc(array, sums.get(name, 0))
            yield name, rows, array
        for name, (shape, dtype) in record["tree"].items():
            if 0 in shape:
                yield name, None, np.zeros(shape, jnp.dtype(dtype))
        for name, expected in _sums(record).items():
            if sums.get(name) != expected:
                raise ValueError(f"array {name} does not have its checksum")
    except GeneratorExit:
        raise
    except Exception as error:
        raise _damaged(directory, error) from error


@contextlib.contextmanager
def reading(directory: str | os.PathLike) -> Iterator[None]:
    """What is taken from an export's config within is there and of its kind; else a UserError names the export."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, SyntaxError, TypeError, ValueError) as error:
        lacks = f"lacks {error}" if isinstance(error, KeyError) else (str(error) or "?").splitlines()[0][:200]
        raise UserError(f"{Path(directory) / 'export.json'}: config {lacks}: export it again") from None


def _damaged(directory: Path, error: Exception) -> UserError:
    return UserError(f"{directory}: the export is damaged ({reason(error)}): fetch or export it again")


def _read_parts(
    directory: Path, record: dict, wanted: dict[str, jax.ShapeDtypeStruct] | None
) -> Iterator[tuple[str, list[int] | None, Any]]:
    """(name, rows, array) in the stored order; jax arrays placed as `wanted` says, blocks of rows in NumPy.

    wanted: {name: ShapeDtypeStruct with a sharding}, or None: NumPy throughout.
    """
    if record["format"] == packed.FORMAT:
        for name, array in packed.read(directory, record):
            if array.size:  # as below: empty ones are made from their shape
                yield name, None, array if wanted is None else jax.device_put(array, wanted[name].sharding)
        return
    tree = record["tree"]
    parts = record.get("parts")
    whole = [{name: None for name, (shape, _) in tree.items() if 0 not in shape}]  # the first format: one part
    with _checkpointer() as reader:
        for index, names in enumerate(whole if parts is None else parts):
            template = {}
            for name, rows in names.items():
                shape, dtype = tree[name]
                if rows is None and wanted is not None:
                    template[name] = wanted[name]
                else:
                    shape = shape if rows is None else [rows[1] - rows[0], *shape[1:]]
                    template[name] = np.empty(shape, jnp.dtype(dtype))
            folder = directory / "params" if parts is None else _part(directory, index)
            with quiet():
                restored = reader.restore(folder, template)
            for name, array in restored.items():
                if array.shape != template[name].shape:  # Orbax lets NumPy arrays have their own
                    raise ValueError(f"array {name} is of shape {array.shape}, export.json says {template[name].shape}")
                yield name, names[name], array


def _sums(record: dict) -> dict[str, int]:
    """{name: CRC-32}; a packed export has one hash instead, which `packed.read` compares."""
    return {} if record["format"] == packed.FORMAT else record["crc32"]


def _read_export_record(directory: Path) -> dict:
    path = directory / "export.json"
    if not path.exists():
        raise UserError(f"{directory}: no export here (export.json is missing): check the path")
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: does not parse as JSON ({reason(error)}): export it again") from None
    kind = record.get("format") if isinstance(record, dict) else None
    if kind not in (_EXPORT_FORMAT, _FIRST_FORMAT, packed.FORMAT):
        raise UserError(f"{path}: format {kind!r:.100} is not {_EXPORT_FORMAT!r}: export it again")
    if problem := _problem(record):
        raise UserError(f"{path}: {problem}: export it again")
    return record


def _problem(record: dict) -> str:
    """What of a record is not as `ExportWriter` writes it; "" for nothing."""
    for key in ("config", "tree"):
        if not isinstance(record.get(key), dict):
            return f"{key!r} is missing or no object"
    tree, full = record["tree"], {}
    for name, entry in tree.items():
        try:
            shape, dtype = entry
            full[name] = [int(n) for n in shape], jnp.dtype(dtype)
            if full[name][0] != shape or min(shape, default=0) < 0 or math.prod(shape) > _MOST:
                raise ValueError
        except (OverflowError, SyntaxError, TypeError, ValueError):  # NumPy parses a dtype with a comma
            return f"'tree' does not say shape and dtype of array {name!r:.100}"
    if record["format"] == packed.FORMAT:
        return "" if isinstance(record.get("sha256"), str) else "'sha256' is missing or no text"
    if not isinstance(record.get("crc32"), dict):
        return "'crc32' is missing or no object"
    parts, read = record.get("parts"), dict.fromkeys(tree, 0)
    if record["format"] == _FIRST_FORMAT and parts is None:
        return ""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return "'parts' is no list of objects"
    for name, rows in ((name, rows) for part in parts for name, rows in part.items()):
        if name not in tree:
            return f"'parts' has array {name!r:.100}, which 'tree' lacks"
        height = full[name][0][0] if full[name][0] else 1
        rows = [0, height] if rows is None else rows
        whole = isinstance(rows, list) and [type(row) for row in rows] == [int, int]
        if not whole or rows[0] != read[name] or not read[name] < rows[1] <= height:
            return f"'parts' does not give the rows of array {name!r:.100} in order"
        read[name] = rows[1]
    for name, rows in read.items():
        if rows != (full[name][0][0] if full[name][0] else 1) and 0 not in full[name][0]:
            return f"'parts' does not give all rows of array {name!r:.100}"
    return ""
