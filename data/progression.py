"""Two reports of one patient -> progression prompt and interpretation, by rules (no model, no network).

The prompt says in one or two short sentences what changed; the interpretation tells every change, then what
persists, then sometimes what is absent, so that it holds findings which the prompt leaves out. The wording
is drawn from the reports themselves (a hash), so the same two reports always give the same texts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from progemu_jax.data import progression_wording as wording
from progemu_jax.data.progression_wording import Change
from progemu_jax.text import rules
from progemu_jax.text.findings import PHANTOM, Finding

_GRADE_STEP = 0.15  # a smaller step of two severities is no change


@dataclass(frozen=True)
class Progression:
    """prompt and interpretation: texts. confidence: 1 (nothing to go by) .. 5 (both reports say it outright).

    changes: {finding: +1 new or worse, -1 better or resolved, 0 as before} behind the texts; asked: those that the
    prompt names.
    """

    prompt: str
    interpretation: str
    confidence: int
    changes: dict[str, int]
    reason: str = ""
    asked: dict[str, int] = field(default_factory=dict)


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
    moved, same, absent = wording.ordered(found)
    confidence, reason = _confidence(found, moved, before, after)
    prompt, asked = wording.prompt(rng, moved)
    return Progression(
        prompt=prompt,
        interpretation=wording.interpretation(rng, moved, same, absent),
        confidence=confidence,
        changes={c.finding.name: c.sign for c in moved + same},
        reason=reason,
        asked={c.finding.name: c.sign for c in asked},
    )


def _text(report: dict) -> str:
    return " ".join(part.strip() for part in (report.get("findings"), report.get("impression")) if part)


def _compare(before: str, after: str) -> list[Change]:
    states0, states1 = rules.states(before), rules.states(after)
    grade0, grade1 = rules.severities(before), rules.severities(after)
    said = rules.changes(after, context=states0)
    out = []
    for finding in PHANTOM:
        name = finding.name
        was, now, told = states0.get(name), states1.get(name), said.get(name)
        grade = grade1.get(name)
        if told is not None and told != 0:
            if now is False and told < 0:
                kind = "resolved"
            elif told > 0 and (was is False or (was is None and _is_new(after, finding))):
                kind = "new"
            else:
                kind = "worse" if told > 0 else "better"
            out.append(Change(finding, kind, grade, True))
        elif now is False:
            out.append(Change(finding, "resolved" if was else "absent", None, was is not None))
        elif now is True and told is None and was is not True:
            out.append(Change(finding, "new", grade, was is False))
        elif now is True and told is None and name in grade0 and name in grade1:
            step = grade1[name] - grade0[name]
            kind = "same" if abs(step) < _GRADE_STEP else "worse" if step > 0 else "better"
            out.append(Change(finding, kind, grade, kind == "same"))
        elif told == 0 and (was or now):
            out.append(Change(finding, "same", grade if grade is not None else grade0.get(name), True))
        elif now is True:
            out.append(Change(finding, "same", grade, False))
    return out


def _inverted(found: list[Change], before: str, after: str) -> list[Change]:
    """The changes of the other order, turned round: from the text `before` to the text `after`, which is the target."""
    states, grade0, grade1 = rules.states(after), rules.severities(before), rules.severities(after)
    other = {"new": "resolved", "resolved": "new", "worse": "better", "better": "worse", "same": "same"}
    out = [
        replace(c, kind=other[c.kind], severity=_grade_of(c.finding.name, other[c.kind], grade0, grade1))
        for c in found
        if c.kind != "absent"
    ]
    told = {c.finding for c in out}
    out += [Change(f, "absent", None, True) for f in PHANTOM if states.get(f.name) is False and f not in told]
    return sorted(out, key=lambda c: PHANTOM.index(c.finding))


def _grade_of(name: str, kind: str, grade0: dict, grade1: dict) -> float | None:
    """The target's grade; the prior's only where nothing moved."""
    return None if kind == "resolved" else grade1.get(name, grade0.get(name) if kind == "same" else None)


def _compare_states(before: str, after: str) -> list[Change]:
    states, grades = (rules.states(before), rules.states(after)), (rules.severities(before), rules.severities(after))
    return compare_states(PHANTOM, *states, *grades)


def compare_states(
    findings: Iterable[Finding],
    states0: Mapping[str, bool],
    states1: Mapping[str, bool],
    grade0: Mapping[str, float],
    grade1: Mapping[str, float],
) -> list[Change]:
    """What follows from states and severities of two studies alone; in the other order, the inverse.

    A finding of one study that the other leaves out counts as absent there, and is not `sure`.
    """
    out = []
    for finding in findings:
        name = finding.name
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
        out.append(Change(finding, kind, _grade_of(name, kind, grade0, grade1), sure))
    return out


def _placed(found: list[Change], sites0: dict, sites1: dict) -> list[Change]:
    """As `_located`, each place from the report whose study has the finding."""
    out = []
    for c in found:
        first, second = (sites0, sites1) if c.kind == "resolved" else (sites1, sites0)
        out += _located([c], {**second, **first})
    return out


def _located(found: list[Change], sites: dict) -> list[Change]:
    """Names the side (and the zone of a consolidation) of the findings whose name does not hold it."""
    out = []
    for c in found:
        side, zone = sites.get(c.finding.name, (None, None)) if c.kind != "absent" else (None, None)
        out.append(wording.placed(c, side, zone if c.finding.name == "consolidation" else None))
    return out


def _is_new(text: str, finding: Finding) -> bool:
    """Whether the text introduces the finding as new rather than as larger."""
    for mention in rules.mentions(text):
        if mention.change == 1 and finding.label == mention.finding and mention.is_new:
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
