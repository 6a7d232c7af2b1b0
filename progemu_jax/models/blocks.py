"""Linear maps, layer norm and multi-head attention, as the UNet and the text encoders have them.

Axis legend (einsum strings use these letters only)
  B batch    T tokens in (queries)    S tokens seen (keys)    M model    N heads    D head
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.models.layers import MASKED
from progemu_jax.sharding import platform

SCORES = 2**24  # attention scores of one case and head that are held at once; more go in blocks of queries
CACHED = 2**22  # scores of all cases and heads that are held at once on a CPU
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


def attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, mask: jax.Array | None = None) -> jax.Array:
    """Multi-head attention (Vaswani et al. 2017), softmax in float32.

    q: `[B, T, N D]`; k, v: `[B, S, N D]`; mask: bool, broadcasts to `[B, 1, T, S]`, True = seen, or None
    -> `[B, T, N D]`. Without a mask that differs by query, many queries go in blocks, so that memory does not grow
    with T S; on a CPU also head by head, so that the scores stay in its cache.
    """
    B, T, M = q.shape
    S, D = k.shape[1], M // heads
    q = (q * jnp.asarray(D**-0.5, q.dtype)).reshape(B, T, heads, D).transpose(0, 2, 1, 3)
    k, v = (x.reshape(B, S, heads, D).transpose(0, 2, 1, 3) for x in (k, v))
    block, divides = max(1, SCORES // S), mask is None or mask.shape[-2] == 1
    if T % block or not divides:
        block = T
    if divides and B * heads * T * S > CACHED and platform() == "cpu":
        mask = None if mask is None else jnp.broadcast_to(mask, (B, heads, 1, S))
        cases = [None if x is None else x.reshape(B * heads, 1, 1, *x.shape[2:]) for x in (q, k, v, mask)]
        out = jax.lax.map(lambda one: _blocks(*one, block, write=True), cases).reshape(q.shape)
    else:
        out = _blocks(q, k, v, mask, block)
    return out.transpose(0, 2, 1, 3).reshape(B, T, M)


def _blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, block: int, write: bool = False
) -> jax.Array:
    """`_rows`, `block` queries at a time."""
    B, N, T, D = q.shape
    if block >= T:
        return _rows(q, k, v, mask, write)
    blocks = q.reshape(B, N, T // block, block, D).transpose(2, 0, 1, 3, 4)
    return jax.lax.map(lambda some: _rows(some, k, v, mask, write), blocks).transpose(1, 2, 0, 3, 4).reshape(q.shape)


def _rows(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, write: bool) -> jax.Array:
    """Scaled queries `[B, N, T, D]`, keys and values `[B, N, S, D]` -> `[B, N, T, D]`; write: the scores to memory,
    where XLA for a CPU would make them part of each of their uses."""
    scores = jnp.einsum("BNTD,BNSD->BNTS", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    if write:
        scores = jax.lax.optimization_barrier(scores)
    # Normalised after the product with v: T D divisions instead of T S.
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("BNTS,BNSD->BNTD", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)
