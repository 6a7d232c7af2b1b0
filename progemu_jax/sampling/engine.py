"""Prefill and the constrained decode loop: prior and prompt in, target codes and text out.

    state = engine.prefill(params, prompts, keys, keep, codes)
    state = engine.decode_image(params, state)   # or another decoder: `speculation.decode_image(engine, params, state)`
    state = engine.decode_text(params, state)

The grammar needs no mask and no callback. The target image is a stream of h (w + 1) + 2 places: codes, an EOL after
every row, EOF, EOI. A place is free (a code to be drawn) or forced (EOL, EOF, EOI, a kept code). Only visual rows
of the head are computed for free places; forced places are never drawn, and ride along with the pass of the code
before them. In the text only text ids and stops are computed.

Axis legend: B cases, R rows of the batch (B, or 2B with guidance: conditional rows, then null-prompt twins),
P prompt slots, T tokens of one pass, V vocabulary rows, I places of the stream that hold codes and EOLs, h (w + 1).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from progemu_jax.errors import UserError
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.policy import Sampling, draw, guide, pick, restrict, two_steps
from progemu_jax.sampling.prompts import Prompts
from progemu_jax.text.diagonals import diagonals
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import Vocabulary

Params = Any


@dataclasses.dataclass(frozen=True)
class Grammar:
    """The vocabulary as the loop sees it: static integers.

    `stops` end a text. They belong to the checkpoint: EOS for ours; EOS and PAD for imported ProgEmu weights,
    whose training labels covered padding and never EOS.
    """

    pad: int
    eol: int
    eof: int
    eoi: int
    text_size: int
    visual_start: int
    codebook_size: int
    stops: tuple[int, ...]

    @classmethod
    def of(cls, vocab: Vocabulary, stops: tuple[int, ...] | None = None) -> Grammar:
        names = ("pad", "eol", "eof", "eoi", "text_size", "visual_start", "codebook_size")
        return cls(*(getattr(vocab, n) for n in names), stops=stops or (vocab.eos,))

    @property
    def visual_rows(self) -> tuple[int, int]:
        return self.visual_start, self.visual_start + self.codebook_size

    @property
    def text_rows(self) -> tuple[int, int]:
        return 0, max(self.text_size, *(s + 1 for s in self.stops))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What decoding carries from pass to pass. A case's entries depend on that case alone.

    Attributes:
      keys: PRNG keys [B]. Code k is drawn with fold_in(key, k), text token t with fold_in(key, h w + t).
      aligned: int32 [R, I], the prior's token at each place (-1: none), see `sequence.aligned_rows`.
      keep: bool [B, h w], codes that are given, not drawn.
      codes: int32 [B, h w], drawn or kept; others are 0 until drawn.
      cache: of R rows (`transformer.init_cache`); length counts the tokens whose keys and values are valid.
      hidden: [R, M], last hidden state of the last token fed: what the next token is drawn from.
      front: [R, h, M], of the last code fed of each image row, with `mode="diagonal"` (else [R, 0, M]).
      position: int32 [R], rotary position of the next token to feed.
      place: int32 [B], places of the image that were fed, 0..I + 2.
      text: int32 [B, max_text], -1 where nothing was written.
      written: int32 [B], text tokens drawn and fed.
      done: bool [B], text ended.
      passes: int32 [B], forward passes that the case took part in, after the prefill.
    """

    keys: jax.Array
    aligned: jax.Array
    keep: jax.Array
    codes: jax.Array
    cache: Params
    hidden: jax.Array
    front: jax.Array
    position: jax.Array
    place: jax.Array
    text: jax.Array
    written: jax.Array
    done: jax.Array
    passes: jax.Array


