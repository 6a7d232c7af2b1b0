"""MIMIC-CXR-JPG and MIMIC-CXR (Johnson et al. 2019), MIMIC-IV's patients; also the phantom's layout.

files/p10/p10000032/s50414267/<dicom_id>.jpg      images; .dcm in MIMIC-CXR
files/p10/p10000032/s50414267.txt                 reports (`reports` names another root for them)
mimic-cxr-2.0.0-{metadata,chexpert,split}.csv.gz  of MIMIC-CXR-JPG; MIMIC-CXR alone has none of them
cxr-record-list.csv.gz                            MIMIC-CXR: subject_id, study_id, dicom_id, path
patients.csv.gz, admissions.csv.gz                MIMIC-IV: sex, age, race; optional (`mimic_iv` names their
folder)
"""

import datetime
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from progemu_jax.data import dicom, images
from progemu_jax.data.sources import (
    Rejected,
    Study,
    check_root,
    inside,
    number,
    race_of,
    read_report,
    read_table,
    safe_id,
    unwanted,
)
from progemu_jax.errors import UserError
from progemu_jax.text import findings, rules

_TABLE = "mimic-cxr-2.0.0-{}.csv"
_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")


class MimicCxr:
    """Reader of one MIMIC-CXR-JPG root.

    views: yield only images of these views, the others as Rejected without opening their reports; None: all.
    Raises UserError when the root or one of the three tables is missing or does not parse.
    """

    suffix, what = ".jpg", "MIMIC-CXR-JPG (it holds files/ and mimic-cxr-2.0.0-metadata.csv.gz)"

    def __init__(self, root, *, name="mimic_cxr", views=None, reports=None, mimic_iv=None):
        self.name = name
        self.root = check_root(root, self.what)
        self.reports = check_root(reports, "MIMIC-CXR's reports") if reports else self.root
        self.views = None if views is None else frozenset(views)
        self.mimic_iv = check_root(mimic_iv, "MIMIC-IV's hosp folder") if mimic_iv else None
        self._find_tables()

    def _find_tables(self):
        self.metadata = self._table("metadata")

    def _rows(self) -> Iterator[tuple[str, dict | str | None]]:
        """(table and line, row of _METADATA's columns), a reason where the image does not tell them."""
        for line, row in read_table(self.metadata, _METADATA):
            yield f"{self.metadata.name}:{line}", row

    def studies(self) -> Iterator[Study | Rejected]:
        """One item a row of the metadata table, in its order."""
        labels, splits = self._labels(), self._splits()
        people, races = self._people(), self._races()
        report_of: tuple[str, dict | str] = ("", "")
        for where, row in self._rows():
            if isinstance(row, str):
                yield Rejected("", where, row)
                continue
            if row is None:
                yield Rejected("", where, "the row does not have the header's number of cells")
                continue
            subject, study, image = row["subject_id"], row["study_id"], row["dicom_id"]
            if not (subject.isdecimal() and study.isdecimal() and len(subject) > 2 and safe_id(image)):
                yield Rejected("", where, "an identifier is not a plain name")
                continue
            view = row["ViewPosition"] or "unknown"
            if self.views is not None and view not in self.views:
                yield Rejected(study, where, unwanted(view))
                continue
            moment = _moment(row["StudyDate"], row["StudyTime"])
            if moment is None:
                yield Rejected(study, where, "study date or time does not parse")
                continue
            folder = ("files", f"p{subject[:2]}", f"p{subject}")
            path = inside(self.root, *folder, f"s{study}", f"{image}{self.suffix}")
            if path is None:
                yield Rejected(study, where, "the image's path leaves the root")
                continue
            if report_of[0] != study:
                report_of = study, read_report(inside(self.reports, *folder, f"s{study}.txt"))
            if isinstance(report_of[1], str):
                yield Rejected(study, f"s{study}.txt", report_of[1])
                continue
            found = rules.labels(" ".join(report_of[1].values())) if labels is None else labels.get(study, {})
            if found is None:
                yield Rejected(study, self._table("chexpert").name, "the study's labels do not parse")
                continue
            sex, birth, age = people.get(subject, (None, None, None))
            yield Study(
                source=self.name,
                patient_id=subject,
                study_id=study,
                image_id=image,
                image_path=path,
                view=view,
                order_key=moment,
                report=report_of[1],
                labels=found,
                age=float(moment[0] // 10000 - birth) if birth is not None else age,
                sex=sex,
                group=races.get(subject),
                split=splits.get(study),
                days=_days(moment),
            )

    def _table(self, name: str) -> Path:
        stem = _TABLE.format(name)
        for candidate in (self.root / f"{stem}.gz", self.root / stem):
            if candidate.exists():
                return candidate
        raise UserError(f"{self.root / (stem + '.gz')}: the file is missing; give the root of MIMIC-CXR-JPG")

    def _optional(self, name: str) -> Path | None:
        folders = [self.mimic_iv] if self.mimic_iv else [self.root, self.root / "hosp"]
        return next((p for f in folders for p in (f / f"{name}.csv.gz", f / f"{name}.csv") if p.exists()), None)

    def _labels(self) -> dict[str, dict | None] | None:
        """study -> labels, None where they do not parse; None altogether: none are given, our rules make them."""
        values = {"": None, "1.0": 1, "0.0": 0, "-1.0": -1, "1": 1, "0": 0, "-1": -1}
        labels, shared = {}, {}
        for _, row in read_table(self._table("chexpert"), ("study_id", *findings.CHEXPERT)):
            if row is None:
                continue
            cells = tuple(row[name] for name in findings.CHEXPERT)
            if cells not in shared:  # few distinct rows among hundreds of thousands
                known = all(c in values for c in cells)
                shared[cells] = {n: values[c] for n, c in zip(findings.CHEXPERT, cells, strict=True)} if known else None
            labels[row["study_id"]] = shared[cells]
        return labels

    def _splits(self) -> dict[str, str]:
        names = {"train": "train", "validate": "validation", "validation": "validation", "test": "test"}
        table = read_table(self._table("split"), ("study_id", "split"))
        return {row["study_id"]: names[row["split"]] for _, row in table if row and row["split"] in names}

    def _people(self) -> dict[str, tuple[str | None, float | None, float | None]]:
        """subject -> sex, year of birth by the patient's shifted calendar, age without a calendar."""
        path, people = self._optional("patients"), {}
        for _, row in read_table(path, ("subject_id", "gender", "anchor_age")) if path else ():
            if row is not None:
                age, year = number(row["anchor_age"]), number(row.get("anchor_year"))
                birth = year - age if age is not None and year is not None else None
                people[row["subject_id"]] = row["gender"] if row["gender"] in ("F", "M") else None, birth, age
        return people

    def _races(self) -> dict[str, str]:
        """subject -> the race stated most often over the admissions, the first of equals."""
        path, counts = self._optional("admissions"), {}
        for _, row in read_table(path, ("subject_id", "race")) if path else ():
            if row is not None and (race := race_of(row["race"])):
                counts.setdefault(row["subject_id"], Counter())[race] += 1
        return {subject: count.most_common(1)[0][0] for subject, count in counts.items()}


class MimicCxrDicom(MimicCxr):
    """Reader of a MIMIC-CXR root, the images in DICOM; needs the extra [dicom].

    With MIMIC-CXR-JPG's tables in the root it reads views, dates, labels and splits there. Without them, views
    and dates come from the headers of the images that cxr-record-list.csv.gz names, and labels from the reports
    by our rules.
    """

    suffix, what = ".dcm", "MIMIC-CXR (it holds files/ and cxr-record-list.csv.gz)"

    def _find_tables(self):
        dicom.require()
        self.tables = (self.root / f"{_TABLE.format('metadata')}.gz").exists()
        self.tables |= (self.root / _TABLE.format("metadata")).exists()
        names = ("cxr-record-list.csv.gz", "cxr-record-list.csv")
        found = [self.root / name for name in names if (self.root / name).exists()]
        if not self.tables and not found:
            raise UserError(f"{self.root / names[0]}: the file is missing; give the root of {self.what}")
        self.metadata = self._table("metadata") if self.tables else found[0]

    def _rows(self):
        if self.tables:
            yield from super()._rows()
            return

        for line, row in read_table(self.metadata, ("subject_id", "study_id", "dicom_id")):
            where = f"{self.metadata.name}:{line}"
            if row is None or not all(safe_id(row[key]) for key in ("subject_id", "study_id", "dicom_id")):
                yield where, row
                continue
            parts = (f"p{row['subject_id'][:2]}", f"p{row['subject_id']}", f"s{row['study_id']}")
            path = inside(self.root, "files", *parts, f"{row['dicom_id']}.dcm")
            try:
                yield where, "the image's path leaves the root" if path is None else row | dicom.header(path)
            except images.BrokenImage as error:
                yield where, f"broken image: {error}"

    def _labels(self):
        return super()._labels() if self.tables else None

    def _splits(self):
        return super()._splits() if self.tables else {}


def _moment(date: str, time: str) -> tuple[int, float] | None:
    """("21800506", "81303.125") -> (21800506, 81303.125), hhmmss; None unless both are possible.

    No year begins with a zero: a date that lost or gained digits would be another one.
    """
    value = number(time)
    try:
        if not re.fullmatch("[1-9][0-9]{7}", date):
            return None
        datetime.datetime.strptime(date, "%Y%m%d")
        if value is None or not 0 <= value < 240000:
            return None
        return int(date), value
    except ValueError:
        return None


def _days(moment: tuple[int, float]) -> float:
    date, time = moment
    seconds = time // 10000 * 3600 + time // 100 % 100 * 60 + time % 100
    return datetime.datetime.strptime(str(date), "%Y%m%d").toordinal() + seconds / 86400
