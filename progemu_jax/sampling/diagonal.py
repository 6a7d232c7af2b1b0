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


def _diagonal(engine: Engine, params: Params, state: State) -> State:
    """Draws the codes of the diagonal that each unfinished image stands at, and feeds it; no pass where all are."""
    order, first, rows = (jnp.asarray(x) for x in diagonals(engine.layout.height, engine.layout.width))
    size, height = engine.layout.image_tokens, engine.layout.height

    def body(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state = carry[0]
        unfinished = state.place < size
        d = jnp.minimum(jnp.searchsorted(first, state.place), len(first) - 2)  # [B]
        state = dataclasses.replace(state, codes=_drawn(engine, params, state, d, unfinished))
        ahead = jnp.minimum(first[d][:, None] + jnp.arange(rows.shape[1]), size - 1)
        places = order[ahead]
        tokens = jnp.take_along_axis(engine.stream(state.codes), places, axis=1)
        hidden, cache = engine.forward(params, state, tokens, places)
        row = jnp.where(unfinished[:, None], rows[d], -1)
        to = engine._rows(jnp.where(row >= 0, row, height))  # beyond the last row: dropped
        front = jax.vmap(lambda front, to, hidden: front.at[to].set(hidden, mode="drop"))(state.front, to, hidden)
        count = jnp.where(unfinished, first[d + 1] - first[d], 0)
        return dataclasses.replace(engine.commit(state, hidden, cache, count), front=front), jnp.asarray(False)

    return lax.while_loop(lambda carry: carry[1], body, (state, (state.place < size).any()))[0]


def _drawn(engine: Engine, params: Params, state: State, d: jax.Array, unfinished: jax.Array) -> jax.Array:
    """Codes int32 [B, h w] with those of diagonal d [B] drawn, where they are free."""
    height, width = engine.layout.height, engine.layout.width
    cases, row = jnp.arange(len(d))[:, None], jnp.arange(height)
    column = d[:, None] - row  # [B, h]
    inside = (column >= 0) & (column < width) & unfinished[:, None]
    index = row * width + jnp.clip(column, 0, width - 1)
    free = inside & ~jnp.take_along_axis(state.keep, index, axis=1)
    places = row * (width + 1) + jnp.clip(column, 0, width - 1)
    hidden = _told(engine, params, state, d, places)
    scores = engine.code_scores(params, state, hidden, places)
    keys = jax.vmap(lambda key, index: jax.vmap(lambda i: jax.random.fold_in(key, i))(index))(state.keys, index)
    flat = (-1, *scores.shape[2:])
    drawn = pick(scores.reshape(flat), keys.reshape(-1), engine.policy.temperature).reshape(index.shape)
    return state.codes.at[cases, jnp.where(free, index, height * width)].set(drawn, mode="drop")


def _told(engine: Engine, params: Params, state: State, d: jax.Array, places: jax.Array) -> jax.Array:
    """States [R, h, M] that tell the code of each image row on diagonal d [B]; of rows that have one."""
    height = engine.layout.height
    row, begun = jnp.arange(height), engine._rows(d)[:, None] == 0
    # Of the rows' last codes; the first row begins behind the prompt. The h + 1 tokens that `told` chooses from:
    front = state.front.at[:, 0].set(jnp.where(begun, state.hidden, state.front[:, 0]))
    column = engine._rows(d)[:, None] - row
    left = jnp.where((column > 0) | (row == 0), row, -1)
    above = jnp.where(row > 0, row - 1, -1)
    prior = jnp.take_along_axis(state.aligned, engine._rows(places), axis=1)
    left, above = (jnp.broadcast_to(x, prior.shape) for x in (left, above))
    return diagonal_head.told(engine.model, params, front, left, above, prior)