@dataclasses.dataclass(frozen=True)
class Engine:
    """One compiled request: everything static, and the pieces of decoding as pure functions over `State`."""

    model: TransformerConfig
    layout: Layout
    grammar: Grammar
    policy: Sampling

    def __post_init__(self):
        if self.policy.diagonal and not self.model.diagonal:
            raise UserError(
                "mode='diagonal': the model has no head for it; train one (config.progemu.diagonal.head.steps) "
                "or leave mode='rows'"
            )

    @property
    def chunk(self) -> int:
        """Most tokens of one pass: an image row and its EOL; a diagonal with an EOL, or the last one."""
        if self.policy.diagonal:
            return diagonals(self.layout.height, self.layout.width).rows.shape[1]
        return max(4, self.layout.width + 1)

    def cache_slots(self, slots: int) -> int:
        """Slots of a row's cache behind a prompt of so many.

        A pass writes all its tokens, also those that do not count in the end, hence spare ones.
        """
        spare = max(self.chunk, self.policy.verified)
        return slots + self.layout.image_tokens + self.policy.max_text + spare

    def prefill(self, params: Params, prompts: Prompts, keys: jax.Array, keep: jax.Array, codes: jax.Array) -> State:
        """Runs the prompts through the model. keep: bool [B, h, w]; codes: int32 [B, h, w], read where `keep`."""
        rows, slots = prompts.tokens.shape
        lengths = prompts.valid.sum(-1, dtype=jnp.int32)
        cache = transformer.init_cache(self.model, rows, self.cache_slots(slots))
        at = jnp.arange(slots)[None] == (lengths - 1)[:, None]
        hidden, cache = Transformer(self.model).apply(
            {"params": params},
            prompts.tokens,
            prompts.positions,
            aligned=jnp.where(at, prompts.aligned[:, :1, 0], -1 if prompts.before is None else prompts.before),
            segments=prompts.valid,
            cache=cache,
            prefill=True,
        )
        cases = keys.shape[0]
        keep = keep.reshape(cases, -1)
        zeros = jnp.zeros(cases, jnp.int32)
        return State(
            keys=keys,
            aligned=prompts.aligned.reshape(rows, -1),
            keep=keep,
            codes=jnp.where(keep, codes.reshape(cases, -1), 0),
            cache=cache,
            hidden=jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0],
            front=jnp.zeros((rows, self.layout.height * self.policy.diagonal, hidden.shape[-1]), hidden.dtype),
            position=jnp.take_along_axis(prompts.positions, (lengths - 1)[:, None], axis=1)[:, 0] + 1,
            place=zeros,
            text=jnp.full((cases, self.policy.max_text), -1, jnp.int32),
            written=zeros,
            done=jnp.zeros(cases, bool),
            passes=zeros,
        )

    def forward(
        self, params: Params, state: State, tokens: jax.Array, places: jax.Array | None = None
    ) -> tuple[jax.Array, Params]:
        """One pass over the next tokens int32 [B, T] of every case; the state is left as it is.

        T is at most `chunk`, or the policy's `verified` where that is more. places: int32 [B, T], those that the tokens
        fill, in the row order; None: the next ones.

        Returns (hidden [R, T, M], cache with the T tokens written behind each row's length). `commit` then says how
        many of them count: those behind are overwritten by the next pass, which is all there is to a roll-back.
        """
        places = state.place[:, None] + jnp.arange(tokens.shape[1]) if places is None else places
        first = state.position - self._rows(state.place)  # rotary position of place 0
        size = state.aligned.shape[1]

        def priors(places: jax.Array) -> jax.Array:
            found = jnp.take_along_axis(state.aligned, self._rows(jnp.clip(places, 0, size - 1)), axis=1)
            return jnp.where(self._rows(places < size), found, -1)

        hidden, cache = Transformer(self.model).apply(
            {"params": params},
            self._rows(tokens),
            first[:, None] + self._rows(places),
            aligned=priors(places + 1),  # the place that the token after each is for, in the row order
            beside=priors(places),
            cache=state.cache,
        )
        return hidden, cache

    def commit(self, state: State, hidden: jax.Array, cache: Params, count: jax.Array) -> State:
        """Takes the first count [B] (0..T) tokens of `forward`'s pass into the state; 0 leaves a case as it was."""
        rows = self._rows(count)
        last = jnp.take_along_axis(hidden, jnp.maximum(rows - 1, 0)[:, None, None], axis=1)[:, 0]
        return dataclasses.replace(
            state,
            cache={**cache, "length": state.cache["length"] + rows},
            hidden=jnp.where((rows > 0)[:, None], last, state.hidden),
            position=state.position + rows,
            place=jnp.minimum(state.place + count, self.layout.image_tokens),
            passes=state.passes + (count > 0),
        )

    def _rows(self, x: jax.Array) -> jax.Array:
        """[B, ...] -> [R, ...]: a case's null-prompt twin sees the same tokens."""
        return jnp.concatenate([x, x]) if self.policy.guided else x

    def logits(self, params: Params, hidden: jax.Array, rows: tuple[int, int]) -> jax.Array:
        """f32 [R, ..., rows] of a range of the vocabulary from hidden [R, ..., M]."""
        table = params.get(head_name(rows))
        if table is None:
            return transformer.logits(params, hidden, rows)
        return transformer.logits({"lm_head": table}, hidden)

    def scores(self, params: Params, hidden: jax.Array, rows: tuple[int, int], scale: float) -> jax.Array:
        """Guided scores f32 [B, ..., rows] of a range of the vocabulary from hidden [R, ..., M]."""
        logits = self.logits(params, hidden, rows)
        return guide(logits, scale) if self.policy.guided else logits

    def code_scores(self, params: Params, state: State, hidden: jax.Array, places: jax.Array) -> jax.Array:
        """Logits f32 [B, ..., Q] of the distribution that codes of places [B, ...] are drawn from.

        hidden: [R, ..., M], what the token before each place left.
        """
        policy, rows = self.policy, self.grammar.visual_rows
        if policy.keep_or_change:
            at = jnp.minimum(places, state.aligned.shape[1] - 1).reshape(len(places), -1)
            prior = jnp.take_along_axis(state.aligned[: len(places)], at, axis=1).reshape(places.shape)
            logits = self.logits(params, hidden, rows)
            return two_steps(logits, jnp.where(prior >= 0, prior - self.grammar.visual_start, -1), policy)
        return restrict(self.scores(params, hidden, rows, policy.guidance), policy.temperature, policy.top_k)

    def draw_codes(self, params: Params, state: State) -> jax.Array:
        """A code for the place that each case stands at, int32 [B]; meaningless where that place is not free."""
        scores = self.code_scores(params, state, state.hidden, state.place)
        keys = jax.vmap(jax.random.fold_in)(state.keys, self.code_index(state.place))
        return pick(scores, keys, self.policy.temperature)

    def code_index(self, place: jax.Array) -> jax.Array:
        """Number 0..h w - 1 of the code at a place of the stream (or of the last one before it)."""
        width = self.layout.width
        row, column = place // (width + 1), place % (width + 1)
        index = row * width + jnp.minimum(column, width - 1)
        return jnp.minimum(index, self.layout.height * width - 1)

    def stream(self, codes: jax.Array) -> jax.Array:
        """Token ids int32 [B, I + 2] of images of codes [B, h w], each place of the stream."""
        grammar, layout = self.grammar, self.layout
        grid = codes.reshape(-1, layout.height, layout.width) + grammar.visual_start
        body = jnp.pad(grid, ((0, 0), (0, 0), (0, 1)), constant_values=grammar.eol).reshape(len(grid), -1)
        closing = jnp.broadcast_to(jnp.asarray([grammar.eof, grammar.eoi], jnp.int32), (len(grid), 2))
        return jnp.concatenate([body, closing], axis=1)

    def free(self, keep: jax.Array) -> jax.Array:
        """bool [B, I + 2]: places of the stream whose code is drawn, from keep [B, h w]."""
        grid = ~keep.reshape(-1, self.layout.height, self.layout.width)
        return jnp.pad(jnp.pad(grid, ((0, 0), (0, 0), (0, 1))).reshape(len(grid), -1), ((0, 0), (0, 2)))

    def _image(self, params: Params, state: State) -> tuple[State, jax.Array, jax.Array]:
        """Draws the code that each unfinished image stands at, if free.

        Returns the state with it, the next `chunk` tokens [B, chunk] of each image, and how many of them are known:
        that code and the forced places behind it; 0 where the image is finished.
        """
        layout, chunk = self.layout, self.chunk
        cases, ahead = jnp.arange(state.place.shape[0]), jnp.arange(chunk)
        unfinished = state.place < layout.image_tokens
        free = jnp.pad(self.free(state.keep), ((0, 0), (0, chunk + 1)), constant_values=True)
        here = jnp.take_along_axis(free, state.place[:, None], axis=1)[:, 0] & unfinished
        code = lax.cond(here.any(), lambda: self.draw_codes(params, state), lambda: jnp.zeros_like(state.place))
        index = self.code_index(state.place)
        codes = state.codes.at[cases, index].set(jnp.where(here, code, state.codes[cases, index]))
        stream = jnp.pad(self.stream(codes), ((0, 0), (0, chunk)), constant_values=self.grammar.pad)
        tokens = jnp.take_along_axis(stream, state.place[:, None] + ahead, axis=1)
        following = jnp.take_along_axis(free, state.place[:, None] + 1 + ahead[:-1], axis=1)
        run = jnp.where(unfinished, 1 + jnp.cumprod(~following, axis=1, dtype=jnp.int32).sum(1), 0)
        return dataclasses.replace(state, codes=codes), tokens, run

    def _text(self, params: Params, state: State) -> tuple[State, jax.Array, jax.Array]:
        """Draws a text token of each case whose image is finished and whose text is not.

        Returns the state with it, the tokens [B], and whether they go through the model, bool [B]: a stop does not.
        """
        grammar, policy = self.grammar, self.policy
        here = ~state.done & (state.place == self.layout.image_tokens)
        first = self.layout.height * self.layout.width  # steps before the text used these keys

        def drawn() -> jax.Array:
            ids = jnp.arange(*grammar.text_rows)
            stop = jnp.isin(ids, jnp.asarray(grammar.stops))
            scores = self.scores(params, state.hidden, grammar.text_rows, policy.text_guidance)
            allowed = (ids < grammar.text_size) | (stop & (state.written >= policy.min_text)[:, None])
            keys = jax.vmap(jax.random.fold_in)(state.keys, first + state.written)
            return draw(jnp.where(allowed, scores, -jnp.inf), keys, policy.text_temperature, policy.text_top_k)

        token = lax.cond(here.any(), drawn, lambda: jnp.zeros_like(state.place))
        writing = here & ~jnp.isin(token, jnp.asarray(grammar.stops))
        cases, at = jnp.arange(token.shape[0]), jnp.minimum(state.written, policy.max_text - 1)
        text = state.text.at[cases, at].set(jnp.where(writing, token, state.text[cases, at]))
        written = state.written + writing
        done = state.done | (here & (~writing | (written >= policy.max_text)))
        return dataclasses.replace(state, text=text, written=written, done=done), token, here & ~done

    def step(self, params: Params, state: State, image: bool = True, text: bool = True) -> State:
        """Draws and feeds the next code of every unfinished image, and the next token of every unfinished text.

        The pass that a case takes part in, of 1, 2 or `chunk` tokens, follows from its own run of forced places, and
        passes of other cases leave it untouched: its numbers do not depend on its companions.
        """
        tokens = jnp.zeros((state.place.shape[0], self.chunk), jnp.int32)
        run = jnp.zeros_like(state.place)
        if image:
            state, tokens, run = self._image(params, state)
        if text:
            state, token, writing = self._text(params, state)
            tokens = tokens.at[:, 0].set(jnp.where(writing, token, tokens[:, 0]))
            run = jnp.where(writing, 1, run)
        for low, width in ((1, 1), (2, 2), (3, self.chunk)):
            if image or width == 1:
                here = (run >= low) & (run <= (low if width < self.chunk else self.chunk))
                state = self._feed(params, state, tokens[:, :width], jnp.where(here, run, 0))
        return state

    def _feed(self, params: Params, state: State, tokens: jax.Array, count: jax.Array) -> State:
        """`forward` and `commit`; no pass when no case takes part.

        A loop of at most one turn, since a `cond` copies the cache on its way in and out.
        """

        def body(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, _ = carry
            return self.commit(state, *self.forward(params, state, tokens), count), jnp.asarray(False)

        return lax.while_loop(lambda carry: carry[1], body, (state, (count > 0).any()))[0]

    def decode_image(self, params: Params, state: State) -> State:
        """Code by code, until every case has its codes, and its whole image, EOI included, went through the model."""
        size = self.layout.image_tokens
        return lax.while_loop(lambda s: (s.place < size).any(), lambda s: self.step(params, s, text=False), state)

    def decode_text(self, params: Params, state: State) -> State:
        """The text after EOI, until every case has stopped."""
        return lax.while_loop(lambda s: ~s.done.all(), lambda s: self.step(params, s, image=False), state)


def head_name(rows: tuple[int, int]) -> str:
    return f"lm_head_{rows[0]}_{rows[1]}"
