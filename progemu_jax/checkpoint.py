"""Checkpoints: a pytree of arrays and a JSON record, written atomically with Orbax.

On disk a state is a flat dict, "params.layers.wq" -> array, so that reading it needs no optimizer
library, and a newer one that nests its state differently can still be told apart by name. Orbax is imported
inside the functions: it takes a second, and listing what is there does not need it.
"""

import base64
import contextlib
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax import hosts
from progemu_jax.errors import UserError
from progemu_jax.records import first_difference, normal, write_json

_log = logging.getLogger(__name__)
_FIRST_FORMAT, _EXPORT_FORMAT = "progemu-jax-export-1", "progemu-jax-export-2"
PART_BYTES = 2**27  # of an export that are written at a time


def environment() -> dict:
    """What a bit-exact resume depends on beside the config: versions, cores and devices."""
    import jaxlib

    devices = jax.devices()
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "processes": jax.process_count(),
    }


class Checkpoints:
    """The numbered checkpoints of one run: `<directory>/<step>/`. On several hosts every process makes the same calls,
    and the directory is one that all of them see.

    Args:
      directory: made when absent.
      keep: how many of the newest to keep.
      config: JSON-able; what must be the same for a checkpoint to be continued.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, config: dict | None = None):
        import orbax.checkpoint as ocp

        self.directory = Path(directory).absolute()
        self.config = normal(config or {})
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
            item_names=("state", "meta"),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def steps(self) -> list[int]:
        """Complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict | None = None) -> None:
        """Copies the state, then writes it in the background; it counts once its folder has its final name.

        Args:
          state: pytree of arrays; the caller may donate or change it as soon as this returns.
          extra: JSON-able (bytes allowed), given back by `restore`.
        """
        flat = {name: leaf for name, leaf in flatten(state).items() if np.size(leaf)}  # Orbax refuses the empty ones
        sums = checksums(flat)
        flat = {name: _detached(leaf) for name, leaf in flat.items()}
        meta = {
            "step": step,
            "config": self.config,
            "environment": environment(),
            "tree": {name: _shape(leaf) for name, leaf in flatten(state).items()},
            "checksums": sums,
            "extra": _pack(extra or {}),
        }
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(state=args.StandardSave(flat), meta=args.JsonSave(meta)),
            force=True,
        )

    def restore(self, template: Any) -> tuple[int, Any, dict] | None:
        """The newest checkpoint that can be read: (step, state, extra), or None when there is none.

        A damaged one is set aside as `damaged-<step>` with a warning and the one before is taken.

        Args:
          template: pytree of arrays or ShapeDtypeStructs (with shardings, when on a mesh).
        Raises:
          UserError: the checkpoint was made with another config, or holds other arrays.
        """
        for step in reversed(self.steps()):
            meta, error = None, None
            try:
                meta = self._read_meta(step)
            except Exception as caught:  # whatever a broken file makes the library raise
                error = caught
            if not self._sound(step, error):
                continue
            self._check(step, meta, template)
            names, arrays, error = flatten(template), None, None
            wanted = {name: _abstract(leaf) for name, leaf in names.items() if np.size(leaf)}
            try:
                arrays = self._read(step, state=self._ocp.args.StandardRestore(wanted))["state"]
            except Exception as caught:
                error = caught
            if not self._sound(step, error):
                continue
            found = first_difference(meta["checksums"], checksums(arrays))  # on the devices of all hosts
            if not self._sound(step, found and ValueError(f"array {found[0]} does not have its checksum")):
                continue
            leaves = [arrays[n] if n in arrays else jnp.zeros(x.shape, x.dtype) for n, x in names.items()]
            state = jax.tree.unflatten(jax.tree.structure(template), leaves)
            return step, state, _unpack(meta["extra"])
        return None

    def _sound(self, step, error):
        """Whether every host has read it. Else it is set aside, by the first of them."""
        if not hosts.anyone(error is not None):
            return True
        if error is None:
            error = ValueError("another host cannot read it")
        path = self.directory / str(step)
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        _log.warning("%s is damaged (%s): it is set aside and the one before is used", path, reason)
        if hosts.first():
            target = self.directory / f"damaged-{step}"
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)
        hosts.barrier()
        self._manager.reload()
        return False

    def wait(self) -> None:
        """Returns when the last `save` is on the disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self._manager.close()

    def _read(self, step, **items):
        """Items of a checkpoint, read by this process alone: a host that fails must not keep the others waiting."""
        ocp, me = self._ocp, jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}"
        )
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.StandardCheckpointHandler(multiprocessing_options=options),
            meta=ocp.JsonCheckpointHandler(multiprocessing_options=options),
        )
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
            return reader.restore(self.directory / str(step), args=ocp.args.Composite(**items))

    def _read_meta(self, step):
        meta = self._read(step, meta=self._ocp.args.JsonRestore())["meta"]
        if meta["step"] != step:
            raise ValueError(f"its record is of step {meta['step']}")
        return meta

    def _check(self, step, meta, template):
        path = self.directory / str(step)
        found = first_difference(meta["config"], self.config)
        if found:
            key, old, new = found
            raise UserError(
                f"{path}: made with {key}={old!r}, the config now says {new!r}: "
                f"use another --workdir or delete {self.directory}"
            )
        tree = {name: _shape(leaf) for name, leaf in flatten(template).items()}
        found = first_difference(meta["tree"], tree)
        if found:
            key, old, new = found
            raise UserError(
                f"{path}: array {key} is {_text(old)} in the checkpoint and {_text(new)} in this model: "
                f"use another --workdir or delete {self.directory}"
            )
        before, now = meta["environment"], environment()
        changed = [f"{key} {before.get(key)} (now {now.get(key)})" for key in now if before.get(key) != now.get(key)]
        if changed and hosts.first():
            _log.warning(
                "%s was written with %s: training goes on, but not bit for bit the same", path, ", ".join(changed)
            )


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
    with ExportWriter(directory) if hosts.first() else contextlib.nullcontext() as writer:
        for name, leaf in flatten(params).items():
            leaf = whole(leaf)  # every host has a hand in it
            if writer:
                writer.add(name, leaf)

        def finish():
            for name, write in (beside or {}).items():
                write(writer.folder / name)
            writer.finish(config)

        hosts.once(finish, str(directory))


def whole(tree: Any) -> Any:
    """Arrays whose parts other hosts may hold, in NumPy; the rest as they are. Every host calls."""

    def one(leaf):
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            from jax.experimental import multihost_utils

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

        self.directory = Path(directory).absolute()
        if self.directory.exists() and not (self.directory / "export.json").exists():
            raise UserError(f"{self.directory}: exists and is not an export: choose another folder")
        self.folder = self.directory.with_name(f"{self.directory.name}.tmp")  # other files may be put there, too
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "params").mkdir(parents=True)
        self._orbax = _checkpointer()
        self._pending: dict = {}
        self._parts: list[dict] = []
        self._tree: dict = {}
        self._sums: dict = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._orbax.close()
        shutil.rmtree(self.folder, ignore_errors=True)  # renamed by now, when complete

    def add(self, name: str, array: Any) -> None:
        """One array; it must not change before the next `add` or `finish` returns."""
        self._tree[name] = _shape(array)
        if np.size(array):  # Orbax refuses the empty ones; their shape is in the record
            array = np.asarray(array)
            self._sums[name] = _crc(array)
            self._put(name, array, None)

    def add_rows(self, name: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> None:
        """An array as blocks of whole rows (first axis), in order."""
        self._tree[name] = [list(shape), str(jnp.dtype(dtype))]
        start, crc = 0, 0
        for block in blocks:
            crc = _crc(block, crc)
            self._put(name, block, [start, start + len(block)])
            start += len(block)
        if start != shape[0]:
            raise ValueError(f"{name}: {start} rows given, {shape[0]} promised")
        self._sums[name] = crc

    def _put(self, name, array, rows):
        if name in self._pending:
            self._flush()
        self._pending[name] = array, rows
        if sum(a.nbytes for a, _ in self._pending.values()) >= PART_BYTES:
            self._flush()

    def _flush(self):
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
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.folder.rename(self.directory)


def _checkpointer():
    """Of exports: of several hosts each works by itself and waits for no other."""
    import orbax.checkpoint as ocp

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
        found = first_difference(tree, {name: _shape(leaf) for name, leaf in flatten(template).items()})
        if found:
            key, old, new = found
            raise UserError(f"{directory}: array {key} is {_text(old)} there and {_text(new)} in this model")
        wanted = {name: _abstract(leaf) for name, leaf in flatten(template).items()}
    else:
        structs = {n: jax.ShapeDtypeStruct(tuple(s[0]), jnp.dtype(s[1])) for n, s in tree.items()}
        wanted = {name: _abstract(s) for name, s in structs.items()}
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
        for name, expected in record["crc32"].items():
            if _crc(np.asarray(flat[name])) != expected:
                raise ValueError(f"array {name} does not have its checksum")
    except Exception as error:
        raise _damaged(directory, error) from error
    params = {name: flat[name] if name in flat else jnp.zeros(shape, dtype) for name, (shape, dtype) in tree.items()}
    return unflatten(params), record["config"]


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
            sums[name] = _crc(array, sums.get(name, 0))
            yield name, rows, array
        for name, (shape, dtype) in record["tree"].items():
            if 0 in shape:
                yield name, None, np.zeros(shape, jnp.dtype(dtype))
        for name, expected in record["crc32"].items():
            if sums.get(name) != expected:
                raise ValueError(f"array {name} does not have its checksum")
    except GeneratorExit:
        raise
    except Exception as error:
        raise _damaged(directory, error) from error


def _damaged(directory, error):
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return UserError(f"{directory}: the export is damaged ({reason}): export it again")


def _read_parts(directory, record, wanted):
    """(name, rows, array) in the stored order; jax arrays placed as `wanted` says, blocks of rows in NumPy.

    wanted: {name: ShapeDtypeStruct with a sharding}, or None: NumPy throughout.
    """

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
            for name, array in reader.restore(folder, template).items():
                yield name, names[name], array


def _read_export_record(directory):
    path = directory / "export.json"
    if not path.exists():
        raise UserError(f"{directory}: no export here (export.json is missing): check the path")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: does not parse as JSON ({error}): export it again") from error
    if record.get("format") not in (_EXPORT_FORMAT, _FIRST_FORMAT):
        raise UserError(f"{path}: format {record.get('format')!r} is not {_EXPORT_FORMAT!r}: export it again")
    return record


def flatten(tree: Any) -> dict[str, Any]:
    """{dotted path: leaf} of a pytree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any]) -> dict:
    """Nested dict of {dotted path: leaf}."""
    tree: dict = {}
    for name, leaf in flat.items():
        *folders, last = name.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def _detached(leaf):
    """An array that no later donation can touch.

    On an accelerator the NumPy array is a copy; on CPU it is a view, and jax does not give memory with a living view to
    a donating step (a test holds this). What several devices hold Orbax copies to the host before `save` returns, but
    on CPU it takes a view.
    """
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        return jnp.copy(leaf) if jax.default_backend() == "cpu" else leaf
    return np.asarray(leaf)


