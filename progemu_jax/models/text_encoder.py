"""Text encoders of the diffusion models: BERT (Devlin et al. 2019), as BiomedCLIP and PubMedBERT have it, and CLIP's
(Radford et al. 2021), as Stable Diffusion has it.

Axis legend: B batch    S tokens    M model    N heads

Parameters carry the names of `transformers`' checkpoints, with `_i` for a place in a list
(`encoder/layer_3/attention/self/query`, `encoder/layers_3/self_attn/q_proj`); kernels are `[in, out]`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.kernels.attention import multi_head_attention
from progemu_jax.models.layers import LayerNorm, Linear, draw_params, normal

BERT, CLIP = "bert", "clip"


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes and options; the defaults are a small BERT. `pubmedbert()` and `clip_l()` are the full ones.

    kind: "bert" (post-norm, every token sees every other that is no padding, token types) or "clip" (pre-norm,
      causal, padding is seen as Stable Diffusion does).
    max_length: positions; a text is cut there.
    text_length: tokens that a text is padded to (256 in MedJourney, 77 in Stable Diffusion).
    activation: "gelu" (exact) or "quick_gelu" (x sigmoid(1.702 x)).
    """

    kind: str = BERT
    vocab_size: int = 1024
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    intermediate_size: int = 128
    max_length: int = 64
    text_length: int = 64
    type_vocab_size: int = 2
    activation: str = "gelu"
    eps: float = 1e-12
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if self.kind not in (BERT, CLIP):
            raise ValueError(f"kind={self.kind!r}: choose 'bert' or 'clip'")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}: choose among {', '.join(_ACTIVATIONS)}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size={self.hidden_size}: no multiple of num_heads={self.num_heads}")
        if not 2 <= self.text_length <= self.max_length:
            raise ValueError(f"text_length={self.text_length}: expected 2 .. max_length={self.max_length}")

    @property
    def masked(self) -> bool:
        """Whether padding is hidden, from the encoder and from the cross-attention."""
        return self.kind == BERT


_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def pubmedbert(**overrides) -> TextEncoderConfig:
    """PubMedBERT's base size, BiomedCLIP's text encoder: 256 of 512 positions, 30,522 word pieces."""
    sizes = {
        "vocab_size": 30_522, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 3072,
        "max_length": 512, "text_length": 256,
    }  # fmt: skip
    return TextEncoderConfig(**(sizes | overrides))


def clip_l(**overrides) -> TextEncoderConfig:
    """The text encoder of CLIP ViT-L/14, Stable Diffusion 1.x's: 123,060,480 parameters."""
    sizes = {
        "kind": CLIP, "vocab_size": 49_408, "hidden_size": 768, "num_layers": 12, "num_heads": 12,
        "intermediate_size": 3072, "max_length": 77, "text_length": 77, "activation": "quick_gelu", "eps": 1e-5,
    }  # fmt: skip
    return TextEncoderConfig(**(sizes | overrides))


class Table(nn.Module):
    """An embedding table: ids `[...]` -> `[..., M]`; `embedding` is `[rows, M]`."""

    rows: int
    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.param("embedding", normal, (self.rows, self.features), self.param_dtype)[ids]


class Projections(nn.Module):
    """Multi-head attention of `[B, S, M]` over itself; names of the query, key, value (and output) maps.

    BERT keeps its output map elsewhere: three names.
    """

    cfg: TextEncoderConfig
    names: tuple[str, ...]

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        q, k, v = (Linear(cfg.hidden_size, True, normal, dtype, name=name)(x) for name in self.names[:3])
        x = multi_head_attention(q, k, v, cfg.num_heads, mask)
        return Linear(cfg.hidden_size, True, normal, dtype, name=self.names[3])(x) if self.names[3:] else x


