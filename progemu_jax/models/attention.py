"""Causal self-attention by the kernel that suits the backend: XLA, cuDNN's flash attention, or TPU splash attention.

Axis legend as in `layers`: B batch, T tokens, K key/value heads, G query heads per key/value head, D head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from progemu_jax.models import layers as nnl
from progemu_jax.sharding import free, platform

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
SPLASH_BLOCK = 512  # tokens of a block of the splash kernel; a sequence is padded to a multiple of 128


def choose(
    implementation: str, backend: str, dtype: jnp.dtype, head_dim: int, segments: jax.Array | None, dropout: bool
) -> str:
    """The implementation that "auto" means here: a flash kernel where one computes exactly what is asked.

    cuDNN takes 16-bit floats and head sizes of up to 128 that divide by 8; splash, head sizes that divide by 128.
    Neither drops attention probabilities. Segments that are numbers (packed samples) go to splash or XLA.
    """
    if implementation != "auto":
        return implementation
    packed = segments is not None and segments.dtype != jnp.bool_
    if dropout:
        return "xla"
    if backend == "gpu" and dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128 and not packed:
        return "cudnn"
    if backend == "tpu" and head_dim % 128 == 0:
        return "splash"
    return "xla"


def self_attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array | None,
    implementation: str,
    block: int,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Causal attention of T tokens over themselves.

    q: `[B, K, G, T, D]`; k, v: `[B, K, T, D]` -> `[B, K, G, T, D]`.
    segments: `[B, T]` or None. Bool: False is padding, on the right, which no other token sees (its own result is
    finite, and of no use). Int: tokens see their own segment only.
    implementation: one of IMPLEMENTATIONS. block: queries at a time, with "xla". rate, key: dropout.

    Raises ValueError when a kernel that was asked for by name cannot compute this.
    """
    chosen = choose(implementation, platform(), q.dtype, q.shape[-1], segments, key is not None)
    if chosen == "xla":
        return nnl.causal_attend(q, k, v, segments, block, rate, key)
    if key is not None:
        raise ValueError(f"attention={chosen!r} has no dropout; set dropout=0 or attention='xla'")
    packed = segments is not None and segments.dtype != jnp.bool_
    if chosen == "cudnn":
        if packed:
            raise ValueError("attention='cudnn' takes no packed segments; use attention='xla'")
        return _cudnn(q, k, v)
    # Causal attention hides padding on the right from every other token by itself.
    return splash(q, k, v, segments if packed else None)


def _cudnn(q, k, v):
    B, K, G, T, D = q.shape
    rows = q.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, D)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
    out = jax.nn.dot_product_attention(rows, k, v, is_causal=True, implementation="cudnn")
    return out.reshape(B, T, K, G, D).transpose(0, 2, 3, 1, 4)


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None = None, interpret: bool = False
) -> jax.Array:
    """TPU splash attention; shapes as in `self_attend`, segments int `[B, T]` or None.

    On a mesh (`jax.sharding.use_abstract_mesh`) each device runs the kernel on its rows and heads: XLA cannot split
    it by itself.
    """
    T = q.shape[3]
    pad = -T % 128
    if pad:  # padded keys lie to the right of every real query
        q, k, v = (jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, pad), (0, 0)]) for x in (q, k, v))
        segments = None if segments is None else jnp.pad(segments, ((0, 0), (0, pad)), constant_values=-1)
    run = functools.partial(_splash_rows, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    batch, heads = free("batch"), free("kv_heads")
    if mesh.size > 1 and (batch or heads):
        spec = PartitionSpec(batch, heads)
        ids = None if segments is None else PartitionSpec(batch)
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(spec, spec, spec, ids),
            out_specs=spec,
            axis_names={*batch, *heads},
            check_vma=False,
        )
    return run(q, k, v, segments)[:, :, :, :T]


def _splash_rows(q, k, v, segments, *, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    G, T, D = q.shape[2:]
    size = next(s for s in (SPLASH_BLOCK, 256, 128) if T % s == 0)
    blocks = kernel.BlockSizes(
        block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
        block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size,
    )  # fmt: skip
    mask = masks.MultiHeadMask([masks.CausalMask((T, T)) for _ in range(G)])
    attend = kernel.make_splash_mqa_single_device(mask, block_sizes=blocks, interpret=interpret)
    ids = None if segments is None else kernel.SegmentIds(segments, segments)
    one_row = jax.vmap(attend, in_axes=(0, 0, 0, None))  # over key/value heads
    q = q * jnp.asarray(D**-0.5, q.dtype)
    return jax.vmap(one_row, in_axes=(0, 0, 0, 0 if ids is not None else None))(q, k, v, ids).astype(v.dtype)
