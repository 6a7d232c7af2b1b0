"""Lossless speculation: several image tokens drawn in one pass, with the distribution of one-by-one decoding.

A pass feeds a window of W tokens: the last token that is final, then drafts. The scores after each fed token give
the token of the next place as it would be if the drafts before it were right. Drafts are accepted from the left
as long as they equal what was drawn; the first that differs is replaced by what was drawn, so that every pass makes
at least one token final, and the cache is rolled back by setting each row's length. Rows go at their own pace.

What makes it lossless is how a place's token t is drawn, given its draft g (`coupling`):

- "gumbel": t = argmax(score + Gumbel noise of the case's key and the place), whatever g is. This is the very
  function by which plain decoding draws, so the result is plain decoding's, token by token, for the same key: the
  fixed point of a Jacobi iteration (Gumbel coupling of So et al. 2025, arXiv 2510.24211, applied to verification too).
- "maximal": t = g with probability min(1, p(g) / q(g)), else t ~ max(p - q, 0) normalised, where g ~ q (Leviathan et
  al. 2023, arXiv 2211.17192, theorem 1); q is one point for a given draft. t ~ p whatever q is, and t = g as often
  as can be. Drafts beyond the first rejection are drawn in the same way, from their former values (maximal coupling
  between iterations, So et al. 2025).
- "independent": as "maximal", but drafts beyond the first rejection are drawn afresh, as in speculative Jacobi
  decoding (Teng et al. 2024, arXiv 2410.01699).

Why couplings across passes stay exact: noise of a place decides its own token only, and the scores of a place depend
on the places before it. So given all that has happened before a place, its draft follows q at every pass, and the
pass in which it becomes final does not depend on its noise.

Exact means up to rounding: a pass of W tokens and W passes of one token round their scores differently (by about
1e-6 relative in float32), so a draw that is that close to a tie can come out differently.

Axis legend: B cases, R rows (B, or 2B with guidance), W window, N tokens of an image with EOL, EOF, EOI, V codes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from progemu_jax.sampling.engine import Engine, Params, State
from progemu_jax.sampling.policy import largest


class Drafts(NamedTuple):
    """What a window carries to the next pass, beside the engine's `State` (whose `place` is the first to be fed).

    tokens: int32 [B, N + W + 1], final up to and with `place`, guesses beyond (-1: none).
    density: f32 [B, W, V], what the guesses behind `place` were drawn from ([B, W, 0] where none is drawn).
    known: int32 [B], for how many of them that is so; further guesses are given.
    """

    tokens: jax.Array
    density: jax.Array
    known: jax.Array


def couple(scores: jax.Array, guess: jax.Array, density: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws from softmax(scores), and the guess as often as any exact rule can.

    Args:
      scores: f32 [B, T, V].
      guess: int32 [B, T], drawn from `density`, f32 [B, T, V].
      keys: PRNG keys [B, T], independent of the guesses.

    Returns:
      int32 [B, T]; given anything that the keys are independent of, it follows softmax(scores).
    """
    target = jax.nn.softmax(scores, axis=-1)
    p, q = (jnp.take_along_axis(x, guess[..., None], axis=-1)[..., 0] for x in (target, density))
    accept, refuse = (_fold(keys, jnp.int32(n)) for n in (0, 1))
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(accept)
    # The remainder is 0 at a guess that can be refused, so a refused guess never comes back.
    remainder = jnp.log(jnp.maximum(target - density, 0.0))
    other = largest(remainder + gumbel(refuse, scores.shape[-1]))
    return jnp.where(uniform * q < p, guess, other).astype(jnp.int32)


def gumbel(keys: jax.Array, size: int) -> jax.Array:
    """Keys [B, T] -> f32 [B, T, size], each key's noise as `policy.draw` has it."""
    return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32)))(keys)


