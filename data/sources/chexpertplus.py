"""CheXpert Plus (Chambon et al. 2024, arXiv 2405.19538): PNG images and one table of reports.

df_chexpert_plus_240401.csv                             a row an image: reports, demographics (also as .csv.gz)
PNG/train/patient42142/study5/view1_frontal.png         images
chexbert_labels/impression_fixed.json                   JSON lines of labels; absent: labels of our rules

Reports are dated by their order only (patient_report_date_order), so intervals are unknown.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from progemu_jax.data.sources import (
    Rejected,
    Study,
    check_root,
    inside,
    label_of,
    number,
    race_of,
    read_table,
    safe_id,
    sex_of,
    unwanted,
)
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text import findings, rules

NAME, TABLE, LABELS = "chexpertplus", "df_chexpert_plus_240401.csv", "chexbert_labels/impression_fixed.json"
_COLUMNS = (
    "path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order", "section_findings",
    "section_impression", "age", "sex", "race", "split",
)  # fmt: skip


class CheXpertPlus:
    """Reader of one root. views: as in MimicCxr. Raises UserError when root or table do not read."""

    def __init__(self, root, *, views=None):
        self.root = check_root(root, f"CheXpert Plus (it holds PNG/ and {TABLE})")
        self.views = None if views is None else frozenset(views)
        self.table = find_table(self.root)

    def studies(self) -> Iterator[Study | Rejected]:
        """One item a row of the table, in its order."""
        labels = self._labels()
        for line, row in read_table(self.table, _COLUMNS):
            where = f"{self.table.name}:{line}"
            if row is None:
                yield Rejected("", where, "the row does not have the header's number of cells")
                continue
            parts = PurePosixPath(row["path_to_image"]).with_suffix("").parts if row["path_to_image"] else ()
            names = [part for part in parts if safe_id(part)]
            if len(parts) != 4 or names != list(parts) or parts[1] != row["deid_patient_id"]:
                yield Rejected("", where, "the image's path is not <split>/<patient>/<study>/<view>")
                continue
            patient, study = parts[1].removeprefix("patient"), parts[2].removeprefix("study").zfill(5)
            if not (safe_id(patient) and safe_id(study)):
                yield Rejected("", where, "an identifier is not a plain name")
                continue
            view = row["ap_pa"] if row["frontal_lateral"] == "Frontal" else row["frontal_lateral"].upper()
            view = view or "unknown"
            if self.views is not None and view not in self.views:
                yield Rejected(study, where, unwanted(view))
                continue
            order = number(row["patient_report_date_order"])
            if order is None:
                yield Rejected(study, where, "the order of the report does not parse")
                continue
            path = inside(self.root, "PNG", *parts[:3], f"{parts[3]}.png")
            if path is None:
                yield Rejected(study, where, "the image's path leaves the root")
                continue
            report = report_of(row)
            found = rules.labels(" ".join(report.values())) if labels is None else labels.get("/".join(parts), {})
            yield Study(
                source=NAME,
                patient_id=patient,
                study_id=study,
                image_id=f"p{patient}-{parts[3]}",  # study and image names repeat between patients
                image_path=path,
                view=view,
                order_key=(order,),
                report=report,
                labels=found,
                age=number(row["age"]),
                sex=sex_of(row["sex"]),
                group=race_of(row["race"]),
                split={"train": "train", "valid": "validation", "test": "test"}.get(row["split"]),
                dicom_id="/".join(parts),
            )

    def _labels(self) -> dict[str, dict] | None:
        """Image -> labels; None without the file."""
        path = self.root / LABELS
        if not path.exists():
            return None
        labels, shared = {}, {}
        for line, row in records.read_lines(path):
            name = row.get("path_to_image") if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise UserError(f"{path}: line {line} is no JSON object with path_to_image; restore the file")
            cells = tuple(label_of(row.get(name)) for name in findings.CHEXPERT)
            shared.setdefault(cells, dict(zip(findings.CHEXPERT, cells, strict=True)))
            labels[name.rsplit(".", 1)[0]] = shared[cells]
        return labels


def find_table(root: Path) -> Path:
    """The table of reports in a root, compressed or not; UserError where it is missing."""
    for name in (TABLE, f"{TABLE}.gz"):
        if (root / name).exists():
            return root / name
    raise UserError(f"{root / TABLE}: the file is missing; give the root of CheXpert Plus")


def report_of(row: dict[str, str]) -> dict[str, str]:
    """Findings and impression of a row, white space made single; from the whole report where both are blank."""
    report = {key: " ".join(row[f"section_{key}"].split()) for key in ("findings", "impression")}
    if not any(report.values()) and row.get("report"):
        found = rules.sections(row["report"])
        report = {key: found[key] for key in report}
    return report
