"""Two reports of one patient -> progression prompt and interpretation, by rules (no model, no network).

The prompt says in one or two short sentences what changed; the interpretation tells every change, then what
persists, then sometimes what is absent, so that it holds findings which the prompt leaves out. The wording
is drawn from the reports themselves (a hash), so the same two reports always give the same texts.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace

from progemu_jax.text import rules
from progemu_jax.text.findings import CHEXPERT_OF, FINDINGS, NO_CHANGE
from progemu_jax.text.rules import LARGE, MODERATE

PROMPT_WORDS, INTERPRETATION_WORDS = 12, 35

_SIZES = ("small", "moderate", "large")
_DEGREES = ("mild", "moderate", "severe")
_GRADE_STEP = 0.15
_SIDED = FINDINGS[:4]


@dataclass(frozen=True)
class Progression:
    """prompt and interpretation: texts. confidence: 1 (nothing to go by) .. 5 (both reports say it outright).

    changes: {finding: +1 new or worse, -1 better or resolved, 0 as before} behind the texts.
    """

    prompt: str
    interpretation: str
    confidence: int
    changes: dict[str, int]
    reason: str = ""


@dataclass(frozen=True)
class _Change:
    """One finding between two studies. kind: new, worse, better, resolved, same or absent; sure: said
    so; noun: the finding with its side."""

    finding: str
    kind: str
    severity: float | None
    sure: bool
    noun: str = ""


def progression(prior: dict, followup: dict, said: str | None = "forward") -> Progression:
    """Compares two reports.

    Args:
      prior, followup: {"findings": text, "impression": text}, "" or absent when there is none.
      said: whose words of a change ("increased", "resolved") hold for this pair, where they go before what follows
        from the two reports' states and grades. "forward": the follow-up's, which was written with the prior at hand.
        "reversed": the prior is the later study, so that its words hold the other way round: the result is that of the
        other order, inverted. None: neither's, since each report speaks of another study. Then a finding of one report
        that the other leaves out counts as absent there: who reads both learns no more.

    Returns:
      Progression. Without any change the prompt is NO_CHANGE.
    """
    before, after = _text(prior), _text(followup)
    if said == "forward":
        found = _located(_compare(before, after), {**rules.sites(before), **rules.sites(after)})
    else:
        found = _inverted(_compare(after, before), before, after) if said else _compare_states(before, after)
        found = _placed(found, rules.sites(before), rules.sites(after))
    seed = hashlib.sha256(f"{before}\x00{after}".encode()).digest()
    rng = random.Random(int.from_bytes(seed[:8], "big"))
    moved = [c for c in found if c.kind in ("new", "worse", "better", "resolved")]
    same = [c for c in found if c.kind == "same"]
    absent = [c for c in found if c.kind == "absent"]
    moved.sort(key=lambda c: ({"new": 0, "worse": 1, "resolved": 1, "better": 2}[c.kind], -(c.severity or 0)))
    confidence, reason = _confidence(found, moved, before, after)
    return Progression(
        prompt=_prompt(rng, moved),
        interpretation=_interpretation(rng, moved, same, absent),
        confidence=confidence,
        changes={c.finding: {"new": 1, "worse": 1, "better": -1, "resolved": -1}.get(c.kind, 0) for c in moved + same},
        reason=reason,
    )


def _text(report: dict) -> str:
    return " ".join(part.strip() for part in (report.get("findings"), report.get("impression")) if part)


def _compare(before: str, after: str) -> list[_Change]:
    states0, states1 = rules.states(before), rules.states(after)
    grade0, grade1 = rules.severities(before), rules.severities(after)
    said = rules.changes(after, context=states0)
    out = []
    for name in FINDINGS:
        was, now, told = states0.get(name), states1.get(name), said.get(name)
        grade = grade1.get(name)
        if told is not None and told != 0:
            if now is False and told < 0:
                kind = "resolved"
            elif told > 0 and (was is False or (was is None and _is_new(after, name))):
                kind = "new"
            else:
                kind = "worse" if told > 0 else "better"
            out.append(_Change(name, kind, grade, True))
        elif now is False:
            out.append(_Change(name, "resolved" if was else "absent", None, was is not None))
        elif now is True and told is None and was is not True:
            out.append(_Change(name, "new", grade, was is False))
        elif now is True and told is None and name in grade0 and name in grade1:
            step = grade1[name] - grade0[name]
            kind = "same" if abs(step) < _GRADE_STEP else "worse" if step > 0 else "better"
            out.append(_Change(name, kind, grade, kind == "same"))
        elif told == 0 and (was or now):
            out.append(_Change(name, "same", grade if grade is not None else grade0.get(name), True))
        elif now is True:
            out.append(_Change(name, "same", grade, False))
    return out


def _inverted(found: list[_Change], before: str, after: str) -> list[_Change]:
    """The changes of the other order, turned round: from the text `before` to the text `after`, which is the target."""
    states, grade0, grade1 = rules.states(after), rules.severities(before), rules.severities(after)
    other = {"new": "resolved", "resolved": "new", "worse": "better", "better": "worse", "same": "same"}
    out = [
        replace(c, kind=other[c.kind], severity=_grade_of(c.finding, other[c.kind], grade0, grade1))
        for c in found
        if c.kind != "absent"
    ]
    told = {c.finding for c in out}
    out += [_Change(name, "absent", None, True) for name in FINDINGS if states.get(name) is False and name not in told]
    return sorted(out, key=lambda c: FINDINGS.index(c.finding))


def _grade_of(name: str, kind: str, grade0: dict, grade1: dict) -> float | None:
    """The target's grade; the prior's only where nothing moved."""
    return None if kind == "resolved" else grade1.get(name, grade0.get(name) if kind == "same" else None)


def _compare_states(before: str, after: str) -> list[_Change]:
    """What follows from states and grades alone; in the other order, the inverse."""
    states0, states1 = rules.states(before), rules.states(after)
    grade0, grade1 = rules.severities(before), rules.severities(after)
    out = []
    for name in FINDINGS:
        was, now = states0.get(name), states1.get(name)
        sure = was is not None and now is not None
        if was and now:
            step = grade1[name] - grade0[name] if name in grade0 and name in grade1 else None
            kind = "same" if step is None or abs(step) < _GRADE_STEP else "worse" if step > 0 else "better"
            sure = step is not None
        elif was or now:
            kind = "new" if now else "resolved"
        elif now is False:
            kind = "absent"
        else:
            continue
        out.append(_Change(name, kind, _grade_of(name, kind, grade0, grade1), sure))
    return out


def _placed(found: list[_Change], sites0: dict, sites1: dict) -> list[_Change]:
    """As `_located`, each place from the report whose study has the finding."""
    out = []
    for c in found:
        first, second = (sites0, sites1) if c.kind == "resolved" else (sites1, sites0)
        out += _located([c], {**second, **first})
    return out


def _located(found: list[_Change], sites: dict) -> list[_Change]:
    """Names the side (and the zone of a consolidation) of the findings whose name does not hold it."""
    out = []
    for c in found:
        side, zone = sites.get(c.finding, (None, None)) if c.kind != "absent" else (None, None)
        where = {"both": "bilateral", None: ""}.get(side, side)
        part = f"{zone} lung" if zone and c.finding == "consolidation" else ""
        out.append(replace(c, noun=" ".join(filter(None, (where, part, c.finding)))))
    return out


def _is_new(text: str, finding: str) -> bool:
    """Whether the text introduces the finding as new rather than as larger."""
    for mention in rules.mentions(text):
        if mention.change == 1 and CHEXPERT_OF[finding] == mention.finding and mention.is_new:
            return True
    return False


def _confidence(found, moved, before, after) -> tuple[int, str]:
    if not before or not after:
        return 1, "a report is empty"
    if not found:
        return 1, "no finding is described in the follow-up report"
    unsure = sum(not c.sure for c in found if c.kind != "absent")
    if not unsure:
        return 5, "every change is stated or follows from both reports"
    if any(c.sure for c in moved) or not moved:
        return 4 if unsure == 1 else 3, "some findings are described in one report only"
    return 3 if unsure == 1 else 2, "the changes are inferred from one report"


def _degree(change: _Change) -> str:
    if change.severity is None:
        return ""
    names = _SIZES if change.finding in _SIDED else _DEGREES
    return names[int(change.severity >= MODERATE) + int(change.severity >= LARGE)]


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
    "resolved": ((), ("Resolved {n}", "Interval resolution of {n}", "{n} has resolved")),
    "same": (("Unchanged {g} {n}", "Stable {g} {n}", "Persistent {g} {n}"), ("Unchanged {n}", "Stable {n}")),
}


def _phrase(rng, change: _Change, noun: str | None = None) -> str:
    graded, plain = _WORDS[change.kind]
    degree = _degree(change)
    options = graded if degree and graded else plain
    text = options[rng.randrange(len(options))].format(g=degree, n=noun or change.noun)
    return text[0].upper() + text[1:] + "."


def _merged(changes: list[_Change]) -> list[tuple[_Change, str | None]]:
    """Both sides of one finding with the same fate become "bilateral"."""
    out, used = [], set()
    for c in changes:
        if c.finding in used:
            continue
        side, _, what = c.finding.partition(" ")
        other = {"left": "right", "right": "left"}.get(side)
        twin = next((d for d in changes if other and d.finding == f"{other} {what}" and d.kind == c.kind), None)
        if twin is not None and _degree(twin) == _degree(c):
            used.add(twin.finding)
            plural = {"pleural effusion": "pleural effusions", "pneumothorax": "pneumothoraces"}[what]
            out.append((c, f"bilateral {plural}"))
        else:
            out.append((c, None))
    return out


def _fit(phrases: list[str], words: int, least: int = 0) -> list[str]:
    """The leading phrases that stay within a number of words, but at least `least`."""
    out, total = [], 0
    for phrase in phrases:
        total += len(phrase.split())
        if total > words and len(out) >= least:
            break
        out.append(phrase)
    return out


def _prompt(rng, moved: list[_Change]) -> str:
    if not moved:
        return NO_CHANGE
    merged = _merged(moved)
    keep = 1 if len(merged) > 1 and rng.random() < 0.35 else 2
    phrases = [_phrase(rng, change, noun) for change, noun in merged[:keep]]
    return _plural(" ".join(_fit(phrases, PROMPT_WORDS, least=1)))


def _interpretation(rng, moved, same, absent) -> str:
    phrases = [_phrase(rng, change, noun) for change, noun in _merged(moved)]
    if not moved:
        phrases.append(NO_CHANGE)
    merged = _merged(same)
    if len(merged) > 2 or (len(merged) == 2 and rng.random() < 0.5):
        names = [noun or change.noun for change, noun in merged]
        word = ("Unchanged", "Stable", "Persistent")[rng.randrange(3)]
        phrases.append(f"{word} {', '.join(names[:-1])} and {names[-1]}.")
    else:
        phrases += [_phrase(rng, change, noun) for change, noun in merged]
    phrases = _fit(phrases, INTERPRETATION_WORDS, least=len(_merged(moved)))
    if absent and rng.random() < 0.5:
        names = _absent_names([c.finding for c in absent])
        rng.shuffle(names)
        names = names[: rng.randrange(1, 3)]
        if names:
            phrases = _fit([*phrases, f"No {' or '.join(names)}."], INTERPRETATION_WORDS, least=len(phrases))
    return _plural(" ".join(phrases))


def _absent_names(findings: list[str]) -> list[str]:
    out = [f for f in findings if f not in _SIDED]
    for what in ("pleural effusion", "pneumothorax"):
        sides = [s for s in ("left", "right") if f"{s} {what}" in findings]
        if len(sides) == 2:
            out.append(what)
        elif sides:
            out.append(f"{sides[0]} {what}")
    return out


def _plural(text: str) -> str:
    return text.replace("effusions has", "effusions have").replace("pneumothoraces has", "pneumothoraces have")
