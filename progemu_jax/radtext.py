"""Rules for the language of chest X-ray reports: what a text says is there, on which side, and how it moved.

Pure Python, imported by the data pipeline (progression texts), the losses' augmentation and the evaluation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from progemu_jax import radlex

FINDINGS = (
    "left pleural effusion",
    "right pleural effusion",
    "left pneumothorax",
    "right pneumothorax",
    "cardiomegaly",
    "pulmonary edema",
    "atelectasis",
    "consolidation",
)
"""The eight finding states, in the order of every array's columns. Left and right are the patient's."""

CHEXPERT = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""The 14 CheXpert observations, in the column order of `mimic-cxr-2.0.0-chexpert.csv.gz`."""

CHEXPERT_OF = {
    "left pleural effusion": "Pleural Effusion",
    "right pleural effusion": "Pleural Effusion",
    "left pneumothorax": "Pneumothorax",
    "right pneumothorax": "Pneumothorax",
    "cardiomegaly": "Cardiomegaly",
    "pulmonary edema": "Edema",
    "atelectasis": "Atelectasis",
    "consolidation": "Consolidation",
}
"""FINDINGS name -> CheXpert observation."""

ORGANS = ("left lung", "right lung", "heart", "facies diaphragmatica", "mediastinum", "spine")
"""The six organs that Dice is measured on. Left and right are the patient's."""

PRESENT = 0.15
"""A finding is present (label 1) from this severity on; the change of a severity counts from it too."""

MODERATE, LARGE = 0.35, 0.65
"""Severity grades: trace, small or mild below MODERATE; moderate below LARGE; then large or severe."""

SIDED = ("Pleural Effusion", "Pneumothorax")
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


# ---------------------------------------------------------------------------------------------- structure

_HEADER = re.compile(
    r"^[ \t]*(?:\d+[.)][ \t]*)?((?:[A-Z][A-Z ,/&()-]{2,60}|"
    r"(?:Final )?(?:Findings?|Impressions?|Conclusions?|Indication|Comparisons?|Technique|History|"
    r"Clinical (?:history|information|indication)|Examination|Exam|Reason for exam(?:ination)?|Recommendations?)"
    r"(?: and impressions?)?))[ \t]*:",
    re.MULTILINE | re.IGNORECASE,
)
_KNOWN = re.compile(
    r"finding|impression|conclusion|opinion|indication|comparison|technique|history|exam|report|reason|"
    r"recommendation|notification|clinical|wet read|views?$|chest|information|procedure|study|addendum|diagnosis",
    re.IGNORECASE,
)


def sections(text: str) -> dict[str, str]:
    """Cuts a report into its sections, in order: {lower-case header: text with single spaces}.

    Follows the headers of MIMIC-CXR reports ("FINDINGS:", "IMPRESSION:", "FINDINGS AND IMPRESSION:",
    "COMPARISON:" ...). "findings" and "impression" are always there, "" when absent; conclusions count as the
    impression. What stands before the first header is "preamble". A text that has neither findings nor
    impression gives its last paragraph as the findings, as the MIMIC-CXR project does.
    """
    text = text.replace("\r\n", "\n")
    heads = [m for m in _HEADER.finditer(text) if _KNOWN.search(m.group(1))]
    out: dict[str, str] = {}
    starts = [(0, 0, "preamble"), *((m.start(), m.end(), m.group(1).strip().lower()) for m in heads)]
    for i, (_, begin, name) in enumerate(starts):
        end = starts[i + 1][0] if i + 1 < len(starts) else len(text)
        body = text[begin:end]
        if re.search(r"\bfindings?\b", name):
            name = "findings"
        elif re.search(r"impressions?|conclusions?|opinion|diagnosis", name):
            name = "impression"
        body = _flat(body)
        if body:
            out[name] = f"{out[name]} {body}" if name in out else body
    if not out.get("findings") and not out.get("impression"):
        tail = text[heads[-1].end() :] if heads else text
        paragraphs = [p for p in re.split(r"\n\s*\n", tail) if p.strip()]
        if paragraphs:
            out["findings"] = _flat(paragraphs[-1])
    out.setdefault("findings", "")
    out.setdefault("impression", "")
    return out


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|drs|mr|mrs|ms|vs|approx|lt|rt|e\.g|i\.e|a\.m|p\.m|etc|cf|st)|\b\d+|^\d*)\.$", re.I
)


