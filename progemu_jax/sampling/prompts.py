"""Batches of prompts, padded for the engine."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text import sequence
from progemu_jax.text.sequence import Layout
from progemu_jax.text.timeline import Timeline
from progemu_jax.text.vocabulary import Vocabulary


def most_tokens(vocab: Vocabulary, layout: Layout) -> int:
    """Tokens of the longest prompt that `sequence.prompt_tokens` lets through."""
    most, mark = layout.length - layout.image_tokens - 1, len(sequence.header(vocab, layout.height, layout.width))
    if not layout.prompt_budget:
        return most
    films = (1 + layout.older) * (mark + layout.image_tokens) + layout.older * (layout.interval != "")
    return min(most, 1 + films + layout.prompt_budget + mark)  # BOS, films with their days, words, the mark


class Prompts(NamedTuple):
    """A batch of prompts, padded on the right (`pad_prompts`).

    tokens, positions: int32 [R, P]; valid: bool [R, P]; aligned: int32 [R, h, w + 1] (see `sequence.aligned_rows`).
    before: int32 [R, P], `aligned` of the prompts themselves (`sequence.prompt_tokens`), of a layout that has older
    films, else None.
    """

    tokens: jax.Array
    positions: jax.Array
    valid: jax.Array
    aligned: jax.Array
    before: jax.Array | None = None


def pad_prompts(
    vocab: Vocabulary,
    layout: Layout,
    priors: list[np.ndarray | None],
    prompts: list[str | None],
    *,
    policy: Sampling,
    slots: int | None = None,
    timelines: list[Timeline | None] | None = None,
) -> Prompts:
    """Packs cases for `generate`; a prior of None is the null prompt.

    Args:
      priors: int [h, w] codes each, or None.
      prompts: as many texts.
      policy: with guidance, a twin of every case without its prompt (and prior) is appended.
      timelines: as many, or None: one prior each, and no days.
      slots: P; None takes the longest prompt, rounded up to a multiple of 32 so that few shapes compile.

    Raises:
      UserError: a prompt longer than the model's context, or than `slots`.
    """
    cases = list(zip(priors, prompts, timelines or [None] * len(priors), strict=True))
    if policy.guided:
        twins = [(prior, "", timeline and timeline.twin) for prior, _, timeline in cases]
        cases += twins if policy.keep_prior else [(None, None, None)] * len(cases)
    rows = [sequence.prompt_tokens(vocab, layout, prior, text, timeline=when) for prior, text, when in cases]
    longest = max(len(r["tokens"]) for r in rows)
    slots = slots or -(-longest // 32) * 32
    if longest > slots:
        raise UserError(f"prompt: {longest} tokens, there is room for {slots}; shorten the prompt")
    tokens = np.full((len(rows), slots), vocab.pad, np.int32)
    positions = np.zeros((len(rows), slots), np.int32)
    valid = np.zeros((len(rows), slots), bool)
    for i, row in enumerate(rows):
        n = len(row["tokens"])
        tokens[i, :n], positions[i, :n], valid[i, :n] = row["tokens"], row["positions"], True
    aligned = np.stack([sequence.aligned_rows(vocab, layout, prior) for prior, _, _ in cases])
    if not layout.older:
        return Prompts(tokens, positions, valid, aligned)
    before = np.full((len(rows), slots), -1, np.int32)
    for i, row in enumerate(rows):
        before[i, : len(row["aligned"])] = row["aligned"]
    return Prompts(tokens, positions, valid, aligned, before)
