"""How the atoms of a sentence (`lexicon`) become statements about findings.

A sentence is cut at its terms (`parts` sums up what stands between them). Between two terms the last joint ("and",
",", "with", "due to") says which words belong to which; denials, doubts, changes and sides then spread over
enumerations ("no A, B or C", "A and B have improved", "increased on the left and unchanged on the right").
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from progemu_jax.text import lexicon
from progemu_jax.text.parts import ADJECTIVES, Part, pieces, read
from progemu_jax.text.terms import Term

_STRUCTURES = ("heart", "angle", "vessels")
_LUNGS_CLEAR = ("Atelectasis", "Consolidation", "Edema")
_BORDERLINE = 0.15  # severity of a heart that is borderline enlarged: the least that there is (findings.PRESENT)
_LARGE = next(value for value, pattern in lexicon.SEVERITIES if pattern.startswith("large"))
_SIGN = {"new": 1, "new!": 1, "up": 1, "down": -1, "gone": -1, "same": 0}


@dataclass(frozen=True)
class Mention:
    """One statement of a text about one finding.

    finding: the CheXpert observation that its words are nearest to. side: "left", "right", "both" or None (not said).
    present: True, False, or None (left open: uncertain, hypothetical or not said).
    change: +1 new or worse, -1 better or resolved, 0 explicitly as before, None not said.
    severity: in [0, 1], or None. sentence: where it stands. plural: said of several ("effusions").
    uncertain: hedged ("possible", "cannot be excluded"); then present is None.
    is_new: said to be new rather than larger; change is then +1.
    zone: "upper", "mid" or "lower" part of the lung, or None.
    labels: the observations that it says something of by CheXpert's definitions (`terms`), mostly (finding,).
    sign: only a sign of it is named (congestion, a blunted angle), which may have another cause.
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
    labels: tuple[str, ...] = ()
    sign: bool = False

    @property
    def direction(self) -> str:
        """ "new", "worse", "better", "resolved", "same", "absent" or "present"."""
        if self.change == 1:
            return "new" if self.is_new else "worse"
        if self.change == -1:
            return "resolved" if self.present is False else "better"
        if self.present is False:
            return "absent"
        return "same" if self.change == 0 else "present"


@dataclass
class _Item:
    term: Term
    pre: list
    tail: list = field(default_factory=list)
    gap: list = field(default_factory=list)  # joints between the item before and this one
    parts: list = field(default_factory=list)
    head: Part | None = None
    end: Part | None = None
    inherited: bool = False

    @property
    def finding(self) -> str | None:
        return self.term.finding

    @property
    def form(self) -> str:
        return self.term.form


_DOUBTED = ("suspected", "possible", "questionable", "questioned", "equivocal", "unclear", "borderline")


def _split_gap(gap: list) -> tuple[list, list, list]:
    """Says which atoms between two terms belong to the first, which to the second; and the joints."""
    joins = [i for i, a in enumerate(gap) if a.kind == "JOIN"]
    if not joins:
        for i, a in enumerate(gap):
            predicate = i > 0 and gap[i - 1].kind == "VERB" and a.text in _DOUBTED
            if a.kind in ("NEG", "UNSURE", "ASKED") and not predicate:
                return gap[:i], gap[i:], [a]
        cut = len(gap)
        while cut and gap[cut - 1].kind in ADJECTIVES:
            cut -= 1
        return (gap, [], []) if cut == 0 and gap and gap[-1].kind == "BIG" else (gap[:cut], gap[cut:], [])
    cut = joins[-1]
    # "..., new, small left effusion": adjectives that a comma cuts off from their noun.
    if gap[cut].text == "," and len(joins) > 1:
        piece = gap[joins[-2] + 1 : cut]
        if piece and all(a.kind in ADJECTIVES for a in piece) and gap[joins[-2]].text != ",":
            cut = joins[-2]
    # "and left basal and right basal atelectasis"
    elif gap[cut].text == "and" and len(joins) > 1 and any(a.kind == "SIDE" for a in gap[cut:]):
        piece = gap[joins[-2] + 1 : cut]
        if any(a.kind == "SIDE" for a in piece) and all(a.kind in ADJECTIVES for a in piece):
            cut = joins[-2]
    left, right = gap[:cut], gap[cut + 1 :]
    joints = [a for a in gap if a.kind == "JOIN"]
    while left and left[-1].kind == "JOIN":
        left = left[:-1]
    if gap[cut].value == "link":
        right = [a for a in left if a.kind == "UNSURE"] + right
        left = [a for a in left if a.kind != "UNSURE"]
    return left, right, joints


def _before_denial(pre: list) -> list:
    """Without what is said of another noun in front of a denial: "increased markings without effusion"."""
    at = max((i for i, a in enumerate(pre) if a.kind == "NEG"), default=0)
    return [a for i, a in enumerate(pre) if i >= at or a.kind not in ("CHANGE", "BIG", "SEVERITY")]