def sentences(text: str) -> list[str]:
    """Cuts a text into sentences, white space collapsed; numbers of list items ("1.") are dropped.

    Decimals ("2.5 cm"), usual abbreviations ("Dr.", "vs.") and de-identification marks ("___") do not end one.
    """
    out, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in re.split(r"(?<=[.!?])\s+|\s+(?=\d{1,2}[.)]\s+[A-Z])", _flat(paragraph)):
            current = f"{current} {piece}".strip()
            if not _ABBREVIATION.search(current) or re.search(r"\bcm\.$|\bmm\.$", current):
                out.append(current)
                current = ""
        if current:
            out.append(current)
            current = ""
    out = [re.sub(r"^(?:\d{1,2}[.)]|[-*•])\s+", "", s) for s in out]
    return [s for s in out if re.search(r"[A-Za-z]", s)]


# ---------------------------------------------------------------------------------------------- mentions


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
    zone: str | None = None


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


def _read(atoms: list) -> _Part:
    """Sums up a run of atoms."""
    part = _Part()
    for i, atom in enumerate(atoms):
        after_past = i > 0 and atoms[i - 1].kind == "PAST"
        if atom.kind in ("SIDE", "PLACE") and part.zone is None:
            part.zone = next((zone for zone, words in _ZONES.items() if words.search(atom.text)), None)
        if atom.kind == "SIDE":
            part.side = atom.value if part.side in (None, atom.value) else "both"
        elif atom.kind == "CHANGE" and not after_past:
            part.changes.append(atom.value)
            part.neg_of_change |= atom.value == "same" and atom.text.startswith(("no", "without", "little"))
        elif atom.kind == "SEVERITY":
            if after_past or (i > 1 and atoms[i - 2].kind == "PAST"):
                part.was = atom.value
            else:
                part.severity = atom.value
        elif atom.kind == "NEG":
            part.neg = True
        elif atom.kind == "DENIED":
            part.denied = True
        elif atom.kind == "UNSURE":
            rest = {a.kind for a in atoms[i + 1 :]}
            part.unsure |= "CHANGE" not in rest
        elif atom.kind == "ASKED":
            part.asked = True
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


_ADJECTIVES = {"SIDE", "SEVERITY", "CHANGE", "ARTICLE", "PLACE", "BIG"}


def _split_gap(gap: list) -> tuple[list, list, list]:
    """Says which atoms between two terms belong to the first, which to the second; and the joints."""
    joins = [i for i, a in enumerate(gap) if a.kind == "JOIN"]
    if not joins:
        for i, a in enumerate(gap):
            if a.kind in ("NEG", "UNSURE", "ASKED"):
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
    item.head, item.end = _read(item.pre), _read(item.tail)
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
        item.parts = [_read(item.pre)]
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
        link = (
            bool(item.gap)
            and item.gap[-1].kind in ("JOIN", "UNSURE")
            and item.gap[-1].value in ("link", None)
        )
        link = link or bool(item.gap) and any(a.kind == "JOIN" and a.value == "link" for a in item.gap)
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
        if "or" in words and joined and not denied and not (last.neg_of_change or before.head.neg_of_change):
            if not (first.asked or last.asked or last.denied or item.end.denied):
                _doubt(before), _doubt(item)
        if any(a.kind == "UNSURE" and a.text.startswith(("vs", "versus")) for a in item.gap):
            _doubt(before), _doubt(item)
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
        if first.side is None and last.side and (light or link or beside) and item.form not in _STRUCTURES:
            if item.finding != "Cardiomegaly" and not item.head.neg:
                first.side = last.side
    # Predicates backward: "effusion and edema have improved", "effusion or pneumothorax is not seen".
    for k in range(len(items) - 1, 0, -1):
        item, before = items[k], items[k - 1]
        if not _light(item, before):
            continue
        if item.end.denied:
            for part in before.parts:
                part.denied = True
            before.end.denied = True
        if item.end.changes and item.end.verb != "one" and not item.head.changes:
            for part in before.parts:
                if not part.changes:
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
        elif part.neg_of_change and value == "same":
            present = True
        else:
            present = True
        if (
            change is None
            and part.was is not None
            and part.severity is not None
            and part.was != part.severity
        ):
            change = 1 if part.severity > part.was else -1
        many = item.form == "many" or (item.form == "angle" and part.side is None)
        severity = part.severity if present else None
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


