"""Weights of linear maps in their forms: plain arrays, int8, laid out for a CPU, 4 bits with LoRA's beside them.

`einsum` takes any of them, so that the transformer has one forward pass for all.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from progemu_jax.devices.sharding import data_parts
from progemu_jax.kernels import matmul
from progemu_jax.models import nf4
from progemu_jax.models.layers import fan_in
from progemu_jax.models.nf4 import NF4

# Input axes of each linear map, by the last part of its path: the others are output channels.
INPUTS = {
    "q_proj": (0,),
    "k_proj": (0,),
    "v_proj": (0,),
    "o_proj": (0, 1),
    "gate_proj": (0,),
    "up_proj": (0,),
    "down_proj": (0,),
    "prior_proj": (0,),
    "beside_proj": (0,),
    "mix_proj": (0,),
    "lm_head": (1,),
}
LORA_A, LORA_B = "_lora_a", "_lora_b"  # what the names of A [inputs, rank] and B [rank, outputs] of a projection end in


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """A weight of 8 bits: values int8, as the weight; scale f32, 1 on input axes (weight = values * scale)."""

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
    """A weight as one matrix, in the order that the CPU's kernel for its dtype reads fastest (`pack`).

    table: [I, O] of float32, [O, I] of bfloat16 or int8, for I inputs and O outputs of shape `outputs`; scale: f32 [O]
    of int8, as in `Int8`.
    """

    table: jax.Array
    outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    scale: jax.Array | None = None


Weight = jax.Array | Int8 | Packed | NF4

INPUTS_FIRST = re.compile(r".(.+),\1(.+)->.\2")  # specs of `einsum` whose weight has its input axes in front


def weight(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], dtype: Any) -> Weight:
    """`module.param`, or the weight of another form that the parameters hold under this name."""
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if isinstance(value, Int8 | Packed | NF4):
            return value
    return module.param(name, init, shape, dtype)


def low_rank(module: nn.Module, name: str, rows: jax.Array, outputs: tuple[int, ...]) -> jax.Array | float:
    """What LoRA adds to projection `name` of a module with `cfg`: `[R, ...]` -> `[R, *outputs]`; 0.0 without it."""
    cfg = module.cfg
    if not cfg.lora_rank or name not in cfg.lora_targets:
        return 0.0
    inputs, rank = rows.shape[1:], cfg.lora_rank
    init = fan_in(*range(len(inputs)))
    a = module.param(name + LORA_A, init, (*inputs, rank), jnp.float32).reshape(-1, rank)
    b = module.param(name + LORA_B, nn.initializers.zeros, (rank, *outputs), jnp.float32).reshape(rank, -1)
    low = rows.reshape(rows.shape[0], -1) @ a.astype(rows.dtype)
    return ((low @ b.astype(rows.dtype)) * (cfg.lora_alpha / rank)).reshape(-1, *outputs)


def einsum(spec: str, x: jax.Array, w: Weight, out: Any = None) -> jax.Array:
    """jnp.einsum(spec, x, w) computed in x's dtype, with the result in `out` (None: x's dtype).

    Of the spec, the first letter is the rows of x, all others of x are contracted, and w's own are the result's.
    """
    out = out or x.dtype
    if isinstance(w, NF4):
        return _einsum_nf4(spec, jnp.dtype(x.dtype), jnp.dtype(out), x, w)
    if isinstance(w, Packed):
        return _packed(x.reshape(len(x), -1), w).reshape(-1, *w.outputs).astype(out)
    if isinstance(w, Int8):
        y = jnp.einsum(spec, x, w.values.astype(x.dtype), preferred_element_type=jnp.float32)
        # Input axes are of size 1 and in front or behind: what remains are the output axes, the last of the result.
        return (y * w.scale.reshape([n for n in w.scale.shape if n > 1] or [1])).astype(out)
    if matmul.wants_rows(x) and INPUTS_FIRST.fullmatch(spec):
        mesh = jax.sharding.get_abstract_mesh()
        whole = mesh.empty or data_parts(mesh) == 1
        y = matmul.product(whole, x.reshape(len(x), -1), w.reshape(math.prod(x.shape[1:]), -1))
        return y.reshape(-1, *w.shape[x.ndim - 1 :]).astype(out)
    return jnp.einsum(spec, x, w.astype(x.dtype), preferred_element_type=out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _einsum_nf4(spec: str, dtype: Any, out: Any, x: jax.Array, w: NF4) -> jax.Array:
    """`einsum` of x, of dtype. For the gradient of x the weight is unpacked again: what is kept of it is 4 bits."""
    return einsum(spec, x, nf4.unpack(w, dtype), out)


def _einsum_nf4_forward(spec: str, dtype: Any, out: Any, x: jax.Array, w: NF4) -> tuple[jax.Array, NF4]:
    return _einsum_nf4(spec, dtype, out, x, w), w


def _einsum_nf4_backward(spec: str, dtype: Any, out: Any, w: NF4, gradient: jax.Array) -> tuple[jax.Array, None]:
    del out
    given, of_weight, result = re.split(",|->", spec)
    gradient = gradient.astype(dtype)
    sums = jnp.float32 if matmul.wants_rows(gradient) else dtype
    back = f"{result},{of_weight}->{given}"
    return jnp.einsum(back, gradient, nf4.unpack(w, dtype), preferred_element_type=sums).astype(dtype), None


_einsum_nf4.defvjp(_einsum_nf4_forward, _einsum_nf4_backward)


def _packed(x: jax.Array, w: Packed) -> jax.Array:
    """[R, I] -> float32 [R, O]."""
    if w.scale is not None:
        return _packed_int8(x, w)
    if w.table.dtype == jnp.float32:
        return jnp.einsum("RI,IO->RO", x.astype(jnp.float32), w.table)
    # XLA has a bfloat16 kernel on CPU for matrices only: a single row takes four times as long as two.
    rows = x if len(x) > 1 else jnp.concatenate([x, x])
    y = jnp.einsum("RI,OI->RO", rows.astype(w.table.dtype), w.table, preferred_element_type=jnp.float32)
    return y[: len(x)]


FEW_ROWS = 16  # of int8 products; with more, those of the widened weight are faster


def _packed_int8(x: jax.Array, w: Packed) -> jax.Array:
    """[R, I] -> float32 [R, O].

    A few rows are multiplied in 8 bits, which is faster than to widen the weight: each as two rows of int8, x = step *
    (high + low / 254), off by at most 1 / 64,516 of its largest number. (One row alone has no kernel, as above.)
    """
    count = len(x)
    if count > FEW_ROWS:
        return jnp.einsum("RI,OI->RO", x, w.table.astype(x.dtype), preferred_element_type=jnp.float32) * w.scale
    x = x.astype(jnp.float32)
    step = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True), 1e-30) / 127
    high = jnp.rint(x / step)
    rows = jnp.concatenate([high, jnp.rint((x / step - high) * 254)]).astype(jnp.int8)
    y = jnp.einsum("RI,OI->RO", rows, w.table, preferred_element_type=jnp.int32).astype(jnp.float32)
    return (y[:count] + y[count:] / 254) * step * w.scale


def pack(value: Weight, inputs: tuple[int, ...]) -> Packed:
    """An array or `Int8` whose `inputs` axes are in front (or the last one, of two) as `Packed`."""
    split, array = len(inputs), value.values if isinstance(value, Int8) else value
    array = array if inputs[0] == 0 else array.T
    table, outputs = array.reshape(math.prod(array.shape[:split]), -1), array.shape[split:]
    if isinstance(value, Int8):
        return Packed(table.T, outputs, value.scale.reshape(-1))
    return Packed(table if table.dtype == jnp.float32 else table.T, outputs)


def quantize(params: Mapping[str, Any]) -> dict[str, Any]:
    """Int8 weights, one scale an output channel, of every linear map; norms and embeddings stay as they are.

    Symmetric, round to nearest: scale = largest magnitude of the channel / 127. Layers may be stacked (one scale a
    layer and channel). A tied head is left, since it is the embedding.
    """

    def walk(tree: Mapping[str, Any], stacked: bool) -> dict[str, Any]:
        out = {}
        for name, value in tree.items():
            if isinstance(value, Mapping):
                out[name] = walk(value, stacked or name == "layers")
            else:
                out[name] = _int8(value, [a + stacked for a in INPUTS[name]]) if name in INPUTS else value
        return out

    return walk(params, False)


def pack_all(params: Mapping[str, Any]) -> dict[str, Any]:
    """`pack` of every linear map of unstacked layers; the head is left (decoding packs the rows that it reads)."""
    return {
        name: pack_all(value)
        if isinstance(value, Mapping)
        else (pack(value, INPUTS[name]) if name in INPUTS and name != "lm_head" else value)
        for name, value in params.items()
    }


def quantize_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """`NF4` of every projection of the layers, LoRA's left as they are; what is NF4 already stays.

    Layers may be stacked; one at a time is then made float32. NumPy arrays give NumPy arrays, so that no device holds
    all of a model that was read.
    """

    def walk(tree: Mapping[str, Any], stacked: bool) -> dict[str, Any]:
        return {name: one(name, value, stacked) for name, value in tree.items()}

    def one(name: str, value: Any, stacked: bool) -> Any:
        if isinstance(value, Mapping):
            return walk(value, stacked)
        if name not in INPUTS or isinstance(value, NF4):
            return value
        packed = _nf4(value, len(INPUTS[name]), stacked)
        return jax.device_get(packed) if isinstance(value, np.ndarray) else packed

    return {
        name: walk(value, name == "layers") if name.startswith("layers") else value for name, value in params.items()
    }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _nf4(value: jax.Array, inputs: int, stacked: bool) -> NF4:
    return jax.lax.map(lambda layer: nf4.pack(layer, inputs), value) if stacked else nf4.pack(value, inputs)


def _int8(value: jax.Array, axes: list[int]) -> Int8:
    value = jnp.asarray(value, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(value), axis=tuple(axes), keepdims=True), 1e-30) / 127
    return Int8(jnp.rint(value / scale).astype(jnp.int8), scale)
