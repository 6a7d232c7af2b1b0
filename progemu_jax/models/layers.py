"""Layers that the transformer is built from: pure functions and the smallest linen modules.

Axis legend (einsum strings use these letters only)
  B batch            T tokens in (queries)   S tokens seen (keys)
  M model            N query heads           K key/value heads
  G query heads per key/value head (N = K G) D head                F feed-forward
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def fan_in(*axes: int) -> nn.initializers.Initializer:
    """Normal initialiser of variance 1 / fan-in, where the fan-in is the product of `axes` of the shape."""

    def init(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        fan = 1
        for axis in axes:
            fan *= shape[axis]
        return jax.random.normal(key, shape, dtype) * fan**-0.5

    return init


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019) over the last axis, computed in float32.

    `[..., M]` of any float dtype -> the same shape and dtype.
    """

    eps: float
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def rope_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles (Su et al. 2021), in float32.

    positions: int32 `[B, T]` -> two float32 `[B, T, D/2]`.
    """
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + D/2) of each head: the half-split convention of Llama and Emu3.

    x: `[B, T, heads, D]`; cos, sin: float32 `[B, T, D/2]` -> as x; computed in float32.
    """
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


normal = nn.initializers.normal(0.02)
lecun = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


def draw_params(module: nn.Module, key: jax.Array, *args: Any, std: float | None = None) -> dict:
    """Random parameters of a module that is called with `args` (arrays, only their shapes and dtypes count).

    All are slices of one draw, for a compiler takes minutes over hundreds of them. Kernels have the standard deviation
    `std`, or fan-in^-0.5 without; embeddings 0.02; scales are ones, biases zeros.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    drawn = sum(leaf.size for path, leaf in paths if path[-1].key in ("kernel", "embedding"))
    normals, start, leaves = jax.random.normal(key, (drawn,)), 0, []
    for path, leaf in paths:
        name, shape = path[-1].key, leaf.shape
        if name in ("kernel", "embedding"):
            width = 0.02 if name == "embedding" else std or math.prod(shape[:-1]) ** -0.5
            values = width * normals[start : start + leaf.size].reshape(shape)
            start += leaf.size
        else:
            values = jnp.ones(shape) if name == "scale" else jnp.zeros(shape)
        leaves.append(values.astype(leaf.dtype))
    return jax.tree.unflatten(structure, leaves)


class Linear(nn.Module):
    """`[..., M]` -> `[..., features]` in x's dtype; kernel `[M, features]`."""

    features: int
    bias: bool = True
    kernel_init: nn.initializers.Initializer = lecun
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(x.dtype)
        return y


class LayerNorm(nn.Module):
    """Layer norm (Ba et al. 2016) over the last axis, computed in float32: `[..., M]` -> the same."""

    eps: float = 1e-5
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * scale + bias).astype(x.dtype)