def mentions(text: str) -> list[Mention]:
    """All statements about CheXpert observations, in the order of the text.

    Pronouns at the start of a sentence ("It has increased.") refer to the last finding named before.
    """
    out: list[Mention] = []
    for sentence in sentences(text):
        found = radlex.atoms(sentence)
        items = _items(found)
        if not items and out and _PRONOUN.match(sentence):
            last = out[-1]
            item = _Item(last.finding, "plain", pre=[], tail=found)
            item.head, item.end = _Part(), _read(found)
            item.parts = [_read(found)]
            if item.parts[0].side is None:
                item.parts[0].side = last.side
            items = [item]
        else:
            for item in items:
                _spread(item)
            _share(items)
        for item in items:
            out += _conclude(item, sentence)
    return out


# ---------------------------------------------------------------------------------------------- states


def _columns(mention: Mention) -> list[str]:
    """FINDINGS that a mention speaks of; [] when its side is needed and open."""
    names = [name for name in FINDINGS if CHEXPERT_OF[name] == mention.finding]
    if mention.finding not in SIDED:
        return names
    if mention.side in ("left", "right"):
        return [name for name in names if name.startswith(mention.side)]
    if mention.side == "both" or mention.plural or mention.present is False:
        return names
    return []


def _states(found: list[Mention]) -> dict[str, bool]:
    seen: dict[str, set] = {}
    for mention in found:
        for name in _columns(mention):
            if mention.present is not None or mention.uncertain:
                seen.setdefault(name, set()).add(mention.present)
    out = {}
    for name in FINDINGS:
        if True in seen.get(name, ()):
            out[name] = True
        elif name in seen and None not in seen[name]:
            out[name] = False
    return out


def states(text: str) -> dict[str, bool]:
    """{finding of FINDINGS: present} for those that the text settles. A finding said to be present anywhere
    is present; one that is only hedged, or whose side is open, is left out."""
    return _states(mentions(text))


def changes(text: str, context: dict[str, bool] | None = None) -> dict[str, int]:
    """{finding of FINDINGS: +1 new or worse, -1 better or resolved, 0 said to be unchanged}.

    Findings on both sides count for each. A change whose side is not said goes to the side that the rest of
    the text, or else `context` (the states before), has the finding on, and is left out when that is open.
    Where a text speaks of one finding several times, a change beats "unchanged" and the last change stands.
    """
    found = mentions(text)
    known = _states(found)
    moved: dict[str, int] = {}
    open_side = []
    for mention in found:
        if mention.change is None:
            continue
        unsided = mention.finding in SIDED and mention.side is None and not mention.plural
        if unsided:
            open_side.append(mention)
            continue
        for name in _columns(mention):
            _note(moved, name, mention.change)
    for mention in open_side:
        names = [name for name in FINDINGS if CHEXPERT_OF[name] == mention.finding]
        told = [n for n in names if known.get(n) or n in moved]
        told = told or [n for n in names if (context or {}).get(n)]
        if len(told) == 1 or (told and mention.present is False):
            for name in told:
                _note(moved, name, mention.change)
    return {name: moved[name] for name in FINDINGS if name in moved}


