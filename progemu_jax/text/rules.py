"""Rules for the language of chest X-ray reports: what a text says is there, on which side, and how it moved.

Pure Python, imported by the data pipeline (progression texts), the losses' augmentation and the evaluation.
"""

from __future__ import annotations

import functools
import re

from progemu_jax.text import lexicon
from progemu_jax.text.findings import CHEXPERT, GRADES, PHANTOM, Finding, has_place, names
from progemu_jax.text.parse import Mention, parse
from progemu_jax.text.terms import further, read_as

Findings = tuple[Finding, ...]

MODERATE, LARGE = 0.35, 0.65
"""Severity grades: trace, small or mild below MODERATE; moderate below LARGE; then large or severe."""

# ---------------------------------------------------------------------------------------------- structure

_HEADER = re.compile(
    r"^[ \t]*(?:\d+[.)][ \t]*)?((?:[A-Z][A-Z ,/&()-]{2,60}|"
    r"(?:Final )?(?:Findings?|Impressions?|Conclusions?|Indication|Comparisons?|Technique|History|"
    r"Clinical (?:history|information|indication)|Examination|Exam|Reason for exam(?:ination)?"
    r"|Recommendations?)"
    r"(?: and impressions?)?))[ \t]*:",
    re.MULTILINE | re.IGNORECASE,
)
_KNOWN = re.compile(
    r"finding|impression|conclusion|opinion|indication|comparison|technique|history|exam|report|reason|"
    r"recommendation|notification|clinical|wet read|views?$|chest|information|procedure|study|addendum|"
    r"diagnosis",
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


_ABBREVIATION = re.compile(r"\b(?:dr|drs|mr|mrs|ms|vs|approx|lt|rt|e\.g|i\.e|a\.m|p\.m|etc|cf|st)\.$", re.IGNORECASE)
_NUMBERED = re.compile(r"\d{1,2}\.$")


def sentences(text: str) -> list[str]:
    """Cuts a text into sentences, white space collapsed; numbers of list items ("1.") are dropped.

    Decimals ("2.5 cm"), usual abbreviations ("Dr.", "vs.") and de-identification marks ("___") end none.
    """
    out, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        for piece in re.split(r"(?<=[.!?])\s+|\s+(?=\d{1,2}[.)]\s+[A-Z])", _flat(paragraph)):
            current = f"{current} {piece}".strip()
            if not (_ABBREVIATION.search(current[-8:]) or _NUMBERED.match(current)):
                out.append(current)
                current = ""
        if current:
            out.append(current)
            current = ""
    out = [re.sub(r"^(?:\d{1,2}[.)]|[-*•])\s+", "", s) for s in out]
    return [s for s in out if re.search(r"[A-Za-z]", s)]


def mentions(text: str, findings: Findings = PHANTOM) -> list[Mention]:
    """All statements about CheXpert observations and the findings of a list, in the order of the text.

    Pronouns at the start of a sentence ("It has increased.") refer to the last finding of the sentence before.
    findings: what the list names beside the observations is read as well, and what both have as the list's.
    """
    return list(_mentions(text, findings))


@functools.lru_cache(maxsize=256)  # states, changes and grades of one text are asked for one after the other
def _mentions(text: str, findings: Findings) -> tuple[Mention, ...]:
    out: list[Mention] = []
    last, terms = None, further(findings)
    for sentence in sentences(text):
        found = parse(sentence, last, terms)
        last = found[-1] if found else None
        out += found
    return tuple(out)


# ---------------------------------------------------------------------------------------------- states


def spoken_of(mention: Mention, findings: Findings) -> Findings:
    """The findings of a list, all sides, that a mention is about."""
    return tuple(f for f in findings if read_as(f) == mention.finding)


def _columns(mention: Mention, findings: Findings) -> list[str]:
    """Names of the findings that a mention speaks of; [] when its side is needed and open."""
    every = mention.side == "both" or (mention.side is None and (mention.plural or mention.present is False))
    return [f.name for f in spoken_of(mention, findings) if every or f.side in (mention.side, None)]


def _states(found: list[Mention], findings: Findings) -> dict[str, bool]:
    seen: dict[str, set] = {}
    for mention in found:
        # "The left lung is clear": says nothing of the right, and atelectasis has one column for both.
        half = mention.side in ("left", "right") and not any(f.side for f in spoken_of(mention, findings))
        if half and mention.present is False and mention.change != -1:
            continue
        for name in _columns(mention, findings):
            if mention.present is not None or mention.uncertain:
                seen.setdefault(name, set()).add(mention.present)
    out = {}
    for name in names(findings):
        if True in seen.get(name, ()):
            out[name] = True
        elif name in seen and None not in seen[name]:
            out[name] = False
    return out


def states(text: str, findings: Findings = PHANTOM) -> dict[str, bool]:
    """{name of a finding: present} for those that the text settles. A finding said to be present anywhere
    is present; one that is only hedged, or whose side is open, is left out."""
    return _states(mentions(text, findings), findings)


def changes(text: str, context: dict[str, bool] | None = None, findings: Findings = PHANTOM) -> dict[str, int]:
    """{name of a finding: +1 new or worse, -1 better or resolved, 0 said to be unchanged}.

    Findings on both sides count for each. A change whose side is not said goes to the side that the rest of
    the text, or else `context` (the states before), has the finding on, and is left out when that is open.
    Where a text speaks of one finding several times, a change beats "unchanged" and the last change stands.
    """
    return {name: mention.change for name, mention in _moved(text, context, findings).items()}


_CLASS = {"new": "new", "worse": "worse", "better": "improved", "resolved": "resolved", "same": "stable"}


def progressions(text: str, context: dict[str, bool] | None = None) -> dict[str, str]:
    """{finding of FINDINGS: one of PROGRESSIONS}, those of `changes` apart: new from worse, resolved from improved.

    "No new edema" says of edema that it is absent, which is none of the classes; context: as there.
    """
    moved = _moved(text, context, PHANTOM)
    return {name: _CLASS[m.direction] for name, m in moved.items() if m.direction in _CLASS}


def observed_progressions(text: str) -> dict[str, str]:
    """{observation of CHEXPERT: one of PROGRESSIONS}, both sides together, by the definitions of `labels`.

    What is said of a sign alone is left out; a change beats "stable", the last one stands.
    """
    moved: dict[str, Mention] = {}
    for mention in mentions(text):
        if mention.change is not None and mention.direction in _CLASS and not mention.sign:
            for name in mention.labels:
                _note(moved, name, mention)
    return {name: _CLASS[moved[name].direction] for name in CHEXPERT if name in moved}


def _moved(text: str, context: dict[str, bool] | None, findings: Findings) -> dict[str, Mention]:
    """Findings that a text says moved or stayed, in their order, and the mention that stands for each."""
    found = mentions(text, findings)
    known = _states(found, findings)
    moved: dict[str, Mention] = {}
    open_side = []
    for mention in found:
        if mention.change is None:
            continue
        sided = any(f.side for f in spoken_of(mention, findings))
        if sided and mention.side is None and not mention.plural:
            open_side.append(mention)
            continue
        for name in _columns(mention, findings):
            _note(moved, name, mention)
    for mention in open_side:
        sides = names(spoken_of(mention, findings))
        told = [n for n in sides if known.get(n) or n in moved]
        told = told or [n for n in sides if (context or {}).get(n)]
        if len(told) == 1 or (told and mention.present is False):
            for name in told:
                _note(moved, name, mention)
    return {name: moved[name] for name in names(findings) if name in moved}


def _note(moved: dict[str, Mention], name: str, mention: Mention) -> None:
    if mention.change or name not in moved:
        moved[name] = mention


def severities(text: str, findings: Findings = PHANTOM) -> dict[str, float]:
    """{name of a finding: severity in [0, 1]} for findings that the text grades; the last grade stands."""
    out: dict[str, float] = {}
    for mention in mentions(text, findings):
        if mention.present and mention.severity is not None:
            for name in _columns(mention, findings):
                out[name] = mention.severity
    return {name: out[name] for name in names(findings) if name in out}


def sites(text: str, findings: Findings = PHANTOM) -> dict[str, tuple[str | None, str | None]]:
    """{name of a finding that has a place (`has_place`): (side, zone)} as far as the text says where it is."""
    out: dict[str, tuple[str | None, str | None]] = {}
    for mention in mentions(text, findings):
        for finding in spoken_of(mention, findings):
            if has_place(finding.name) and (mention.present or mention.change):
                side, zone = out.get(finding.name, (None, None))
                out[finding.name] = (side or mention.side, zone or mention.zone)
    return out


def sides(text: str) -> dict[str, str]:
    """{observation of CHEXPERT: "left", "right" or "both"} of what is present or uncertain, by the definitions of
    `labels`, as far as a side is said. What is sure beats what is not, and signs are left out."""
    said: dict[str, dict[bool, set]] = {}
    for mention in mentions(text):
        side = "both" if mention.side is None and mention.plural else mention.side
        if side and not mention.sign and (mention.present or mention.uncertain):
            for name in mention.labels:
                said.setdefault(name, {}).setdefault(mention.uncertain, set()).add(side)
    out = {}
    for name, by in said.items():
        found = by.get(False) or by[True]
        out[name] = found.pop() if len(found) == 1 else "both"
    return out


def labels(text: str) -> dict[str, int | None]:
    """CheXpert labels of a text: {each of CHEXPERT: 1, 0, -1 (uncertain) or None (not mentioned)}.

    By the definitions of the labels (`terms`), where `states` takes a word for the finding that it is nearest to:
    airspace disease is Lung Opacity, and what is only a sign of a finding makes it uncertain (congestion, heart failure
    and Kerley lines of edema; a blunted angle of an effusion; volume loss of atelectasis). A heart that is borderline
    enlarged has cardiomegaly, one at the upper limit of normal has none. Positive beats uncertain beats negative.
    "No Finding" is 1 when nothing but support devices is positive or uncertain and something was said, else None.
    """
    out: dict[str, int | None] = dict.fromkeys(CHEXPERT)
    rank = {1: 3, -1: 2, 0: 1, None: 0}
    found = mentions(text)
    for mention in found:
        value = -1 if mention.uncertain else None if mention.present is None else int(mention.present)
        value = -1 if value == 1 and mention.sign else value
        for name in mention.labels:
            if name != "No Finding" and rank[value] > rank[out[name]]:
                out[name] = value
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

    return re.sub(r"\b(?:left|right|leftward|rightward|lt|rt|lll|rll|lul|rul)\b", other, text, flags=re.IGNORECASE)


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
    """ProgEmu's text augmentation: p_drop to drop a negative sentence, p_shuffle to shuffle the rest."""
    if rng.random() < p_drop:
        text = drop_negative(text, rng)
    if rng.random() < p_shuffle:
        text = shuffle_sentences(text, rng)
    return text


# ---------------------------------------------------------------------------------------------- grades


def grade_of(severity: float) -> str:
    """The grade, of GRADES, of a severity in [0, 1]."""
    return GRADES[int(severity >= MODERATE) + int(severity >= LARGE)]


def with_grade(text: str, grade: str, findings: Findings = PHANTOM) -> str | None:
    """The text with every finding that it says is there, and not unchanged, at one grade of GRADES.

    "New left pleural effusion." becomes "New large left pleural effusion.", "Increased edema, now mild." becomes
    "Increased edema, now severe."; what is absent, resolved or unchanged keeps its words. None when the text has no
    such finding, or the rules do not read the result as that grade with everything else as before.
    findings: of the cohort; each has its own words for the grades.
    """
    found = mentions(text, findings)
    words = {read_as(f): f.grades[GRADES.index(grade)] for f in findings}
    moving = [m for m in found if m.present and m.change != 0 and m.finding in words]
    if not moving:
        return None
    graded = " ".join(_sentence_with_grade(sentence, words, findings) for sentence in sentences(text))
    read = mentions(graded, findings)
    if len(read) != len(found):
        return None
    low, high = {"mild": (0.0, MODERATE), "moderate": (MODERATE, LARGE), "severe": (LARGE, 1.01)}[grade]
    for old, new in zip(found, read, strict=True):
        kept = ("finding", "side", "present", "change", "plural", "uncertain")
        if any(getattr(old, name) != getattr(new, name) for name in kept):
            return None
        if old in moving:
            good = new.severity is not None and low <= new.severity < high
        else:
            good = new.severity == old.severity
        if not good:
            return None
    return graded


def _sentence_with_grade(sentence: str, words: dict[str, str], findings: Findings) -> str:
    """words: {what a mention has for a finding: the grade's word}."""
    moving = {m.finding for m in mentions(sentence, findings) if m.present and m.change != 0} & words.keys()
    lower = sentence.lower()
    if not moving or len(lower) != len(sentence):
        return sentence
    found = lexicon.spans(lower, further(findings))
    terms = [i for i, (atom, _) in enumerate(found) if atom.kind == "TERM" and atom.value.finding in moving]
    edits: list[tuple[int, int, str]] = []  # start, end, text instead
    graded = set()
    for i, (atom, (start, end)) in enumerate(found):
        past = i > 0 and found[i - 1][0].kind == "PAST"
        if atom.kind != "SEVERITY" or past or not terms:
            continue
        named = [j for j, (other, _) in enumerate(found) if other.kind == "TERM"]
        after = next((j for j in named if j > i), None)
        between = [other.kind for other, _ in found[i + 1 : after]]
        # "small effusion" belongs to what follows, "effusion, now small" to what stands before it.
        j = after if after is not None and "JOIN" not in between else max((k for k in named if k < i), default=after)
        if j in terms:
            edits.append((start, end, words[found[j][0].value.finding]))
            graded.add(j)
    for j in (j for j in terms if j not in graded):
        finding, form = found[j][0].value[:2]
        word = words[finding]
        moved = any(atom.kind == "CHANGE" and atom.value in ("up", "down") for atom, _ in found)
        if len(terms) == 1 and (moved or form not in ("plain", "many")):
            at = len(sentence.rstrip(" .!"))
            edits.append((at, at, f", now {word}"))
            continue
        first = j
        while first and found[first - 1][0].kind in ("SIDE", "PLACE"):
            first -= 1
        at = found[first][1][0]
        edits.append((at, at, f"{word} "))
    for start, end, word in sorted(edits, reverse=True):
        before, rest = sentence[:start], sentence[end:]
        if not before:  # the first word of the sentence
            word = word[0].upper() + word[1:]
            rest = rest if start != end else rest[:1].lower() + rest[1:]
        sentence = re.sub(r"\b([Aa])n $", r"\1 ", before) + word + rest
    return sentence


def says_no_change(text: str) -> bool:
    """Whether every sentence says that something, or everything, is as before ("Unchanged small left effusion.",
    "No significant change."), and none that anything changed or was denied."""
    parts = sentences(text)
    for part in parts:
        kinds = [(atom.kind, atom.value) for atom in lexicon.atoms(part)]
        moves = {value for kind, value in kinds if kind == "CHANGE"}
        denied = any(kind in ("NEG", "DENIED", "UNSURE", "ASKED") for kind, _ in kinds)
        if moves != {"same"} or denied or any(m.change != 0 for m in mentions(part)):
            return False
    return bool(parts)
