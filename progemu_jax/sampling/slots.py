"""Cases that stand at different places, some drawing codes, some text: their device programs, a few passes at a time.

A pass takes every case that is not done a step further. With drafts a pass over windows and one over words take turns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from progemu_jax.devices import sharding
from progemu_jax.sampling import diagonal, speculation
from progemu_jax.sampling.engine import Engine, Params, State
from progemu_jax.sampling.prompts import Prompts
from progemu_jax.sampling.speculation import Drafts


class Slots(NamedTuple):
    """The cases at work: the engine's state of B slots, and their windows (None without drafts).

    First axes are B, or 2B with guidance: a case, and then as far again its twin. On a mesh the parts of the slots lie
    one after the other, each like this.
    """

    state: State
    drafts: Drafts | None


class Programs(NamedTuple):
    """The device programs, jitted.

    admit: (params, prompts, keys, keep, codes) -> Slots, of new cases; arguments as of `generate.Program`.
    insert: (slots, new, slot int32 [parts]) -> slots, each part's new case put into that slot of its own; -1: nowhere.
    advance: (params, slots, passes int32) -> slots, all of them at most so many passes further; `slots` is used up.
      Ends when none has anything to do, with drafts as soon as a case does.
    empty: (new, slots) -> Slots, so many a part, none of them at work.
    """

    admit: Callable[..., Slots]
    insert: Callable[[Slots, Slots, np.ndarray], Slots]
    advance: Callable[[Params, Slots, np.int32], Slots]
    empty: Callable[[Slots, int], Slots]


@functools.cache
def programs(engine: Engine, text: bool, mesh: Mesh | None) -> Programs:
    """Of an engine; text: False leaves the text out. mesh: each data part advances its own slots by itself."""
    size, drafted = engine.layout.image_tokens, engine.policy.draft != "none"

    def admit(params: Params, prompts: Prompts, keys: jax.Array, keep: jax.Array, codes: jax.Array) -> Slots:
        state = engine.prefill(params, prompts, keys, keep, codes)
        state = state if text else dataclasses.replace(state, done=jnp.ones_like(state.done))
        return Slots(state, speculation.begin(engine, params, state) if drafted else None)

    def insert(slots: Slots, new: Slots, slot: jax.Array) -> Slots:
        def put(x: jax.Array, new: jax.Array) -> jax.Array:
            for row in range(len(new)):  # the case, and its twin where x has them
                at = jnp.maximum(slot[0], 0) + row * (len(x) // len(new))
                here = jnp.where(slot[0] < 0, lax.dynamic_slice_in_dim(x, at, 1), new[row : row + 1])
                x = lax.dynamic_update_slice_in_dim(x, here, at, axis=0)
            return x

        return jax.tree.map(put, slots, new)

    def step(params: Params, slots: Slots) -> Slots:
        if engine.policy.diagonal:
            return Slots(diagonal.step(engine, params, slots.state, text=text), None)
        if not drafted:
            return Slots(engine.step(params, slots.state, text=text), None)
        drawing = (slots.state.place < size).any()
        # A loop of at most one turn, since a `cond` copies the cache on its way in and out.
        state, drafts = lax.while_loop(
            lambda carry: carry[1],
            lambda carry: (Slots(*speculation.step(engine, params, *carry[0])), jnp.asarray(False)),
            (slots, drawing),
        )[0]
        return Slots(engine.step(params, state, image=False) if text else state, drafts)

    def advance(params: Params, slots: Slots, passes: jax.Array) -> Slots:
        def ended(state: State) -> jax.Array:
            return (state.place == size) & state.done

        before = ended(slots.state)

        def busy(carry: tuple[jax.Array, Slots]) -> jax.Array:
            made, now = carry[0], ended(carry[1].state)
            return (made < passes) & ~now.all() & ~(drafted & (now & ~before).any())

        slots = lax.while_loop(busy, lambda c: (c[0] + 1, step(params, c[1])), (jnp.int32(0), slots))[1]
        if drafted:
            state, final = slots.state, (slots.state.place == size)[:, None]
            codes = jnp.where(final, speculation.codes_of(engine, slots.drafts), state.codes)
            slots = slots._replace(state=dataclasses.replace(state, codes=codes))
        return slots

    def empty(new: Slots, slots: int) -> Slots:
        state, drafts = jax.tree.map(lambda x: jnp.repeat(x, slots, axis=0), new)
        idle = {"place": jnp.full(slots, size, jnp.int32), "done": jnp.ones(slots, bool)}
        return Slots(dataclasses.replace(state, **idle), drafts)

    def spread(function: Callable[..., Slots], *split: bool) -> Callable[..., Slots]:
        """On a mesh: each data part by itself; split: of each argument whether its first axis is."""
        if mesh is None:
            return function
        names = sharding.RULES["batch"]
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=tuple(PartitionSpec(names) if x else PartitionSpec() for x in split),
            out_specs=PartitionSpec(names),
            axis_names=set(names),
            check_vma=False,
        )

    return Programs(
        jax.jit(spread(admit, False, True, True, True, True)),
        jax.jit(spread(insert, True, True, True), donate_argnums=0),
        jax.jit(spread(advance, False, True, False), donate_argnums=1),
        jax.jit(lambda new, slots: spread(lambda new: empty(new, slots), True)(new), static_argnums=1),
    )
