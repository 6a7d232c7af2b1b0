"""The mesh, and the one table that says which mesh axes a logical axis is split over.

A model file names the logical axes of its parameters (`transformer.LOGICAL_AXES`); everything about devices
is here. Partitioning itself is `jax.jit` with `NamedSharding` over one mesh whose axis types are Auto.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from progemu_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# logical axis -> mesh axes; an axis that is absent or None is not split
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "lookup": ("data",),  # the batch while tokens are looked up in a table whose model axis is over fsdp
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
}

# Sampling: cases over the data axes, heads and cache over tensor. Ranges of the vocabulary are cut out of the head, and
# a weight gathered for every token would cost more than its memory is worth: both stay whole.
SAMPLING_RULES = {**RULES, "embed": (), "vocab": ()}

LAYERS = "layers"  # below a dict key of this name, leaves carry a stacked layer axis in front

Axes = Sequence[str | None]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data x fsdp x tensor devices; data -1 takes all that the other two leave.

    Raises UserError when the sizes do not multiply to the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    if fsdp < 1 or tensor < 1 or (data < 1 and data != -1):
        raise UserError(f"mesh: data={data} fsdp={fsdp} tensor={tensor}; sizes are 1 or more (data may be -1)")
    sizes = (count // (fsdp * tensor) if data == -1 else data, fsdp, tensor)
    if math.prod(sizes) != count:
        raise UserError(
            f"mesh: data={data} fsdp={fsdp} tensor={tensor} does not make {count} devices; "
            "choose sizes that multiply to that number"
        )
    return jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(axes: Axes, rules: Mapping[str, tuple[str, ...]] = RULES) -> PartitionSpec:
    """Logical axes of one array -> PartitionSpec. Raises UserError if two of them want the same mesh axis."""
    entries = [rules.get(axis) if axis else None for axis in axes]
    used = [mesh_axis for entry in entries if entry for mesh_axis in entry]
    clash = sorted({mesh_axis for mesh_axis in used if used.count(mesh_axis) > 1})
    if clash:
        raise UserError(f"sharding rules: axes {tuple(axes)} split twice over {clash}; change one of their rules")
    return PartitionSpec(*entries)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Holds an activation to the rules inside a program that is traced under `jax.set_mesh`; else gives it back.

    Without this the partitioner is free to split activations as the weights are, and then does (8B on 64 devices:
    600 GB a device). An axis takes as many of its mesh axes as divide its size; not those that a `shard_map` has taken.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    entries = []
    for size, axis in zip(x.shape, axes, strict=True):
        names = free(axis)
        while size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        entries.append(names or None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))


def free(axis: str | None) -> tuple[str, ...]:
    """Mesh axes of a logical axis that the program being traced may still split over: not those of a `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return tuple(name for name in RULES.get(axis, ()) if kinds.get(name) == AxisType.Auto)


def sharding(
    mesh: Mesh,
    axes: Axes,
    shape: Sequence[int],
    name: str = "array",
    rules: Mapping[str, tuple[str, ...]] = RULES,
) -> NamedSharding:
    """The sharding of one array. Raises UserError when a size does not divide by its mesh axes."""
    partition = spec(axes, rules)
    for size, axis in zip(shape, axes, strict=True):
        entry = rules.get(axis, ()) if axis else ()
        parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in entry)
        if size % parts:
            padded = -(-size // parts) * parts
            raise UserError(
                f"{name}: {axis} axis of size {size} does not divide by mesh {'x'.join(entry)}={parts}; "
                f"make it a multiple ({padded}) or change the mesh"
            )
    return NamedSharding(mesh, partition)


def logical_axes(tree: Any, table: Mapping[str, Axes]) -> Any:
    """Logical axes of every leaf: looked up by the last name of its path in `table`, unsplit when absent.

    Works on parameters, on anything that has parameters inside (optimizer states), and on abstract arrays.
    """

    def axes_of(path, leaf) -> tuple[str | None, ...]:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        axes = tuple(table.get(names[-1], ())) if names else ()
        if axes and LAYERS in names:
            axes = (LAYERS, *axes)
        return axes if len(axes) == len(leaf.shape) else (None,) * len(leaf.shape)

    return jax.tree_util.tree_map_with_path(axes_of, tree)


def param_shardings(
    tree: Any, table: Mapping[str, Axes], mesh: Mesh, rules: Mapping[str, tuple[str, ...]] = RULES
) -> Any:
    """NamedSharding of every leaf of a tree of (abstract) arrays; `table` as in `logical_axes`."""

    def one(path, leaf, axes):
        return sharding(mesh, axes, leaf.shape, jax.tree_util.keystr(path, simple=True, separator="/"), rules)

    return jax.tree_util.tree_map_with_path(one, tree, logical_axes(tree, table))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is the batch."""
    return NamedSharding(mesh, spec(("batch",)))


def data_parts(mesh: Mesh) -> int:
    """How many ways a batch is split."""
    return math.prod(mesh.shape[name] for name in RULES["batch"])


def check_batch(mesh: Mesh, rows: int, name: str) -> None:
    """Raises UserError unless a batch of `rows` (global) divides over the mesh and over its processes."""
    parts, processes = data_parts(mesh), len({d.process_index for d in mesh.devices.flat})
    if rows % parts:
        raise UserError(
            f"{name}={rows} does not divide over the {parts} devices of mesh data x fsdp: "
            f"give a multiple of {parts} or another mesh"
        )
    if parts % processes:
        raise UserError(
            f"mesh: tensor={mesh.shape['tensor']} reaches over processes, {processes} share {parts} parts of a batch: "
            "keep tensor within one host"
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a tree of host arrays `[B / processes, ...]`, this process's rows, on the mesh.

    Raises UserError when B does not divide.
    """
    where = batch_sharding(mesh)
    for leaf in jax.tree.leaves(batch):
        check_batch(mesh, len(leaf) * jax.process_count(), "batch")
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, np.asarray(x)), batch)


def place(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays that every process holds whole on the mesh: first axis split where it divides, else copied."""

    def put(x):
        where = batch_sharding(mesh) if x.ndim and len(x) % data_parts(mesh) == 0 else replicated(mesh)
        if isinstance(x, jax.Array):
            return jax.device_put(x, where)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    return jax.tree.map(put, tree)


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """What is traced within holds its activations to the mesh (`constrain`)."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def platform(mesh: AbstractMesh | None = None) -> str:
    """Where what is being traced will run, "cpu", "gpu" or "tpu": on a mesh (None: the one in force), else by default.

    They differ where a program is compiled for devices that are not here (`progemu_jax.plan`).
    """
    device = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).abstract_device
    return device.platform if device is not None else jax.default_backend()


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def bucket(count: int, mesh: Mesh | None = None) -> int:
    """Rows that so many cases are computed as, so that few shapes compile: 1, 2, 4, 8 or a multiple of 8.

    On a mesh these are the rows of each data part, where every part has a case.
    """
    parts = data_parts(mesh) if mesh is not None else 1
    parts = parts if count >= parts else 1
    each = -(-count // parts)
    return parts * (1 << max(each - 1, 0).bit_length() if each <= 8 else -(-each // 8) * 8)


def fill(rows: np.ndarray, size: int) -> np.ndarray:
    """[N, ...] -> [size, ...]: the last row again and again."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def in_batches(
    function: Callable[..., Any], *items: np.ndarray, batch_size: int, mesh: Mesh | None = None
) -> np.ndarray:
    """Maps over slices of one size (the last filled up), a `bucket`, so that few programs are compiled; on a mesh each
    is split."""
    count = len(items[0])
    size = min(batch_size, bucket(count, mesh))
    parts = []
    for start in range(0, count, size):
        chunk = [x[start : start + size] for x in items]
        filled = [fill(x, size) for x in chunk]
        filled = place(filled, mesh) if mesh else filled
        parts.append(np.asarray(function(*filled))[: len(chunk[0])])
    return np.concatenate(parts)
