"""Baselines and control prompts that the honesty of a system is tested with. Pure Python and NumPy.

- the mean image: knows no patient at all, so it must fail retention;
- a prompt that contradicts what really happened: does the image follow the prompt or the usual course?
- a prompt of no change: what does a system change when nothing is asked?
"""

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

import numpy as np

from progemu_jax.text.findings import GRADES, PHANTOM, PRESENT, Finding, names
from progemu_jax.text.restate import HELD, Change, restate
from progemu_jax.text.rules import LARGE, MODERATE, changes

DUMMY_PRIOR = 128  # gray level of stage 1's constant prior (MedJourney, section 3.3)


def mean_image(images: Iterable[np.ndarray]) -> np.ndarray:
    """Rounded mean of uint8 images [H, W] of one size; ValueError when there are none."""
    total, count = None, 0
    for image in images:
        total = image.astype(np.float64) if total is None else total + image
        count += 1
    if total is None:
        raise ValueError("no images to average")
    return np.round(total / count).astype(np.uint8)


def contradicting_prompt(
    before: dict | None, after: dict | None, prompt: str, key: str, findings: tuple[Finding, ...] = PHANTOM
) -> str:
    """A possible course of the same prior that is the opposite of the real one, in a prompt of one sentence.

    Args:
      before, after: name of a finding -> severity, as in the references; a finding left out is unknown.
      prompt: the real prompt; used for findings whose states are unknown.
      key: case id; where several findings could be contradicted, it decides which one.
      findings: of the cohort.

    A finding that got better or went away gets worse; one that got worse or stayed resolves; where the prior shows
    none, one appears that really stayed away.
    """
    word, finding = _contradiction(before or {}, after or {}, prompt, key, findings)
    return f"{word} {finding}."


def contradicting_change(
    before: dict | None, after: dict | None, prompt: str, key: str, findings: tuple[Finding, ...] = PHANTOM
) -> Change:
    """The course of `contradicting_prompt` with a grade: a new finding has one by the key, one that gets worse the
    next above what it was, where that is known and not severe already. Arguments as there."""
    before = before or {}
    word, finding = _contradiction(before, after or {}, prompt, key, findings)
    direction = {"Worsening": "worse", "Resolved": "resolved", "New": "new"}[word]
    grade = None
    if direction == "new":
        grade = _pick((None, *GRADES), key[::-1])
    elif direction == "worse" and (before.get(finding) or 1.0) < LARGE:
        grade = GRADES[1 + int(before[finding] >= MODERATE)]
    return Change(finding, direction, grade)


def contradicting_sentence(
    before: dict | None,
    after: dict | None,
    prompt: str,
    key: str,
    part: str = "train",
    held: Collection[str] = HELD,
    fits: Callable[[str], bool] = lambda text: True,
    findings: tuple[Finding, ...] = PHANTOM,
) -> tuple[str, Change]:
    """A sentence in free language and the change that it says, the same for the same key; part, held: see `restate`.

    It says `contradicting_change` in words that the rules read so, because evaluation judges a prompt by what they
    read in it, and that fit (short enough for a model). After 32 that do not, it is `contradicting_prompt`.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    change = contradicting_change(before, after, prompt, key, findings)
    known = {f: v >= PRESENT for f, v in (before or {}).items() if v is not None}
    said = {change.finding: -1 if change.direction == "resolved" else 1}
    for _ in range(32):
        text = restate([change], rng, part, held=held, findings=findings)
        if {f: sign for f, sign in changes(text, known, findings).items() if sign} == said and fits(text):
            return text, change
    return contradicting_prompt(before, after, prompt, key, findings), replace(change, grade=None)


def _contradiction(before: dict, after: dict, prompt: str, key: str, findings: tuple) -> tuple[str, str]:
    """("Worsening", "Resolved" or "New", finding)."""
    known = [f for f in names(findings) if before.get(f) is not None and after.get(f) is not None]
    there = [f for f in known if before[f] >= PRESENT]
    better = [f for f in there if after[f] <= before[f] - PRESENT]
    absent = [f for f in known if before[f] < PRESENT and after[f] < PRESENT]
    if better:
        return "Worsening", _pick(better, key)
    if there:
        return "Resolved", _pick(there, key)
    if absent:
        return "New", _pick(absent, key)
    said = changes(prompt, findings=findings)
    moved = [f for f in said if said[f]]
    if not moved:
        return "New", _pick(names(findings), key)
    finding = _pick(moved, key)
    return ("Resolved" if said[finding] > 0 else "Worsening"), finding


def _pick(options, key):
    return options[sum(key.encode()) % len(options)]
