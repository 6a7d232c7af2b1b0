"""Attention: causal and grouped-query (the transformer), multi-head (UNet, text encoder), over pixels (VQGAN).

- `self_attend`: tokens over themselves, by the kernel that suits the backend: XLA, cuDNN's flash attention, or TPU
  splash attention; `write_cache`, `attend_cache`: tokens over a cache.
- `multi_head_attention`: with any keys, no causality; `pixel_attention`: one head over the pixels of an image.

Axis legend (einsum strings use these letters only)
  B batch    T tokens in (queries)    S tokens seen (keys)    K key/value heads    G query heads per key/value head
  N heads    D head                   P, Q pixels of an image    C channels        M model
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from progemu_jax.devices.accelerators import has_flash_attention
from progemu_jax.devices.sharding import free, platform

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")
SPLASH_BLOCK = 512  # tokens of a block of the splash kernel; a sequence is padded to a multiple of 128


def choose(
    implementation: str,
    backend: str,
    dtype: jnp.dtype,
    head_dim: int,
    segments: jax.Array | None,
    dropout: bool,
    cudnn: bool = True,
) -> str:
    """The implementation that "auto" means here: a flash kernel where one computes exactly what is asked.

    cuDNN (`cudnn`: whether the GPU is one for it) takes 16-bit floats and head sizes of up to 128 that divide by 8;
    splash, head sizes that divide by 128. Neither drops attention probabilities. Segments that are numbers (packed
    samples) go to splash or XLA.
    """
    if implementation != "auto":
        return implementation
    packed = segments is not None and segments.dtype != jnp.bool_
    if dropout:
        return "xla"
    if backend == "gpu" and cudnn and dtype.itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128 and not packed:
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
    backend = platform()
    cudnn = backend == "gpu" and has_flash_attention(jax.devices()[0])
    chosen = choose(implementation, backend, q.dtype, q.shape[-1], segments, key is not None, cudnn)
    if chosen == "xla":
        return causal_attend(q, k, v, segments, block, rate, key)
    if key is not None:
        raise ValueError(f"attention={chosen!r} has no dropout; set dropout=0 or attention='xla'")
    packed = segments is not None and segments.dtype != jnp.bool_
    if chosen == "cudnn":
        if packed:
            raise ValueError("attention='cudnn' takes no packed segments; use attention='xla'")
        return _cudnn(q, k, v)
    # Causal attention hides padding on the right from every other token by itself.
    return splash(q, k, v, segments if packed else None)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's flash attention; shapes as in `self_attend`."""
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


def _splash_rows(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None, *, interpret: bool) -> jax.Array:
    """The kernel on one device's rows and heads."""
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


MASKED = -1e30  # finite: a row that sees nothing stays finite instead of turning into NaN


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


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    rate: float = 0.0,
    key: jax.Array | None = None,
    keys: str = "BKSD",
) -> jax.Array:
    """Grouped-query attention with softmax in float32.

    q: `[B, K, G, T, D]`; k, v: `[B, K, S, D]`; mask: bool, broadcasts to `[B, 1, 1, T, S]`, True = seen;
    rate, key: dropout of the attention probabilities; keys: axes of k, see `cached_keys` -> `[B, K, G, T, D]`.

    The group axis is folded into the queries, so that each of the two products is one matrix product per
    key/value head with the batch axes in front, which XLA hands to the CPU's matrix routine as it is.
    """
    B, K, G, T, D = q.shape
    _, scores = _scores(q, k, mask, keys)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    probabilities = dropout(probabilities, rate, key)
    out = jnp.einsum("BKTS,BKSD->BKTD", probabilities.reshape(B, K, G * T, -1), v)
    return out.reshape(B, K, G, T, D)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array, keys: str = "BKSD") -> tuple[jax.Array, jax.Array]:
    """(scaled queries `[B, K, G T, D]`, masked scores f32 `[B, K, G, T, S]`) of `attend`'s arguments."""
    B, K, G, T, D = q.shape
    rows = (q * jnp.asarray(D**-0.5, q.dtype)).reshape(B, K, G * T, D)
    scores = jnp.einsum(f"BKTD,{keys}->BKTS", rows, k, preferred_element_type=jnp.float32)
    return rows, jnp.where(mask, scores.reshape(B, K, G, T, -1), MASKED)


def cached_keys() -> str:
    """Axes of a cache's keys: "BKDS" on CPU, else "BKSD", as the values.

    XLA's kernel for products on a CPU reads a right factor as it lies only if it lies as `[D, S]`: else it transposes
    all cached keys at every pass.
    """
    return "BKDS" if platform() == "cpu" else "BKSD"


def write_cache(
    cache: dict[str, jax.Array], k: jax.Array, v: jax.Array, offset: jax.Array, prefill: bool
) -> dict[str, jax.Array]:
    """Writes k, v `[B, K, T, D]` into a layer's cache, slots offset.. of each row (0.. when prefilling).

    cache: {"k": axes as `cached_keys` says, "v": `[B, K, S, D]`}; offset: int32 `[B]`.
    """
    keys = cached_keys()
    k = k if keys == "BKSD" else k.swapaxes(2, 3)
    return {
        "k": _write(cache["k"], k, offset, prefill, keys.index("S")),
        "v": _write(cache["v"], v, offset, prefill, 2),
    }


