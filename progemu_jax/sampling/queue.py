"""Continuous batching: a queue of cases through a fixed number of slots, each refilled as soon as its case ends.

Slots are at different places: some draw codes, some text. They move in turns of one image row, so that free images
stay in step (an EOL goes through with the row's last code), and a turn ends early when no slot has anything to do.
With drafts images are never in step, and a turn ends with the first case that does; a pass over windows and one over
words take turns. A new case is prefilled by itself, always padded alike, and then put into its slot: at a given number
of slots and of prompt slots its numbers depend on its seed alone, not on its slot, its companions, or when it came.

On a mesh each data part holds its share of the slots, and turns, prefills and fills them by itself; the host waits for
all parts between the turns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import diagonal, memory, speculation
from progemu_jax.sampling.engine import Engine, Grammar, Params, State
from progemu_jax.sampling.generate import prepare
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts, most_tokens, pad_prompts
from progemu_jax.sampling.speculation import Drafts
from progemu_jax.text.sequence import Layout
from progemu_jax.text.timeline import Timeline
from progemu_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Request:
    """One case, as it waits for a slot.

    prior: int [h, w] codes, or None for the null prompt; prompt: text; seed: 0 <= seed < 2**32, of this case alone;
    keep, codes: bool and int [h, w], codes that are given (`generate.generate`); tag: comes back with the result.
    timeline: films before the prior, and days; None: neither.
    """

    prior: np.ndarray | None
    prompt: str
    seed: int
    keep: np.ndarray | None = None
    codes: np.ndarray | None = None
    tag: Any = None
    timeline: Timeline | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a request: the codes int32 [h, w], text ids (empty without text) and passes of `Generated`, or
    the error that kept it from being sampled."""

    request: Request
    codes: np.ndarray | None = None
    text: tuple[int, ...] = ()
    passes: int = 0
    error: UserError | None = None


class Slots(NamedTuple):
    """The cases at work: the engine's state of B slots, and their windows (None without drafts).

    First axes are B, or 2B with guidance: a case, and then as far again its twin. On a mesh the parts of the slots lie
    one after the other, each like this.
    """

    state: State
    drafts: Drafts | None


class _Programs(NamedTuple):
    """The device programs of a queue.

    admit: (params, prompts, seeds, keep, codes) -> Slots, of a new case a data part.
    insert: (slots, new, slot int32 [parts]) -> slots, each part's new case put into that slot of its own; -1: nowhere.
    advance: (params, slots) -> slots, all of them a turn further.
    empty: (new, slots) -> Slots, so many a part, none of them at work.
    """

    admit: Callable[..., Slots]
    insert: Callable[[Slots, Slots, np.ndarray], Slots]
    advance: Callable[[Params, Slots], Slots]
    empty: Callable[[Slots, int], Slots]


@functools.cache
def _programs(engine: Engine, text: bool, mesh: Mesh | None) -> _Programs:
    size, drafted = engine.layout.image_tokens, engine.policy.draft != "none"

    def admit(params: Params, prompts: Prompts, seeds: jax.Array, keep: jax.Array, codes: jax.Array) -> Slots:
        state = engine.prefill(params, prompts, jax.vmap(jax.random.key)(seeds), keep, codes)
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

    def advance(params: Params, slots: Slots) -> Slots:
        def ended(state: State) -> jax.Array:
            return (state.place == size) & state.done

        before = ended(slots.state)

        def busy(carry: tuple[jax.Array, Slots]) -> jax.Array:
            turn, now = carry[0], ended(carry[1].state)
            return (turn < engine.layout.width) & ~now.all() & ~(drafted & (now & ~before).any())

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

    return _Programs(
        jax.jit(spread(admit, False, True, True, True, True)),
        jax.jit(spread(insert, True, True, True), donate_argnums=0),
        jax.jit(spread(advance, False, True), donate_argnums=1),
        jax.jit(lambda new, slots: spread(lambda new: empty(new, slots), True)(new), static_argnums=1),
    )


