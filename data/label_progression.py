"""Labels of two studies of one patient -> progression prompt and interpretation; of one study -> its text.

For cohorts without reports. The sentences are those of `progression`, so the rules read them; side and zone are named
where the source tells them. What a source is uncertain of is said nowhere, in neither direction. A finding that one of
two studies leaves out counts as absent there, with less confidence. The wording is drawn by the pair's or image's name.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from progemu_jax.data import progression_wording as wording
from progemu_jax.data.progression import Progression, compare_states
from progemu_jax.data.progression_wording import Change
from progemu_jax.data.sources import State
from progemu_jax.text import rules
from progemu_jax.text.findings import GRADES, SIDES, Finding, label_columns

SEVERITY = dict(zip(GRADES, (0.25, 0.5, 0.825), strict=True))
"""Severity in [0, 1] that stands for each grade: the middle of its range (`rules.MODERATE`, `rules.LARGE`)."""
BEST = 4  # of a confidence: labels mined from a report say less than the report

States = Mapping[str, State]


def label_progression(prior: States, followup: States, findings: Sequence[Finding], name: str) -> Progression:
    """Compares the states of two studies.

    findings: the cohort's list; states of other names do not count. name: of the pair, which settles the wording.
    In the other order of the two studies, the changes are the inverse. Without any change the prompt is NO_CHANGE.
    """
    kept = [f for f in findings if not any(f.name in s and s[f.name].present is None for s in (prior, followup))]
    known = [{f.name: s[f.name].present for f in kept if f.name in s} for s in (prior, followup)]
    found = []
    for change in compare_states(kept, *known, severities(prior), severities(followup)):
        found += _placed(change, prior.get(change.finding.name), followup.get(change.finding.name))
    moved, same, absent = wording.ordered(found)
    rng = _drawn_by(name)
    prompt, asked = wording.prompt(rng, moved)
    confidence, reason = _confidence(found, moved)
    return Progression(
        prompt=prompt,
        interpretation=wording.interpretation(rng, moved, same, absent),
        confidence=confidence,
        changes=_signs(moved + same),
        reason=reason,
        asked=_signs(asked),
    )


def single_text(states: States, findings: Sequence[Finding], name: str) -> str:
    """What one study shows, as a report would have it; "" where its labels settle nothing. name: of the image."""
    there = {f.name: states[f.name].present for f in findings if f.name in states}
    there = {name: present for name, present in there.items() if present is not None}
    grades = severities(states)
    found = [
        c for change in compare_states(findings, there, there, grades, grades)
        for c in _placed(change, states[change.finding.name], states[change.finding.name])
    ]  # fmt: skip
    return wording.single(_drawn_by(name), found)


def severities(states: States, whole: bool = False) -> dict[str, float]:
    """Finding -> severity of what has a grade; whole: also 1.0 of what is there without one, 0.0 of what is absent."""
    graded = {name: SEVERITY[s.grade] for name, s in states.items() if s.present and s.grade}
    plain = {name: float(s.present) for name, s in states.items() if s.present is not None} if whole else {}
    return plain | graded


def states_of_labels(labels: np.ndarray, text: str, findings: Sequence[Finding]) -> dict[str, State]:
    """int8 [L] of a shard's example (1, 0, -1 uncertain, -2 unknown), L the list's label columns -> states.

    A label tells no side: which of a finding's sides is there, the rules read in the example's own text.
    """
    values = dict(zip(label_columns(tuple(findings)), map(int, labels), strict=True))
    read, out = rules.states(text, tuple(findings)), {}
    for f in findings:
        value = values[f.label]
        if value == 1 and f.side:
            out[f.name] = State(read.get(f.name))
        elif value != -2:
            out[f.name] = State(None if value == -1 else value == 1)
    return out


def _placed(change: Change, prior: State | None, followup: State | None) -> list[Change]:
    """The change, named with the place that the study with the finding gives; a change for each side that moved."""
    if change.kind == "absent":
        return [wording.placed(change, None, None)]
    sides = [s.side if s and s.present else None for s in (prior, followup)]
    if change.kind == "same" and None not in sides and sides[0] != sides[1]:
        was, now = (set(SIDES) if side == "both" else {side} for side in sides)
        kinds = {s: "same" if s in was & now else "new" if s in now else "resolved" for s in SIDES if s in was | now}
        return [wording.placed(replace(change, kind=kind), side, None) for side, kind in kinds.items()]
    first, second = (prior, followup) if change.kind == "resolved" else (followup, prior)
    at = first or second
    side = at.side or (second.side if change.kind == "same" and second else None)
    return [wording.placed(change, side, at.zone)]


def _signs(changes: Sequence[Change]) -> dict[str, int]:
    """Finding -> +1, -1, or 0: also of one that came on one side and went on the other."""
    signs: dict[str, set[int]] = {}
    for change in changes:
        signs.setdefault(change.finding.name, set()).add(change.sign)
    return {name: next(iter(moved)) if len(moved := found - {0}) == 1 else 0 for name, found in signs.items()}


def _confidence(found: list[Change], moved: list[Change]) -> tuple[int, str]:
    if not found:
        return 1, "no finding is labelled in both studies"
    unsure = sum(not c.sure for c in moved)
    if not unsure:
        return BEST, "every change follows from the labels of both studies"
    if unsure < len(moved):
        return 3, "some findings are labelled in one study only"
    return 2, "the changes are inferred from one study"


def _drawn_by(name: str) -> random.Random:
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