def _note(moved: dict[str, int], name: str, change: int) -> None:
    if change or name not in moved:
        moved[name] = change


def severities(text: str) -> dict[str, float]:
    """{finding of FINDINGS: severity in [0, 1]} for findings that the text grades; the last grade stands."""
    out: dict[str, float] = {}
    for mention in mentions(text):
        if mention.present and mention.severity is not None:
            for name in _columns(mention):
                out[name] = mention.severity
    return {name: out[name] for name in FINDINGS if name in out}


def sites(text: str) -> dict[str, tuple[str | None, str | None]]:
    """{"atelectasis" or "consolidation": (side, zone)} as far as the text says where they are."""
    out: dict[str, tuple[str | None, str | None]] = {}
    for mention in mentions(text):
        name = mention.finding.lower()
        if name in ("atelectasis", "consolidation") and (mention.present or mention.change):
            side, zone = out.get(name, (None, None))
            out[name] = (side or mention.side, zone or mention.zone)
    return out


def labels(text: str) -> dict[str, int | None]:
    """CheXpert labels of a text: {each of CHEXPERT: 1, 0, -1 (uncertain) or None (not mentioned)}.

    Positive beats uncertain beats negative. "No Finding" is 1 when nothing but support devices is positive or
    uncertain and something was said, else None.
    """
    out: dict[str, int | None] = dict.fromkeys(CHEXPERT)
    rank = {1: 3, -1: 2, 0: 1, None: 0}
    found = mentions(text)
    for mention in found:
        value = -1 if mention.uncertain else None if mention.present is None else int(mention.present)
        if mention.finding != "No Finding" and rank[value] > rank[out[mention.finding]]:
            out[mention.finding] = value
    ill = any(out[name] in (1, -1) for name in CHEXPERT if name not in ("No Finding", "Support Devices"))
    if found and not ill:
        out["No Finding"] = 1
    return out


# ---------------------------------------------------------------------------------------------- rewriting

_SWAP = {"left": "right", "right": "left", "lt": "rt", "rt": "lt", "lll": "rll", "rll": "lll", "lul": "rul"}
_SWAP |= {"rul": "lul", "leftward": "rightward", "rightward": "leftward"}


def swap_sides(text: str) -> str:
    """The text of the mirrored chest: left and right (and LLL, RUL ...) exchanged, case kept."""

    def other(found: re.Match) -> str:
        word = found.group()
        new = _SWAP[word.lower()]
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return re.sub(
        r"\b(?:left|right|leftward|rightward|lt|rt|lll|rll|lul|rul)\b", other, text, flags=re.IGNORECASE
    )


def shuffle_sentences(text: str, rng) -> str:
    """The sentences of the text in another order. rng: numpy.random.Generator."""
    parts = sentences(text)
    return " ".join(parts[i] for i in rng.permutation(len(parts)))


def drop_negative(text: str, rng) -> str:
    """The text without one of the sentences that start with No, Unchanged or Persistent; the same text where
    there is none, or nothing would be left. rng: numpy.random.Generator."""
    parts = sentences(text)
    drop = [i for i, s in enumerate(parts) if re.match(r"(?:no|unchanged|persistent)\b", s, re.IGNORECASE)]
    if not drop or len(parts) < 2:
        return text
    gone = drop[int(rng.integers(len(drop)))]
    return " ".join(s for i, s in enumerate(parts) if i != gone)


def augment(text: str, rng, p_shuffle: float = 0.05, p_drop: float = 0.05) -> str:
    """ProgEmu's text augmentation: with p_drop drops a negative sentence, with p_shuffle shuffles the rest."""
    if rng.random() < p_drop:
        text = drop_negative(text, rng)
    if rng.random() < p_shuffle:
        text = shuffle_sentences(text, rng)
    return text