def _write(slots: jax.Array, new: jax.Array, offset: jax.Array, prefill: bool, axis: int) -> jax.Array:
    """Writes new into slots, `[B, ...]` both, along an axis, from each row's offset on (0 when prefilling)."""
    new = new.astype(slots.dtype)
    if prefill:
        return jax.lax.dynamic_update_slice(slots, new, (0, 0, 0, 0))
    if platform() != "cpu":
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
        return jax.vmap(put)(slots, new, offset)

    # On CPU the scatter that vmap makes copies the whole cache, twice; a loop over the rows writes in place (and must
    # stay a loop: of one row, known as such, XLA makes a plain update, and copies for that too).
    def row(index: jax.Array, slots: jax.Array) -> jax.Array:
        value = jax.lax.dynamic_slice_in_dim(new, index, 1, axis=0)
        at = [index, 0, 0, 0]
        at[axis] = offset[index]
        return jax.lax.dynamic_update_slice(slots, value, at)

    return jax.lax.fori_loop(0, jnp.where(offset[0] >= 0, len(new), 0), row, slots)


def attend_cache(
    q: jax.Array, cache: dict[str, jax.Array], offset: jax.Array, rate: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """Attention of T tokens over a layer's cache, in which they are written already (`write_cache`).

    q: `[B, K, G, T, D]`; cache, offset: as `write_cache` takes and gives them -> `[B, K, G, T, D]` of the cache's
    dtype, which may be of more bits than q's (`transformer.init_cache`).
    """
    k, v = cache["k"], cache["v"]
    last = offset[:, None] + jnp.arange(q.shape[3])  # [B, T]: the slot of each query
    mask = jnp.arange(v.shape[2])[None, None, :] <= last[:, :, None]
    return attend(q.astype(k.dtype), k, v, mask[:, None, None], rate, key, cached_keys())


@jax.custom_vjp
def _attend_trained(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` where each query sees a key, with a gradient that goes over the T S scores as seldom as can be.

    With e the exponentials, z their sums, o = e v / z and g = d loss / d o / z, d scores = e (g v' - g . o): what the
    softmax's gradient sums over the keys is a product of D numbers (Dao et al. 2022, appendix B.2).
    """
    return attend(q, k, v, mask)


def _attend_forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, tuple]:
    shape = q.shape
    q, scores = _scores(q, k, mask)
    scores = scores.reshape(*q.shape[:3], -1)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = jnp.einsum("BKTS,BKSD->BKTD", weights, v, preferred_element_type=jnp.float32) / total
    return out.astype(v.dtype).reshape(shape), (q, k, v, weights, total, out)


def _attend_backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, weights, total, out = kept
    over = gradient.reshape(q.shape).astype(jnp.float32) / total
    across = (over * out).sum(-1, keepdims=True)
    over = over.astype(v.dtype)
    slope = jnp.einsum("BKTD,BKSD->BKTS", over, v, preferred_element_type=jnp.float32)
    slope = (weights * (slope - across)).astype(q.dtype)
    d_q = jnp.einsum("BKTS,BKSD->BKTD", slope, k) * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    d_k = jnp.einsum("BKTS,BKTD->BKSD", slope, q)
    d_v = jnp.einsum("BKTS,BKTD->BKSD", weights, over)
    return d_q.reshape(gradient.shape), d_k, d_v, None


_attend_trained.defvjp(_attend_forward, _attend_backward)


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
        some = q[:, :, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask
        outs.append(_attend_trained(*some) if key is None else attend(*some, rate, block_key))
    return outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=3)


MOST_SCORES = 2**24  # attention scores of one case and head that are held at once; more go in blocks of queries
SCORES_IN_CACHE = 2**22  # scores of all cases and heads that are held at once on a CPU


def multi_head_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, heads: int, mask: jax.Array | None = None
) -> jax.Array:
    """Multi-head attention (Vaswani et al. 2017), softmax in float32.

    q: `[B, T, N D]`; k, v: `[B, S, N D]`; mask: bool, broadcasts to `[B, 1, T, S]`, True = seen, or None
    -> `[B, T, N D]`. Without a mask that differs by query, many queries go in blocks, so that memory does not grow
    with T S; on a CPU also head by head, so that the scores stay in its cache.
    """
    B, T, M = q.shape
    S, D = k.shape[1], M // heads
    q = (q * jnp.asarray(D**-0.5, q.dtype)).reshape(B, T, heads, D).transpose(0, 2, 1, 3)
    k, v = (x.reshape(B, S, heads, D).transpose(0, 2, 1, 3) for x in (k, v))
    block, divides = max(1, MOST_SCORES // S), mask is None or mask.shape[-2] == 1
    if T % block or not divides:
        block = T
    if divides and B * heads * T * S > SCORES_IN_CACHE and platform() == "cpu":
        mask = None if mask is None else jnp.broadcast_to(mask, (B, heads, 1, S))
        cases = [None if x is None else x.reshape(B * heads, 1, 1, *x.shape[2:]) for x in (q, k, v, mask)]
        out = jax.lax.map(lambda one: _in_blocks(*one, block, write=True), cases).reshape(q.shape)
    else:
        out = _in_blocks(q, k, v, mask, block)
    return out.transpose(0, 2, 1, 3).reshape(B, T, M)


def _in_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, block: int, write: bool = False
) -> jax.Array:
    """`_queries_over_keys`, `block` queries at a time."""
    B, N, T, D = q.shape
    if block >= T:
        return _queries_over_keys(q, k, v, mask, write)
    blocks = q.reshape(B, N, T // block, block, D).transpose(2, 0, 1, 3, 4)
    return (
        jax.lax.map(lambda some: _queries_over_keys(some, k, v, mask, write), blocks)
        .transpose(1, 2, 0, 3, 4)
        .reshape(q.shape)
    )


def _queries_over_keys(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, write: bool) -> jax.Array:
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


def pixel_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """One head, over all pixels: `[B, P, C]` each -> `[B, P, C]`; softmax in float32, dtypes otherwise v's."""
    scores = jnp.einsum("BPC,BQC->BPQ", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return jnp.einsum("BPQ,BQC->BPC", jax.nn.softmax(scores, axis=-1).astype(v.dtype), v)
