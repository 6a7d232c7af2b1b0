"""CheXpert (Irvin et al. 2019, arXiv 1901.07031): JPEG images and tables of labels; no reports.

train.csv, valid.csv, test.csv                          a row an image: path, sex, age, view, 14 observations
train/patient00002/study2/view1_frontal.jpg             images; the same in valid/ and test/

Both sizes, CheXpert-v1.0 and CheXpert-v1.0-small: paths in the tables begin with the name of the one, which may differ
from the root's. There are no dates: a patient's studies are in the order of their numbers, along which no age of the
223,414 rows falls; intervals are coarse at best (`journeys.Pair.interval`).

Policy for uncertain labels (-1), after the paper's section on uncertainty: of its five approaches, U-Ones was best for
atelectasis and edema, which count as present; for the others it found U-MultiClass and U-SelfTrained better, which keep
"uncertain" apart from yes and no: no text says anything of them. A blank is a finding that the report does not mention:
unknown, but for "No Finding", which is the absence of all but support devices. "No Finding" beside a finding, certain
or not, contradicts it: the row is left out.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from progemu_jax.data.sources import (
    Rejected,
    State,
    Study,
    check_root,
    inside,
    number,
    read_table,
    safe_id,
    sex_of,
    unwanted,
)
from progemu_jax.data.sources.label_findings import CHEXPERT
from progemu_jax.errors import UserError
from progemu_jax.text.findings import Finding

NAME = "chexpert"
TABLES = {"train.csv": "train", "valid.csv": "validation", "test.csv": "test"}
U_ONES = ("Atelectasis", "Edema")
_LABELS = tuple(f.label for f in CHEXPERT)
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *_LABELS)
_VALUES = {"": None, "1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}
_DEVICES = "Support Devices"


class CheXpert:
    """Reader of one root. views: as in MimicCxr. Raises UserError when the root or a table does not read."""

    findings: tuple[Finding, ...] = CHEXPERT

    def __init__(self, root, *, views=None):
        self.root = check_root(root, "CheXpert (it holds train.csv and train/)")
        self.views = None if views is None else frozenset(views)
        self.tables = [self.root / name for name in TABLES if (self.root / name).exists()]
        if not self.tables:
            raise UserError(f"{self.root / 'train.csv'}: the file is missing; give the root of CheXpert")
        if not any((self.root / table.stem).is_dir() for table in self.tables):
            raise UserError(f"{self.root / 'train'}: no such folder; unpack the images there")
        self.known: dict[tuple, tuple[dict, dict]] = {}

    def studies(self) -> Iterator[Study | Rejected]:
        """One item a row of the tables, in their order."""
        for table in self.tables:
            for line, row in read_table(table, _COLUMNS):
                where = f"{table.name}:{line}"
                if row is None:
                    yield Rejected("", where, "the row does not have the header's number of cells")
                    continue
                found = self._study(row, TABLES[table.name])
                yield Rejected("", where, found) if isinstance(found, str) else found

    def _study(self, row: dict, split: str) -> Study | str:
        """The study of a row, or why there is none."""
        parts = PurePosixPath(row["Path"]).parts[-4:] if row["Path"] else ()
        if len(parts) != 4 or not all(safe_id(part) for part in parts):
            return "the image's path is not .../<split>/<patient>/<study>/<view>"
        patient, study = parts[1].removeprefix("patient"), parts[2].removeprefix("study")
        order = number(study)
        if not (safe_id(patient) and safe_id(study)) or order is None:
            return "the image's path is not .../<split>/<patient>/<study>/<view>"
        frontal = row["Frontal/Lateral"] == "Frontal"
        view = (row["AP/PA"] if frontal else row["Frontal/Lateral"].upper()) or "unknown"
        if self.views is not None and view not in self.views:
            return unwanted(view)
        known = self._labelled(tuple(row[name] for name in ("No Finding", *_LABELS)))
        if isinstance(known, str):
            return known
        path = inside(self.root, *parts)
        if path is None:
            return "the image's path leaves the root"
        if not path.is_file():
            return "the image file is missing"
        return Study(
            source=NAME,
            patient_id=patient,
            study_id=study.zfill(5),
            image_id=f"p{patient}-{PurePosixPath(parts[3]).stem}",  # study and image names repeat between patients
            image_path=path,
            view=view,
            order_key=(order,),
            report={"findings": "", "impression": ""},
            labels=known[0],
            age=number(row["Age"]),
            sex=sex_of(row["Sex"]),
            split=split,
            dicom_id="/".join(parts),
            states=known[1],
        )

    def _labelled(self, cells: tuple[str, ...]) -> tuple[dict, dict] | str:
        """(label column -> 1, 0, -1 or None, finding -> State) of a row's cells, or what is wrong with them."""
        if cells not in self.known:
            if any(cell not in _VALUES for cell in cells):
                return "a label is none of 1, 0, -1 and blank"
            nothing, *values = (_VALUES[cell] for cell in cells)
            labels = dict(zip(_LABELS, values, strict=True))
            if nothing == 1 and any(v in (1, -1) for name, v in labels.items() if name != _DEVICES):
                return "No Finding stands beside a finding"
            states = {}
            for f in CHEXPERT:
                value = labels[f.label]
                if value is None and nothing == 1 and f.label != _DEVICES:
                    value = 0
                if value is not None:
                    states[f.name] = State(None if value == -1 and f.label not in U_ONES else value != 0)
            self.known[cells] = labels, states
        return self.known[cells]
