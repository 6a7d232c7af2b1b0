"""How the atoms of a sentence (`radlex`) become statements about findings.

A sentence is cut at its terms. Between two terms the last joint ("and", ",", "with", "due to") says which
words belong to which; denials, doubts, changes and sides then spread over enumerations ("no A, B or C",
"A and B have improved", "increased on the left and unchanged on the right").
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from progemu_jax.text import lexicon

_STRUCTURES = ("heart", "angle", "vessels")
_LUNGS_CLEAR = ("Atelectasis", "Consolidation", "Edema")
_SIGN = {"new": 1, "new!": 1, "up": 1, "down": -1, "gone": -1, "same": 0}


@dataclass(frozen=True)
class Mention:
    """One statement of a text about one finding.

    finding: a CheXpert observation. side: "left", "right", "both" or None (not said).
    present: True, False, or None (left open: uncertain, hypothetical or not said).
    change: +1 new or worse, -1 better or resolved, 0 explicitly as before, None not said.
    severity: in [0, 1], or None. sentence: where it stands. plural: said of several ("effusions").
    uncertain: hedged ("possible", "cannot be excluded"); then present is None.
    is_new: said to be new rather than larger; change is then +1.
    zone: "upper", "mid" or "lower" part of the lung, or None.
    """

    finding: str
    side: str | None
    present: bool | None
    change: int | None
    severity: float | None
    sentence: str
    plural: bool = False
    uncertain: bool = False
    is_new: bool = False
    zone: str | None = None


@dataclass
class _Part:
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


@dataclass
class _Item:
    finding: str | None
    form: str
    pre: list
    tail: list = field(default_factory=list)
    gap: list = field(default_factory=list)  # joints between the item before and this one
    parts: list = field(default_factory=list)
    head: _Part | None = None
    end: _Part | None = None
    inherited: bool = False


_ZONES = {
    "upper": re.compile(r"upper|apic|apex|^[rl]ul$"),
    "mid": re.compile(r"mid|^rml$"),
    "lower": re.compile(r"lower|bas|^[rl]ll$"),
}


def _read(atoms: list, *, before_term: bool = False) -> _Part:
    """Sums up a run of atoms; before_term: a term follows it."""
    part = _Part()
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
                part.severity = atom.value
        elif atom.kind == "NEG":
            part.neg = True
        elif atom.kind == "DENIED":
            part.denied = True
        elif atom.kind == "UNSURE":
            rest = [a.kind for a in atoms[i + 1 :]]
            # "possibly loculated" after the noun doubts the word, not the finding.
            aside = not before_term and atom.text in ("possibly", "perhaps") and rest[:1] in (["WORD"], ["PLACE"])
            part.unsure |= not aside and "CHANGE" not in rest
        elif atom.kind == "ASKED":
            # "status post drainage with decreased effusion": what follows "with" is seen.
            part.asked |= not any(a.kind == "JOIN" for a in atoms[i + 1 :])
        elif atom.kind == "BIG":
            part.big = "" if after_past else atom.text
        elif atom.kind == "FINE":
            part.fine = True
        elif atom.kind == "PAST":
            part.past = True
        elif atom.kind == "VERB" and atom.value:
            part.verb = part.verb or atom.value
    return part


def _pieces(atoms: list) -> list[list]:
    """Cuts atoms at their joints."""
    out = [[]]
    for atom in atoms:
        if atom.kind == "JOIN":
            out.append([])
        else:
            out[-1].append(atom)
    return out


_DOUBTED = ("suspected", "possible", "questionable", "questioned", "equivocal", "unclear", "borderline")
_ADJECTIVES = {"SIDE", "SEVERITY", "CHANGE", "ARTICLE", "PLACE", "BIG"}


def _split_gap(gap: list) -> tuple[list, list, list]:
    """Says which atoms between two terms belong to the first, which to the second; and the joints."""
    joins = [i for i, a in enumerate(gap) if a.kind == "JOIN"]
    if not joins:
        for i, a in enumerate(gap):
            predicate = i > 0 and gap[i - 1].kind == "VERB" and a.text in _DOUBTED
            if a.kind in ("NEG", "UNSURE", "ASKED") and not predicate:
                return gap[:i], gap[i:], [a]
        cut = len(gap)
        while cut and gap[cut - 1].kind in _ADJECTIVES:
            cut -= 1
        return (gap, [], []) if cut == 0 and gap and gap[-1].kind == "BIG" else (gap[:cut], gap[cut:], [])
    cut = joins[-1]
    # "..., new, small left effusion": adjectives that a comma cuts off from their noun.
    if gap[cut].text == "," and len(joins) > 1:
        piece = gap[joins[-2] + 1 : cut]
        if piece and all(a.kind in _ADJECTIVES for a in piece) and gap[joins[-2]].text != ",":
            cut = joins[-2]
    # "and left basal and right basal atelectasis"
    elif gap[cut].text == "and" and len(joins) > 1 and any(a.kind == "SIDE" for a in gap[cut:]):
        piece = gap[joins[-2] + 1 : cut]
        if any(a.kind == "SIDE" for a in piece) and all(a.kind in _ADJECTIVES for a in piece):
            cut = joins[-2]
    left, right = gap[:cut], gap[cut + 1 :]
    joints = [a for a in gap if a.kind == "JOIN"]
    while left and left[-1].kind == "JOIN":
        left = left[:-1]
    if gap[cut].value == "link":
        right = [a for a in left if a.kind == "UNSURE"] + right
        left = [a for a in left if a.kind != "UNSURE"]
    return left, right, joints


def _items(atoms: list) -> list[_Item]:
    places = [i for i, a in enumerate(atoms) if a.kind == "TERM"]
    items = []
    for k, at in enumerate(places):
        finding, form = atoms[at].value
        if k == 0:
            items.append(_Item(finding, form, pre=atoms[:at]))
        else:
            left, right, joints = _split_gap(atoms[places[k - 1] + 1 : at])
            items[-1].tail = left
            items.append(_Item(finding, form, pre=right, gap=joints))
    if items:
        items[-1].tail = atoms[places[-1] + 1 :]
    return items


def _spread(item: _Item) -> None:
    """Fills item.parts: one part per side that the term is said of."""
    item.head, item.end = _read(item.pre, before_term=True), _read(item.tail)
    sided = [p for p in map(_read, _pieces(item.pre)) if p.side]
    if len({p.side for p in sided}) > 1 and item.form != "heart":
        first = sided[0]
        for part in sided:
            part.changes = part.changes or first.changes
            part.severity = part.severity if part.severity is not None else first.severity
            for flag in ("neg", "unsure", "asked", "past"):
                setattr(part, flag, getattr(part, flag) or getattr(item.head, flag))
        item.parts = sided
    else:
        item.parts = [_read(item.pre, before_term=True)]
    own = list(item.parts)
    base = item.parts[0]
    for piece in _pieces(item.tail):
        said = _read(piece)
        if said.side and base.side is None and len(own) == 1:
            base.side = said.side
            targets = own
        elif said.side and said.side not in ("both", *(p.side for p in item.parts)) and base.side != "both":
            extra = _Part(side=said.side)
            if not (said.changes or said.neg or said.denied or said.verb):
                extra.changes, extra.neg = list(base.changes), base.neg
            item.parts.append(extra)
            targets = [extra]
        elif said.side in ("left", "right"):
            targets = [p for p in item.parts if p.side == said.side] or own
            if base.side == "both" and (said.changes or said.severity is not None or said.neg):
                other = "right" if said.side == "left" else "left"
                base.side = other
                extra = _Part(side=said.side, severity=base.severity, changes=[], neg=base.neg)
                item.parts.append(extra)
                own, targets = [base], [extra]
        else:
            targets = item.parts if len(item.parts) == len(own) else [item.parts[-1]]
        for part in targets:
            _merge(part, said)


def _merge(part: _Part, said: _Part) -> None:
    part.changes = part.changes + [c for c in said.changes]
    part.severity = said.severity if said.severity is not None else part.severity
    part.was = said.was if said.was is not None else part.was
    part.big, part.fine = part.big or said.big, part.fine or said.fine
    part.denied |= said.denied or said.neg
    part.unsure |= said.unsure
    part.zone = part.zone or said.zone
    part.once = said.once if said.once is not None else part.once
    part.past |= said.past


def _light(item: _Item, before: _Item) -> bool:
    """Whether the joint between two terms is a plain enumeration ("effusion, small atelectasis and ...")."""
    joined = bool(item.gap) and all(a.kind == "JOIN" and a.value == "list" for a in item.gap)
    return joined and all(a.kind in ("SIDE", "SEVERITY", "ARTICLE", "PLACE", "WORD") for a in before.tail)


def _share(items: list[_Item]) -> None:
    """Carries denials, doubts, changes and sides over the members of an enumeration."""
    for k in range(1, len(items)):
        item, before = items[k], items[k - 1]
        words = {a.text for a in item.gap}
        joined = bool(item.gap) and all(a.kind == "JOIN" and a.value == "list" for a in item.gap)
        link = bool(item.gap) and item.gap[-1].kind in ("JOIN", "UNSURE") and item.gap[-1].value in ("link", None)
        link = link or (bool(item.gap) and any(a.kind == "JOIN" and a.value == "link" for a in item.gap))
        beside = bool(item.gap) and any(a.kind == "JOIN" and a.value == "with" for a in item.gap)
        first, last = item.parts[0], before.parts[-1]
        light = _light(item, before)
        article = any(a.kind == "ARTICLE" and a.value == "a" for a in item.pre)
        later_or = "or" in words or "nor" in words or _or_ahead(items, k)
        # Denials: "no A, B or C"; not "no A, small B" and not "no A, B is larger".
        if joined and not before.end.verb and (before.head.neg or before.inherited) and not item.head.neg:
            plain = not (item.head.changes or item.head.severity is not None or article or item.end.changes)
            if later_or or plain:
                item.inherited = item.form not in _STRUCTURES and item.form != "other"
                for part in item.parts:
                    part.neg |= item.inherited
        denied = first.neg or last.neg
        denied |= first.asked or last.asked or last.denied or item.end.denied
        if "or" in words and joined and not (denied or last.neg_of_change or before.head.neg_of_change):
            _doubt(before)
            _doubt(item)
        if any(a.kind == "UNSURE" and a.text.startswith(("vs", "versus")) for a in item.gap):
            _doubt(before)
            _doubt(item)
        if joined and (last.asked and not before.tail):
            for part in item.parts:
                part.asked = True
        # Changes and sides forward.
        if not any(p.changes for p in item.parts) and not item.head.neg and last.changes:
            sign = _SIGN[last.changes[-1]]
            graded = item.head.severity is not None
            own_cue = before.head.changes if light else last.changes
            if own_cue and ((light and not article and not (graded and sign)) or link):
                for part in item.parts:
                    part.changes = list(own_cue)
        sided = item.form not in _STRUCTURES and item.finding != "Cardiomegaly" and not item.head.neg
        if first.side is None and last.side and (light or link or beside) and sided:
            first.side = last.side
    # Predicates backward: "effusion and edema have improved", "effusion or pneumothorax is not seen".
    for k in range(len(items) - 1, 0, -1):
        item, before = items[k], items[k - 1]
        if not _light(item, before):
            # "effusion with adjacent atelectasis has improved": the first is the subject.
            beside = {(a.kind, a.value) for a in item.gap} == {("JOIN", "with")} and not before.tail
            acts = item.end.verb == "one" or (item.tail[:1] and item.tail[0].text == ",")
            acts = acts or any(a.text in ("persists", "remains") for a in item.tail)
            if beside and acts and item.end.changes and not (item.head.changes or before.head.changes):
                for part in before.parts:
                    part.changes = list(item.end.changes)
            continue
        if item.end.denied:
            for part in before.parts:
                part.denied = True
            before.end.denied = True
        if item.end.changes and item.end.verb != "one" and not item.head.changes:
            for part in before.parts:
                if not (part.changes or part.neg):
                    part.changes = list(item.end.changes)
            before.end.changes, before.end.verb = item.end.changes, item.end.verb
        if before.parts[0].side is None and item.end.side and item.head.side is None:
            before.parts[0].side = item.end.side


def _or_ahead(items: list[_Item], k: int) -> bool:
    for later in items[k + 1 :]:
        if not later.gap or any(a.kind != "JOIN" or a.value != "list" for a in later.gap):
            return False
        if any(a.text in ("or", "nor") for a in later.gap):
            return True
    return False


def _doubt(item: _Item) -> None:
    for part in item.parts:
        part.unsure = True


def _conclude(item: _Item, sentence: str) -> list[Mention]:
    """Turns the parts of one item into mentions."""
    if item.form == "lungs":
        sides = {p.side for p in item.parts} - {"both"}
        return [Mention(f, next(iter(sides), None), False, None, None, sentence) for f in _LUNGS_CLEAR]
    if item.finding is None:
        return []
    out = []
    for part in item.parts:
        changes = [c for c in part.changes]
        if item.form not in _STRUCTURES and part.big.startswith("enlarg"):
            changes.append("up")
        moved = [c for c in changes if c != "same"]
        value = "gone" if "gone" in moved else (moved[-1] if moved else (changes[-1] if changes else None))
        change = _SIGN[value] if value else None
        denied = part.neg or part.denied
        uncertain = False
        if item.form in _STRUCTURES:
            present = None
            if part.big:
                present, uncertain = (None, True) if part.unsure else (not part.neg, False)
            elif part.fine or value == "gone":
                present = False
            if present is None and change is None and not uncertain:
                continue
            if item.form != "heart" and present is None:
                continue
        elif part.asked:
            present, change = None, None
        elif value == "gone":
            present = False
        elif value == "new!":
            present, change = False, 0
        elif denied:
            present = None if value in ("up", "down") and part.neg else False
            if part.neg and value in ("new", "up", "down"):
                change = 0
            elif part.denied and part.past:
                change = -1
            elif part.neg and value is None:
                change = None
        elif part.unsure:
            present, uncertain = None, True
            change = None if change == 1 else change
        elif part.open and value == "same":
            present = None
        else:
            present = True
        if change is None and part.was is not None and part.severity is not None and part.was != part.severity:
            change = 1 if part.severity > part.was else -1
        many = item.form == "many" or (item.form == "angle" and part.side is None)
        graded = part.severity if part.severity is not None else part.once
        severity = graded if present else None
        out.append(
            Mention(
                item.finding,
                part.side,
                present,
                change,
                severity,
                sentence,
                many,
                uncertain,
                value == "new",
                part.zone,
            )
        )
    return out


_PRONOUN = re.compile(
    r"^(?:it|this|these|they|both|which|that|the (?:left|right)(?: one)?(?= (?:is|has|side)))\b", re.I
)


def parse(sentence: str, last: Mention | None = None) -> list[Mention]:
    """The statements of one sentence. last: the statement before it, for a pronoun at the start."""
    found = lexicon.atoms(sentence)
    items = _items(found)
    if not items and last is not None and _PRONOUN.match(sentence):
        item = _Item(last.finding, "plain", pre=[], tail=found)
        item.head, item.end, item.parts = _Part(), _read(found), [_read(found)]
        item.parts[0].side = item.parts[0].side or last.side
        items = [item]
    else:
        for item in items:
            _spread(item)
        _share(items)
    return [mention for item in items for mention in _conclude(item, sentence)]
