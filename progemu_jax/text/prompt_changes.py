"""The changes that a prompt states, read by the rules, and the same changes in other words, for the packers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from progemu_jax.text import findings as lists
from progemu_jax.text import lexicon, rules
from progemu_jax.text.findings import PHANTOM, Finding, has_place
from progemu_jax.text.restate import Change, restate
from progemu_jax.text.terms import further
from progemu_jax.text.understood import grade_and_direction, understood


@functools.lru_cache(maxsize=1 << 15)
def changes_of(prompt: str, moved: bool = False, findings: tuple[Finding, ...] = PHANTOM) -> tuple[Change, ...] | None:
    """The changes that a prompt states, read by the rules; () of one that says that nothing changes.

    A pneumonia counts as a consolidation where the list has none. None when a part of it is not a change of one of the
    findings with its side: then it is better left as it is. moved: of an interpretation; what stayed as it was or is
    absent is passed over.
    """
    out: list[Change] = []
    for sentence in rules.sentences(prompt):
        if any(atom.kind in ("UNSURE", "ASKED") for atom in lexicon.atoms(sentence, further(findings))):
            return None
        found = rules.mentions(sentence, findings)
        if not found:
            if rules.says_no_change(sentence):
                continue
            return None
        for mention in found:
            if moved and not mention.change:
                continue
            made = _read(mention, findings)
            if made is None:
                return None
            out += made
    return tuple(out) if len({c.finding for c in out}) == len(out) else None


def _read(mention, findings: tuple[Finding, ...]) -> list[Change] | None:
    found = rules.spoken_of(mention, findings)
    if not found and mention.finding == "Pneumonia":
        found = rules.spoken_of(replace(mention, finding="Consolidation"), findings)
    names = lists.names(found)
    if not names or mention.change is None or mention.uncertain:
        return None
    grade, direction = grade_and_direction(mention)
    if direction == "absent":
        return None
    if len(names) == 1 and not found[0].side:
        placed = has_place(names[0])
        side, zone = (mention.side, mention.zone) if placed else (None, None)
        return [Change(names[0], direction, grade, side, zone)]
    side = "both" if mention.side is None and mention.plural else mention.side
    if side is None:
        return None
    return [Change(n, direction, grade) for n in names if side == "both" or n.startswith(side)]


@functools.lru_cache(maxsize=1 << 15)
def _all_read(prompt: str, findings: tuple[Finding, ...]) -> tuple[Change, ...] | None:
    """`changes_of`, or None where the prompt says anything else."""
    changes, read = changes_of(prompt, findings=findings), understood(prompt, findings)
    whole = changes is not None and not read.rest and not read.unknown
    return changes if whole and (changes or rules.says_no_change(prompt)) else None


def restated(
    prompt: str,
    rng: np.random.Generator,
    share: float,
    told: str = "",
    *,
    fits: Callable[[str], bool] | None = None,
    noise: float = 0.05,
    asides: float = 0.15,
    drop_grade: float = 0.15,
    complete: float = 0.0,
    findings: tuple[Finding, ...] = PHANTOM,
) -> str:
    """A prompt in other words, with probability `share`; always the prompt when the rules do not read all of it.

    Args:
      prompt: of a pair. rng: draws whether and how; drawn from once where the prompt stays as it is.
      share: in [0, 1].
      told: the pair's interpretation, which names every change: asides speak only of what did not change in it.
      fits: whether a wording is short enough for the model; after eight that are not the prompt stays as it is.
      complete: how often all changes of `told` are told, not only the prompt's.
      noise, asides: see `restate`. drop_grade: how often a change is told without its grade, which leaves it true.
      findings: of the cohort.
    """
    if rng.random() >= share:
        return prompt
    changes = _all_read(prompt, findings)
    if complete and rng.random() < complete:
        changes = changes_of(told, moved=True, findings=findings) or changes
    if changes is None:
        return prompt
    changes = [replace(c, grade=None) if rng.random() < drop_grade else c for c in changes]
    others: list[str] = []
    if told:
        moved = {name for name, sign in rules.changes(told, findings=findings).items() if sign}
        named = moved | {c.finding for c in changes}
        others = [name for name in lists.names(findings) if name not in named]
    for _ in range(8):
        text = restate(changes, rng, noise=noise, asides=asides, others=others, findings=findings)
        if fits is None or fits(text):
            return text
    return prompt
