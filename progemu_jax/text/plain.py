"""Plain words, one wording a content: of changes, and of a report, one statement on each finding."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from progemu_jax.text import rules
from progemu_jax.text.findings import GRADES, NO_CHANGE, PHANTOM, Finding, names
from progemu_jax.text.prompt_changes import changes_of
from progemu_jax.text.restate import Change

_PLAIN = {"new": "New", "worse": "Increased", "better": "Decreased", "resolved": "Resolved", "same": "Persistent"}


def plain(changes: Sequence[Change], findings: tuple[Finding, ...] = PHANTOM) -> str:
    """The changes in the words of the interpretations: "Increased left pleural effusion, now moderate."."""
    out, of = [], {f.name: f for f in findings}
    for c in changes:
        place = {"both": "bilateral", None: ""}.get(c.side, c.side)
        zone = f"{c.zone} lung" if c.zone and c.finding != "atelectasis" else ""
        degree = of[c.finding].grades[GRADES.index(c.grade)] if c.grade else ""
        become = f", now {degree}" if degree and c.direction in ("worse", "better") else ""
        noun = " ".join(filter(None, ("" if become else degree, place, zone, c.finding)))
        out.append(f"{_PLAIN[c.direction]} {noun}{become}.")
    return " ".join(out) or NO_CHANGE


@functools.lru_cache(maxsize=1 << 16)
def statements(report: str, findings: tuple[Finding, ...] = PHANTOM) -> tuple[tuple[str, bool], ...] | None:
    """(statement, whether it tells a change) on each of the findings, in that order, as the rules read a report.

    None where they do not read a change's finding or side.
    """
    report = " ".join(sentence for sentence in rules.sentences(report) if rules.mentions(sentence, findings))
    moved = changes_of(report, moved=True, findings=findings)
    if moved is None:
        return None
    changes, states = {change.finding: change for change in moved}, rules.states(report, findings)
    grades, sites, out = rules.severities(report, findings), rules.sites(report, findings), []
    for finding in names(findings):
        if finding in changes:
            out.append((plain([changes[finding]], findings), True))
        elif states.get(finding):
            side, zone = sites.get(finding, (None, None))
            grade = rules.grade_of(grades[finding]) if finding in grades else None
            out.append((plain([Change(finding, "same", grade, side, zone)], findings), False))
        else:
            out.append((f"No {finding}.", False))
    return tuple(out)
