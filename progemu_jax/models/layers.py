"""Layers that the transformer is built from: pure functions and the smallest linen modules.

Axis legend (einsum strings use these letters only)
  B batch            T tokens in (queries)   S tokens seen (keys)
  M model            N query heads           K key/value heads
  G query heads per key/value head (N = K G) D head                F feed-forward
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

MASKED = -1e30  # finite: a row that sees nothing stays finite instead of turning into NaN


def fan_in(*axes: int) -> nn.initializers.Initializer:
    """Normal initialiser of variance 1 / fan-in, where the fan-in is the product of `axes` of the shape."""

    def init(key: jax.Array, shape: Sequence[int], dtype=jnp.float32) -> jax.Array:
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


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate` (to 1 / 65,536) and rescales the rest; `key=None` is identity.

    16 random bits an entry: half the cost of the usual 32, which is most of a small model's dropout on CPU.
    """
    dropped = round(rate * 65536)
    if key is None or dropped == 0:
        return x
    bits = jax.random.bits(key, x.shape, jnp.uint16)
    scale = jnp.asarray(65536 / (65536 - dropped), x.dtype)
    return jnp.where(bits >= dropped, x * scale, jnp.zeros((), x.dtype))


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


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, rate: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """Grouped-query attention with softmax in float32.

    q: `[B, K, G, T, D]`; k, v: `[B, K, S, D]`; mask: bool, broadcasts to `[B, 1, 1, T, S]`, True = seen;
    rate, key: dropout of the attention probabilities -> `[B, K, G, T, D]`.

    The group axis is folded into the queries, so that each of the two products is one matrix product per
    key/value head with the batch axes in front, which XLA hands to the CPU's matrix routine as it is.
    """
    B, K, G, T, D = q.shape
    scale = jnp.asarray(D**-0.5, q.dtype)
    scores = jnp.einsum("BKTD,BKSD->BKTS", (q * scale).reshape(B, K, G * T, D), k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores.reshape(B, K, G, T, -1), MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    probabilities = dropout(probabilities, rate, key)
    out = jnp.einsum("BKTS,BKSD->BKTD", probabilities.reshape(B, K, G * T, -1), v)
    return out.reshape(B, K, G, T, D)


def causal_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None,
    block: int,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of T tokens over themselves, in blocks of queries that skip the keys to their right.

    q: `[B, K, G, T, D]`; k, v: `[B, K, T, D]`; segments: int `[B, T]` (tokens see their own segment only) or
    None; block: queries at a time -> `[B, K, G, T, D]`.
    """
    T = q.shape[3]
    outs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        rows, columns = jnp.arange(start, stop), jnp.arange(stop)
        mask = rows[:, None] >= columns[None, :]
        if segments is not None:
            mask = mask & (segments[:, start:stop, None] == segments[:, None, :stop])
            mask = mask[:, None, None]
        block_key = None if key is None else jax.random.fold_in(key, start)
        outs.append(attend(q[:, :, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask, rate, block_key))
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)