def _fold(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Keys [B, T], folded with numbers that broadcast to them."""
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys, jnp.broadcast_to(numbers, keys.shape))


def _known(engine: Engine, state: State) -> tuple[jax.Array, jax.Array]:
    """Tokens int32 [B, N + W + 1] that places must hold, and those they are first guessed to hold; -1 for none."""
    spare = ((0, 0), (0, engine.policy.window + 1))
    forced = jnp.where(engine.free(state.keep), -1, engine.stream(state.codes))
    forced = jnp.pad(forced, spare)  # places behind the image too, so that a window may reach over its end
    prior = jnp.pad(state.aligned[: len(forced)], ((0, 0), (0, 2)))
    return forced, jnp.where(forced >= 0, forced, jnp.pad(prior, spare))


def _draw(
    engine: Engine,
    params: Params,
    state: State,
    hidden: jax.Array,
    places: jax.Array,
    guess: jax.Array,
    density: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws the tokens of places [B, T], each from what follows a hidden state of [R, T, M].

    guess: int32 [B, T]; density: f32 [B, T, V] of it, negative where it is given rather than drawn; None: nowhere.
    Returns the tokens [B, T], new guesses in their stead, and the scores [B, T, V] of both.
    """
    policy, grammar, codes = engine.policy, engine.grammar, engine.grammar.codebook_size
    scores = engine.code_scores(params, state, hidden, places)
    keys = _fold(jnp.broadcast_to(state.keys[:, None], places.shape), engine.code_index(places))
    if policy.coupling == "gumbel":
        noise = gumbel(keys, codes) if policy.temperature else 0.0
        token = fresh = largest(scores + noise)
    else:
        keys = _fold(keys, state.passes[:, None])  # noise of its own for every pass
        guess = jnp.clip(guess - grammar.visual_start, 0, codes - 1)
        given = jax.nn.one_hot(guess, codes)
        token = fresh = couple(
            scores, guess, given if density is None else jnp.where(density < 0, given, density), keys
        )
        if policy.coupling == "independent":
            fresh = largest(scores + gumbel(_fold(keys, jnp.int32(2)), codes))
    must = jnp.take_along_axis(_known(engine, state)[0], places, axis=1)
    token, fresh = (jnp.where(must >= 0, must, x.astype(jnp.int32) + grammar.visual_start) for x in (token, fresh))
    return token, fresh, scores


def begin(engine: Engine, params: Params, state: State) -> Drafts:
    """Draws the first code of images that are not begun, so that `step` can feed it."""
    policy, codes = engine.policy, engine.grammar.codebook_size
    _, first = _known(engine, state)
    start = jnp.zeros((len(first), 1), jnp.int32)
    guess = jnp.maximum(first[:, :1], engine.grammar.visual_start)
    token, _, _ = _draw(engine, params, state, state.hidden[:, None], start, guess)
    drawn = policy.draft == "jacobi" and policy.coupling != "gumbel"
    return Drafts(
        tokens=first.at[:, :1].set(token),
        density=jnp.zeros((len(first), policy.window, codes if drawn else 0)),
        known=start[:, 0],
    )


def step(engine: Engine, params: Params, state: State, drafts: Drafts) -> tuple[State, Drafts]:
    """One pass over a window: at least one more token of every unfinished image becomes final."""
    policy, size, window = engine.policy, engine.layout.image_tokens, engine.policy.window
    jacobi, drawn = policy.draft == "jacobi", drafts.density.shape[-1] > 0
    place, ahead, take = state.place, jnp.arange(window), jnp.take_along_axis

    guess = take(drafts.tokens, place[:, None] + jnp.arange(window + 1), axis=1)
    # Without a prior: the newest code.
    before = take(drafts.tokens, jnp.maximum(place - 1, 0)[:, None], axis=1)
    newest = jnp.where(guess[:, :1] >= engine.grammar.visual_start, guess[:, :1], before)
    guess = jnp.where(guess >= 0, guess, newest)

    hidden, cache = engine.forward(params, state, guess[:, :-1])
    places = place[:, None] + 1 + ahead
    density = jnp.where((ahead < drafts.known[:, None])[..., None], drafts.density, -1.0) if drawn else None
    now = dataclasses.replace(state, passes=state.passes + 1)  # pass 0 drew the first code
    tokens, fresh, scores = _draw(engine, params, now, hidden, places, guess[:, 1:], density)
    right = tokens[:, :-1] == guess[:, 1:-1]
    accepted = jnp.cumprod(right, axis=1, dtype=jnp.int32).sum(axis=1)

    rest = fresh if jacobi else take(_known(engine, state)[1], places, axis=1)
    new = jnp.where(ahead <= accepted[:, None], tokens, rest)
    tokens = jax.vmap(lambda row, x, at: lax.dynamic_update_slice(row, x, (at,)))(drafts.tokens, new, place + 1)
    drafts = drafts._replace(tokens=tokens)
    if drawn:
        shift = jnp.minimum(accepted[:, None] + 1 + ahead, window - 1)
        target = take(jax.nn.softmax(scores), shift[..., None], axis=1)
        drafts = drafts._replace(density=target, known=window - 1 - accepted)
    count = jnp.minimum(accepted + 1, size - place)  # 0 for a finished image
    return engine.commit(state, hidden, cache, count), drafts


def decode_image(engine: Engine, params: Params, state: State) -> State:
    """`Engine.decode_image`, but by drafts and verification, as the policy says (`draft`, `coupling`, `window`)."""
    state, drafts = lax.while_loop(
        lambda carry: (carry[0].place < engine.layout.image_tokens).any(),
        lambda carry: step(engine, params, *carry),
        (state, begin(engine, params, state)),
    )
    return dataclasses.replace(state, codes=codes_of(engine, drafts))


def codes_of(engine: Engine, drafts: Drafts) -> jax.Array:
    """int32 [B, h w], the codes of images whose tokens are all final."""
    layout, cases = engine.layout, len(drafts.tokens)
    grid = drafts.tokens[:, : layout.image_tokens - 2].reshape(cases, layout.height, layout.width + 1)[..., :-1]
    return grid.reshape(cases, -1) - engine.grammar.visual_start
