"""Weights in 4 bits: NF4 with double quantisation, as QLoRA holds a base that is not trained.

Dettmers et al. 2023 (arXiv:2305.14314), section 3. A block of 64 weights is divided by its largest magnitude, and each
takes the nearest of 16 levels, quantiles of a normal distribution (appendix E): 4 bits. The magnitudes take 8 bits,
evenly spaced between the least and the greatest of 256 of them, which are float32: 4.129 bits a weight together.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK, GROUP = 64, 256  # weights with one magnitude; magnitudes with one offset and scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NF4:
    """A weight of 4 bits; blocks lie along its last input axis, so that unpacking moves whole rows of outputs.

    codes: uint8, two a byte, the first half of a block low. Of the weight's shape with that axis halved, where blocks
    divide it, so that it is split over a mesh as the weight would be; else with one axis for all, padded.
    absmax: uint8 [G * 256], G groups; the magnitude is offset + absmax * scale. offset, scale: f32 [G].
    shape: of the weight. inputs: how many of its axes, the first ones, are summed over.
    Stacked layers have one axis more in front of each array, not in `shape`.
    """

    codes: jax.Array
    absmax: jax.Array
    offset: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    inputs: int = dataclasses.field(metadata={"static": True})


def is_nf4(x: Any) -> bool:
    return isinstance(x, NF4)


def _blocked(shape: tuple[int, ...], inputs: int) -> tuple[bool, int, tuple[int, ...]]:
    """(whether blocks divide the last input axis, which axis of a blocked weight counts in a block, its shape)."""
    at = inputs - 1
    if shape[at] % BLOCK == 0:
        return True, inputs, (*shape[:at], shape[at] // BLOCK, BLOCK, *shape[inputs:])
    return False, 1, (-(-math.prod(shape[:inputs]) // BLOCK), BLOCK, math.prod(shape[inputs:]))


def pack(weight: jax.Array, inputs: int) -> NF4:
    """A float weight [*inputs, *outputs] in 4 bits: each takes the level nearest to it under the packed magnitude."""
    even, at, blocked = _blocked(weight.shape, inputs)
    values = weight.astype(jnp.float32)
    if not even:
        rows = values.reshape(-1, blocked[2])
        values = jnp.pad(rows, ((0, blocked[0] * BLOCK - len(rows)), (0, 0)))
    values = values.reshape(blocked)
    absmax, offset, scale = _pack_absmax(jnp.abs(values).max(at).reshape(-1))
    largest = _unpack_absmax(absmax, offset, scale, blocked, at)
    values = values / jnp.where(largest > 0, largest, 1.0)
    between = [(a + b) / 2 for a, b in itertools.pairwise(LEVELS)]
    low, high = jnp.split(sum((values > x).astype(jnp.uint8) for x in between), 2, axis=at)
    kept = list(weight.shape) if even else [-1]
    kept[inputs - 1 if even else 0] = -1
    return NF4((low | high << 4).reshape(kept), absmax, offset, scale, tuple(weight.shape), inputs)


def unpack(packed: NF4, dtype: Any) -> jax.Array:
    """The weight, of one layer, in `dtype`."""
    even, at, blocked = _blocked(packed.shape, packed.inputs)
    codes = packed.codes.reshape(*blocked[:at], BLOCK // 2, *blocked[at + 1 :])
    values = _level(jnp.concatenate([codes & 15, codes >> 4], axis=at))
    values = values * _unpack_absmax(packed.absmax, packed.offset, packed.scale, blocked, at)
    if not even:
        values = values.reshape(-1, blocked[2])[: math.prod(packed.shape[: packed.inputs])]
    return values.reshape(packed.shape).astype(dtype)


def _level(codes: jax.Array) -> jax.Array:
    """uint8 -> f32. By their bits: a look-up in a table is slow on a TPU, and this is one pass on any device."""
    values = [jnp.float32(x) for x in LEVELS]
    for bit in range(4):
        values = [jnp.where(codes >> bit & 1, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _pack_absmax(largest: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """f32 [n] -> (uint8 [G * 256], offset [G], scale [G])."""
    groups = jnp.pad(largest, (0, -len(largest) % GROUP), mode="edge").reshape(-1, GROUP)
    offset = groups.min(1)
    scale = (groups.max(1) - offset) / 255
    codes = (groups - offset[:, None]) / jnp.where(scale > 0, scale, 1.0)[:, None]
    return jnp.clip(jnp.rint(codes), 0, 255).astype(jnp.uint8).reshape(-1), offset, scale


def _unpack_absmax(
    absmax: jax.Array, offset: jax.Array, scale: jax.Array, blocked: tuple[int, ...], at: int
) -> jax.Array:
    """f32, of the shape of a blocked weight with 1 for the axis in a block."""
    values = offset[:, None] + absmax.reshape(-1, GROUP) * scale[:, None]
    shape = (*blocked[:at], 1, *blocked[at + 1 :])
    return values.reshape(-1)[: math.prod(shape)].reshape(shape)
