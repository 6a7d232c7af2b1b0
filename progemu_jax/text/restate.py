"""A progression in a radiologist's, a student's or a clinician's own words: the grammar behind the training prompts.

`restate` says changes of findings in one of very many wordings (`prompt_changes` reads a prompt back). The tables
(`wordings`, `wording_nouns`, `wording_frames`) mark what training never sees, so that a test on words that are new to a
model is a test of that.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from progemu_jax.text import findings as lists
from progemu_jax.text import noise as slips
from progemu_jax.text import rules, wordings
from progemu_jax.text import wording_frames as frames
from progemu_jax.text import wording_nouns as nouns
from progemu_jax.text.findings import GRADES, PHANTOM, Finding, has_place, side_and_noun
from progemu_jax.text.wording_nouns import Noun
from progemu_jax.text.wordings import DIRECTIONS, Family

PARTS = ("train", "held-out")
HELD = frozenset({"verb", "noun", "frame"})
SIDES, ZONES = ("left", "right", "both"), ("upper", "mid", "lower")


@dataclass(frozen=True)
class Change:
    """What happens to one finding.

    finding: name of a `Finding`. direction: of DIRECTIONS. grade: of GRADES, what it has become (of "same": what it
    is); None where nothing is said of it. side, zone: of one that has a place (`has_place`); the other findings' names
    hold the side.
    """

    finding: str
    direction: str
    grade: str | None = None
    side: str | None = None
    zone: str | None = None

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction={self.direction!r}: expected one of {DIRECTIONS}")
        if self.grade not in (None, *GRADES) or (self.grade and self.direction == "resolved"):
            raise ValueError(f"grade={self.grade!r} of a {self.direction} finding: expected one of {GRADES} or None")
        placed = has_place(self.finding)
        if self.side not in (None, *SIDES) or self.zone not in (None, *ZONES) or (not placed and self.zone):
            raise ValueError(f"side={self.side!r}, zone={self.zone!r} of {self.finding}")
        if not placed and self.side not in (None, "both"):
            raise ValueError(f"side={self.side!r}: the name {self.finding!r} holds the side")

    @property
    def noun(self) -> str:
        """The finding without its side."""
        return side_and_noun(self.finding)[1]


def restate(
    changes: Sequence[Change],
    rng: np.random.Generator,
    part: str = "train",
    *,
    held: Collection[str] = HELD,
    noise: float = 0.0,
    asides: float = 0.0,
    others: Sequence[str] = (),
    findings: tuple[Finding, ...] = PHANTOM,
) -> str:
    """The changes in one of the wordings of the grammar.

    Args:
      changes: in the order in which they are told, at most one for each finding; none: "No significant change.".
      rng: draws the wording.
      part: "train" draws what training may see alone; "held-out" draws what it never sees, of the kinds in `held`.
      held: of the held-out part: "verb" (verbs, nouns and adjectives of direction), "noun" (of the finding), "frame";
        what is not named is drawn from the training part, so that each can be measured by itself.
      noise: how often slips are made: typos, case, punctuation, British spelling (`noise.slipped`).
      asides: how often a clause is added that changes nothing ("No new effusion.").
      others: names of findings that really did not change, which asides may name; the rest of the chest is only called
        unchanged when all findings outside `changes` are here.
      findings: the list that the names are of.

    Returns:
      One to a few sentences.
    """
    if part not in PARTS:
        raise ValueError(f"part={part!r}: expected one of {PARTS}")
    wanted = frozenset(held) if part == "held-out" else frozenset()
    if wanted - HELD:
        raise ValueError(f"held={sorted(wanted)}: expected some of {sorted(HELD)}")
    named = {c.finding for c in changes}
    for _ in range(16):
        groups = _merged(list(changes), rng)
        text = _said(groups, rng, wanted) if groups else _nothing(rng, "frame" in wanted)
        # "Volume loss" is a word for atelectasis, but not where the cohort has a finding of that name.
        if findings == PHANTOM or rules.changes(text, findings=findings).keys() <= named:
            break
    if groups and asides and rng.random() < asides:
        text = _with_aside(text, changes, others, rng, "frame" in wanted, findings)
    return slips.slipped(text, rng, noise) if noise else text


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _merged(changes: list[Change], rng) -> list[Change]:
    """Both sides with one fate are told as one, mostly."""
    out: list[Change] = []
    for change in changes:
        side, what = side_and_noun(change.finding)
        other = f"{ {'left': 'right', 'right': 'left'}.get(side) } {what}"
        twin = next((c for c in out if c.finding == other and replace(c, finding=change.finding) == change), None)
        if twin is not None and rng.random() < 0.85:
            out[out.index(twin)] = replace(twin, side="both")
        else:
            out.append(change)
    return out


def _said(groups: list[Change], rng, wanted: frozenset) -> str:
    manner = _pick(rng, ("say", "say", "say", "note", "note", "do"))
    first = groups[0]
    alike = [c for c in groups if c.direction == first.direction and not c.grade]
    if len(groups) == len(alike) == 2 and manner == "say" and rng.random() < 0.4:
        together = _sentence(groups, rng, manner, wanted)
        if together:
            return together
    parts = [_sentence([c], rng, manner if rng.random() < 0.9 else "say", wanted) for c in groups]
    text = parts[0]
    for part in parts[1:]:
        joint = _pick(rng, (None, None, None, "; ", ", and ", " and ", ", while "))
        if joint is None or (manner != "say" and joint == ", while "):
            text = f"{text} {part}"
        else:
            text = f"{text.rstrip('.')}{joint}{_lowered(part)}"
    return text


def _nothing(rng, held: bool) -> str:
    frame = _pick(rng, _of(frames.NOTHING, held))
    return _finished(frame.format(t=_pick(rng, ("", *frames.TIMES))))


def _with_aside(text: str, changes: Sequence[Change], others: Sequence[str], rng, held: bool, findings) -> str:
    named = {c.finding for c in changes}
    # "No new effusion" is of both sides: both must be known to have stayed.
    moved = {f.noun for f in findings if f.name in named or f.name not in others}
    free = sorted({f.noun for f in findings} - moved)
    whole = named | set(others) >= set(lists.names(findings))
    options = [f for f in _of(frames.ASIDES, held) if ("{x}" in f and free) or ("{x}" not in f and whole)]
    if not options:
        return text
    return f"{text} {_pick(rng, options).format(x=_pick(rng, free) if free else '')}"


@functools.lru_cache(maxsize=1024)
def _of(table: tuple[str, ...], held: bool) -> tuple[str, ...]:
    """The frames of a table that are, or are not, held out, without their mark."""
    return tuple(f.removeprefix("* ") for f in table if f.startswith("* ") == held)


@functools.cache
def _slots(frame: str) -> frozenset[str]:
    return frozenset(name for _, name, _, _ in string.Formatter().parse(frame) if name)


# ---------------------------------------------------------------------------------------------- one sentence

_VERBAL = {"perf", "past", "prog", "perfprog", "pres"}
_NEEDS = {
    **dict.fromkeys(_VERBAL, "verb"),
    "n": "noun", "na": "adjectives", "nb": "adjectives", "nd": "adjectives",
    "p": "after", "passive": "done", "do": "do",
}  # fmt: skip


def _sentence(group: list[Change], rng, manner: str, wanted: frozenset) -> str:
    """One sentence on a change, or on several of one direction; "" when several find no common verb."""
    change = group[0]
    if len(group) == 1 and not wanted & {"verb", "noun"} and rng.random() < 0.2:
        clause = _clause(change, rng, "frame" in wanted)
        if clause:
            return clause
    every = frames.FRAMES[change.direction]
    for attempt in range(200):
        manner = manner if attempt < 100 else _pick(rng, tuple(every))
        frame = _pick(rng, _of(every[manner], "frame" in wanted))
        needs = {_NEEDS[slot] for slot in _slots(frame) if slot in _NEEDS}
        if ("verb" in wanted and not needs) or (len(group) > 1 and not _joint(frame)):
            continue
        named = [_named(c, rng, "noun" in wanted, manner) for c in group]
        if None in named:
            continue
        family = _family(change, [n for n, _ in named], needs, frame, rng, "verb" in wanted)
        if needs and family is None:
            continue
        text = _filled(frame, group, named, family, rng)
        if text:
            return text
    return "" if len(group) > 1 else _fallback(change, rng, wanted)


def _joint(frame: str) -> bool:
    """Whether a frame can have two findings for its subject."""
    return frame.startswith("{d} {") and not _slots(frame) & {"na", "n"}


def _fallback(change: Change, rng, wanted: frozenset) -> str:
    """Never needed by a change that can be said; keeps an odd one from being lost."""
    if wanted:
        return _sentence([change], rng, "say", frozenset(sorted(wanted)[1:]))
    raise ValueError(f"the grammar has no sentence for {change}")


def _named(change: Change, rng, held: bool, manner: str) -> tuple[Noun, str] | None:
    """A noun of the finding and the noun with its place; None where the two do not fit."""
    noun = _pick(rng, _nouns_of(change.noun, change.direction, held))
    if change.grade and (noun.style == "none" or (noun.style == "heart" and change.direction == "same")):
        return None
    placed = _placed(noun, change, rng, manner == "note")
    return (noun, placed) if placed else None


@functools.cache
def _nouns_of(what: str, direction: str, held: bool) -> tuple[Noun, ...]:
    return tuple(n for n in nouns.of(what) if n.held == held and (not n.only or direction in n.only))


def _placed(noun: Noun, change: Change, rng, short: bool) -> str | None:
    own_side, _ = side_and_noun(change.finding)
    if noun.kind in "efpg" or "{s}" in noun.text or own_side:
        side = change.side or own_side
        if side is None:
            return None if "{s}" in noun.text else noun.text
        if change.zone and "{s}" in noun.text:
            return None
        if side == "both":
            if "{s}" in noun.text or (noun.number == "count" and not noun.many):
                return noun.many or None
            patterns = (nouns.SHORT_SIDES if short and rng.random() < 0.5 else nouns.SIDES)["both"]
            return _pick(rng, patterns).format(n=noun.many or noun.text)
        if "{s}" in noun.text:
            return noun.text.format(s=side)
        patterns = (nouns.SHORT_SIDES if short and rng.random() < 0.5 else nouns.SIDES)[side]
        if " of " in noun.text:  # "a pocket of pleural air on the left"
            patterns = nouns.SIDES[side][-2:]
        return _pick(rng, patterns).format(n=noun.text)
    if not has_place(change.finding):
        return noun.text
    if noun.number == "count" and change.side == "both":
        return f"bilateral {noun.many}" if noun.many and not change.zone else None
    front, behind = nouns.PLACES[change.side, change.zone]
    if "{w}" in noun.text:
        return noun.text.format(w=_pick(rng, behind))
    if short and rng.random() < 0.4 and (change.side, change.zone) in nouns.SHORT_PLACES:
        front = nouns.SHORT_PLACES[change.side, change.zone]
    elif front != ("",) and (" of " in noun.text or rng.random() < 0.35):
        return f"{noun.text} in {_pick(rng, behind)}"
    return f"{_pick(rng, front)} {noun.text}".strip()


def _family(change: Change, named: list[Noun], needs: set, frame: str, rng, held: bool) -> Family | None:
    # The heart itself is no disease: it grows and shrinks, and there is no "worsening of the heart".
    if any(n.kind == "h" for n in named) and needs & {"noun", "adjectives"}:
        return None
    kinds = {n.kind for n in named}
    options = [
        f
        for f in wordings.FAMILIES[change.direction]
        if f.held == held and kinds <= set(f.on) and all(f.has(part) for part in needs) and _fits(f, frame)
    ]
    return _pick(rng, options) if options and needs else None


def _fits(family: Family, frame: str) -> bool:
    if family.after in ("up", "down") and ("become" in frame or " than " in frame):
        return False
    return not (family.do.startswith("do not") and re.search(r"\bto \{do\}", frame))


def _filled(frame: str, group: list[Change], named: list, family: Family | None, rng) -> str:
    """The frame with its slots filled; "" where a word would stand twice or a grade finds no place."""
    change, (noun, placed) = group[0], named[0]
    many = len(group) > 1 or noun.number == "plural" or (change.side == "both" and noun.number == "count")
    graded = change.grade if change.direction in ("new", "same") else None
    moved = change.grade if change.direction in ("worse", "better") else None
    slots = _slots(frame)
    if (moved and not slots & {"g", "G", "u"}) or (graded and not slots & {"a", "b", "na", "nb", "do", "d", "nd"}):
        return ""
    adjective = _pick(rng, family.adjectives) if family and slots & {"na", "nb", "nd"} else ""
    if adjective and adjective.split(" ")[-1] == placed.split(" ")[0]:
        return ""
    bare = _graded(noun, placed, graded, rng)
    both = [placed for _, placed in named[1:]]
    definite = " and ".join([_definite(bare, rng, noun), *(_definite(other, rng, noun) for other in both)])
    described = f"{adjective} {bare}".strip()
    be, have, been = ("are", "have", "were") if many else ("is", "has", "was")
    it = "they" if many else "it"
    indefinite = _indefinite(noun, bare, many, graded)
    values = {
        "a": indefinite, "d": definite, "b": bare, "e": placed, "is": be, "has": have, "was": been, "it": it,
        "na": _indefinite(noun, described, many, graded), "nb": described, "nd": f"the {described}",
        "t": _when(group, rng) if "t" in slots else "", "now": _pick(rng, frames.NOWS) if "now" in slots else "",
    }  # fmt: skip
    if family:
        object_ = indefinite if change.direction == "new" else definite
        values |= {"n": family.noun, "p": family.after, "passive": f"{have} been {family.done}"}
        values["do"] = family.do.format(d=object_, it=it, is_=be, **{"is": be}) if family.do else ""
        if family.verb:
            forms = wordings.inflected(family.verb)
            values |= {
                "perf": f"{have} {forms['perfect']}", "past": forms["past"], "prog": f"{be} {forms['going']}",
                "perfprog": f"{have} been {forms['going']}", "pres": forms["base" if many else "third"],
            }  # fmt: skip
    values |= _tails(noun.style, moved, be, it, rng)
    if family and moved and set(re.findall(r"\w+", values["g"])[-1:]) & set(f"{family.after} {adjective}".split()):
        return ""  # "less severe, now severe"
    text = _finished(frame.format(**values))
    return "" if " in in " in text else text


def _graded(noun: Noun, placed: str, grade: str | None, rng) -> str:
    """The noun with a grade in front, without an article of its own but that of an amount."""
    if not grade:
        return placed
    if noun.style == "adverb":
        return f"{_pick(rng, wordings.ADVERBS[grade])} {placed}"
    if noun.style == "amount":
        return f"{_pick(rng, wordings.AMOUNTS[grade])} {placed}".removeprefix("a ")
    table = wordings.SIZES if noun.style == "size" else wordings.DEGREES
    words = [w for w in table[grade] if not (w == "extensive" and noun.kind in "co")]
    return f"{_pick(rng, words)} {placed}"


def _indefinite(noun: Noun, text: str, many: bool, grade: str | None) -> str:
    counted = (noun.number == "count" and not many) or (grade and noun.style == "amount")
    if not counted:
        return text
    return f"{'an' if re.match(r'[aeiouAEIO]|L ', text) else 'a'} {text}"


def _definite(text: str, rng, noun: Noun) -> str:
    # Reports leave the article out ("Left effusion has increased.").
    return text if rng.random() < 0.2 and noun.kind != "h" and "amount" not in text else f"the {text}"


def _tails(style: str, grade: str | None, be: str, it: str, rng) -> dict[str, str]:
    if not grade:
        return {"g": "", "G": "", "u": ""}
    word = _pick(rng, wordings.NOW[style if style in wordings.NOW else "degree"][grade])
    short = _pick(rng, (f", now {word}", f", now {word}", f", currently {word}", f" (now {word})"))
    return {
        "g": short,
        "G": _pick(rng, (short, f" and {be} now {word}", f"; {it} {be} now {word}")),
        "u": _pick(rng, (f" so that {it} {be} {word}", f", to be {word}", f", now {word}")),
    }


def _when(group: list[Change], rng) -> str:
    draw = rng.random()
    causes = frames.CAUSES.get((group[0].noun, group[0].direction), ())
    if draw < 0.12 and causes and len(group) == 1:
        return _pick(rng, causes)
    return _pick(rng, frames.TIMES) if draw < 0.5 else ""


def _clause(change: Change, rng, held: bool) -> str:
    """A whole clause by the finding's sign, or "" where none fits."""
    what = change.noun
    if what in ("pleural effusion", "pneumothorax") and (change.side == "both" or what == change.finding):
        return ""
    options = _of(frames.CLAUSES.get((what, change.direction), ()), held)
    moved = change.direction in ("worse", "better")
    options = [c for c in options if not change.grade or not moved or "g" in _slots(c)]
    options = [c for c in options if not change.grade or what != "cardiomegaly" or moved or "h" in _slots(c)]
    options = [c for c in options if not (change.side == "both" and "W" in _slots(c))]
    if not options:
        return ""
    place = _pick(rng, nouns.PLACES[change.side, change.zone][1]) if has_place(change.finding) else ""
    style = {"pleural effusion": "amount", "pneumothorax": "amount", "cardiomegaly": "heart"}.get(what, "degree")
    adverb = f"{_pick(rng, wordings.ADVERBS[change.grade])} " if change.grade else ""
    text = _pick(rng, options)
    text = text.format(
        s=side_and_noun(change.finding)[0], w=place, W=place, h=adverb, t=_when([change], rng),
        g=_tails(style, change.grade if moved else None, "is", "it", rng)["g"],
    )  # fmt: skip
    if change.direction == "new" and change.grade and what != "cardiomegaly":
        word = _pick(rng, (wordings.SIZES if style == "amount" else wordings.DEGREES)[change.grade][:2])
        text = f"{text.rstrip('.')}; the {what.split(' ')[-1]} is {word}."
    return _finished(text)


def _finished(text: str) -> str:
    """With a capital at its start, single spaces, and none before a mark."""
    text = re.sub(r" +", " ", text).strip()
    return text[0].upper() + text[1:]


def _lowered(text: str) -> str:
    """For the middle of a sentence: without a capital, where it is not an abbreviation."""
    return text[0].lower() + text[1:] if re.match(r"[A-Z][a-z ]", text) and text[:2] not in ("L ", "R ") else text