def _items(atoms: list) -> list[_Item]:
    places = [i for i, a in enumerate(atoms) if a.kind == "TERM"]
    items = []
    for k, at in enumerate(places):
        term = atoms[at].value
        if k == 0:
            items.append(_Item(term, pre=_before_denial(atoms[:at])))
        else:
            gap = atoms[places[k - 1] + 1 : at]
            if [a.text for a in gap] == ["of"] and {term.form, items[-1].form} <= {"plain", "many"}:
                gap = [lexicon.Atom("JOIN", "list", "or")]  # "no effusion of pneumothorax": a slip of "or"
            left, right, joints = _split_gap(gap)
            items[-1].tail = left
            items.append(_Item(term, pre=right, gap=joints))
    if items:
        items[-1].tail = atoms[places[-1] + 1 :]
    return items


def _spread(item: _Item) -> None:
    """Fills item.parts: one part per side that the term is said of."""
    item.head, item.end = read(item.pre, before_term=True), read(item.tail)
    sided = [p for piece, _ in pieces(item.pre) if (p := read(piece)).side]
    if len({p.side for p in sided}) > 1 and item.form != "heart":
        first = sided[0]
        for part in sided:
            part.changes = part.changes or first.changes
            part.severity = part.severity if part.severity is not None else first.severity
            for flag in ("neg", "unsure", "asked", "past"):
                setattr(part, flag, getattr(part, flag) or getattr(item.head, flag))
        item.parts = sided
    else:
        item.parts = [read(item.pre, before_term=True)]
    own = list(item.parts)
    base = item.parts[0]
    for piece, beside in pieces(item.tail):
        said = read(piece, beside=beside)
        if said.side and base.side is None and len(own) == 1:
            base.side = said.side
            targets = own
        elif said.side and said.side not in ("both", *(p.side for p in item.parts)) and base.side != "both":
            extra = Part(side=said.side)
            if not (said.changes or said.neg or said.denied or said.verb):
                extra.changes, extra.neg = list(base.changes), base.neg
            item.parts.append(extra)
            targets = [extra]
        elif said.side in ("left", "right"):
            targets = [p for p in item.parts if p.side == said.side] or own
            if base.side == "both" and (said.changes or said.severity is not None or said.neg):
                other = "right" if said.side == "left" else "left"
                base.side = other
                extra = Part(side=said.side, severity=base.severity, changes=[], neg=base.neg)
                item.parts.append(extra)
                own, targets = [base], [extra]
        else:
            targets = item.parts if len(item.parts) == len(own) else [item.parts[-1]]
        for part in targets:
            _merge(part, said)


def _merge(part: Part, said: Part) -> None:
    part.changes = part.changes + [c for c in said.changes]
    part.severity = said.severity if said.severity is not None else part.severity
    part.was = said.was if said.was is not None else part.was
    part.big, part.fine = part.big or said.big, part.fine or said.fine
    part.denied |= said.denied or said.neg
    part.unsure |= said.unsure
    part.zone = part.zone or said.zone
    part.once = said.once if said.once is not None else part.once
    part.borderline |= said.borderline
    part.large |= said.large
    part.normal |= said.normal
    part.past |= said.past


def _light(item: _Item, before: _Item) -> bool:
    """Whether the joint between two terms is a plain enumeration ("effusion, small atelectasis and ...")."""
    joined = bool(item.gap) and all(a.kind == "JOIN" and a.value == "list" for a in item.gap)
    return joined and all(a.kind in ("SIDE", "SEVERITY", "ARTICLE", "PLACE", "WORD") for a in before.tail)


def _share(items: list[_Item]) -> None:
    """Carries denials, doubts, changes and sides over the members of an enumeration."""
    or_ahead = _or_ahead(items)
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
        later_or = "or" in words or "nor" in words or or_ahead[k]
        # Denials: "no A, B or C"; not "no A, small B" and not "no A, B is larger".
        if joined and not before.end.verb and (before.head.neg or before.inherited) and not item.head.neg:
            plain = not (item.head.changes or item.head.severity is not None or article or item.end.changes)
            if later_or or plain:
                item.inherited = item.form not in _STRUCTURES and item.form != "other"
                for part in item.parts:
                    part.neg |= item.inherited
        denied = first.neg or last.neg
        denied |= first.asked or last.asked or last.denied or item.end.denied
        # "differential includes A, B and C", "may be A, B or ...": all of them in doubt.
        own = item.head.severity is not None or item.head.side or article or item.head.changes
        if joined and light and before.parts[-1].unsure and item.form not in _STRUCTURES and not (own or item.head.neg):
            _doubt(item)
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
    for item in items:
        settled = item.head.neg or item.inherited or item.end.denied or item.head.asked
        if item.form not in _STRUCTURES and not settled and _alternative(item.tail):
            _doubt(item)
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
        # "Heart size and mediastinal contours are normal."
        if item.end.verb == "many" and before.form in _STRUCTURES and not (before.parts[0].big or before.parts[0].fine):
            before.parts[0].big, before.parts[0].fine = item.end.big, item.end.fine
        if before.parts[0].side is None and item.end.side and item.head.side is None:
            before.parts[0].side = item.end.side


