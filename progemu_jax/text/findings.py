"""Names of findings, their sides, organs and grades, in the order of every array of findings.

The list of findings belongs to a cohort: `findings.json` in its folders (`progemu_jax.files.findings`). Where there is
none, it is PHANTOM's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

ORGANS = ("left lung", "right lung", "heart", "facies diaphragmatica", "mediastinum", "spine")
"""The six organs that Dice is measured on. Left and right are the patient's."""
GRADES = ("mild", "moderate", "severe")
"""Grades of severity, ascending; `Finding.grades` has the word that a finding takes for each."""
SIZES = ("small", "moderate", "large")
"""The words for them of what has a size, such as fluid and air."""
SIDES = ("left", "right")


@dataclass(frozen=True)
class Finding:
    """One column of a cohort's arrays of findings.

    name: as texts and files name it, its side in front. label: the column of the cohort's tables of labels, such as a
    CheXpert observation; findings that differ in side share it. side: "left" or "right", the patient's, or None.
    organs: of ORGANS, in which it may show: where an edit is allowed to change the image. grades: its words for GRADES.
    """

    name: str
    label: str
    side: str | None = None
    organs: tuple[str, ...] = ()
    grades: tuple[str, str, str] = GRADES

    @property
    def noun(self) -> str:
        """The name without its side."""
        return self.name.removeprefix(f"{self.side} ") if self.side else self.name


_LUNGS, _BASES = ORGANS[:2], (*ORGANS[:2], "facies diaphragmatica")
PHANTOM = (
    Finding("left pleural effusion", "Pleural Effusion", "left", ("left lung", "facies diaphragmatica"), SIZES),
    Finding("right pleural effusion", "Pleural Effusion", "right", ("right lung", "facies diaphragmatica"), SIZES),
    Finding("left pneumothorax", "Pneumothorax", "left", ("left lung",), SIZES),
    Finding("right pneumothorax", "Pneumothorax", "right", ("right lung",), SIZES),
    Finding("cardiomegaly", "Cardiomegaly", None, ("heart", "mediastinum")),
    Finding("pulmonary edema", "Edema", None, _LUNGS),
    Finding("atelectasis", "Atelectasis", None, _BASES),
    Finding("consolidation", "Consolidation", None, _LUNGS),
)
"""The phantom's eight findings, which are also those that the rules read in a report."""
FINDINGS = tuple(f.name for f in PHANTOM)
"""Names of the phantom's findings, in the order of its arrays' columns."""
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
CHEXPERT_OF = {f.name: f.label for f in PHANTOM}
"""FINDINGS name -> CheXpert observation."""
NO_CHANGE = "No significant change."
"""The prompt of a pair without any change; also what a system is asked when nothing shall change."""
PRESENT = 0.15
"""A finding is present (label 1) from this severity on; the change of a severity counts from it too."""
PROGRESSIONS = ("new", "worse", "stable", "improved", "resolved")
"""Classes of the change of a finding between two studies, as CheXTemporal (arXiv 2605.11304) has them."""


def names(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """Their names, in order."""
    return tuple(f.name for f in findings)


def label_columns(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """The columns of a cohort's arrays of labels: CHEXPERT for the phantom's list, else the list's own, in order."""
    return CHEXPERT if findings == PHANTOM else tuple(dict.fromkeys(f.label for f in findings))


_EVERYWHERE = (
    "cardiomegaly", "pulmonary edema", "enlarged cardiomediastinum", "hiatal hernia", "COPD signs", "aortic elongation",
    "aortic atheromatosis", "scoliosis", "kyphosis", "support devices",
)  # fmt: skip


def has_place(name: str) -> bool:
    """Whether texts say where in the chest the finding of this name is.

    Not of one that has its side in its name, nor of what is in one place or in all: the heart's size, edema.
    """
    return name not in _EVERYWHERE and side_and_noun(name)[0] is None


def side_and_noun(name: str) -> tuple[str | None, str]:
    """The side in a finding's name, None where it has none, and the rest."""
    side, _, noun = name.partition(" ")
    return (side, noun) if side in SIDES else (None, name)


def is_plural(noun: str) -> bool:
    """Whether a noun is of many, by its end: "support devices", not "atelectasis" or "pneumothorax"."""
    return noun.endswith("s") and not noun.endswith(("ss", "is", "us"))


def other_sides(findings: tuple[Finding, ...]) -> list[int]:
    """Per finding, the column of the same disease on the other side; -1 for one without sides."""
    at = {(f.label, f.noun, f.side): i for i, f in enumerate(findings)}
    other = dict(zip(SIDES, SIDES[::-1], strict=True))
    return [at.get((f.label, f.noun, other[f.side]), i) if f.side else -1 for i, f in enumerate(findings)]


def columns_of(name: str, columns: tuple[str, ...], findings: tuple[Finding, ...]) -> list[int]:
    """Positions in `findings` of what a scorer's column `name` stands for: the finding of that name, or all whose
    label it is, but for those that have a column of their own among `columns`."""
    return [i for i, f in enumerate(findings) if f.name == name or (f.name not in columns and f.label == name)]


def to_rows(findings: tuple[Finding, ...]) -> list[dict]:
    """As `findings.json` has them."""
    return [asdict(f) for f in findings]


def from_rows(rows: object) -> tuple[Finding, ...]:
    """The findings of a `findings.json`. ValueError says what makes no sense in it."""
    if not isinstance(rows, list) or not rows or len(rows) > _MOST:
        raise ValueError(f"holds no list of 1 to {_MOST} findings")
    out = tuple(_from_row(row, number) for number, row in enumerate(rows, 1))
    for i, finding in enumerate(out):
        if finding.name in {f.name for f in out[:i]}:
            raise ValueError(f"names {finding.name!r} twice")
    return out


_MOST, _LONGEST = 500, 100


def _from_row(row: object, number: int) -> Finding:
    def fail(what):
        raise ValueError(f"finding {number} {what}")

    if not isinstance(row, dict):
        fail("is no object")
    if unknown := sorted(map(str, set(row) - {"name", "label", "side", "organs", "grades"})):
        fail(f"has the unknown key {unknown[0]!r:.60}")
    name, side = row.get("name"), row.get("side")
    for key, value in (("name", name), ("label", row.get("label", name))):
        if not (isinstance(value, str) and value.strip() == value != "" and value.isprintable()):
            fail(f"has the {key} {value!r:.60}, which is no plain text")
        if len(value) > _LONGEST:
            fail(f"has a {key} of {len(value)} characters, more than {_LONGEST}")
    if side not in (None, *SIDES):
        fail(f"({name}) has the side {side!r:.60}; left, right or null is expected")
    if side and not name.startswith(f"{side} "):
        fail(f"({name}) does not begin with its side, {side}")
    organs, grades = row.get("organs", []), row.get("grades", GRADES)
    if not isinstance(organs, list) or not all(o in ORGANS for o in organs):
        fail(f"({name}) has organs beside {', '.join(ORGANS)}")
    if (
        not isinstance(grades, list | tuple)
        or len(grades) != 3
        or not all(isinstance(g, str) and g.isalpha() and len(g) <= _LONGEST for g in grades)
    ):
        fail(f"({name}) has grades that are not three words")
    return Finding(name, row.get("label", name), side, tuple(organs), tuple(grades))
