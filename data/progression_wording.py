"""Changes of findings between two studies -> prompt and interpretation: the sentences that the rules read.

Every draw comes from the generator that is handed in, so the same changes and seed give the same texts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from progemu_jax.text.findings import NO_CHANGE, SIDES, Finding, is_plural
from progemu_jax.text.rules import LARGE, MODERATE

PROMPT_WORDS, INTERPRETATION_WORDS = 12, 35
MOVED = ("new", "worse", "better", "resolved")
_SIGN = {"new": 1, "worse": 1, "better": -1, "resolved": -1}


@dataclass(frozen=True)
class Change:
    """One finding between two studies. kind: one of MOVED, same or absent; severity: of the follow-up, 0..1, or None;
    sure: said so; noun: the finding with its side."""

    finding: Finding
    kind: str
    severity: float | None
    sure: bool
    noun: str = ""

    @property
    def sign(self) -> int:
        """+1 new or worse, -1 better or resolved, else 0."""
        return _SIGN.get(self.kind, 0)


def placed(change: Change, side: str | None, zone: str | None) -> Change:
    """Named with its side (left, right, both) and zone (upper, mid, lower), where they are known."""
    where = {"both": "bilateral", None: ""}.get(side, side)
    part = f"{zone} lung" if zone else ""
    return replace(change, noun=" ".join(filter(None, (where, part, change.finding.name))))


def ordered(found: list[Change]) -> tuple[list[Change], list[Change], list[Change]]:
    """(what moved, the weightiest first; what is the same; what is absent)."""
    moved = [c for c in found if c.kind in MOVED]
    moved.sort(key=lambda c: ({"new": 0, "worse": 1, "resolved": 1, "better": 2}[c.kind], -(c.severity or 0)))
    return moved, [c for c in found if c.kind == "same"], [c for c in found if c.kind == "absent"]


def prompt(rng: random.Random, moved: list[Change]) -> tuple[str, list[Change]]:
    """(the first one or two changes in at most PROMPT_WORDS words, or NO_CHANGE; the changes that it names)."""
    if not moved:
        return NO_CHANGE, []
    merged = _merged(moved)
    keep = 1 if len(merged) > 1 and rng.random() < 0.35 else 2
    phrases = _fit([_phrase(rng, change, noun) for change, noun, _ in merged[:keep]], PROMPT_WORDS, least=1)
    named = [c for change, _, twin in merged[: len(phrases)] for c in (change, twin) if c]
    return " ".join(phrases), named


def interpretation(rng: random.Random, moved: list[Change], same: list[Change], absent: list[Change]) -> str:
    """Every change, then what persists, then sometimes what is absent, in about INTERPRETATION_WORDS words."""
    phrases = [_phrase(rng, change, noun) for change, noun, _ in _merged(moved)]
    if not moved:
        phrases.append(NO_CHANGE)
    merged = _merged(same)
    if len(merged) > 2 or (len(merged) == 2 and rng.random() < 0.5):
        names = [noun or change.noun for change, noun, _ in merged]
        word = ("Unchanged", "Stable", "Persistent")[rng.randrange(3)]
        phrases.append(f"{word} {', '.join(names[:-1])} and {names[-1]}.")
    else:
        phrases += [_phrase(rng, change, noun) for change, noun, _ in merged]
    phrases = _fit(phrases, INTERPRETATION_WORDS, least=len(_merged(moved)))
    if absent and rng.random() < 0.5:
        names = absent_names([c.finding for c in absent])
        rng.shuffle(names)
        names = names[: rng.randrange(1, 3)]
        if names:
            phrases = _fit([*phrases, f"No {' or '.join(names)}."], INTERPRETATION_WORDS, least=len(phrases))
    return " ".join(phrases)


def single(rng: random.Random, found: list[Change]) -> str:
    """What one study shows and some of what it does not; "" where nothing is settled."""
    _, there, absent = ordered(found)
    phrases = []
    for change, noun, _ in _merged(there):
        text = f"{_degree(change)} {noun or change.noun}".strip()
        phrases.append(f"{text[0].upper()}{text[1:]}.")
    names = absent_names([c.finding for c in absent])
    rng.shuffle(names)
    if names := names[: rng.randrange(1, 4)]:
        last = f" or {names[-1]}" if len(names) > 1 else names[-1]
        phrases.append(f"No {', '.join(names[:-1])}{last}.")
    return " ".join(_fit(phrases, INTERPRETATION_WORDS, least=1))


def _degree(change: Change) -> str:
    if change.severity is None:
        return ""
    return change.finding.grades[int(change.severity >= MODERATE) + int(change.severity >= LARGE)]


_WORDS = {
    "new": (("New {g} {n}", "Interval development of {g} {n}", "New {g} {n}"), ("New {n}",)),
    "worse": (
        ("Increased {n}, now {g}", "Worsened {n}, now {g}"),
        ("Increased {n}", "Worsened {n}", "Worsening {n}"),
    ),
    "better": (
        ("Decreased {n}, now {g}", "Improved {n}, now {g}"),
        ("Decreased {n}", "Improved {n}", "Improving {n}"),
    ),
    "resolved": ((), ("Resolved {n}", "Interval resolution of {n}", "{n} {has} resolved")),
    "same": (("Unchanged {g} {n}", "Stable {g} {n}", "Persistent {g} {n}"), ("Unchanged {n}", "Stable {n}")),
}


def _phrase(rng, change: Change, noun: str | None = None) -> str:
    graded, plain = _WORDS[change.kind]
    degree, noun = _degree(change), noun or change.noun
    options = graded if degree and graded else plain
    has = "have" if is_plural(noun) else "has"
    text = options[rng.randrange(len(options))].format(g=degree, n=noun, has=has)
    return text[0].upper() + text[1:] + "."


_PLURAL = {"pleural effusion": "pleural effusions", "pneumothorax": "pneumothoraces"}


def _merged(changes: list[Change]) -> list[tuple[Change, str | None, Change | None]]:
    """(change, noun instead of its own, twin): both sides of one finding with the same fate become "bilateral"."""
    out, used = [], set()
    for c in changes:
        if c.finding.name in used:
            continue
        twin = next((d for d in changes if _other_side(c.finding, d.finding) and d.kind == c.kind), None)
        if twin is not None and _degree(twin) == _degree(c):
            used.add(twin.finding.name)
            out.append((c, f"bilateral {_PLURAL.get(c.finding.noun, c.finding.noun)}", twin))
        else:
            out.append((c, None, None))
    return out


def _other_side(one: Finding, two: Finding) -> bool:
    return bool(one.side and two.side and one.side != two.side) and one.noun == two.noun


def _fit(phrases: list[str], words: int, least: int = 0) -> list[str]:
    """The leading phrases that stay within a number of words, but at least `least`."""
    out, total = [], 0
    for phrase in phrases:
        total += len(phrase.split())
        if total > words and len(out) >= least:
            break
        out.append(phrase)
    return out


def absent_names(findings: list[Finding]) -> list[str]:
    """Names behind a "No": those without sides first; without its side where both sides are absent."""
    out = [f.name for f in findings if not f.side]
    for noun in dict.fromkeys(f.noun for f in findings if f.side):
        sides = [side for side in SIDES if any(f.noun == noun and f.side == side for f in findings)]
        out.append(noun if len(sides) == 2 else f"{sides[0]} {noun}")
    return out
