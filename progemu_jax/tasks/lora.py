"""Fine-tuning on little memory: which parameters are trained, and what becomes of LoRA's afterwards.

A task keeps the parameters that are trained apart from those that are not: gradients, optimizer state and moving
averages exist for the former alone. LoRA itself (Hu et al. 2021) is in `models.transformer`: with `lora_rank` a
projection W has two more parameters, `<name>_lora_a` and `<name>_lora_b`, and computes x W + x A B alpha / rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.checkpoints import arrays
from progemu_jax.errors import UserError
from progemu_jax.models import diagonal_head
from progemu_jax.models.transformer import LORA_A, LORA_B, STACKED, TransformerConfig


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """Which parameters of the transformer are trained. With `model.lora_rank`, LoRA's and no others.

    Attributes:
      last_layers: the last n layers, the last norm and the head; 0: all layers, and the embedding.
      freeze: parameters that are not trained, by the first part of their name (embed_tokens, lm_head, prior_proj,
        norm, layers_3).
    """

    last_layers: int = 0
    freeze: tuple[str, ...] = ()


def split(params: Mapping[str, Any], model: TransformerConfig, tune: TuneConfig) -> tuple[dict, dict]:
    """(trained, frozen): the parameters in two nested dicts, frozen {} when all are trained; `join` undoes it.

    The head of anti-diagonal decoding is frozen: it has a training of its own (`tasks.diagonal`). Of stacked
    layers (`scan_layers`) the last ones are rows of the same arrays, in both dicts.

    Raises:
      UserError: more layers than there are, a name to freeze that no parameter has, nothing left to train.
    """
    flat = arrays.flatten(params)
    layers = model.num_layers
    if not 0 <= tune.last_layers <= layers:
        raise UserError(f"tune.last_layers={tune.last_layers}: the model has {layers} layers; give 0..{layers}")
    first_parts = sorted({name.split(".")[0] for name in flat})
    for name in tune.freeze:
        if name not in first_parts:
            raise UserError(f"tune.freeze: no parameter is called {name!r}; choose among {', '.join(first_parts)}")
    before = layers - tune.last_layers if tune.last_layers else 0
    trained, frozen = {}, {}
    for name, leaf in flat.items():
        part = name.split(".")[0]
        if model.lora_rank:
            (trained if name.endswith((LORA_A, LORA_B)) else frozen)[name] = leaf
        elif part in (*tune.freeze, diagonal_head.NAME) or (before and _below(part, before)):
            frozen[name] = leaf
        elif before and part == STACKED:
            frozen[name], trained[name] = leaf[:before], leaf[before:]
        else:
            trained[name] = leaf
    if not trained:
        raise UserError("tune: nothing is left to train; freeze less")
    return arrays.unflatten(trained), arrays.unflatten(frozen)


def _below(part: str, before: int) -> bool:
    """Whether a parameter, by the first part of its name, lies below layer `before`."""
    if part in ("embed_tokens", "word_proj"):
        return True
    number = part.removeprefix(f"{STACKED}_")
    return number.isdigit() and int(number) < before


def join(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict:
    """The parameters that `split` gave."""
    out = dict(frozen)
    for name, value in trained.items():
        if name not in out:
            out[name] = value
        elif isinstance(value, Mapping):
            out[name] = join(value, out[name])
        else:
            out[name] = jnp.concatenate([out[name], value])
    return out


def merge(params: Mapping[str, Any], model: TransformerConfig) -> tuple[dict, TransformerConfig]:
    """Parameters with W + A B alpha / rank in the place of W, A and B, and the config of that plain model."""
    plain = dataclasses.replace(model, lora_rank=0)
    if not model.lora_rank:
        return dict(params), plain
    flat = arrays.flatten(params)
    out = {name: leaf for name, leaf in flat.items() if not name.endswith((LORA_A, LORA_B))}
    for name, a in flat.items():
        if name.endswith(LORA_A):
            base = name.removesuffix(LORA_A)
            out[base] = _merged(out[base], a, flat[base + LORA_B], model)
    return arrays.unflatten(out), plain


def _merged(weight: jax.Array, a: jax.Array, b: jax.Array, model: TransformerConfig) -> jax.Array:
    stacked = a.ndim + b.ndim - 2 > weight.ndim  # all three have the layer axis

    def one(weight: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        added = a.reshape(-1, model.lora_rank) @ b.reshape(model.lora_rank, -1) * (model.lora_alpha / model.lora_rank)
        return (weight.astype(jnp.float32) + added.reshape(weight.shape)).astype(weight.dtype)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(weight, a, b) if stacked else one(weight, a, b)
