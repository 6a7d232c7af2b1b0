"""Continuous batching: a queue of cases through a fixed number of slots, each refilled as soon as its case ends.

Slots are at different places: some draw codes, some text (`slots`). They move in turns of one image row, so that free
images stay in step (an EOL goes through with the row's last code), and a turn ends early when no slot has anything to
do. With drafts images are never in step, and a turn ends with the first case that does. A new case is prefilled by
itself, always padded alike, and then put into its slot: at a given number of slots and of prompt slots its numbers
depend on its seed alone, not on its slot, its companions, or when it came.

On a mesh each data part holds its share of the slots, and turns, prefills and fills them by itself; the host waits for
all parts between the turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import memory
from progemu_jax.sampling.engine import Engine, Grammar, Params
from progemu_jax.sampling.generate import prepare
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts, most_tokens, pad_prompts
from progemu_jax.sampling.slots import programs
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


_keys = jax.jit(jax.vmap(jax.random.key))


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
    run = programs(engine, text, mesh)
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
                one = run.admit(params, prompts, _keys(seeds), keep, codes)
                state = run.empty(one, each) if state is None else state
                state = run.insert(state, one, np.asarray(to, np.int32))
        if not any(held):
            return
        state = run.advance(params, state, np.int32(layout.width))
        place, done = jax.device_get((state.state.place, state.state.done))
        ended = [i for i in np.flatnonzero((place == layout.image_tokens) & done) if held[i]]
        if ended:
            drawn, words, passes = jax.device_get((state.state.codes, state.state.text, state.state.passes))
        for i in ended:
            ids = tuple(int(t) for t in words[i] if t >= 0)
            yield Result(held[i], drawn[i].reshape(grid[1:]), ids, int(passes[i]))
            held[i] = None