def _or_ahead(items: list[_Item]) -> list[bool]:
    """Of each item, whether the enumeration that goes on behind it has an "or"."""
    out, ahead = [], False
    for item in reversed(items):
        out.append(ahead)
        listed = bool(item.gap) and all(a.kind == "JOIN" and a.value == "list" for a in item.gap)
        ahead = listed and (ahead or any(a.text in ("or", "nor") for a in item.gap))
    return out[::-1]


def _alternative(tail: list) -> bool:
    """Whether "or" and a noun unknown to the lexicon follow: "atelectasis or contusion"."""
    at = next((i for i, a in enumerate(tail) if a.kind == "JOIN" and a.text != ","), None)
    if at is None or tail[at].text != "or":
        return False
    noun = itertools.takewhile(lambda a: a.kind in ("WORD", "SEVERITY", "ARTICLE", "PLACE", "SIDE"), tail[at + 1 :])
    return any(a.kind == "WORD" for a in noun)


def _doubt(item: _Item) -> None:
    for part in item.parts:
        part.unsure = True


def _conclude(item: _Item, sentence: str) -> list[Mention]:
    """Turns the parts of one item into mentions."""
    if item.form == "lungs":
        sides = {p.side for p in item.parts} - {"both"}
        side = next(iter(sides), None)
        return [Mention(f, side, False, None, None, sentence, labels=(f,)) for f in _LUNGS_CLEAR]
    if item.finding is None:
        return []
    out = []
    for part in item.parts:
        changes = [c for c in part.changes]
        if item.form not in _STRUCTURES and part.big.startswith("enlarg"):
            changes.append("up")
        moved = [c for c in changes if c != "same"]
        if item.finding == "Cardiomegaly" and part.borderline and not part.fine:
            part.big, part.severity = part.big or "enlarged", _BORDERLINE
        elif part.borderline and item.finding != "Cardiomegaly":
            part.unsure = True
        if item.form == "heart" and part.large and not (part.fine or part.big):  # a size, not a grade
            part.big, part.severity = "enlarged", None if part.severity == _LARGE else part.severity
        value = "gone" if "gone" in moved else (moved[-1] if moved else (changes[-1] if changes else None))
        change = _SIGN[value] if value else None
        denied = part.neg or part.denied
        uncertain = False
        if item.form in _STRUCTURES:
            present = None
            if part.big and value == "gone":
                present = False
            elif part.big:
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
        elif part.normal and value is None:
            present = False
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
                item.term.labels or (item.finding,),
                item.term.sign,
            )
        )
    return out


_PRONOUN = re.compile(
    r"^(?:it|this|these|they|both|which|that|the (?:left|right)(?: one)?(?= (?:is|has|side)))\b", re.I
)


# "On the outside study the left lung was consolidated": says nothing of today.
_ELSEWHERE = re.compile(r"(?:on|in|at) (?:an? |the )?(?:\w+ )?(?:prior|previous|earlier|old|outside)\b", re.I)
_THEN, _NOW = re.compile(r"\b(?:was|were)\b", re.I), re.compile(r"\b(?:is|are|has|have|now|today|currently)\b", re.I)


def parse(sentence: str, last: Mention | None = None, further: lexicon.Further = ()) -> list[Mention]:
    """The statements of one sentence.

    last: the statement before it, for a pronoun at the start. further: terms of a list of findings (`terms.further`).
    """
    found = lexicon.atoms(sentence, further)
    items = _items(found)
    told = last is not None and (last.present is not False or last.change is not None)
    if not items and told and _PRONOUN.match(sentence):
        item = _Item(Term(last.finding, "plain", last.labels, last.sign), pre=[], tail=found)
        item.head, item.end, item.parts = Part(), read(found), [read(found)]
        item.parts[0].side = item.parts[0].side or last.side
        part = item.parts[0]
        if not (part.changes or part.severity is not None or part.neg or part.denied or part.unsure or part.side):
            return []  # "This is a normal variant."
        items = [item]
    else:
        for item in items:
            _spread(item)
        _share(items)
        if _ELSEWHERE.match(sentence) and _THEN.search(sentence) and not _NOW.search(sentence):
            for part in (part for item in items for part in item.parts):
                part.asked = True
    return [mention for item in items for mention in _conclude(item, sentence)]
