"""Plain words, one wording a content: of changes, and of a report, one statement on each finding."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from progemu_jax.text import restate, rules
from progemu_jax.text.findings import CHEXPERT_OF, FINDINGS, NO_CHANGE
from progemu_jax.text.restate import Change

_PLAIN = {"new": "New", "worse": "Increased", "better": "Decreased", "resolved": "Resolved", "same": "Persistent"}


def plain(changes: Sequence[Change]) -> str:
    """The changes in the words of the interpretations: "Increased left pleural effusion, now moderate."."""
    out = []
    for c in changes:
        place = {"both": "bilateral", None: ""}.get(c.side, c.side)
        zone = f"{c.zone} lung" if c.zone and c.finding == "consolidation" else ""
        degree = rules.grade_word(CHEXPERT_OF[c.finding], c.grade) if c.grade else ""
        become = f", now {degree}" if degree and c.direction in ("worse", "better") else ""
        noun = " ".join(filter(None, ("" if become else degree, place, zone, c.finding)))
        out.append(f"{_PLAIN[c.direction]} {noun}{become}.")
    return " ".join(out) or NO_CHANGE


@functools.lru_cache(maxsize=1 << 16)
def statements(report: str) -> tuple[tuple[str, bool], ...] | None:
    """(statement, whether it tells a change) on each of FINDINGS, in that order, as the rules read a report.

    None where they do not read a change's finding or side.
    """
    report = " ".join(sentence for sentence in rules.sentences(report) if rules.mentions(sentence))
    moved = restate.changes_of(report, moved=True)
    if moved is None:
        return None
    changes, states = {change.finding: change for change in moved}, rules.states(report)
    grades, sites, out = rules.severities(report), rules.sites(report), []
    for finding in FINDINGS:
        if finding in changes:
            out.append((plain([changes[finding]]), True))
        elif states.get(finding):
            side, zone = sites.get(finding, (None, None))
            grade = rules.grade_of(grades[finding]) if finding in grades else None
            out.append((plain([Change(finding, "same", grade, side, zone)]), False))
        else:
            out.append((f"No {finding}.", False))
    return tuple(out)
