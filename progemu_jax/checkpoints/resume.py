"""Checkpoints: a pytree of arrays and a JSON record, written atomically with Orbax.

On disk a state is a flat dict, "params.layers.wq" -> array, so that reading it needs no optimizer
library, and a newer one that nests its state differently can still be told apart by name.
"""

import base64
import logging
import os
import shutil
from typing import Any, Self

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import orbax.checkpoint as ocp

from progemu_jax.checkpoints.arrays import abstract, as_text, checksums, flatten, shape_and_dtype
from progemu_jax.checkpoints.quiet import quiet, reason, storable
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files.records import first_difference, normal
from progemu_jax.files.settings import filled

_log = logging.getLogger(__name__)


def environment() -> dict:
    """What a bit-exact resume depends on beside the config: versions, cores and devices."""
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
      kinds: the dataclasses of which `config` is made (`settings.filled`): a key that a checkpoint lacks counts as its
        default.
    """

    def __init__(
        self, directory: str | os.PathLike, *, keep: int = 2, config: dict | None = None, kinds: dict | None = None
    ):
        self.directory = storable(directory)
        self.config, self.kinds = normal(config or {}), kinds
        self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True),
            item_names=("state", "meta"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
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
            "tree": {name: shape_and_dtype(leaf) for name, leaf in flatten(state).items()},
            "checksums": sums,
            "extra": _pack(extra or {}),
        }
        args = ocp.args
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
            wanted = {name: abstract(leaf) for name, leaf in names.items() if np.size(leaf)}
            try:
                arrays = self._read(step, state=ocp.args.StandardRestore(wanted))["state"]
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

    def _sound(self, step: int, error: Exception | None) -> bool:
        """Whether every host has read it. Else it is set aside, by the first of them."""
        if not hosts.any_host(error is not None):
            return True
        if error is None:
            error = ValueError("another host cannot read it")
        path = self.directory / str(step)
        _log.warning("%s is damaged (%s): it is set aside and the one before is used", path, reason(error))
        if hosts.is_first():
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

    def _read(self, step: int, **items: Any) -> Any:
        """Items of a checkpoint, read by this process alone: a host that fails must not keep the others waiting."""
        me = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"alone{me}"
        )
        handler = ocp.CompositeCheckpointHandler(
            state=ocp.StandardCheckpointHandler(multiprocessing_options=options),
            meta=ocp.JsonCheckpointHandler(multiprocessing_options=options),
        )
        with ocp.Checkpointer(handler, multiprocessing_options=options) as reader, quiet():
            return reader.restore(self.directory / str(step), args=ocp.args.Composite(**items))

    def _read_meta(self, step: int) -> dict:
        meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
        if meta["step"] != step:
            raise ValueError(f"its record is of step {meta['step']}")
        return meta

    def _check(self, step: int, meta: dict, template: Any) -> None:
        """Raises UserError where the checkpoint is of another config or holds other arrays."""
        path = self.directory / str(step)
        found = first_difference(filled(self.kinds, meta["config"], self.config), self.config)
        if found:
            key, old, new = found
            raise UserError(
                f"{path}: made with {key}={old!r}, the config now says {new!r}: "
                f"use another --workdir or delete {self.directory}"
            )
        tree = {name: shape_and_dtype(leaf) for name, leaf in flatten(template).items()}
        found = first_difference(meta["tree"], tree)
        if found:
            key, old, new = found
            raise UserError(
                f"{path}: array {key} is {as_text(old)} in the checkpoint and {as_text(new)} in this model: "
                f"use another --workdir or delete {self.directory}"
            )
        before, now = meta["environment"], environment()
        changed = [f"{key} {before.get(key)} (now {now.get(key)})" for key in now if before.get(key) != now.get(key)]
        if changed and hosts.is_first():
            _log.warning(
                "%s was written with %s: training goes on, but not bit for bit the same", path, ", ".join(changed)
            )


def _detached(leaf: Any) -> Any:
    """An array that no later donation can touch.

    On an accelerator the NumPy array is a copy; on CPU it is a view, and jax does not give memory with a living view to
    a donating step (a test holds this). What several devices hold Orbax copies to the host before `save` returns, but
    on CPU it takes a view.
    """
    if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
        return jnp.copy(leaf) if jax.default_backend() == "cpu" else leaf
    return np.asarray(leaf)


def _pack(value: Any) -> Any:
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


def _unpack(value: Any) -> Any:
    """The inverse of `_pack`."""
    if isinstance(value, dict):
        if set(value) == {"__bytes__"}:
            return base64.b64decode(value["__bytes__"])
        return {k: _unpack(v) for k, v in value.items()}
    return [_unpack(v) for v in value] if isinstance(value, list) else value
