"""Rows of text alone that teach a language model the words of prompts before it sees an image.

    BOS | prompt, in any of the grammar's wordings | BOI | the same changes in plain words | EOS | BOS | ... | PAD

A row holds as many as fit, each a segment that sees itself alone. The prompt lies at the position ids that it has
behind a prior image, the target image's BOI behind it at its own, and the answer where the interpretation has its own:
what BOI learns to gather of the prompt is there for the image. The loss is on the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from progemu_jax.tasks.progemu import ProgEmuConfig
from progemu_jax.text import restate, sequence
from progemu_jax.text.findings import GRADES, PHANTOM, Finding, has_place
from progemu_jax.text.plain import plain
from progemu_jax.text.restate import Change
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.vocabulary import BUILT_IN, Vocabulary
from progemu_jax.text.wordings import inflected

LENGTH = 128  # tokens of a row, at least
DICTIONARY = BUILT_IN / "dictionary.txt"
HELD_OUT = 512  # rows of the evaluation
_DIRECTIONS = ("new", "worse", "better", "resolved")
_COUNTS = (0.05, 0.65, 0.24, 0.06)  # how many findings a prompt names: none, one, two, three


@dataclass(frozen=True)
class Draws(Sequence):
    """A source whose items say nothing: what a row holds is drawn by the packer's generator.

    held_out: what `packer` draws the wording from.
    """

    number: int
    held_out: bool = False

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"held_out": range(self.number)[index] >= 0 and self.held_out}


def drawn_changes(rng: np.random.Generator, findings: tuple[Finding, ...] = PHANTOM) -> list[Change]:
    """Up to three changes of findings, each direction, side and grade as often as another."""
    out = []
    for finding in rng.permutation(len(findings))[: rng.choice(len(_COUNTS), p=_COUNTS)]:
        name, direction = findings[finding].name, _DIRECTIONS[rng.integers(len(_DIRECTIONS))]
        graded = direction != "resolved" and rng.random() < 0.4
        side = zone = None
        if has_place(name):
            side = (None, None, "left", "right", "both")[rng.integers(5)]
            zone = (None, None, *restate.ZONES)[rng.integers(5)] if side in ("left", "right") else None
        out.append(Change(name, direction, GRADES[rng.integers(len(GRADES))] if graded else None, side, zone))
    return out


@functools.cache
def dictionary() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """(kind, word, words of near meaning), kind v, n or a: verb, noun, adjective (`DICTIONARY`)."""
    out = []
    for line in DICTIONARY.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            head, _, near = line.partition(": ")
            out.append((head[0], head[2:], tuple(near.split(", "))))
    return tuple(out)


def looked_up(rng: np.random.Generator) -> tuple[str, str]:
    """(a word in one of its forms, words of near meaning), as a dictionary has them."""
    kind, word, near = dictionary()[rng.integers(len(dictionary()))]
    if kind == "v":
        forms = inflected(word)
        word = (
            forms["base"], f"to {forms['base']}", forms["third"], forms["past"], forms["going"],
            f"has {forms['perfect']}", f"is {forms['going']}", f"{forms['base']} it",
        )[rng.integers(8)]  # fmt: skip
    elif kind == "a":
        word = (word, f"is {word}", f"more {word}" if " " not in word else word)[rng.integers(3)]
    else:
        word = (word, f"{word} of")[rng.integers(2)]
    word = word.capitalize() if rng.random() < 0.5 else word
    return word, ", ".join(near[: rng.integers(1, 3)])


def row_length(task: ProgEmuConfig) -> int:
    """Tokens of a row, which must hold any prompt that the model takes with its answer."""
    return max(LENGTH, 2 * task.prompt_budget + 3)


Packer = Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]


def rehearsing(
    pack: Packer, vocab: Vocabulary, layout: Layout, task: ProgEmuConfig, findings: tuple[Finding, ...] = PHANTOM
) -> Packer:
    """A packer of pairs, of whose rows a share, `task.rehearse`, are rows of words: what these taught is kept."""
    if not task.rehearse:
        return pack
    of_words, drawn = packer(vocab, layout, task, findings, task.length), Draws(1)[0]

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        row = of_words(drawn, rng) if rng.random() < task.rehearse else pack(example, rng)
        return {"segments": (row["kinds"] != Kind.PAD).astype(np.int32), **row}

    return transform


def packer(
    vocab: Vocabulary,
    layout: Layout,
    task: ProgEmuConfig,
    findings: tuple[Finding, ...] = PHANTOM,
    length: int | None = None,
) -> Packer:
    """Item of `Draws` -> row for `ProgEmuTask`: training wordings with slips, or held-out ones.

    length: tokens of a row (None: `row_length`).
    """
    length = length or row_length(task)
    block = layout.image_tokens + len(sequence.header(vocab, layout.height, layout.width))
    boi = 1 + block + task.prompt_budget  # its position, with the prompt before it and the text one image later
    prompt_at, answer_at = 1 + block, boi + block

    def one(rng: np.random.Generator, held_out: bool) -> tuple[list[int], list[int]]:
        """A prompt's and its answer's tokens; both short enough."""
        while True:
            if task.dictionary and not held_out and rng.random() < task.dictionary:
                word, near = looked_up(rng)
                return vocab.encode(word, rng, task.word_dropout), vocab.encode(near)
            changes = drawn_changes(rng, findings)
            if held_out:
                words = vocab.encode(restate.restate(changes, rng, "held-out", findings=findings))
            else:
                words = vocab.encode(
                    restate.restate(changes, rng, noise=0.05, asides=0.1, findings=findings), rng, task.word_dropout
                )
            answer = vocab.encode(plain(changes, findings))
            if max(len(words), len(answer)) <= task.prompt_budget:
                return words, answer

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        out = {
            "tokens": np.full(length, vocab.pad, np.int32),
            "positions": np.zeros(length, np.int32),
            "kinds": np.zeros(length, np.int8),
            "aligned": np.full(length, -1, np.int32),
            "segments": np.zeros(length, np.int32),
            "weights": np.ones(length, np.float32),
        }
        at = number = 0
        while True:
            words, answer = one(rng, example["held_out"])
            n, m = len(words), len(answer)
            row = slice(at, at + n + m + 3)
            if row.stop > length:
                return out
            number += 1
            out["tokens"][row] = [vocab.bos, *words, vocab.boi, *answer, vocab.eos]
            out["kinds"][row] = [Kind.BOS, *[Kind.PROMPT] * n, Kind.STRUCTURE, *[Kind.TEXT] * m, Kind.EOS]
            out["positions"][row] = [0, *range(prompt_at, prompt_at + n), boi, *range(answer_at, answer_at + m + 1)]
            out["segments"][row] = number
            at = row.stop

    return transform