def sample_queue(
    params: Params,
    model: TransformerConfig,
    layout: Layout,
    grammar: Grammar,
    policy: Sampling,
    vocabulary: Vocabulary,
    requests: Iterable[Request],
    *,
    slots: int,
    prompt_slots: int | None = None,
    text: bool = True,
    mesh: Mesh | None = None,
) -> Iterator[Result]:
    """Samples cases as they come, at most `slots` at a time.

    Args:
      params, model, layout, grammar, policy: as `generate.generate` takes them; parameters that are not prepared are
        prepared once, for this queue.
      requests: read only as slots become free, so it may be longer than memory.
      slots: cases at a time.
      prompt_slots: tokens that a prompt is padded to; None takes the most that one can have (`prompts.most_tokens`).
      text: False draws images alone.
      mesh: slots over its data axes; a number that does not divide over them runs unsplit.

    Yields:
      A `Result` a request, in the order in which they end. A request that cannot be sampled (a prompt that is too
      long, codes out of range) gives one with `error`; the others go on.

    Raises:
      UserError: so many slots do not fit in memory.
    """
    prompt_slots = prompt_slots or most_tokens(vocabulary, layout)
    params, model = prepare(params, model, grammar)
    engine = Engine(model, layout, grammar, policy)
    parts = sharding.data_parts(mesh) if mesh is not None else 1
    if slots % parts:
        mesh, parts = None, 1
    each = slots // parts
    memory.check(engine, each, prompt_slots)
    programs = _programs(engine, text, mesh)
    grid = (1, layout.height, layout.width)

    def packed(request: Request) -> tuple[Prompts, np.ndarray, np.ndarray, np.ndarray]:
        case = [request.prior], [request.prompt]
        when = {"policy": policy, "slots": prompt_slots, "timelines": [request.timeline]}
        prompts = pad_prompts(vocabulary, layout, *case, **when)
        keep = np.zeros(grid, bool) if request.keep is None else np.asarray(request.keep, bool).reshape(grid)
        codes = np.zeros(grid, np.int32) if request.codes is None else np.asarray(request.codes).reshape(grid)
        if (codes[keep] < 0).any() or (codes[keep] >= grammar.codebook_size).any():
            raise UserError(f"codes: values must lie in [0, {grammar.codebook_size})")
        return prompts, np.asarray([request.seed], np.uint32), keep, codes.astype(np.int32)

    waiting, more, state = iter(requests), True, None
    held: list[Request | None] = [None] * slots  # those of a part after each other
    while True:
        while more and None in held:  # at most one new case a part at a time
            new: dict[int, tuple[int, tuple]] = {}
            for part in range(parts):
                slot = next((i for i in range(part * each, (part + 1) * each) if held[i] is None), None)
                while more and slot is not None and part not in new:
                    request = next(waiting, None)
                    if request is None:
                        more = False
                        break
                    try:
                        new[part] = slot - part * each, packed(request)
                    except UserError as error:
                        yield Result(request, error=error)
                        continue
                    held[slot] = request
            if new:
                nothing = -1, next(iter(new.values()))[1]  # computed where a part has no new case, and left out
                to, arguments = zip(*(new.get(part, nothing) for part in range(parts)), strict=True)
                prompts, seeds, keep, codes = jax.tree.map(lambda *x: np.concatenate(x), *arguments)
                one = programs.admit(params, prompts, seeds, keep, codes)
                state = programs.empty(one, each) if state is None else state
                state = programs.insert(state, one, np.asarray(to, np.int32))
        if not any(held):
            return
        state = programs.advance(params, state)
        place, done = jax.device_get((state.state.place, state.state.done))
        ended = [i for i in np.flatnonzero((place == layout.image_tokens) & done) if held[i]]
        if ended:
            drawn, words, passes = jax.device_get((state.state.codes, state.state.text, state.state.passes))
        for i in ended:
            ids = tuple(int(t) for t in words[i] if t >= 0)
            yield Result(held[i], drawn[i].reshape(grid[1:]), ids, int(passes[i]))
            held[i] = None
