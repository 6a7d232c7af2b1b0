"""What the rules read in a prompt, for the person who wrote it: a model takes any words and says nothing of those it
does not know."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace

from progemu_jax.text import lexicon, rules
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.parse import Mention
from progemu_jax.text.terms import further, read_as

_NEAR = {"Pneumonia": "consolidation", "Lung Opacity": "consolidation"}
MOST_READ, MOST_REST = 16, 200
"""Statements, and characters of the rest, that `Understood.summary` keeps."""

# Findings that no model of this project is trained on: what to call them, and the words for them.
_OTHERS = {
    "fracture": r"fractur\w*",
    "nodule": r"nodul\w+|granulomas?",
    "mass": r"mass(?:es)?|tumou?rs?|cancer|carcinoma|lymphoma|neoplasm|metastas[ei]s|lesions?|malignancy",
    "tube": r"(?:endotracheal|tracheostomy|nasogastric|orogastric|feeding|chest|ng|et) tubes?|ett|tubes?|intubat\w+",
    "line or catheter": r"(?:central |picc |arterial )lines?|picc|catheters?|port-?a-?cath|swan-ganz",
    "pacemaker": r"pacemakers?|defibrillators?|icd|(?:pacing )?leads?",
    "emphysema": r"emphysema\w*|hyperinflat\w+|copd|bullae?",
    "fibrosis": r"fibrosis|fibrotic|scar(?:ring|s)?|honeycomb\w*",
    "hernia": r"herniat?\w*",
    "pericardial effusion": r"pericardial (?:effusions?|fluid)",
    "pleural thickening": r"pleural (?:thickening|plaques?|calcifications?)|mesothelioma",
    "empyema": r"empyemas?|ha?emothorax|chylothorax",
    "abscess": r"abscess(?:es)?|cavit(?:y|ies|ation|ary) (?:lesion|nodule|mass)|cavitation|cavitary",
    "tuberculosis": r"tuberculosis|tb|miliary",
    "pulmonary embolism": r"(?:pulmonary )?embol(?:ism|us|i)|infarct\w*",
    "adenopathy": r"(?:lymph)?adenopathy|lymph nodes?",
    "wide mediastinum": r"(?:widen\w+|wide) (?:of the )?mediastin\w+|mediastinal widening|aneurysm|dissection",
    "free abdominal air": r"pneumoperitoneum|free air under\b[\w ]*diaphragm",
    "pneumomediastinum": r"pneumomediastinum|subcutaneous (?:air|emphysema)",
    "scoliosis": r"scoliosis|kyphosis",
    "foreign body": r"foreign bod(?:y|ies)",
}
_OTHER = re.compile(
    r"(?<!\w)(?:" + "|".join(f"(?P<o{i}>{p})" for i, p in enumerate(_OTHERS.values())) + r")(?!\w)", re.I
)
# What caused a change is no finding that is asked for.
_CAUSE = re.compile(
    r"\b(?:after|following|despite|with|post|on|status post|s/p)\s+(?:\w+\s+){0,2}?(?:chest tube|drain|tube|line"
    r"|catheter|pacemaker|intubation|extubation|thoracentesis)(?: \w+)?",
    re.I,
)
_SIGN = {"new": 1, "worse": 1, "better": -1, "resolved": -1, "same": 0}  # of what is only there or not: no course
_IDLE = frozenset(
    """
    the a an of and or in on at to for from by with now please has have is are was were been be it its this that
    there since prior previous compared study film exam radiograph chest image follow-up next patient interval
    today yesterday show make let want you i me we see x-ray x ray again more less than before as after
    following which would like could can should will his her their my new view follow up current relative size
    lung lungs side impression finding findings report now, also only just so until over past week last few days
    while if not no wall space amount cavity zone lobe base
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Read:
    """One statement: finding (without a side; "no change" of everything: ""), side ("left", "right", "both" or None),
    zone, grade (of GRADES or None), direction ("new", "worse", "better", "resolved", "same", "present", "absent")."""

    finding: str
    side: str | None
    zone: str | None
    grade: str | None
    direction: str

    def in_words(self) -> str:
        """As "small left pleural effusion: new"."""
        name = " ".join(word for word in (self.grade, self.side, self.zone, self.finding or "everything") if word)
        return f"{name}: {self.direction}"