class BertEmbeddings(nn.Module):
    """Sum of word, position and type embeddings, normed: ids `[B, S]` -> `[B, S, M]`."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = Table(cfg.vocab_size, cfg.hidden_size, dtype, name="word_embeddings")(tokens)
        x += Table(cfg.type_vocab_size, cfg.hidden_size, dtype, name="token_type_embeddings")(jnp.zeros_like(tokens))
        x += Table(cfg.max_length, cfg.hidden_size, dtype, name="position_embeddings")(jnp.arange(tokens.shape[1]))
        return LayerNorm(cfg.eps, dtype, name="LayerNorm")(x.astype(cfg.dtype))


class BertOutput(nn.Module):
    """A linear map back to M, the input added, normed."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = Linear(cfg.hidden_size, True, normal, dtype, name="dense")(x)
        return LayerNorm(cfg.eps, dtype, name="LayerNorm")(x + residual)


class BertAttention(nn.Module):
    """Self-attention and its output map."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        y = Projections(self.cfg, ("query", "key", "value"), name="self")(x, mask)
        return BertOutput(self.cfg, name="output")(y, x)


class BertIntermediate(nn.Module):
    """A linear map to the feed-forward's width, activated."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.cfg
        x = Linear(cfg.intermediate_size, True, normal, jnp.dtype(cfg.param_dtype), name="dense")(x)
        return _ACTIVATIONS[cfg.activation](x)


class BertLayer(nn.Module):
    """Attention, then feed-forward, each added and normed."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        x = BertAttention(self.cfg, name="attention")(x, mask)
        return BertOutput(self.cfg, name="output")(BertIntermediate(self.cfg, name="intermediate")(x), x)


class ClipEmbeddings(nn.Module):
    """Sum of token and position embeddings: ids `[B, S]` -> `[B, S, M]`."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = Table(cfg.vocab_size, cfg.hidden_size, dtype, name="token_embedding")(tokens)
        x += Table(cfg.max_length, cfg.hidden_size, dtype, name="position_embedding")(jnp.arange(tokens.shape[1]))
        return x.astype(cfg.dtype)


class ClipMLP(nn.Module):
    """Linear, activation, linear."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = _ACTIVATIONS[cfg.activation](Linear(cfg.intermediate_size, True, normal, dtype, name="fc1")(x))
        return Linear(cfg.hidden_size, True, normal, dtype, name="fc2")(x)


class ClipLayer(nn.Module):
    """Attention, then feed-forward, each normed first and added."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        y = LayerNorm(cfg.eps, dtype, name="layer_norm1")(x)
        x = x + Projections(cfg, names, name="self_attn")(y, mask)
        return x + ClipMLP(cfg, name="mlp")(LayerNorm(cfg.eps, dtype, name="layer_norm2")(x))


class Layers(nn.Module):
    """All layers, called `name_0`, `name_1`, ..."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        bert = self.cfg.kind == BERT
        for i in range(self.cfg.num_layers):
            layer = BertLayer(self.cfg, name=f"layer_{i}") if bert else ClipLayer(self.cfg, name=f"layers_{i}")
            x = layer(x, mask)
        return x


class TextEncoder(nn.Module):
    """Last hidden states of a batch of texts."""

    cfg: TextEncoderConfig

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """
        Args:
          tokens: int32 `[B, S]`, S <= max_length.
          mask: bool `[B, S]`, True = no padding; used by BERT alone. None: no padding.

        Returns:
          float `[B, S, M]` in cfg.dtype, after the final norm.
        """
        cfg, S = self.cfg, tokens.shape[1]
        if cfg.kind == BERT:
            mask = None if mask is None else mask[:, None, None, :]
            return Layers(cfg, name="encoder")(BertEmbeddings(cfg, name="embeddings")(tokens), mask)
        causal = jnp.tril(jnp.ones((S, S), bool))[None, None]
        x = Layers(cfg, name="encoder")(ClipEmbeddings(cfg, name="embeddings")(tokens), causal)
        return LayerNorm(cfg.eps, jnp.dtype(cfg.param_dtype), name="final_layer_norm")(x)


def init_params(cfg: TextEncoderConfig, key: jax.Array) -> dict:
    """Random parameters."""
    return draw_params(TextEncoder(cfg), key, jnp.zeros((1, 2), jnp.int32), std=0.02)