def checksums(flat: dict[str, Any]) -> dict[str, str]:
    """{name: checksum (hex)} of arrays, computed where they lie: the same for every sharding and number of hosts.

    Two sums, modulo 2^32, of the elements' bits times odd weights of their places: any one changed element, and all
    but 2^-60 or so of other changes, show. Integer sums do not depend on their order.
    """
    groups: dict[Any, dict] = {}
    for name, leaf in flat.items():
        devices = frozenset(leaf.sharding.device_set) if isinstance(leaf, jax.Array) else None
        groups.setdefault(devices, {})[name] = leaf
    found: dict[str, str] = {}
    for group in groups.values():
        found |= {name: "".join(f"{int(x):08x}" for x in pair) for name, pair in jax.device_get(_sums(group)).items()}
    return {name: found[name] for name in flat}


@jax.jit
def _sums(flat):
    def one(x):
        x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            stride = math.prod(x.shape[axis + 1 :]) % 2**32
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
        weights = (place * jnp.uint32(factor) | 1 for factor in (0x9E3779B1, 0x85EBCA6B))
        return tuple(jnp.sum(bits * weight, dtype=jnp.uint32) for weight in weights)

    return {name: one(x) for name, x in flat.items()}


def _crc(array, before=0):
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), before)


def _shape(leaf):
    return [list(leaf.shape), str(jnp.dtype(leaf.dtype))]


def _text(shape):
    return shape if isinstance(shape, str) else f"{shape[1]}{shape[0]}"


def _abstract(leaf):
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _pack(value):
    """JSON has no bytes: {"__bytes__": base64}."""
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {str(k): _pack(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _unpack(value):
    if isinstance(value, dict):
        if set(value) == {"__bytes__"}:
            return base64.b64decode(value["__bytes__"])
        return {k: _unpack(v) for k, v in value.items()}
    return [_unpack(v) for v in value] if isinstance(value, list) else value
