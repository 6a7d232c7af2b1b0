"""Arrays of a checkpoint by name: shapes, checksums, nested and flat."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """{dotted path: leaf} of a pytree; is_leaf: what else is not gone into."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
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
def _sums(flat: dict[str, jax.Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    def one(x: jax.Array) -> tuple[jax.Array, ...]:
        x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            stride = math.prod(x.shape[axis + 1 :]) % 2**32
            place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
        weights = (place * jnp.uint32(factor) | 1 for factor in (0x9E3779B1, 0x85EBCA6B))
        return tuple(jnp.sum(bits * weight, dtype=jnp.uint32) for weight in weights)

    return {name: one(x) for name, x in flat.items()}


def crc(array: np.ndarray, before: int = 0) -> int:
    """CRC-32 of an array's bytes, after those of which `before` is the CRC-32."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), before)


def shape_and_dtype(leaf: Any) -> list:
    """[shape, dtype] of an array, as a checkpoint's record has them."""
    return [list(leaf.shape), str(jnp.dtype(leaf.dtype))]


def as_text(shape: list | str) -> str:
    """What `shape_and_dtype` gave, or a word in its place, for a person."""
    return shape if isinstance(shape, str) else f"{shape[1]}{shape[0]}"


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array or of what stands for one; without a sharding, the first device here."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
