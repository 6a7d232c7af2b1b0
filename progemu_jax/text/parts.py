"""What a run of atoms (`lexicon`) in front of or behind a term says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Part:
    """What is said of one side of one term."""

    side: str | None = None
    changes: list = field(default_factory=list)
    severity: float | None = None
    was: float | None = None
    neg: bool = False
    denied: bool = False
    unsure: bool = False
    asked: bool = False
    big: str = ""
    fine: bool = False
    past: bool = False
    verb: str | None = None
    neg_of_change: bool = False
    open: bool = False
    zone: str | None = None
    once: float | None = None  # "was small": the grade of then where another follows, else of now
    normal: bool = False  # "engorgement appears within normal limits"
    borderline: bool = False
    large: bool = False  # "the heart is large"


ADJECTIVES = {"SIDE", "SEVERITY", "CHANGE", "ARTICLE", "PLACE", "BIG"}

_ZONES = {
    "upper": re.compile(r"upper|apic|apex|^[rl]ul$"),
    "mid": re.compile(r"mid|^rml$"),
    "lower": re.compile(r"lower|bas|^[rl]ll$"),
}


def read(atoms: list, *, before_term: bool = False, beside: bool = False) -> Part:
    """Sums up a run of atoms; before_term: a term follows it. beside: "with" stands before it."""
    part = Part()
    if not before_term:
        atoms = _own(atoms, beside)
    seen_verb = False
    last = {a.kind: i for i, a in enumerate(atoms)}  # where each kind stands last
    moves = max((i for i, a in enumerate(atoms) if a.kind == "CHANGE" and a.value != "new"), default=-1)
    for i, atom in enumerate(atoms):
        after_past = i > 0 and atoms[i - 1].kind == "PAST"
        if atom.kind in ("SIDE", "PLACE") and part.zone is None:
            part.zone = next((zone for zone, words in _ZONES.items() if words.search(atom.text)), None)
        if atom.kind == "SIDE":
            part.side = atom.value if part.side in (None, atom.value) else "both"
        elif atom.kind == "CHANGE" and not after_past:
            part.changes.append(atom.value)
            if atom.value == "same" and atom.text.startswith(("no", "without", "little")):
                part.neg_of_change = True
                # "no worsening of the effusion": there is one; "no worsening edema": perhaps none.
                follows = atoms[i + 1].text if i + 1 < len(atoms) else "" if before_term else "of"
                part.open |= "chang" not in atom.text and follows not in ("of", "in", "the")
            part.big = part.big or ("enlarged" if "enlarged" in atom.text else "")
        elif atom.kind == "SEVERITY":
            if after_past or (i > 1 and atoms[i - 2].kind == "PAST"):
                part.was = atom.value
            elif i > 0 and atoms[i - 1].text in ("was", "were"):
                part.was = part.once = atom.value
            else:
                large = atom.text == "large" and not (i > 0 and atoms[i - 1].text == "as")
                if not (large and i > 0 and atoms[i - 1].kind == "SEVERITY"):  # "slightly large"
                    part.severity = atom.value
                part.large |= large
        elif atom.kind == "NEG":
            part.neg = True
        elif atom.kind == "DENIED":
            part.denied = True
        elif atom.kind == "UNSURE":
            follows = atoms[i + 1].kind if i + 1 < len(atoms) else None
            # "possibly loculated" after the noun doubts the word, not the finding.
            aside = not before_term and atom.text in ("possibly", "perhaps") and follows in ("WORD", "PLACE")
            # "possibly larger" doubts the change; "suspicious for developing edema" the finding.
            part.unsure |= not (aside or moves > i or atom.text == "borderline")
            part.borderline |= atom.text == "borderline"
        elif atom.kind == "ASKED":
            # "status post drainage with decreased effusion": what follows "with" is seen.
            part.asked |= last.get("JOIN", -1) < i
        elif atom.kind == "BIG":
            part.big = "" if after_past else atom.text
        elif atom.kind == "FINE":
            part.fine = True
            part.normal |= seen_verb and atom.text.startswith(("normal", "within"))
        elif atom.kind == "PAST":
            part.past = True
        elif atom.kind == "VERB":
            seen_verb = True
            part.verb = part.verb or atom.value or None
    return part


_DENIES_NEXT = re.compile(r"no\b|without|w/o|negative|lack|absence")


def _own(atoms: list, beside: bool) -> list:
    """Without the denials and, behind "with", the adjectives of a noun that the lexicon does not know: "enlarged
    without failure", "normal with prominent left atrium", "edema, differential includes aspiration"."""
    out, noun = [], None
    for i in range(len(atoms) - 1, -1, -1):
        kind, text = atoms[i].kind, atoms[i].text
        if kind == "UNSURE":
            others = text.startswith("differential")
        elif kind == "NEG":
            others = _DENIES_NEXT.match(text) and not (i and atoms[i - 1].text in ("is", "are", "was", "were"))
        else:
            others = beside and kind in ("BIG", "FINE")
        if not (others and noun == "WORD"):
            out.append(atoms[i])
        if kind not in ADJECTIVES:
            noun = kind
    return out[::-1]


def pieces(atoms: list) -> list[tuple[list, bool]]:
    """(what stands between the joints of atoms, whether "with" stands before it)."""
    out = [([], False)]
    for atom in atoms:
        if atom.kind == "JOIN":
            out.append(([], atom.value == "with"))
        else:
            out[-1][0].append(atom)
    return out
