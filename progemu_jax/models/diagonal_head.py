"""The head of anti-diagonal decoding: what the tokens on the left and above say together of a code.

The row head stays what it is, the next token's state of the token on the left. The vertical head is one gated
feed-forward of the state of the token above, and sees what is on the left and the prior's code too; a learnt gate, one
value a channel, mixes the two states, so that one product with the visual rows of `lm_head` scores both (after FlashAR,
arXiv 2605.09430).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.models import layers as nnl
from progemu_jax.models import linear

Config = Any  # a `transformer.TransformerConfig`; that file imports this one

NAME = "diagonal_head"  # among the transformer's parameters


class DiagonalHead(nn.Module):
    """States [R, M] of the tokens on the left and above, and of the prior's code -> the state that tells a code [R, M].

    left, above: final states of the transformer, dtype cfg.dtype. has_left, has_above: bool [R]; where one is missing
    the other counts alone (a first row is the row head's, exactly). prior: [R, M] embeddings of the prior's code at the
    place that is told, 0 without one.
    """

    cfg: Config

    @nn.compact
    def __call__(
        self, left: jax.Array, above: jax.Array, has_left: jax.Array, has_above: jax.Array, prior: jax.Array
    ) -> jax.Array:
        cfg = self.cfg
        M, F, param_dtype = cfg.hidden_size, width(cfg), jnp.dtype(cfg.param_dtype)

        def mapped(name: str, x: jax.Array, outputs: int, init: Any = None) -> jax.Array:
            kernel = linear.weight(self, name, init or nnl.fan_in(0), (x.shape[-1], outputs), param_dtype)
            return linear.einsum("RM,MF->RF", x, kernel)

        prior = nnl.RMSNorm(cfg.rms_norm_eps, param_dtype, name="prior_layernorm")(prior)
        seen = jnp.concatenate([jnp.where(has_left[:, None], left, 0), above, prior], axis=-1)
        inner = jax.nn.silu(mapped("gate_proj", seen, F)) * mapped("up_proj", seen, F)
        vertical = above + mapped("down_proj", inner, M, nn.initializers.zeros)
        gate = jax.nn.sigmoid(mapped("mix_proj", seen, M, nn.initializers.zeros))
        both = gate * left + (1 - gate) * vertical
        one = jnp.where(has_left[:, None], left, vertical)
        return jnp.where((has_left & has_above)[:, None], both, one)


def width(cfg: Config) -> int:
    """Channels of the feed-forward: those of a layer's, at most twice the model's."""
    return min(cfg.intermediate_size, 2 * cfg.hidden_size)


def init_params(cfg: Config, key: jax.Array) -> Any:
    """Fresh parameters: the mean of the states on the left and above, until something is learnt."""
    row, none = jnp.zeros((1, cfg.hidden_size), jnp.dtype(cfg.dtype)), jnp.zeros(1, bool)
    return DiagonalHead(cfg).init(key, row, row, none, none, row)["params"]


def told(cfg: Config, params: Any, hidden: jax.Array, left: jax.Array, above: jax.Array, prior: jax.Array) -> jax.Array:
    """States [B, N, M] that tell N codes of each row, of its tokens' states [B, T, M].

    params: the transformer's, with the head's under `NAME`. left, above: int32 [B, N] indices of tokens, -1: none.
    prior: int32 [B, N] token of the prior's code, -1: none.
    """
    B, N = left.shape
    M = hidden.shape[-1]

    def at(index: jax.Array) -> jax.Array:
        return jnp.take_along_axis(hidden, jnp.maximum(index, 0)[..., None], axis=1).reshape(B * N, M)

    table = params["embed_tokens"]
    priors = jnp.where((prior >= 0)[..., None], jnp.take(table, jnp.maximum(prior, 0), axis=0), 0)
    states = DiagonalHead(cfg).apply(
        {"params": params[NAME]},
        at(left),
        at(above),
        (left >= 0).reshape(-1),
        (above >= 0).reshape(-1),
        priors.astype(hidden.dtype).reshape(B * N, M),
    )
    return states.reshape(B, N, M)
