"""Weights of linear maps in the forms that decoding reads them in: plain arrays, int8, or laid out for a CPU.

`einsum` takes any of them, so that the transformer has one forward pass for all.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.devices.sharding import data_parts
from progemu_jax.kernels import matmul

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

    table: [I, O] of float32, [O, I] of bfloat16, for I inputs and O outputs of shape `outputs`.
    """

    table: jax.Array
    outputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})


Weight = jax.Array | Int8 | Packed

INPUTS_FIRST = re.compile(r".(.+),\1(.+)->.\2")  # specs of `einsum` whose weight has its input axes in front


def weight(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], dtype: Any) -> Weight:
    """`module.param`, or the weight of another form that the parameters hold under this name."""
    if module.has_variable("params", name):
        value = module.get_variable("params", name)
        if isinstance(value, Int8 | Packed):
            return value
    return module.param(name, init, shape, dtype)


def einsum(spec: str, x: jax.Array, w: Weight, out: Any = None) -> jax.Array:
    """jnp.einsum(spec, x, w) computed in x's dtype, with the result in `out` (None: x's dtype).

    Of the spec, the first letter is the rows of x, all others of x are contracted, and w's own are the result's.
    """
    out = out or x.dtype
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


def _packed(x: jax.Array, w: Packed) -> jax.Array:
    """[R, I] -> float32 [R, O]."""
    if w.table.dtype == jnp.float32:
        return jnp.einsum("RI,IO->RO", x.astype(jnp.float32), w.table)
    # XLA has a bfloat16 kernel on CPU for matrices only: a single row takes four times as long as two.
    rows = x if len(x) > 1 else jnp.concatenate([x, x])
    y = jnp.einsum("RI,OI->RO", rows.astype(w.table.dtype), w.table, preferred_element_type=jnp.float32)
    return y[: len(x)]


def pack(value: Weight, inputs: tuple[int, ...]) -> Weight:
    """An array whose `inputs` axes are in front (or the last one, of two) as `Packed`; int8 is left as it is."""
    if isinstance(value, Int8):
        return value
    value = value if inputs[0] == 0 else value.T
    split = len(inputs)
    table = value.reshape(math.prod(value.shape[:split]), -1)
    return Packed(table if table.dtype == jnp.float32 else table.T, value.shape[split:])


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


def _int8(value: jax.Array, axes: list[int]) -> Int8:
    value = jnp.asarray(value, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(value), axis=tuple(axes), keepdims=True), 1e-30) / 127
    return Int8(jnp.rint(value / scale).astype(jnp.int8), scale)
