"""NIH ChestX-ray14 (Wang et al. 2017, arXiv 1705.02315): PNG images and one table of labels mined from reports.

Data_Entry_2017_v2020.csv, or Data_Entry_2017.csv       a row an image: labels, follow-up number, age, sex, view
images/00000013_005.png, or images_001/images/...       images
train_val_list.txt, test_list.txt                       the source's splits, by patient; optional
BBox_List_2017.csv                                      boxes of 880 images, in pixels of 1024 x 1024; optional

There are no dates: a patient's films are in the order of `Follow-up #` (the number in an image's name differs from it
in a fifth of the rows), and ages tell years only, so intervals are coarse at best (`journeys.Pair.interval`).

Policy: the authors drop negated and uncertain mentions before they label (section 3.2 of the paper), so a table has
only what is there, and what it does not list counts as absent; no label is uncertain. "No Finding" beside another label
contradicts it: the row is left out. About one mined label in ten is wrong, by the authors' own count.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from progemu_jax.data.sources import (
    Rejected,
    State,
    Study,
    check_root,
    files_in,
    number,
    read_table,
    sex_of,
    unwanted,
)
from progemu_jax.data.sources.label_findings import NIH
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import Finding

NAME, TABLES = "nih_cxr14", ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
FOLDERS = ("images", *(f"images_{n:03d}/images" for n in range(1, 13)), *(f"images_{n:03d}" for n in range(1, 13)))
LISTS = {"train_val_list.txt": "train_val", "test_list.txt": "test"}
BOXES, SIDE = "BBox_List_2017.csv", 1024  # pixels
_COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
            "View Position")  # fmt: skip
_NAME = re.compile(r"([0-9]{8})_([0-9]{3})\.png")
_AGE = {"Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}  # of the earlier table: 058Y, 011M, 012D
_OLDEST = 110.0  # years; the earlier table has 411


class NihCxr14:
    """Reader of one root. views: as in MimicCxr. Raises UserError when the root, a table or a list does not read."""

    findings: tuple[Finding, ...] = NIH

    def __init__(self, root, *, views=None):
        self.root = check_root(root, f"NIH ChestX-ray14 (it holds {TABLES[0]} and images/)")
        self.views = None if views is None else frozenset(views)
        found = [self.root / name for name in (*TABLES, *(f"{t}.gz" for t in TABLES)) if (self.root / name).exists()]
        if not found:
            raise UserError(f"{self.root / TABLES[0]}: the file is missing; give the root of NIH ChestX-ray14")
        self.table = found[0]
        self.known: dict[str, tuple[dict, dict]] = {}  # a cell -> (labels, states): 836 of them are told apart

    def studies(self) -> Iterator[Study | Rejected]:
        """One item a row of the table, in its order; then one for each image that no row names."""
        images = files_in(self.root, FOLDERS)
        if not images:
            raise UserError(f"{self.root}: no image in images/ or images_001/images/; unpack the archives there")
        splits, boxes, left = self._splits(), self._boxes(), set(images)
        for line, row in read_table(self.table, _COLUMNS):
            where = f"{self.table.name}:{line}"
            if row is None:
                yield Rejected("", where, "the row does not have the header's number of cells")
                continue
            left.discard(row["Image Index"])
            found = self._study(row, images, splits, boxes)
            yield Rejected("", where, found) if isinstance(found, str) else found
        yield from (Rejected("", name, "no row of the table names the image") for name in sorted(left))

    def _study(self, row: dict, images: dict, splits: dict | None, boxes: dict) -> Study | str:
        """The study of a row, or why there is none."""
        named, order = _NAME.fullmatch(row["Image Index"]), number(row["Follow-up #"])
        if not named:
            return "the image's name is not <patient>_<number>.png"
        if number(row["Patient ID"]) != int(named[1]):
            return "the image's name is another patient's"
        view = row["View Position"] or "unknown"
        if self.views is not None and view not in self.views:
            return unwanted(view)
        if order is None or order < 0:
            return "the follow-up number does not parse"
        known = self._labelled(row["Finding Labels"])
        if isinstance(known, str):
            return known
        if row["Image Index"] not in images:
            return "the image file is missing"
        path = images[row["Image Index"]]
        if path is None:
            return "the image's path leaves the root"
        (labels, states), marked = known, boxes.get(row["Image Index"])
        if marked:
            states = states | {name: replace(states[name], side=_side(at)) for name, at in marked.items() if
                               states[name].present and name not in _MIDDLE}  # fmt: skip
        return Study(
            source=NAME,
            patient_id=named[1],
            study_id=named[2],
            image_id=f"{named[1]}_{named[2]}",
            image_path=path,
            view=view,
            order_key=(order,),
            report={"findings": "", "impression": ""},
            labels=labels,
            age=_age(row["Patient Age"]),
            sex=sex_of(row["Patient Gender"]),
            split=splits.get(row["Image Index"]) if splits else None,
            states=states,
            boxes=marked,
        )

    def _labelled(self, cell: str) -> tuple[dict, dict] | str:
        """(label column -> 1 or 0, finding -> State) of a cell such as "Edema|Effusion", or what is wrong with it."""
        if cell not in self.known:
            there = set(cell.split("|"))
            if there - _KNOWN:
                return "a label is none of NIH's fifteen, or spelt in another way"
            if len(there) > 1 and _NOTHING in there:
                return "No Finding stands beside a finding"
            labels = {f.label: int(f.label in there) for f in NIH}
            self.known[cell] = labels, {f.name: State(bool(labels[f.label])) for f in NIH}
        return self.known[cell]

    def _splits(self) -> dict[str, str] | None:
        """Image -> split; None where neither list is there."""
        found, there = {}, [name for name in LISTS if (self.root / name).exists()]
        for name in there:
            try:
                found |= dict.fromkeys(records.read_text(self.root / name).split(), LISTS[name])
            except (OSError, ValueError) as error:
                raise UserError(f"{self.root / name}: does not read ({type(error).__name__}); restore it") from None
        return found if there else None

    def _boxes(self) -> dict[str, dict[str, list]]:
        """Image -> finding -> its boxes [x, y, w, h] in shares of width and height; {} without the table.

        The header splits one name at its commas ("Bbox [x,y,w,h]"), so columns go by their place.
        """
        found: dict[str, dict[str, list]] = {}
        path = self.root / BOXES
        for _, row in read_table(path, ("Image Index", "Finding Label"), whole=False) if path.exists() else ():
            box, name = [number(cell) for cell in [*row.values()][2:6]], _BOXED.get(row.get("Finding Label"))
            if name and len(box) == 4 and all(v is not None and 0 <= v <= SIDE for v in box):
                found.setdefault(row["Image Index"], {}).setdefault(name, []).append([v / SIDE for v in box])
        return found


_NOTHING = "No Finding"
_KNOWN = {_NOTHING, *(f.label for f in NIH)}
_BOXED = {f.label: f.name for f in NIH} | {"Infiltrate": "infiltration"}
_MIDDLE = {f.name for f in NIH if not {"left lung", "right lung"} & set(f.organs)}


def _side(boxes: list) -> str:
    """The patient's side that boxes lie on: the image's left is the patient's right."""
    sides = {"right" if x + w / 2 < 0.5 else "left" for x, _, w, _ in boxes}
    return sides.pop() if len(sides) == 1 else "both"


def _age(cell: str) -> float | None:
    """Years; None for what is no age of a living patient."""
    unit = _AGE.get(cell[-1:].upper())
    years = number(cell[:-1] if unit else cell)
    years = None if years is None else years * (unit or 1.0)
    return years if years is not None and 0 <= years <= _OLDEST else None
