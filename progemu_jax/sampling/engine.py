"""Prefill and the constrained decode loop: prior and prompt in, target codes and text out.

The grammar needs no mask and no callback. An image is h rows of w free tokens, so the loop runs over rows and
columns: only the visual rows of the head are computed there, and the tokens that the grammar forces (EOL, EOF,
EOI) ride along with the next free token's pass instead of costing one of their own. In the text only text ids
and stops are computed.

Axis legend: B cases, R rows of the batch (B, or 2B with guidance: conditional rows, then null-prompt twins),
P prompt slots, T tokens of one pass, V vocabulary rows.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from progemu_jax import sequence
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.policy import Sampling, draw, guide
from progemu_jax.sequence import Layout
from progemu_jax.vocab import Vocabulary

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


class Prompts(NamedTuple):
    """A batch of prompts, padded on the right (`pad_prompts`).

    tokens, positions: int32 [R, P]; valid: bool [R, P]; aligned: int32 [R, h, w + 1] (see `sequence.aligned_rows`).
    """

    tokens: jax.Array
    positions: jax.Array
    valid: jax.Array
    aligned: jax.Array


class Generated(NamedTuple):
    """codes int32 [B, h, w]; text int32 [B, max_text], -1 after the end."""

    codes: jax.Array
    text: jax.Array


def pad_prompts(
    vocab: Vocabulary,
    layout: Layout,
    priors: list[np.ndarray | None],
    prompts: list[str | None],
    *,
    policy: Sampling,
    slots: int | None = None,
) -> Prompts:
    """Packs cases for `generate`; a prior of None is the null prompt.

    Args:
      priors: int [h, w] codes each, or None.
      prompts: as many texts.
      policy: with guidance, a twin of every case without its prompt (and prior) is appended.
      slots: P; None takes the longest prompt, rounded up to a multiple of 32 so that few shapes compile.

    Raises:
      UserError: a prompt longer than the model's context, or than `slots`.
    """
    cases = list(zip(priors, prompts, strict=True))
    if policy.guided:
        cases += [(prior, "") if policy.keep_prior else (None, None) for prior, _ in cases]
    rows = [sequence.prompt_tokens(vocab, layout, prior, prompt) for prior, prompt in cases]
    slots = slots or -(-max(len(r["tokens"]) for r in rows) // 32) * 32
    tokens = np.full((len(rows), slots), vocab.pad, np.int32)
    positions = np.zeros((len(rows), slots), np.int32)
    valid = np.zeros((len(rows), slots), bool)
    for i, row in enumerate(rows):
        n = len(row["tokens"])
        tokens[i, :n], positions[i, :n], valid[i, :n] = row["tokens"], row["positions"], True
    aligned = np.stack([sequence.aligned_rows(vocab, layout, prior) for prior, _ in cases])
    return Prompts(tokens, positions, valid, aligned)


@dataclasses.dataclass(frozen=True)
class _Engine:
    """One compiled request: everything static."""

    model: TransformerConfig
    layout: Layout
    grammar: Grammar
    policy: Sampling

    def forward(
        self, params: Params, cache: Params, tokens: jax.Array, position: jax.Array, aligned: jax.Array
    ) -> tuple[jax.Array, Params]:
        """Feeds tokens int32 [B, T] to every row; returns the last hidden state [R, M] and the cache."""
        rows = position.shape[0]
        tokens = jnp.concatenate([tokens] * (rows // tokens.shape[0]))
        positions = position[:, None] + jnp.arange(tokens.shape[1])
        hidden, cache = Transformer(self.model).apply(
            {"params": params}, tokens, positions, aligned=aligned, cache=cache
        )
        return hidden[:, -1], cache

    def scores(self, params: Params, hidden: jax.Array, rows: tuple[int, int], scale: float) -> jax.Array:
        """Guided scores f32 [B, rows] of a range of the vocabulary from hidden [R, M]."""
        logits = transformer.logits(params, hidden, rows)
        if not self.policy.guided:
            return logits
        return guide(logits, scale)

    def run(self, params: Params, prompts: Prompts, keys: jax.Array) -> Generated:
        cfg, grammar, policy = self.layout, self.grammar, self.policy
        height, width = cfg.height, cfg.width
        rows, slots = prompts.tokens.shape
        lengths = prompts.valid.sum(-1)
        cache = transformer.init_cache(self.model, rows, slots + cfg.image_tokens + policy.max_text)
        at = jnp.arange(slots)[None] == (lengths - 1)[:, None]
        hidden, cache = Transformer(self.model).apply(
            {"params": params},
            prompts.tokens,
            prompts.positions,
            aligned=jnp.where(at, prompts.aligned[:, :1, 0], -1),
            segments=prompts.valid,
            cache=cache,
            prefill=True,
        )
        hidden = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        position = jnp.max(prompts.positions, axis=1) + 1  # of the next token, per row
        cases = keys.shape[0]

        def pick(hidden: jax.Array, step: jax.Array) -> jax.Array:
            scores = self.scores(params, hidden, grammar.visual_rows, policy.guidance)
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
            return draw(scores, step_keys, policy.temperature, policy.top_k)

        flat_aligned = prompts.aligned.reshape(rows, -1)
        none = jnp.full((rows, 1), -1, jnp.int32)

        def code_step(i: jax.Array, carry: tuple) -> tuple:
            """Draws code i from the last hidden state; the caller feeds it."""
            hidden, cache, codes = carry
            code = pick(hidden, i)
            codes = lax.dynamic_update_slice(codes, code[:, None], (0, i))
            return hidden, cache, codes

        def row(r: jax.Array, carry: tuple) -> tuple:
            hidden, cache, codes = carry

            def column(c: jax.Array, carry: tuple) -> tuple:
                hidden, cache, codes = code_step(r * width + c, carry)
                code = lax.dynamic_slice(codes, (0, r * width + c), (cases, 1)) + grammar.visual_start
                place = r * (width + 1) + c
                aligned = lax.dynamic_slice(flat_aligned, (0, place + 1), (rows, 1))
                hidden, cache = self.forward(params, cache, code, position + place, aligned)
                return hidden, cache, codes

            hidden, cache, codes = lax.fori_loop(0, width - 1, column, (hidden, cache, codes))
            # The row's last code goes through together with its EOL.
            last = r * width + width - 1
            hidden, cache, codes = code_step(last, (hidden, cache, codes))
            code = lax.dynamic_slice(codes, (0, last), (cases, 1)) + grammar.visual_start
            place = r * (width + 1) + width - 1
            after = lax.dynamic_slice(flat_aligned, (0, jnp.minimum(place + 2, flat_aligned.shape[1] - 1)), (rows, 1))
            fed = jnp.concatenate([code, jnp.full_like(code, grammar.eol)], axis=1)
            hidden, cache = self.forward(params, cache, fed, position + place, jnp.concatenate([none, after], axis=1))
            return hidden, cache, codes

        codes = jnp.zeros((cases, height * width), jnp.int32)
        hidden, cache, codes = lax.fori_loop(0, height, row, (hidden, cache, codes))
        closing = jnp.broadcast_to(jnp.asarray([grammar.eof, grammar.eoi], jnp.int32), (cases, 2))
        hidden, cache = self.forward(
            params, cache, closing, position + height * (width + 1), jnp.concatenate([none, none], axis=1)
        )
        text = self.write(params, cache, hidden, position + cfg.image_tokens, keys)
        return Generated(codes.reshape(cases, height, width), text)

    def write(
        self, params: Params, cache: Params, hidden: jax.Array, position: jax.Array, keys: jax.Array
    ) -> jax.Array:
        """Decodes the text after EOI, until every case has stopped; int32 [B, max_text], -1 after the end."""
        grammar, policy = self.grammar, self.policy
        cases = keys.shape[0]
        low, high = grammar.text_rows
        ids = jnp.arange(low, high)
        stop = jnp.isin(ids, jnp.asarray(grammar.stops))
        words = ids < grammar.text_size
        first = self.layout.height * self.layout.width  # steps before the text used these keys

        def more(state: tuple) -> jax.Array:
            step, done, *_ = state
            return (step < policy.max_text) & ~done.all()

        def body(state: tuple) -> tuple:
            step, done, hidden, cache, text = state
            scores = self.scores(params, hidden, grammar.text_rows, policy.text_guidance)
            scores = jnp.where(words | (stop & (step >= policy.min_text)), scores, -jnp.inf)
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, first + step)
            token = draw(scores, step_keys, policy.text_temperature, policy.text_top_k)
            done |= jnp.isin(token, jnp.asarray(grammar.stops))
            text = lax.dynamic_update_slice(text, jnp.where(done, -1, token)[:, None], (0, step))
            hidden, cache = lax.cond(
                done.all(),
                lambda: (hidden, cache),
                lambda: self.forward(
                    params, cache, token[:, None], position + step, jnp.full((position.shape[0], 1), -1, jnp.int32)
                ),
            )
            return step + 1, done, hidden, cache, text

        text = jnp.full((cases, policy.max_text), -1, jnp.int32)
        state = (jnp.int32(0), jnp.zeros(cases, bool), hidden, cache, text)
        return lax.while_loop(more, body, state)[-1]


@functools.cache
def _compiled(engine: _Engine):
    return jax.jit(engine.run)


def generate(
    params: Params,
    model: TransformerConfig,
    layout: Layout,
    grammar: Grammar,
    policy: Sampling,
    prompts: Prompts,
    keys: jax.Array,
) -> Generated:
    """Samples one counterfactual per case.

    Args:
      params: of the transformer.
      prompts: from `pad_prompts`, with null twins exactly when `policy.guided`.
      keys: PRNG keys [B]. At one batch shape a case's result depends on its key alone, not on its companions.

    Returns:
      `Generated`.
    """
    return _compiled(_Engine(model, layout, grammar, policy))(params, prompts, keys)
