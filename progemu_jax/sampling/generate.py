"""One counterfactual per case: parameters as decoding reads them, and the compiled whole."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from progemu_jax.devices import sharding
from progemu_jax.models import linear, transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import memory
from progemu_jax.sampling.engine import Engine, Grammar, Params, State, head_name
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts
from progemu_jax.text.sequence import Layout


class Generated(NamedTuple):
    """codes int32 [B, h, w]; text int32 [B, max_text], -1 after the end; passes int32 [B] for image and text."""

    codes: jax.Array
    text: jax.Array
    passes: jax.Array


def prepare(params: Params, model: TransformerConfig, grammar: Grammar) -> tuple[Params, TransformerConfig]:
    """The parameters as decoding reads them, and the config that goes with them: once a model, not once a request.

    Layers are unstacked, so that a pass updates each one's cache in place; the rows of the head that decoding reads
    become tables of their own; on a CPU, linear maps are laid out for its kernels (`linear.pack`). Takes about as much
    memory as the parameters again where they were stacked, or on a CPU; else the rows of the head.
    """
    params, model = unstacked(params, model, grammar)
    if sharding.platform() == "cpu":
        heads = {head_name(rows): params[head_name(rows)] for rows in (grammar.visual_rows, grammar.text_rows)}
        heads = {name: linear.pack(table, linear.INPUTS["lm_head"]) for name, table in heads.items()}
        params = {**linear.pack_all(params), **heads}
    return params, model


def unstacked(params: Params, model: TransformerConfig, grammar: Grammar) -> tuple[Params, TransformerConfig]:
    """`prepare` for an accelerator."""
    if model.scan_layers:
        params, model = transformer.unstack_layers(params), dataclasses.replace(model, scan_layers=False)
    heads = {head_name(rows): transformer.head(params, rows) for rows in (grammar.visual_rows, grammar.text_rows)}
    return {**params, **heads}, model


class _Same:
    """A model's parameters as a key: equal only to themselves."""

    def __init__(self, params: Params):
        self.params = params

    def __hash__(self) -> int:
        return id(self.params)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.params is self.params


@functools.lru_cache(maxsize=1)
def _last_prepared(params: _Same, model: TransformerConfig, grammar: Grammar) -> tuple[Params, TransformerConfig]:
    return prepare(params.params, model, grammar)


def prepared(params: Params, model: TransformerConfig, grammar: Grammar) -> tuple[Params, TransformerConfig]:
    """`prepare`, kept for the last model that asked; parameters that are prepared come back as they are."""
    if head_name(grammar.visual_rows) in params:
        return params, model
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
        return prepare(params, model, grammar)  # part of a larger program, which must not be kept
    return _last_prepared(_Same(params), model, grammar)


ImageDecoder = Callable[[Engine, Params, State], State]


@functools.cache
def _compiled(engine: Engine, image: ImageDecoder, text: bool):
    def run(params: Params, prompts: Prompts, keys: jax.Array, keep: jax.Array, codes: jax.Array) -> Generated:
        state = image(engine, params, engine.prefill(params, prompts, keys, keep, codes))
        if text:
            state = engine.decode_text(params, state)
        grid = (-1, engine.layout.height, engine.layout.width)
        return Generated(state.codes.reshape(grid), state.text, state.passes)

    return jax.jit(run)


def generate(
    params: Params,
    model: TransformerConfig,
    layout: Layout,
    grammar: Grammar,
    policy: Sampling,
    prompts: Prompts,
    keys: jax.Array,
    *,
    keep: jax.Array | None = None,
    codes: jax.Array | None = None,
    text: bool = True,
    image: ImageDecoder = Engine.decode_image,
) -> Generated:
    """Samples one counterfactual per case.

    Args:
      params, model: of the transformer, as they are (then `prepare` is called, once for a model) or prepared.
      prompts: from `pad_prompts`, with null twins exactly when `policy.guided`.
      keys: PRNG keys [B]. At one batch shape a case's result depends on its key alone, not on its companions.
      keep, codes: bool and int32 [B, h, w]: where `keep`, the image has the given codes, and nothing is drawn. All
        kept is the text for a given pair of images.
      text: False leaves the text out (its rows are all -1).
      image: what decodes the image, a function of `Engine.decode_image`'s signature.

    Returns:
      `Generated`.

    Raises:
      UserError: so many cases at a time do not fit in memory.
    """
    grid = (keys.shape[0], layout.height, layout.width)
    keep = jnp.zeros(grid, bool) if keep is None else jnp.asarray(keep, bool)
    codes = jnp.zeros(grid, jnp.int32) if codes is None else jnp.asarray(codes, jnp.int32)
    params, model = prepared(params, model, grammar)
    engine = Engine(model, layout, grammar, policy)
    if not isinstance(keys, jax.core.Tracer):  # else it is part of a larger program, perhaps for another machine
        memory.check(engine, keys.shape[0], prompts.tokens.shape[1])
    return _compiled(engine, image, text)(params, prompts, keys, keep, codes)