@dataclass(frozen=True)
class Understood:
    """What a prompt says, as far as the rules read it.

    Attributes:
      read: statements in the order of the text.
      rest: words that no rule read, in order; "" when every word was.
      unknown: findings that it names and no model here was trained on ("fracture").
      warning: one sentence for the user, or None.
    """

    read: tuple[Read, ...] = ()
    rest: str = ""
    unknown: tuple[str, ...] = ()
    warning: str | None = None

    def in_words(self) -> str:
        """One line: "left pneumothorax: resolved; mild left pleural effusion: new; not read: ..."."""
        rest = f"; not read: {self.rest}" if self.rest else ""
        warning = f" ({self.warning})" if self.warning else ""
        return f"{'; '.join(one.in_words() for one in self.read) or 'nothing'}{rest}{warning}"

    def to_dict(self) -> dict:
        """For JSON: lists and dicts of the same names."""
        return {**asdict(self), "read": [asdict(r) for r in self.read], "unknown": list(self.unknown)}

    def summary(self) -> dict:
        """`to_dict` for a file's metadata, a few KB at most: the first MOST_READ statements, MOST_REST characters."""
        return replace(self, read=self.read[:MOST_READ], rest=self.rest[:MOST_REST]).to_dict()


def known(findings: tuple[Finding, ...] = PHANTOM) -> tuple[str, ...]:
    """What a prompt can ask a model for: the findings that it was trained on, without sides."""
    return tuple(dict.fromkeys(f.noun for f in findings))


def understood(prompt: str, findings: tuple[Finding, ...] = PHANTOM) -> Understood:
    """Reads a prompt by the rules (`rules.mentions`). A report is read as well, but its warning means little.

    findings: of the cohort that the model was trained on.

    The warning tells, in this order: a finding that no model was trained on, two statements that contradict each
    other, a side that is missing where it is needed, nothing understood. An empty prompt has none.
    """
    read: dict[Read, None] = {}  # each once, in order
    for sentence in rules.sentences(prompt):
        found = [r for mention in rules.mentions(sentence, findings) if (r := _read(mention, findings))]
        if not found and rules.says_no_change(sentence):
            found = [Read("", None, None, None, "same")]
        read |= dict.fromkeys(found)
    own = {read_as(f) for f in findings}
    named = [
        m for m in _OTHER.finditer(_CAUSE.sub(" ", prompt))
        if not any(a.kind == "TERM" and a.value.finding in own for a in lexicon.atoms(m.group(), further(findings)))
    ]  # fmt: skip
    unknown = tuple(dict.fromkeys(list(_OTHERS)[int(m.lastgroup[1:])] for m in named))
    sided = {f.noun for f in findings if f.side}
    return Understood(tuple(read), _rest(prompt, findings), unknown, _warning(prompt, read, unknown, sided))


def _read(mention: Mention, findings: tuple[Finding, ...]) -> Read | None:
    found = rules.spoken_of(mention, findings)
    finding = found[0].noun if found else _NEAR.get(mention.finding)
    if finding not in known(findings):
        return None
    side = "both" if mention.side is None and mention.plural else mention.side
    return Read(finding, side, mention.zone, *grade_and_direction(mention))


def grade_and_direction(mention: Mention) -> tuple[str | None, str]:
    """(grade of GRADES or None, "new", "worse", "better", "resolved", "same", "absent" or "present") of a mention."""
    if mention.severity is None or mention.direction in ("resolved", "absent"):
        return None, mention.direction
    return rules.grade_of(mention.severity), mention.direction


def _warning(prompt: str, read: Collection[Read], unknown: tuple[str, ...], sided: set[str]) -> str | None:
    if not prompt.strip():
        return None
    if unknown:
        return f"No model here was trained on {' or '.join(unknown)}: what the image shows of it means nothing."
    signs: dict[tuple, set] = {}
    for r in read:
        for side in ("left", "right") if r.side in ("both", None) else (r.side,):
            if r.direction in _SIGN:
                signs.setdefault((r.finding, side), set()).add(_SIGN[r.direction])
    torn = [finding for (finding, _), said in signs.items() if len(said) > 1]
    if torn:
        return f"The prompt says different things of {torn[0]}: the rules cannot tell which one is meant."
    if not read:
        return "The rules understood nothing of this prompt: the image may show anything."
    open_side = [r.finding for r in read if r.finding in sided and not r.side]
    open_side = [
        f for f in open_side if any(r.finding == f and r.direction not in ("absent", "resolved", "same") for r in read)
    ]
    if open_side:
        return f"The prompt does not say on which side the {open_side[0]} is: the model chooses one."
    return None


def _rest(prompt: str, findings: tuple[Finding, ...]) -> str:
    words = []
    for sentence in rules.sentences(prompt):
        for atom in lexicon.atoms(sentence, further(findings)):
            if atom.kind == "WORD" and atom.text.strip("'.-_") not in _IDLE and not atom.text.isdigit():
                words.append(atom.text)
    return " ".join(words)
