"""One counterfactual per case: parameters as decoding reads them, and the compiled whole, on one device or a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from progemu_jax.devices import sharding
from progemu_jax.models import linear, transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import diagonal, memory, speculation
from progemu_jax.sampling.engine import Engine, Grammar, Params, head_name
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts
from progemu_jax.sampling.slots import programs
from progemu_jax.sampling.watch import Progress, Watch, in_blocks
from progemu_jax.text.diagonals import diagonals
from progemu_jax.text.sequence import Layout


class Generated(NamedTuple):
    """A batch as the device gives it.

    codes: int32 [B, h, w]; text: token ids int32 [B, max_text], -1 after the end; passes: int32 [B], of image and text.
    """

    codes: jax.Array
    text: jax.Array
    passes: jax.Array


def prepare(params: Params, model: TransformerConfig, grammar: Grammar) -> tuple[Params, TransformerConfig]:
    """The parameters as decoding reads them, and the config that goes with them: once a model, not once a request.

    Layers are unstacked, so that a pass updates each one's cache in place; the rows of the head that decoding reads
    become tables of their own; on a CPU, linear maps are laid out for its kernels (`linear.pack`). Takes about as much
    memory as the parameters again where they were stacked, or on a CPU; else the rows of the head. Parameters that are
    prepared come back as they are. Nothing is kept here: the owner of the parameters keeps the result (as
    `inference.sampler.Sampler` does), and both are freed with it.
    """
    if head_name(grammar.visual_rows) in params:
        return params, model
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


Program = Callable[[Params, Prompts, jax.Array, jax.Array, jax.Array], Generated]
"""A compiled request: of prepared parameters, prompts, keys [B], keep bool [B, h, w] and codes int32 [B, h, w]."""


@functools.cache
def program(engine: Engine, text: bool) -> Program:
    """The device program of a request, jitted; text: False leaves the text out."""
    decode_image = Engine.decode_image
    if engine.policy.diagonal:
        decode_image = diagonal.decode_image
    elif engine.policy.draft != "none":
        decode_image = speculation.decode_image

    def run(params: Params, prompts: Prompts, keys: jax.Array, keep: jax.Array, codes: jax.Array) -> Generated:
        state = decode_image(engine, params, engine.prefill(params, prompts, keys, keep, codes))
        if text:
            state = engine.decode_text(params, state)
        grid = (-1, engine.layout.height, engine.layout.width)
        return Generated(state.codes.reshape(grid), state.text, state.passes)

    return jax.jit(run)


@functools.cache
def mesh_program(engine: Engine, text: bool, mesh: Mesh) -> Program:
    """`program` over a mesh, jitted: each data part decodes its own cases; only a tensor axis exchanges anything.

    B must divide over the data axes (`sharding.data_parts`); parameters lie as `sharding.SAMPLING_RULES` say.
    """
    names, sides, run_local = sharding.RULES["batch"], 2 if engine.policy.guided else 1, program(engine, text)

    def local(params: Params, prompts: Prompts, *rest: jax.Array) -> Generated:
        prompts = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), prompts)  # cases, then their twins
        return run_local(params, prompts, *rest)

    spread = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, names), *(PartitionSpec(names),) * 3),
        out_specs=PartitionSpec(names),
        axis_names=set(names),
        check_vma=False,
    )

    def run(params: Params, prompts: Prompts, *rest: jax.Array) -> Generated:
        prompts = jax.tree.map(lambda x: jnp.reshape(x, (sides, -1, *x.shape[1:])), prompts)
        return spread(params, prompts, *rest)

    return jax.jit(run)


def _watched(engine: Engine, text: bool, mesh: Mesh | None, watch: Watch, params: Params, *request: Any) -> Generated:
    """`program`, or `mesh_program`, in blocks of passes: another program, which draws the same."""
    prompts, keys, keep, codes = request
    layout, run, cases = engine.layout, programs(engine, text, mesh), keys.shape[0]
    if mesh is not None and engine.policy.guided:  # a part's cases, then their twins
        parts = sharding.data_parts(mesh)
        prompts = jax.tree.map(lambda x: x.reshape(2, parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape), prompts)
    slots = run.admit(params, prompts, keys, keep, codes)
    free = np.asarray(engine.free(keep))  # places in the order in which they are fed
    free = free[:, diagonals(layout.height, layout.width).order] if engine.policy.diagonal else free
    drawn = np.pad(free.cumsum(axis=1), ((0, 0), (1, 0)))  # codes, at each place that a case can stand at

    def advance(passes: int) -> Progress | None:
        nonlocal slots
        slots = run.advance(params, slots, np.int32(passes))
        place, written, done = jax.device_get((slots.state.place, slots.state.written, slots.state.done))
        if (place == layout.image_tokens).all() and done.all():
            return None
        left, of = int((drawn[:, -1] - drawn[np.arange(cases), place]).max()), int(drawn[:, -1].max())
        if left or not text:
            return Progress("codes", of - left, of)
        return Progress("tokens", int(written[~done].min()), engine.policy.max_text)

    in_blocks(advance, watch)
    state = slots.state
    return Generated(state.codes.reshape(cases, layout.height, layout.width), state.text, state.passes)


def generate(
    params: Params,
    model: TransformerConfig,
    layout: Layout,
    grammar: Grammar,
    policy: Sampling,
    prompts: Prompts,
    keys: jax.Array,
    *,
    keep: jax.Array | np.ndarray | None = None,
    codes: jax.Array | np.ndarray | None = None,
    text: bool = True,
    mesh: Mesh | None = None,
    watch: Watch | None = None,
) -> Generated:
    """Samples one counterfactual per case.

    Args:
      params, model: of the transformer, both as `prepare` gives them. As they are in a checkpoint is right too, but
        then every call prepares them: a copy of the parameters in time and memory.
      prompts: from `pad_prompts`, with null twins exactly when `policy.guided`.
      keys: PRNG keys [B]. At one batch shape a case's result depends on its key alone, not on its companions.
      keep, codes: bool and int32 [B, h, w]: where `keep`, the image has the given codes, and nothing is drawn. All
        kept is the text for a given pair of images.
      text: False leaves the text out (its rows are all -1).
      mesh: cases over its data axes (`mesh_program`); a batch that does not divide over them runs unsplit.
      watch: decodes in blocks of passes, and is called after each.

    Returns:
      `Generated`.

    Raises:
      UserError: so many cases at a time do not fit in memory.
    """
    grid = (keys.shape[0], layout.height, layout.width)
    keep = jnp.zeros(grid, bool) if keep is None else jnp.asarray(keep, bool)
    codes = jnp.zeros(grid, jnp.int32) if codes is None else jnp.asarray(codes, jnp.int32)
    params, model = prepare(params, model, grammar)
    engine = Engine(model, layout, grammar, policy)
    if mesh is None or keys.shape[0] % sharding.data_parts(mesh):
        mesh = None
        memory.check(engine, keys.shape[0], prompts.tokens.shape[1])
    if watch is not None:
        return _watched(engine, text, mesh, watch, params, prompts, keys, keep, codes)
    run = program(engine, text) if mesh is None else mesh_program(engine, text, mesh)
    return run(params, prompts, keys, keep, codes)
