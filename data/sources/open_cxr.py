"""The COVID-19 Image Data Collection (Cohen et al. 2020, arXiv 2006.11988): metadata.csv + images/.

No labels and no times of day: studies are ordered by their offset in days, and all images of one patient at
one offset are one study. The clinical notes stand in for the report.
"""

from collections.abc import Iterator

from progemu_jax.data.sources import Rejected, Study, check_root, inside, number, read_table, safe_id, unwanted

FRONTAL = ("PA", "AP", "AP Supine")


class OpenCxr:
    """Reader of one root. views: as in MimicCxr. Raises UserError when root or table do not read."""

    def __init__(self, root, *, views=None):
        self.name = "open_cxr"
        self.root = check_root(root, "the collection (it holds metadata.csv and images/)")
        self.views = None if views is None else frozenset(views)

    def studies(self) -> Iterator[Study | Rejected]:
        """One item a row of metadata.csv, in its order."""
        required = ("patientid", "offset", "sex", "age", "view", "folder", "filename", "clinical_notes")
        for line, row in read_table(self.root / "metadata.csv", required):
            where = f"metadata.csv:{line}"
            if row is None:
                yield Rejected("", where, "the row does not have the header's number of cells")
                continue
            patient, view = row["patientid"].strip(), row["view"].strip() or "unknown"
            if not safe_id(patient):
                yield Rejected("", where, "an identifier is not a plain name")
                continue
            if row.get("modality", "X-ray") != "X-ray":
                yield Rejected("", where, "not an X-ray")
                continue
            if self.views is not None and view not in self.views:
                yield Rejected("", where, unwanted(view))
                continue
            days = number(row["offset"])
            if days is None:
                yield Rejected("", where, "the offset in days does not parse")
                continue
            path = inside(self.root, row["folder"], row["filename"])
            if path is None:
                yield Rejected("", where, "the image's path leaves the root")
                continue
            yield Study(
                source=self.name,
                patient_id=patient,
                study_id=f"{patient}d{days:g}".replace("-", "m"),
                image_id=str(line),
                image_path=path,
                view=view,
                order_key=(days,),
                report={"findings": row["clinical_notes"].strip(), "impression": ""},
                labels={},
                age=number(row["age"]),
                sex=row["sex"] if row["sex"] in ("F", "M") else None,
                days=days,
            )
