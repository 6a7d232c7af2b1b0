"""Continuous batching: a queue of cases through a fixed number of slots, each refilled as soon as its case ends.

Slots are at different places: some draw codes, some text. They move in turns of one image row, so that free images
stay in step (an EOL goes through with the row's last code), and a turn ends early when no slot has anything to do.
A new case is prefilled by itself, always padded alike, and then put into its slot: at a given number of slots and of
prompt slots its numbers depend on its seed alone, not on its slot, its companions, or when it came.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from progemu_jax.errors import UserError
from progemu_jax.models import transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import diagonal, memory
from progemu_jax.sampling.engine import Engine, Grammar, Params, State
from progemu_jax.sampling.generate import prepare
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts, pad_prompts
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Request:
    """One case, as it waits for a slot.

    prior: int [h, w] codes, or None for the null prompt; prompt: text; seed: 0 <= seed < 2**32, of this case alone;
    keep, codes: bool and int [h, w], codes that are given (`generate.generate`); tag: comes back with the result.
    """

    prior: np.ndarray | None
    prompt: str
    seed: int
    keep: np.ndarray | None = None
    codes: np.ndarray | None = None
    tag: Any = None


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a request: the codes int32 [h, w], text ids (empty without text) and passes of `Generated`, or
    the error that kept it from being sampled."""

    request: Request
    codes: np.ndarray | None = None
    text: tuple[int, ...] = ()
    passes: int = 0
    error: UserError | None = None


@functools.cache
def _programs(engine: Engine, text: bool) -> tuple[Callable[..., State], ...]:
    """The three device programs of a queue: admit one case, put it into a slot, advance all slots by a turn."""
    size, rows = engine.layout.image_tokens, 1 + engine.policy.guided

    def admit(params: Params, prompts: Prompts, key: jax.Array, keep: jax.Array, codes: jax.Array) -> State:
        state = engine.prefill(params, prompts, key, keep, codes)
        return state if text else dataclasses.replace(state, done=jnp.ones_like(state.done))

    def insert(state: State, one: State, slot: jax.Array) -> State:
        slots = state.place.shape[0]

        def put(axis: int, count: int, x: jax.Array, new: jax.Array) -> jax.Array:
            for row in range(count):
                part = lax.slice_in_dim(new, row, row + 1, axis=axis)
                x = lax.dynamic_update_slice_in_dim(x, part, slot + row * slots, axis=axis)
            return x

        def cache(name: str) -> Any:
            return jax.tree.map(lambda x, new: put(x.ndim - 4, rows, x, new), state.cache[name], one.cache[name])

        length = put(0, rows, state.cache["length"], one.cache["length"])
        new = {"cache": {"k": cache("k"), "v": cache("v"), "length": length}}
        for field in dataclasses.fields(State):
            if field.name in ("aligned", "hidden", "front", "position"):
                new[field.name] = put(0, rows, getattr(state, field.name), getattr(one, field.name))
            elif field.name != "cache":
                new[field.name] = getattr(state, field.name).at[slot].set(getattr(one, field.name)[0])
        return State(**new)

    def advance(params: Params, state: State) -> State:
        def busy(carry: tuple) -> jax.Array:
            turn, state = carry
            return (turn < engine.layout.width) & ((state.place < size) | ~state.done).any()

        step = diagonal.step if engine.policy.diagonal else Engine.step
        return lax.while_loop(busy, lambda c: (c[0] + 1, step(engine, params, c[1], text=text)), (0, state))[1]

    def empty(one: State, slots: int) -> State:
        state = jax.tree.map(lambda x: jnp.repeat(x, slots, axis=0), dataclasses.replace(one, cache=None))
        cache = transformer.map_cache_rows(lambda x, axis: jnp.repeat(x, slots, axis), one.cache)
        idle = {"place": jnp.full(slots, size, jnp.int32), "done": jnp.ones(slots, bool)}
        return dataclasses.replace(state, cache=cache, **idle)

    return (
        jax.jit(admit),
        jax.jit(insert, donate_argnums=0),
        jax.jit(advance, donate_argnums=1),
        jax.jit(empty, static_argnums=1),
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
) -> Iterator[Result]:
    """Samples cases as they come, at most `slots` at a time.

    Args:
      params, model, layout, grammar, policy: as `generate.generate` takes them; parameters that are not prepared are
        prepared once, for this queue. Images are decoded code by code, whatever drafts the policy names.
      requests: read only as slots become free, so it may be longer than memory.
      slots: cases at a time.
      prompt_slots: tokens that a prompt is padded to; None takes the most that the layout holds.
      text: False draws images alone.

    Yields:
      A `Result` a request, in the order in which they end. A request that cannot be sampled (a prompt that is too
      long, codes out of range) gives one with `error`; the others go on.

    Raises:
      UserError: so many slots do not fit in memory.
    """
    prompt_slots = prompt_slots or layout.length - layout.image_tokens - 1
    params, model = prepare(params, model, grammar)
    engine = Engine(model, layout, grammar, policy)
    memory.check(engine, slots, prompt_slots)
    admit, insert, advance, empty = _programs(engine, text)
    grid = (1, layout.height, layout.width)
    waiting, state = iter(requests), None
    held: list[Request | None] = [None] * slots

    def packed(request: Request) -> tuple[Prompts, jax.Array, np.ndarray, np.ndarray]:
        prompts = pad_prompts(vocabulary, layout, [request.prior], [request.prompt], policy=policy, slots=prompt_slots)
        keep = np.zeros(grid, bool) if request.keep is None else np.asarray(request.keep, bool).reshape(grid)
        codes = np.zeros(grid, np.int32) if request.codes is None else np.asarray(request.codes).reshape(grid)
        if (codes[keep] < 0).any() or (codes[keep] >= grammar.codebook_size).any():
            raise UserError(f"codes: values must lie in [0, {grammar.codebook_size})")
        return prompts, jax.random.key(np.uint32(request.seed))[None], keep, codes.astype(np.int32)

    more = True
    while more or any(r is not None for r in held):
        for slot in range(slots):
            while more and held[slot] is None:
                request = next(waiting, None)
                if request is None:
                    more = False
                    break
                try:
                    arguments = packed(request)
                except UserError as error:
                    yield Result(request, error=error)
                    continue
                one = admit(params, *arguments)
                state = insert(empty(one, slots) if state is None else state, one, slot)
                held[slot] = request
        if all(r is None for r in held):
            break
        state = advance(params, state)
        ended = np.asarray((state.place == layout.image_tokens) & state.done)
        for slot in np.flatnonzero(ended):
            if held[slot] is not None:
                words = np.asarray(state.text[slot])
                yield Result(
                    held[slot],
                    np.asarray(state.codes[slot]).reshape(grid[1:]),
                    tuple(int(t) for t in words[words >= 0]),
                    int(state.passes[slot]),
                )
                held[slot] = None
