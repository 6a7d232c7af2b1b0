"""PadChest (Bustos et al. 2020, arXiv 1901.07441): 16-bit PNG images and one table of labels in English.

PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv    a row an image (also as .csv.gz)
0/20536686640136348236148679891455886468_k6ga29.png     images, <ImageDir>/<ImageID>; or all in images/

Views are `Projection`'s: PA, L, AP, AP_horizontal, COSTAL. Studies have dates. Gray values are shown in the window
that the table gives. The column of reports holds stems of Spanish words without order or negation: nothing of it is
read. `LabelsLocalizationsBySentence` says where a finding is: its side, and, of what lies in the lung, its third.

Policy: 27 % of the reports were labelled by physicians and the rest by a network that learnt from them; neither marks
a label as uncertain, and what is not listed counts as absent, "normal" being the absence of all. Three labels speak of
the report itself. "unchanged" compares with a study that the table may not have, and such reports leave out what is as
it was: what they do not list is unknown. "exclude" (no report of a film) and "suboptimal study" are left out, as
PadChest-GR (arXiv 2411.05085) leaves out the second. "normal" beside a finding (226 rows of the network's) contradicts
it: the row is left out.
"""

import ast
import datetime
import re
from collections.abc import Iterator

from progemu_jax.data.sources import (
    Rejected,
    State,
    Study,
    check_root,
    files_in,
    number,
    read_table,
    safe_id,
    unwanted,
)
from progemu_jax.data.sources.label_findings import PADCHEST, PADCHEST_KINDS, PADCHEST_OTHER
from progemu_jax.errors import UserError
from progemu_jax.text.findings import Finding

NAME, TABLE = "padchest", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
FOLDERS = ("images", *map(str, range(55)), "")
_COLUMNS = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection",
    "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM", "Labels", "LabelsLocalizationsBySentence",
)  # fmt: skip
_LONGEST = 40  # characters of a patient's name: a pair's id, with two studies' in it, has to be a file name
_STUDY = 24  # last digits of a study's, which tell the studies of a patient apart
_PLACED = {f.name for f in PADCHEST if {"left lung", "right lung"} & set(f.organs)} - {"COPD signs", "air trapping"}
_ZONED = {
    "consolidation", "laminar atelectasis", "atelectasis", "pneumonia", "infiltrates", "interstitial pattern",
    "alveolar pattern", "nodule", "calcified granuloma", "bronchiectasis", "fibrotic band",
}  # fmt: skip
_SIDES = {"left": {"left"}, "right": {"right"}, "bilateral": {"left", "right"}, "both": {"left", "right"}}
_ZONES = {
    "upper": ("upper lobe", "upper lung field", "apical"),
    "mid": ("middle lobe", "middle lung field", "lingula"),
    "lower": ("lower lobe", "lower lung field", "basal"),
}
_OF_THE_REPORT = {"exclude", "suboptimal study", ""}
_KNOWN = {f.label for f in PADCHEST} | PADCHEST_KINDS.keys() | PADCHEST_OTHER | _OF_THE_REPORT
_NAME_OF = {f.label: f.name for f in PADCHEST}


class PadChest:
    """Reader of one root. views: as in MimicCxr. Raises UserError when the root or the table does not read."""

    findings: tuple[Finding, ...] = PADCHEST

    def __init__(self, root, *, views=None):
        self.root = check_root(root, f"PadChest (it holds {TABLE} and folders of images)")
        self.views = None if views is None else frozenset(views)
        found = [self.root / name for name in (TABLE, f"{TABLE}.gz") if (self.root / name).exists()]
        if not found:
            raise UserError(f"{self.root / TABLE}: the file is missing; give the root of PadChest")
        self.table = found[0]
        self.known: dict[tuple[str, str], tuple[dict, dict] | str] = {}

    def studies(self) -> Iterator[Study | Rejected]:
        """One item a row of the table, in its order; then one for each image that no row names."""
        images = files_in(self.root, FOLDERS)
        if not images:
            raise UserError(f"{self.root}: no image in 0/, 1/, ... or images/; unpack the archives there")
        left = set(images)
        for line, row in read_table(self.table, _COLUMNS):
            where = f"{self.table.name}:{line}"
            if row is None:
                yield Rejected("", where, "the row does not have the header's number of cells")
                continue
            left.discard(row["ImageID"])
            found = self._study(row, images)
            yield Rejected("", where, found) if isinstance(found, str) else found
        yield from (Rejected("", name, "no row of the table names the image") for name in sorted(left) if safe_id(name))

    def _study(self, row: dict, images: dict) -> Study | str:
        """The study of a row, or why there is none."""
        patient, study = row["PatientID"], row["StudyID"].replace("-", "")[-_STUDY:]
        image = row["ImageID"].removesuffix(".png")
        if not (safe_id(patient) and safe_id(study) and safe_id(image)):
            return "an identifier is not a plain name"
        if len(patient) > _LONGEST:
            return f"the patient's identifier has more than {_LONGEST} characters"
        view = row["Projection"] or "unknown"
        if self.views is not None and view not in self.views:
            return unwanted(view)
        day = _day(row["StudyDate_DICOM"])
        if day is None:
            return "the date of the study does not parse"
        known = self._labelled(row["Labels"], row["LabelsLocalizationsBySentence"])
        if isinstance(known, str):
            return known
        if row["ImageID"] not in images:
            return "the image file is missing"
        path = images[row["ImageID"]]
        if path is None:
            return "the image's path leaves the root"
        birth = number(row["PatientBirth"])
        age = None if birth is None else day.year - birth
        return Study(
            source=NAME,
            patient_id=patient,
            study_id=study,
            image_id=image,
            image_path=path,
            view=view,
            order_key=(day.toordinal(),),
            report={"findings": "", "impression": ""},
            labels=known[0],
            age=age if age is not None and 0 <= age <= 110 else None,
            sex=row["PatientSex_DICOM"] if row["PatientSex_DICOM"] in ("F", "M") else None,
            days=float(day.toordinal()),
            states=known[1],
            window=_window(row),
        )

    def _labelled(self, cell: str, sentences: str) -> tuple[dict, dict] | str:
        """(label column -> 1, 0 or None, finding -> State) of a row's two cells, or what is wrong with them."""
        key = cell, sentences
        if key not in self.known:
            self.known[key] = _read_labels(cell, sentences)
        return self.known[key]


