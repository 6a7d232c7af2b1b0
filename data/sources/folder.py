"""A plain folder of pairs that somebody else chose and described.

prior/<name>, follow/<name>     PNG or JPEG (or .dcm), the same name in both
prompts.csv                     name, prompt; and, where known: interpretation, patient_id, split (train, validation,
                                test), view, age, sex, group, days, registered (1: the images lie on each other)

Without `interpretation` the prompt stands in for it; without `patient_id` each pair is a patient of its own;
without `split` patients are split by hash.
"""

from collections.abc import Iterator

from progemu_jax.data.sources import (
    Given,
    Rejected,
    Study,
    check_root,
    inside,
    number,
    read_table,
    safe_id,
    sex_of,
    unwanted,
)

NAME, TABLE = "folder", "prompts.csv"


class Folder:
    """Reader of one root; `pairs()` iterates. views: as in IcgCxr; a pair without a view is of any."""

    def __init__(self, root, *, views=None):
        self.root = check_root(root, f"the pairs (it holds prior/, follow/ and {TABLE})")
        self.views = None if views is None else list(views)

    def pairs(self) -> Iterator[Given | Rejected]:
        """One item a row of prompts.csv, in its order."""
        seen = set()
        for line, row in read_table(self.root / TABLE, ("name", "prompt")):
            where = f"{TABLE}:{line}"
            if row is None:
                yield Rejected("", where, "the row does not have the header's number of cells")
                continue
            row = {key: value.strip() for key, value in row.items()}
            name = row["name"]
            stem = name.rsplit(".", 1)[0]
            patient = row.get("patient_id") or stem
            if not (safe_id(name) and safe_id(patient)):
                yield Rejected("", where, "a name is not a plain name")
                continue
            if name in seen:
                yield Rejected(stem, where, "the name is listed twice")
                continue
            seen.add(name)
            if not row["prompt"]:
                yield Rejected(stem, where, "the prompt is empty")
                continue
            view = row.get("view") or (self.views[0] if self.views else "unknown")
            if self.views is not None and view not in self.views:
                yield Rejected(stem, where, unwanted(view))
                continue
            paths = [inside(self.root, side, name) for side in ("prior", "follow")]
            if None in paths:
                yield Rejected(stem, where, "the image's path leaves the root")
                continue
            if row.get("split", "") not in ("", "train", "validation", "test"):
                yield Rejected(stem, where, "split is none of train, validation, test")
                continue
            text = row.get("interpretation") or row["prompt"]
            days = number(row.get("days"))
            studies = [
                Study(
                    source=NAME,
                    patient_id=patient,
                    study_id=f"{stem}.{side}",
                    image_id=side,
                    image_path=path,
                    view=view,
                    order_key=(side == "follow",),
                    # The prior comes without a report; the follow-up's is what is said of it.
                    report={"findings": text if side == "follow" else "", "impression": ""},
                    labels={},
                    age=number(row.get("age")),
                    sex=sex_of(row.get("sex", "")),
                    group=row.get("group") or None,
                    split=row.get("split") or None,
                    days=None if days is None else days * (side == "follow"),
                )
                for side, path in zip(("prior", "follow"), paths, strict=True)
            ]
            yield Given(*studies, row["prompt"], text, registered=row.get("registered") == "1")
