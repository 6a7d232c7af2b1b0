"""The Emu3-shaped decoder-only transformer: GQA, RoPE, RMSNorm, SwiGLU, no biases, untied head.

Axis legend (einsum strings use these letters only)
  B batch            T tokens in (queries)   S tokens seen (keys)    V vocabulary    L layers
  M model            N query heads           K key/value heads       E model, after a square map
  G query heads per key/value head (N = K G) D head                  F feed-forward
  R rows: B and T folded, which makes each projection, and its gradient, one plain matrix product

Parameters carry the names of Emu3's checkpoints (`layers_3/self_attn/q_proj` is
`model.layers.3.self_attn.q_proj.weight`). Projections are stored input axes first (`q_proj` is `[M, N, D]`,
the transpose of the checkpoint's `[N D, M]`); `embed_tokens` and `lm_head` are `[V, M]` as there, so that a
range of the vocabulary is one contiguous block of the head. With `scan_layers` the layers are one subtree
`layers` of leaves stacked on a leading L; `stack_layers` and `unstack_layers` go between the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from progemu_jax.devices.sharding import constrain, platform
from progemu_jax.kernels import attention as attention_
from progemu_jax.kernels.attention import IMPLEMENTATIONS, self_attend
from progemu_jax.models import diagonal_head, linear
from progemu_jax.models import layers as nnl
from progemu_jax.models.linear import LORA_A, LORA_B, low_rank

Params = Mapping[str, Any]

# Logical axes of every parameter, by the last part of its path; `sharding.RULES` maps them onto the mesh.
LOGICAL_AXES = {
    "embed_tokens": ("vocab", "embed"),
    "lm_head": ("vocab", "embed"),
    "prior_proj": ("embed", None),
    "beside_proj": ("embed", None),
    "mix_proj": ("embed", None),
    "changed_embed": ("embed",),
    "position_embed": (None, "embed"),
    "q_proj": ("embed", "heads", "head"),
    "k_proj": ("embed", "kv_heads", "head"),
    "v_proj": ("embed", "kv_heads", "head"),
    "o_proj": ("heads", "head", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
    "scale": (None,),
}
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADDITIONS = {  # config fields that Emu3 has not, and their parameters
    "prior_alignment": ("prior_proj",),
    "prior_beside": ("beside_proj", "changed_embed"),
    "learned_positions": ("position_embed",),
    "diagonal": (diagonal_head.NAME,),
}
for _name in LORA_TARGETS:
    _axes, _inputs = LOGICAL_AXES[_name], 2 if _name == "o_proj" else 1
    LOGICAL_AXES |= {_name + LORA_A: (*_axes[:_inputs], None), _name + LORA_B: (None, *_axes[_inputs:])}
STACKED = "layers"  # a subtree of this name has the layer axis in front of the axes above
CACHE_AXES = ("batch", "kv_heads", None, None)  # of keys and of values


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options; the defaults are a small model, `emu3_8b()` is Emu3's.

    dtype: of the computation ("float32" or "bfloat16"); param_dtype: of the stored parameters.
    dropout: on embeddings, attention probabilities and both residual branches.
    prior_alignment: adds a learned linear map of the embedding of the prior's code at the place that the next
      token is for (not in Emu3: no parameters when off).
    prior_beside: adds the same of the place that the token itself fills, and a learned vector where the two codes
      differ, so that what changed is seen at each place and need not be looked up in the prior (not in Emu3).
    learned_positions: adds a learnt vector to each token of the first so many position ids (the last one's to those
      beyond), so that a small model knows the place in the image without deriving it (not in Emu3: none when 0).
    diagonal: a second head, for anti-diagonal decoding (`models.diagonal_head`; not in Emu3: none when off).
    attention: of tokens over themselves: "xla" (blocks of queries), "cudnn" (flash attention on NVIDIA GPUs), "splash"
      (on TPUs), or "auto": the flash kernel where the backend has one that takes these sizes (`kernels.attention`).
    attention_block: queries that attend at a time with "xla".
    remat: layers are computed again in the backward pass, but for what remat_policy saves: "nothing" beside each
      layer's input, "attention" its output too, which is the costly part of long sequences, or "dots", every product
      with a weight.
    lora_rank: adds x A B lora_alpha / lora_rank to the projections lora_targets (LoRA, Hu et al. 2021); 0: none.
    lora_base: how the layers' projections lie beside LoRA's, which alone are trained: "full", in param_dtype, or "nf4",
      in 4 bits (QLoRA, Dettmers et al. 2023; `models.nf4`).
    padded_vocab_size: rows of both vocabulary tables when they must divide by a mesh axis (None: vocab_size).
    """

    vocab_size: int = 0  # filled in from the vocabulary by the run
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 32
    intermediate_size: int = 704
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    max_length: int = 1024
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    remat_policy: str = "nothing"
    scan_layers: bool = False
    tie_embeddings: bool = False
    prior_alignment: bool = False
    prior_beside: bool = False
    learned_positions: int = 0
    diagonal: bool = False
    initializer_range: float = 0.02
    attention: str = "auto"
    attention_block: int = 128
    padded_vocab_size: int | None = None
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = LORA_TARGETS
    lora_base: str = "full"

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding needs an even head_dim")
        choices = {"attention": IMPLEMENTATIONS, "remat_policy": tuple(_SAVED), "lora_base": ("full", "nf4")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose among {', '.join(known)}")
        if self.learned_positions < 0:
            raise ValueError(f"learned_positions={self.learned_positions}: expected 0 (none) or more")
        unknown = [target for target in self.lora_targets if target not in LORA_TARGETS]
        if unknown:
            raise ValueError(f"lora_targets: {unknown[0]!r} is unknown; choose among {', '.join(LORA_TARGETS)}")
        if self.lora_rank < 0 or (self.lora_rank and not self.lora_targets):
            raise ValueError(f"lora_rank={self.lora_rank} with lora_targets={self.lora_targets}: give both, or rank 0")
        if self.lora_base != "full" and not self.lora_rank:
            raise ValueError(f"lora_base={self.lora_base!r} without LoRA: nothing could be trained; give lora_rank")


# What `remat_policy` keeps from the forward pass.
_SAVED = {
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def emu3_8b(**overrides) -> TransformerConfig:
    """Emu3-8B (Wang et al. 2024; `Emu3Config` of the public code), bfloat16 throughout."""
    return dataclasses.replace(
        TransformerConfig(
            vocab_size=184_622,
            hidden_size=4096,
            num_layers=32,
            num_heads=32,
            num_kv_heads=8,
            head_dim=128,
            intermediate_size=14_336,
            rope_theta=1e6,
            rms_norm_eps=1e-5,
            max_length=9216,
            dropout=0.1,
            dtype="bfloat16",
            param_dtype="bfloat16",
            remat=True,
            scan_layers=True,
            attention_block=1024,
        ),
        **overrides,
    )


class Attention(nn.Module):
    """Causal grouped-query self-attention; returns the branch's output and the updated layer cache."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x, cos, sin, segments, offset, cache, prefill, deterministic):
        cfg = self.cfg
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        M, N, K, D = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        G = N // K
        B, T, _ = x.shape

        def weight(name, init, shape):
            return linear.weight(self, name, init, shape, param_dtype)

        x = x.reshape(B * T, M)
        q = linear.einsum("RM,MND->RND", x, weight("q_proj", nnl.fan_in(0), (M, N, D)))
        k = linear.einsum("RM,MKD->RKD", x, weight("k_proj", nnl.fan_in(0), (M, K, D)))
        v = linear.einsum("RM,MKD->RKD", x, weight("v_proj", nnl.fan_in(0), (M, K, D)))
        q = (q + low_rank(self, "q_proj", x, (N, D))).reshape(B, T, N, D)
        k = (k + low_rank(self, "k_proj", x, (K, D))).reshape(B, T, K, D)
        v = (v + low_rank(self, "v_proj", x, (K, D))).reshape(B, T, K, D)
        out_init = nn.initializers.normal((2 * cfg.num_layers * N * D) ** -0.5)
        o = weight("o_proj", out_init, (N, D, M))

        q = nnl.rope(q, cos, sin).reshape(B, T, K, G, D).transpose(0, 2, 3, 1, 4)
        k = nnl.rope(k, cos, sin).transpose(0, 2, 1, 3)
        v = v.transpose(0, 2, 1, 3)
        q = constrain(q, "batch", "kv_heads", None, None, None)
        k, v = (constrain(x, "batch", "kv_heads", None, None) for x in (k, v))
        rate = 0.0 if deterministic else cfg.dropout
        key = self.make_rng("dropout") if rate > 0 else None
        if cache is not None:
            cache = attention_.write_cache(cache, k, v, offset, prefill)
        if cache is None or prefill:
            out = self_attend(q, k, v, segments, cfg.attention, cfg.attention_block, rate, key)
            out = checkpoint_name(out, "attention")
        else:
            out = attention_.attend_cache(q, cache, offset, rate, key).astype(dtype)
        out = out.transpose(0, 3, 1, 2, 4).reshape(B * T, N, D)
        out = linear.einsum("RND,NDM->RM", out, o) + low_rank(self, "o_proj", out, (M,))
        return out.reshape(B, T, M), cache


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020): `[B, T, M]` -> `[B, T, M]`."""

    cfg: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        M, F = cfg.hidden_size, cfg.intermediate_size

        def weight(name, init, shape):
            return linear.weight(self, name, init, shape, jnp.dtype(cfg.param_dtype))

        rows = x.reshape(-1, M)
        gate = linear.einsum("RM,MF->RF", rows, weight("gate_proj", nnl.fan_in(0), (M, F)))
        up = linear.einsum("RM,MF->RF", rows, weight("up_proj", nnl.fan_in(0), (M, F)))
        gate, up = gate + low_rank(self, "gate_proj", rows, (F,)), up + low_rank(self, "up_proj", rows, (F,))
        down = weight("down_proj", nn.initializers.normal((2 * cfg.num_layers * F) ** -0.5), (F, M))
        inner = jax.nn.silu(gate) * up
        return (linear.einsum("RF,FM->RM", inner, down) + low_rank(self, "down_proj", inner, (M,))).reshape(x.shape)


class Layer(nn.Module):
    """One pre-norm layer: attention branch, then feed-forward branch, dropout on each before it is added."""

    cfg: TransformerConfig
    prefill: bool
    deterministic: bool

    @nn.compact
    def __call__(self, x, cache, cos, sin, segments, offset):
        cfg = self.cfg

        def norm(name):
            return nnl.RMSNorm(cfg.rms_norm_eps, jnp.dtype(cfg.param_dtype), name=name)

        def drop(y):
            if self.deterministic or cfg.dropout == 0:
                return y
            return attention_.dropout(y, cfg.dropout, self.make_rng("dropout"))

        y, cache = Attention(cfg, name="self_attn")(
            norm("input_layernorm")(x), cos, sin, segments, offset, cache, self.prefill, self.deterministic
        )
        x = constrain(x + drop(y), "batch", None, None)
        x = x + drop(SwiGLU(cfg, name="mlp")(norm("post_attention_layernorm")(x)))
        return constrain(x, "batch", None, None), cache


class Transformer(nn.Module):
    """Tokens -> final hidden states (after the last norm) and the updated cache; the head is `logits`.

    apply({"params": params}, tokens, positions, ...):
      tokens: int32 `[B, T]`. positions: int32 `[B, T]` rotary positions, or None for cache lengths + 0..T-1.
      aligned: int32 `[B, T]` or None: with cfg.prior_alignment, the token id of the prior's code at the place
        that the next token is for, -1 for none.
      beside: the same for cfg.prior_beside, at the place that the token itself fills; None: `beside_of` aligned, which
        needs whole rows: with a filled cache, give it.
      segments: int or bool `[B, T]` or None: a token sees only earlier tokens of its own segment. With a
        cache, 0 (False) marks padding, which must be on the right.
      cache: from `init_cache`, or None. A row's T tokens are written to slots length..length+T-1, and its
        length grows by its number of non-padding tokens. The caller keeps length + T within the cache.
      prefill: static; True when the cache is empty: attention then runs over the T tokens only.
      deterministic: False applies dropout (rngs={"dropout": key}).
      embedded: what `embed` gives for tokens and aligned, to take the gradient by; None: looked up here.
    Returns (hidden cfg.dtype `[B, T, M]`, cache or None).
    """

    cfg: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        *,
        aligned: jax.Array | None = None,
        beside: jax.Array | None = None,
        segments: jax.Array | None = None,
        cache: Params | None = None,
        prefill: bool = False,
        deterministic: bool = True,
        embedded: tuple[jax.Array | None, ...] | None = None,
    ) -> tuple[jax.Array, Params | None]:
        cfg = self.cfg
        dtype, param_dtype = jnp.dtype(cfg.dtype), jnp.dtype(cfg.param_dtype)
        B, T = tokens.shape
        M, V = cfg.hidden_size, cfg.padded_vocab_size or cfg.vocab_size
        table_init = nn.initializers.normal(cfg.initializer_range)
        table = self.param("embed_tokens", table_init, (V, M), param_dtype)
        if not cfg.tie_embeddings:  # declared here, used by `logits`
            linear.weight(self, "lm_head", nnl.fan_in(1), (V, M), param_dtype)
        if beside is None and aligned is not None and (cache is None or prefill):
            beside = beside_of(aligned)
        priors = {"prior_proj": aligned} if cfg.prior_alignment else {}
        priors |= {"beside_proj": beside} if cfg.prior_beside else {}
        projections = {name: linear.weight(self, name, nnl.fan_in(0), (M, M), param_dtype) for name in priors}
        if cfg.learned_positions:
            places = self.param("position_embed", table_init, (cfg.learned_positions, M), param_dtype)

        offset = jnp.zeros((B,), jnp.int32) if cache is None else cache["length"]
        if positions is None:
            positions = offset[:, None] + jnp.arange(T, dtype=jnp.int32)
        if embedded is None:
            embedded = embed(table, tokens, priors.values(), dtype)
        x, *looked_up = embedded
        for (name, ids), prior in zip(priors.items(), looked_up, strict=True):
            if ids is not None:
                prior = jnp.where(ids[..., None] >= 0, prior, 0)
                x = x + linear.einsum("RM,ME->RE", prior.reshape(B * T, M), projections[name]).reshape(B, T, M)
        if cfg.prior_beside:
            vector = self.param("changed_embed", table_init, (M,), param_dtype).astype(dtype)
            x = x if beside is None else x + jnp.where(((beside >= 0) & (beside != tokens))[..., None], vector, 0)
        if cfg.learned_positions:
            x = x + jnp.take(places.astype(dtype), jnp.minimum(positions, cfg.learned_positions - 1), axis=0)
        if not deterministic and cfg.dropout > 0:
            x = attention_.dropout(x, cfg.dropout, self.make_rng("dropout"))

        # Once, not again in each layer.
        cos, sin = jax.lax.optimization_barrier(nnl.rope_angles(positions, cfg.head_dim, cfg.rope_theta))
        layer_type = Layer
        if cfg.remat:
            layer_type = nn.remat(Layer, prevent_cse=not cfg.scan_layers, policy=_SAVED[cfg.remat_policy])
        keys_values = None if cache is None else {"k": cache["k"], "v": cache["v"]}
        arguments = (cos, sin, segments, offset)
        if cfg.scan_layers:
            scanned = nn.scan(
                layer_type,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
                length=cfg.num_layers,
            )
            x, keys_values = scanned(cfg, prefill, deterministic, name=STACKED)(x, keys_values, *arguments)
        else:
            ks, vs = [], []
            for index in range(cfg.num_layers):
                slots = keys_values and {"k": keys_values["k"][index], "v": keys_values["v"][index]}
                layer = layer_type(cfg, prefill, deterministic, name=f"{STACKED}_{index}")
                x, slots = layer(x, slots, *arguments)
                if slots is not None:
                    ks.append(slots["k"])
                    vs.append(slots["v"])
            keys_values = keys_values and {"k": tuple(ks), "v": tuple(vs)}
        x = nnl.RMSNorm(cfg.rms_norm_eps, param_dtype, name="norm")(x)
        if cache is None:
            return x, None
        added = T if segments is None else jnp.sum(segments != 0, axis=1, dtype=jnp.int32)
        return x, {**keys_values, "length": offset + added}


def embed(
    table: jax.Array, tokens: jax.Array, others: Iterable[jax.Array | None], dtype: Any
) -> tuple[jax.Array | None, ...]:
    """Rows `[B, T, M]` of the table `[V, M]` for tokens, and for each of the others (aligned, beside) that is given."""
    priors = (None if ids is None else _look_up(table, jnp.maximum(ids, 0), dtype) for ids in others)
    return _look_up(table, tokens, dtype), *priors


def beside_of(aligned: jax.Array) -> jax.Array:
    """`beside` of whole rows, from their `aligned` int32 `[B, T]`: what is next for a token is its successor's own."""
    return jnp.pad(aligned[:, :-1], ((0, 0), (1, 0)), constant_values=-1)


def _look_up(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of a table `[V, M]` for tokens `[B, T]`. On a mesh it is the rows that travel, not the table."""
    x = constrain(jnp.take(table, tokens, axis=0), "lookup", None, "embed")
    return constrain(x.astype(dtype), "batch", None, None)


def init_params(cfg: TransformerConfig, key: jax.Array) -> Params:
    """Fresh parameters, a plain dict of arrays of cfg.param_dtype."""
    params = Transformer(cfg).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    own = {diagonal_head.NAME: diagonal_head.init_params(cfg, key)} if cfg.diagonal else {}
    return {**params, **own}


def head(params: Params, rows: tuple[int, int] | None = None) -> linear.Weight:
    """The head's table `[V, M]`, or its rows start..stop-1 (take them once, outside a decoding loop)."""
    table = params["lm_head"] if "lm_head" in params else params["embed_tokens"]
    return table if rows is None else jax.tree.map(lambda x: jax.lax.slice_in_dim(x, *rows, axis=0), table)


def logits(params: Params, hidden: jax.Array, rows: tuple[int, int] | None = None) -> jax.Array:
    """Logits of the whole vocabulary, or of ids start..stop-1 only, in float32.

    params: the model's parameters, or anything with an `lm_head` (rows of a `head`, packed or not, say).
    hidden: `[..., M]` -> float32 `[..., V]` (or `[..., stop - start]`). Rows beyond vocab_size of a padded
    table are not masked: pass rows=(0, vocab_size).
    """
    rows_of_hidden = hidden.reshape(-1, hidden.shape[-1])
    out = linear.einsum("RM,VM->RV", rows_of_hidden, head(params, rows), jnp.float32)
    return out.reshape(*hidden.shape[:-1], -1)


def training_flops(cfg: TransformerConfig, length: int) -> float:
    """FLOPs of a training step per token: 6 a weight that multiplies it, and causal attention over `length` tokens.

    Model FLOPs (Chowdhery et al. 2022, appendix B): what is computed again in the backward pass does not count.
    """
    M, N, K, D, F = cfg.hidden_size, cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, cfg.intermediate_size
    layer = M * D * (2 * N + 2 * K) + 3 * M * F
    attention = 2 * N * D * length / 2  # two products, half of the pairs
    return 6.0 * (cfg.num_layers * (layer + attention) + M * cfg.vocab_size)


def init_cache(cfg: TransformerConfig, batch: int, length: int, dtype: str | None = None) -> Params:
    """An empty key/value cache of `length` slots a row, of `dtype`.

    None is cfg.dtype, but float32 on CPU, where XLA widens all of a bfloat16 cache to write one token.

    {"k", "v": per-layer tuples of `[B, K, S, D]` (with scan_layers one array `[L, B, K, S, D]`), on CPU "k" of
    `[B, K, D, S]` (`kernels.attention.cached_keys`); "length": int32 `[B]`}. One array a layer, so that a decoding loop
    updates it in place.
    """
    default = "float32" if platform() == "cpu" else cfg.dtype
    sizes, dtype = {"B": batch, "K": cfg.num_kv_heads, "S": length, "D": cfg.head_dim}, jnp.dtype(dtype or default)

    def empty(axes: str):
        shape = [sizes[axis] for axis in axes]
        if cfg.scan_layers:
            return constrain(jnp.zeros((cfg.num_layers, *shape), dtype), None, *CACHE_AXES)
        return tuple(constrain(jnp.zeros(shape, dtype), *CACHE_AXES) for _ in range(cfg.num_layers))

    keys, values = empty(attention_.cached_keys()), empty("BKSD")
    return {"k": keys, "v": values, "length": jnp.zeros((batch,), jnp.int32)}


def map_cache_rows(function, cache: Params) -> Params:
    """Applies function(array, axis), axis being the batch axis, to every array of a cache.

    E.g. `map_cache_rows(lambda x, axis: jnp.repeat(x, samples, axis), cache)`.
    """
    return {
        "k": jax.tree.map(lambda x: function(x, x.ndim - 4), cache["k"]),
        "v": jax.tree.map(lambda x: function(x, x.ndim - 4), cache["v"]),
        "length": function(cache["length"], 0),
    }


def stack_layers(params: Params) -> Params:
    """Per-layer subtrees `layers_0`, `layers_1`, ... -> one subtree `layers` of stacked leaves."""
    names = sorted((n for n in params if n.startswith(f"{STACKED}_")), key=lambda n: int(n.split("_")[1]))
    rest = {n: p for n, p in params.items() if n not in names}
    return rest | {STACKED: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[n] for n in names))}


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`."""
    rest = {n: p for n, p in params.items() if n != STACKED}
    count = jax.tree.leaves(params[STACKED])[0].shape[0]
    for index in range(count):
        rest[f"{STACKED}_{index}"] = jax.tree.map(lambda leaf, i=index: leaf[i], params[STACKED])
    return rest
