"""Checkpoints: a pytree of arrays and a JSON record, written atomically with Orbax.

On disk a state is a flat dict, "params.layers.wq" -> array, so that reading it needs no optimizer
library, and a newer one that nests its state differently can still be told apart by name. Orbax is imported
inside the functions: it takes a second, and listing what is there does not need it.
"""

import base64
import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.records import first_difference, normal, write_json

_log = logging.getLogger(__name__)
_EXPORT_FORMAT = "progemu-jax-export-1"


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
    """The numbered checkpoints of one run: `<directory>/<step>/`.

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
        flat, sums = _detach(_flatten(state))
        meta = {
            "step": step,
            "config": self.config,
            "environment": environment(),
            "tree": {name: _shape(leaf) for name, leaf in _flatten(state).items()},
            "crc32": sums,
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
            try:
                meta = self._read_meta(step)
            except Exception as error:  # whatever a broken file makes the library raise
                self._set_aside(step, error)
                continue
            self._check(step, meta, template)
            try:
                state = self._read_state(step, meta, template)
            except Exception as error:
                self._set_aside(step, error)
                continue
            return step, state, _unpack(meta["extra"])
        return None

    def wait(self) -> None:
        """Returns when the last `save` is on the disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self._manager.close()

    def _read_meta(self, step):
        args = self._ocp.args
        meta = self._manager.restore(step, args=args.Composite(meta=args.JsonRestore()))["meta"]
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
        tree = {name: _shape(leaf) for name, leaf in _flatten(template).items()}
        found = first_difference(meta["tree"], tree)
        if found:
            key, old, new = found
            raise UserError(
                f"{path}: array {key} is {_text(old)} in the checkpoint and {_text(new)} in this model: "
                f"use another --workdir or delete {self.directory}"
            )
        found = first_difference(meta["environment"], environment())
        if found:
            key, old, new = found
            _log.warning(
                "%s was written with %s %s, now %s: training goes on, but not bit for bit the same",
                path, key, old, new,
            )  # fmt: skip

    def _read_state(self, step, meta, template):
        args = self._ocp.args
        names = _flatten(template)
        wanted = {name: _abstract(leaf) for name, leaf in names.items() if np.size(leaf)}
        restored = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(wanted)))["state"]
        for name, expected in meta["crc32"].items():
            if _crc(np.asarray(restored[name])) != expected:
                raise ValueError(f"array {name} does not have its checksum")
        leaves = [
            restored[name] if np.size(leaf) else jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in names.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    def _set_aside(self, step, error):
        path = self.directory / str(step)
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        _log.warning("%s is damaged (%s): it is set aside and the one before is used", path, reason)
        target = self.directory / f"damaged-{step}"
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
        self._manager.reload()


def export(params: Any, config: dict, directory: str | os.PathLike) -> None:
    """Writes parameters and the config that builds their model, for use without the training run.

    Args:
      params: nested dict of arrays. config: JSON-able. directory: must not exist, or be an earlier export
        (which is replaced once the new one is complete).
    """
    import orbax.checkpoint as ocp

    directory = Path(directory).absolute()
    if directory.exists() and not (directory / "export.json").exists():
        raise UserError(f"{directory}: exists and is not an export: choose another folder")
    temporary = directory.with_name(f"{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    flat, sums = _detach(_flatten(params))
    with ocp.StandardCheckpointer() as writer:
        writer.save(temporary / "params", flat)
    tree = {name: _shape(leaf) for name, leaf in _flatten(params).items()}
    record = {"format": _EXPORT_FORMAT, "config": config, "tree": tree, "crc32": sums}
    write_json(temporary / "export.json", record)
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)


def read_export_config(directory: str | os.PathLike) -> dict:
    """The config of an export, without its parameters."""
    return _read_export_record(Path(directory).absolute())["config"]


def load_export(directory: str | os.PathLike, template: Any = None) -> tuple[Any, dict]:
    """(params, config) of an export. Raises UserError when it is absent, damaged, or of another model.

    Args:
      template: nested dict of ShapeDtypeStructs (with shardings, when on a mesh) that the parameters must
        match; None takes what is there, on the default device.
    """
    import orbax.checkpoint as ocp

    directory = Path(directory).absolute()
    record = _read_export_record(directory)
    tree = record["tree"]
    if template is not None:
        found = first_difference(tree, {name: _shape(leaf) for name, leaf in _flatten(template).items()})
        if found:
            key, old, new = found
            raise UserError(f"{directory}: array {key} is {_text(old)} there and {_text(new)} in this model")
        wanted = {name: _abstract(leaf) for name, leaf in _flatten(template).items() if np.size(leaf)}
    else:
        structs = {n: jax.ShapeDtypeStruct(tuple(s[0]), jnp.dtype(s[1])) for n, s in tree.items()}
        wanted = {name: _abstract(s) for name, s in structs.items() if np.size(s)}
    try:
        with ocp.StandardCheckpointer() as reader:
            flat = reader.restore(directory / "params", wanted)
        for name, expected in record["crc32"].items():
            if _crc(np.asarray(flat[name])) != expected:
                raise ValueError(f"array {name} does not have its checksum")
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{directory}: the export is damaged ({reason}): export it again") from error
    params: dict = {}
    for name, (shape, dtype) in tree.items():
        *folders, last = name.split(".")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = flat[name] if name in flat else jnp.zeros(shape, dtype)
    return params, record["config"]


def _read_export_record(directory):
    path = directory / "export.json"
    if not path.exists():
        raise UserError(f"{directory}: no export here (export.json is missing): check the path")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: does not parse as JSON ({error}): export it again") from error
    if record.get("format") != _EXPORT_FORMAT:
        raise UserError(f"{path}: format {record.get('format')!r} is not {_EXPORT_FORMAT!r}: export it again")
    return record


def _flatten(tree):
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _detach(flat):
    """(arrays that no later donation can touch, CRC-32 of those that one device holds).

    On an accelerator the NumPy array is a copy; on CPU it is a view, and jax does not give memory with a
    living view to a donating step (a test holds this).
    """
    out, sums = {}, {}
    for name, leaf in flat.items():
        if not np.size(leaf):
            continue  # Orbax refuses arrays without elements; their shape is in the record
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            out[name] = jnp.copy(leaf) if jax.default_backend() == "cpu" else leaf
        else:
            out[name] = np.asarray(leaf)
            sums[name] = _crc(out[name])
    return out, sums


def _crc(array):
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


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
