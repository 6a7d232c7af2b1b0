"""Anti-diagonal decoding: all codes of a diagonal drawn in one pass, h + w - 1 passes for h x w codes.

The tokens of a diagonal go through the model together, in the order of `text.diagonals`, with the position ids of their
places, and lie in the cache so. What tells a code are the states of its neighbours on the left and above
(`models.diagonal_head`), which went through in the pass before: of each image row the last state is kept
(`State.front`). Codes of one diagonal do not see each other; that apart, decoding equals one forward pass over the
tokens in this order, and noise, guidance, masks and kept codes are those of the row order.

Axis legend: B cases, R rows (B, or 2B with guidance), T tokens of a pass, h image rows, M model, Q codes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from progemu_jax.models import diagonal_head
from progemu_jax.sampling.engine import Engine, Params, State
from progemu_jax.sampling.policy import pick
from progemu_jax.text.diagonals import diagonals


def step(engine: Engine, params: Params, state: State, image: bool = True, text: bool = True) -> State:
    """One pass for every unfinished image, a diagonal further, and one token for every unfinished text."""
    if image:
        state = _diagonal(engine, params, state)
    return engine.step(params, state, image=False) if text else state


def decode_image(engine: Engine, params: Params, state: State) -> State:
    """`Engine.decode_image`, a diagonal at a time."""
    size = engine.layout.image_tokens
    return lax.while_loop(lambda s: (s.place < size).any(), lambda s: _diagonal(engine, params, s), state)


def _widths(most: int) -> tuple[int, ...]:
    """Tokens of the passes that there are programs for: a short diagonal does not pay for the longest."""
    return (most,) if most <= 8 else (-(-most // 3), -(-2 * most // 3), most)


def _diagonal(engine: Engine, params: Params, state: State) -> State:
    """Draws the codes of the diagonal that each unfinished image stands at, and feeds it.

    Which pass a case takes part in follows from its own diagonal; passes of other cases leave it untouched.
    """
    first = jnp.asarray(diagonals(engine.layout.height, engine.layout.width).first)
    widths = _widths(engine.chunk)
    d = jnp.minimum(jnp.searchsorted(first, state.place), len(first) - 2)  # [B]
    length = jnp.where(state.place < engine.layout.image_tokens, first[d + 1] - first[d], 0)
    for low, width in zip((0, *widths), widths, strict=False):
        state = _pass(engine, params, state, d, (length > low) & (length <= width), width)
    return state


def _pass(engine: Engine, params: Params, state: State, d: jax.Array, here: jax.Array, width: int) -> State:
    """`_diagonal` of the cases that are here, bool [B], in a pass of so many tokens; none where there is no case."""
    order, first, rows = (jnp.asarray(x) for x in diagonals(engine.layout.height, engine.layout.width))
    last, height = engine.layout.image_tokens - 1, engine.layout.height

    def body(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state = carry[0]
        state = dataclasses.replace(state, codes=_drawn(engine, params, state, d, here, min(width, height)))
        places = order[jnp.minimum(first[d][:, None] + jnp.arange(width), last)]
        tokens = jnp.take_along_axis(engine.stream(state.codes), places, axis=1)
        hidden, cache = engine.forward(params, state, tokens, places)
        row = jnp.where(here[:, None], rows[d][:, :width], -1)
        to = engine._rows(jnp.where(row >= 0, row, height))  # beyond the last row: dropped
        front = jax.vmap(lambda front, to, hidden: front.at[to].set(hidden, mode="drop"))(state.front, to, hidden)
        count = jnp.where(here, first[d + 1] - first[d], 0)
        return dataclasses.replace(engine.commit(state, hidden, cache, count), front=front), jnp.asarray(False)

    # A loop of at most one turn, since a `cond` copies the cache on its way in and out.
    return lax.while_loop(lambda carry: carry[1], body, (state, here.any()))[0]


def _drawn(engine: Engine, params: Params, state: State, d: jax.Array, here: jax.Array, width: int) -> jax.Array:
    """Codes int32 [B, h w] with those of diagonal d [B], of at most `width` codes, drawn where they are free."""
    height, columns = engine.layout.height, engine.layout.width
    cases = jnp.arange(len(d))[:, None]
    row = jnp.minimum(jnp.maximum(d - columns + 1, 0)[:, None] + jnp.arange(width), height - 1)  # [B, width]
    column = d[:, None] - row
    inside = (column >= 0) & (column < columns) & here[:, None]
    column = jnp.clip(column, 0, columns - 1)
    index, places = row * columns + column, row * (columns + 1) + column
    free = inside & ~jnp.take_along_axis(state.keep, index, axis=1)
    hidden = _told(engine, params, state, row, column, places)
    scores = engine.code_scores(params, state, hidden, places)
    keys = jax.vmap(lambda key, index: jax.vmap(lambda i: jax.random.fold_in(key, i))(index))(state.keys, index)
    flat = (-1, *scores.shape[2:])
    drawn = pick(scores.reshape(flat), keys.reshape(-1), engine.policy.temperature).reshape(index.shape)
    return state.codes.at[cases, jnp.where(free, index, height * columns)].set(drawn, mode="drop")


def _told(
    engine: Engine, params: Params, state: State, row: jax.Array, column: jax.Array, places: jax.Array
) -> jax.Array:
    """States [R, N, M] that tell the codes at row, column and place, int32 [B, N] each, all of one diagonal a case."""
    row, column = engine._rows(row), engine._rows(column)
    # Of the rows' last codes; the first code of all stands behind the prompt.
    begun = (row[:, :1] == 0) & (column[:, :1] == 0)
    front = state.front.at[:, 0].set(jnp.where(begun, state.hidden, state.front[:, 0]))
    left = jnp.where((column > 0) | (row == 0), row, -1)
    above = jnp.where(row > 0, row - 1, -1)
    prior = jnp.take_along_axis(state.aligned, engine._rows(places), axis=1)
    return diagonal_head.told(engine.model, params, front, left, above, prior)
