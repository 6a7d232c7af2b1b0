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
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from progemu_jax.sampling.policy import restrict

if TYPE_CHECKING:
    from progemu_jax.sampling.engine import Engine, State

Params = Any


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
    other = jnp.argmax(remainder + gumbel(refuse, scores.shape[-1]), axis=-1)
    return jnp.where(uniform * q < p, guess, other).astype(jnp.int32)


def gumbel(keys: jax.Array, size: int) -> jax.Array:
    """Keys [B, T] -> f32 [B, T, size], each key's noise as `policy.draw` has it."""
    return jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, (size,), jnp.float32)))(keys)


def _fold(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """Keys [B, T], folded with numbers that broadcast to them."""
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys, jnp.broadcast_to(numbers, keys.shape))


def decode_image(engine: Engine, params: Params, state: State) -> State:
    """`Engine.decode_image` by drafts and verification, as the engine's policy says (`draft`, `coupling`, `window`)."""
    policy, grammar, size, window = engine.policy, engine.grammar, engine.layout.image_tokens, engine.policy.window
    exact, jacobi = policy.coupling == "gumbel", policy.draft == "jacobi"
    rolling = jacobi and not exact  # guesses have a density that changes from pass to pass
    cases, codes = len(state.codes), grammar.codebook_size
    ahead, take = jnp.arange(window), jnp.take_along_axis
    # Places behind the image are forced, so that a window may reach over its end.
    spare = ((0, 0), (0, window + 1))
    free = engine.free(state.keep)
    forced = jnp.pad(jnp.where(free, -1, engine.stream(state.codes)), spare)
    prior = jnp.pad(state.aligned[:cases], ((0, 0), (0, 2)))
    first = jnp.where(forced >= 0, forced, jnp.pad(prior, spare))

    def draw(hidden: jax.Array, places: jax.Array, guess: jax.Array, density: jax.Array | None, passes: jax.Array):
        """Tokens int32 [B, T] of the places after each of hidden [R, T, M]; new guesses; the scores of both."""
        scores = engine.scores(params, hidden, grammar.visual_rows, policy.guidance)
        scores = restrict(scores, policy.temperature, policy.top_k)
        keys = _fold(jnp.broadcast_to(state.keys[:, None], places.shape), engine.code_index(places))
        if exact:
            noise = gumbel(keys, codes) if policy.temperature else 0.0
            token = fresh = jnp.argmax(scores + noise, axis=-1)
        else:
            keys = _fold(keys, passes[:, None])  # noise of its own for every pass
            guess = jnp.clip(guess - grammar.visual_start, 0, codes - 1)
            given = jax.nn.one_hot(guess, codes)
            token = fresh = couple(scores, guess, given if density is None else density(given), keys)
            if policy.coupling == "independent":
                fresh = jnp.argmax(scores + gumbel(_fold(keys, jnp.int32(2)), codes), axis=-1)
        must = take(forced, places, axis=1)
        token, fresh = (jnp.where(must >= 0, must, x.astype(jnp.int32) + grammar.visual_start) for x in (token, fresh))
        return token, fresh, scores

    def body(carry: tuple[State, Drafts]) -> tuple[State, Drafts]:
        state, drafts = carry
        place = state.place
        guess = take(drafts.tokens, place[:, None] + jnp.arange(window + 1), axis=1)
        # Without a prior: the newest code.
        before = take(drafts.tokens, jnp.maximum(place - 1, 0)[:, None], axis=1)
        newest = jnp.where(guess[:, :1] >= grammar.visual_start, guess[:, :1], before)
        guess = jnp.where(guess >= 0, guess, newest)
        hidden, cache = engine.forward(params, state, guess[:, :-1])

        def density(given: jax.Array) -> jax.Array:
            return jnp.where((ahead < drafts.known[:, None])[..., None], drafts.density, given)

        places = place[:, None] + 1 + ahead
        tokens, fresh, scores = draw(hidden, places, guess[:, 1:], density if rolling else None, state.passes + 1)
        right = tokens[:, :-1] == guess[:, 1:-1]
        accepted = jnp.cumprod(right, axis=1, dtype=jnp.int32).sum(axis=1)
        rest = fresh if jacobi else take(first, places, axis=1)
        new = jnp.where(ahead <= accepted[:, None], tokens, rest)
        tokens = jax.vmap(lambda row, x, at: lax.dynamic_update_slice(row, x, (at,)))(drafts.tokens, new, place + 1)
        drafts = drafts._replace(tokens=tokens)
        if rolling:
            shift = jnp.minimum(accepted[:, None] + 1 + ahead, window - 1)
            target = take(jax.nn.softmax(scores), shift[..., None], axis=1)
            drafts = drafts._replace(density=target, known=window - 1 - accepted)
        count = jnp.minimum(accepted + 1, size - place)
        return engine.commit(state, hidden, cache, count), drafts

    here = state.place[:, None]
    guess = take(first, here, axis=1)
    token, _, _ = draw(state.hidden[:, None], here, jnp.maximum(guess, grammar.visual_start), None, state.passes)
    drafts = Drafts(
        tokens=jax.vmap(lambda row, x, at: row.at[at].set(x))(first, token[:, 0], state.place),
        density=jnp.zeros((cases, window, codes if rolling else 0)),
        known=jnp.zeros(cases, jnp.int32),
    )
    state, drafts = lax.while_loop(lambda carry: (carry[0].place < size).any(), body, (state, drafts))
    body_tokens = drafts.tokens[:, : size - 2].reshape(cases, engine.layout.height, -1)
    return dataclasses.replace(state, codes=body_tokens[..., :-1].reshape(cases, -1) - grammar.visual_start)
