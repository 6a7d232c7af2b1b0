"""Fine-tuning on little memory: which parameters are trained, and what becomes of LoRA's afterwards.

A task keeps the parameters that are trained apart from those that are not: gradients, optimizer state and moving
averages exist for the former alone. LoRA itself (Hu et al. 2021) is in `models.linear`: with `lora_rank` a
projection W has two more parameters, `<name>_lora_a` and `<name>_lora_b`, and computes x W + x A B alpha / rank. With
`lora_base="nf4"` W is held in 4 bits (QLoRA, Dettmers et al. 2023; `models.nf4`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.checkpoints import arrays
from progemu_jax.errors import UserError
from progemu_jax.models import diagonal_head, linear, nf4
from progemu_jax.models.linear import LORA_A, LORA_B
from progemu_jax.models.nf4 import NF4
from progemu_jax.models.transformer import STACKED, TransformerConfig
from progemu_jax.tasks.embeddings import PROJECTION


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


def plain(model: TransformerConfig) -> TransformerConfig:
    """The config of the model without LoRA, as `merge` gives it."""
    return dataclasses.replace(model, lora_rank=0, lora_base="full")


def based(params: Mapping[str, Any], model: TransformerConfig) -> dict:
    """Parameters with the projections of the layers as `model.lora_base` says; those in 4 bits already stay."""
    return linear.quantize_layers(params) if model.lora_base == "nf4" else dict(params)


def split(params: Mapping[str, Any], model: TransformerConfig, tune: TuneConfig) -> tuple[dict, dict]:
    """(trained, frozen): the parameters in two nested dicts, frozen {} when all are trained; `join` undoes it.

    The head of anti-diagonal decoding is frozen: it has a training of its own (`tasks.diagonal`). Of stacked
    layers (`scan_layers`) the last ones are rows of the same arrays, in both dicts.

    Raises:
      UserError: more layers than there are, a name to freeze that no parameter has, nothing left to train.
    """
    flat = arrays.flatten(params, is_leaf=nf4.is_nf4)
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
    if part in ("embed_tokens", PROJECTION):
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
    """Parameters with W + A B alpha / rank in the place of W, A and B, and the config of that plain model.

    What was in 4 bits is of `model.param_dtype`, and in NumPy where one host has all of it: a device that trains on
    4 bits may not hold the model whole.
    """
    if not model.lora_rank:
        return dict(params), model
    flat = arrays.flatten(params, is_leaf=nf4.is_nf4)
    out = {name: leaf for name, leaf in flat.items() if not name.endswith((LORA_A, LORA_B))}
    for name, weight in out.items():
        if name + LORA_A in flat:
            out[name] = _merged(weight, model, flat[name + LORA_A], flat[name + LORA_B])
        elif isinstance(weight, NF4):
            out[name] = _merged(weight, model)
    return arrays.unflatten(out), plain(model)


def _merged(weight: jax.Array | NF4, model: TransformerConfig, *low_rank: jax.Array) -> Any:
    """One weight with LoRA's A and B added, or none."""
    if isinstance(weight, NF4):
        stacked = weight.offset.ndim > 1
    else:  # all three have the layer axis
        stacked = sum(x.ndim for x in low_rank) - 2 > weight.ndim
    with jax.default_matmul_precision("highest"):
        merged = _merge(weight, low_rank, model, stacked)
    return jax.device_get(merged) if isinstance(weight, NF4) and merged.is_fully_addressable else merged


@functools.partial(jax.jit, static_argnums=(2, 3))
def _merge(
    weight: jax.Array | NF4, low_rank: tuple[jax.Array, ...], model: TransformerConfig, stacked: bool
) -> jax.Array:
    def one(layer: tuple) -> jax.Array:
        weight, low_rank = layer
        dtype = jnp.dtype(model.param_dtype) if isinstance(weight, NF4) else weight.dtype
        weight = nf4.unpack(weight, jnp.float32) if isinstance(weight, NF4) else weight.astype(jnp.float32)
        if low_rank:
            a, b = low_rank
            added = a.reshape(-1, model.lora_rank) @ b.reshape(model.lora_rank, -1)
            weight += (added * (model.lora_alpha / model.lora_rank)).reshape(weight.shape)
        return weight.astype(dtype)

    layers = (weight, low_rank)
    return jax.lax.map(one, layers) if stacked else one(layers)  # one at a time: in float32 they take much memory