def _read_labels(cell: str, sentences: str) -> tuple[dict, dict] | str:
    listed, groups = _literal(cell), _literal(sentences)
    if listed is None or any(not isinstance(name, str) for name in listed):
        return "the labels do not parse"
    groups = None if groups is None else _groups(groups)
    if groups is None:
        return "the places do not parse"
    there = {name.strip() for name in listed}
    if not there - {""}:
        return "no label"
    if there - _KNOWN:
        return "a label is none of PadChest's, or spelt in another way"
    for name in ("exclude", "suboptimal study"):
        if name in there:
            return f"labelled {name!r}"
    found = {label for name in there for label in (name, *PADCHEST_KINDS.get(name, ())) if label in _NAME_OF}
    if "normal" in there and found:
        return "normal stands beside a finding"
    silent = None if "unchanged" in there else False
    labels = {f.label: 1 if f.label in found else None if silent is None else 0 for f in PADCHEST}
    return labels, {f.name: _state(f, groups, silent) if f.label in found else State(silent) for f in PADCHEST}


def _state(finding: Finding, groups: list[list[str]], silent: bool | None) -> State:
    """Of a finding that is listed; silent: what is not listed is. With a side of its own it is uncertain where no side
    is told, and as silent as the rest where the other side is."""
    side, zone = _place(finding, groups)
    if not finding.side:
        return State(True, None, side, zone)
    return State(None if side is None else True if side in ("both", finding.side) else silent)


def _literal(cell: str) -> list | None:
    """The list that a cell holds as Python writes it; None for anything else."""
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None
    return value if isinstance(value, list) else None


def _groups(found: list) -> list[list[str]] | None:
    """Sentences of labels and places. Where physicians labelled they are lists; the network's are run together, and a
    label without a space in front begins the next one."""
    if all(isinstance(item, list) for item in found):
        groups = found
    else:
        groups = [[]]
        for item in found:
            if isinstance(item, str) and groups[-1] and item[:1] != " " and not item.startswith("loc "):
                groups.append([])
            groups[-1].append(item)
    if not all(isinstance(item, str) for group in groups for item in group):
        return None
    return [[item.strip() for item in group] for group in groups]


def _place(finding: Finding, groups: list[list[str]]) -> tuple[str | None, str | None]:
    """(side, zone) of a finding, from the sentences that name it; a zone only where they name one."""
    names = (finding.label, *(name for name, of in PADCHEST_KINDS.items() if finding.label in of))
    sides, zones = set(), set()
    for group in groups if finding.name in _PLACED else ():
        words = [item for item in group if item.startswith("loc ")]
        own = [item for item in group if item.startswith(names)]
        if own:
            sides |= {side for item in own + words for word in item.split() for side in _SIDES.get(word, ())}
            zones |= {zone for zone, places in _ZONES.items() if any(p in item for item in words for p in places)}
    side = "both" if len(sides) == 2 else next(iter(sides), None)
    return side, next(iter(zones)) if len(zones) == 1 and finding.name in _ZONED else None


def _day(cell: str) -> datetime.date | None:
    """The day of "20140915"."""
    try:
        return datetime.datetime.strptime(cell, "%Y%m%d").date() if re.fullmatch("[12][0-9]{7}", cell) else None
    except ValueError:
        return None


def _window(row: dict) -> tuple[float, float, float] | None:
    """Least and greatest gray value shown, and the greatest that is stored; None where the table has no window."""
    center, width, bits = (number(row[f"{key}_DICOM"]) for key in ("WindowCenter", "WindowWidth", "BitsStored"))
    if center is None or width is None or width <= 0 or bits not in range(8, 17):
        return None
    return center - width / 2, center + width / 2, float(2 ** int(bits) - 1)
