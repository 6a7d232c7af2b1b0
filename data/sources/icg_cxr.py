"""ICG-CXR as distributed (Ma et al. 2025): pairs with prompts and interpretations, images and reports to be fetched.

chexpertplus/pa/1/train/p00023/<pair>/<pair>.json           reports redacted, no images
mimic_cxr/pa/1/p10/p10000032/<pair>/<pair>.json             <pair>: i01s50414267-i02s53189527

Images come, by the DICOM ids in the JSON, from the downloads of CheXpert Plus (`chexpertplus`: PNG/ and its table,
for the reports too) and of MIMIC-CXR-JPG or MIMIC-CXR (`mimic_cxr`: files/; `reports` names another root for the
texts). Where <pair>-ref-reg.png and -flu-reg.png lie beside the JSON, those are taken as registered. Unknown keys
are kept. Either branch may be absent.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from progemu_jax.data.sources import (
    Given,
    Rejected,
    Study,
    check_root,
    inside,
    is_text,
    label_of,
    number,
    race_of,
    read_report,
    read_table,
    safe_id,
    sex_of,
    unwanted,
)
from progemu_jax.data.sources.chexpertplus import find_table, report_of
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text import findings, rules

MAX_JSON = 1 << 20  # bytes of one pair's JSON
BRANCHES = ("chexpertplus", "mimic_cxr")
_PAIR = re.compile(r"i(\d{1,4})s([A-Za-z0-9]+)-i(\d{1,4})s([A-Za-z0-9]+)")
_REDACTED = "unable to redistribute"
_SIDES = ("reference", "followup")


def _name(meta: dict, side: str) -> str:
    """The DICOM id of one side: with or without folders and ending, as its cohort writes it."""
    return re.sub(r"\.(dcm|jpg|png)$", "", meta[f"{side}-dicom-id"])


class IcgCxr:
    """Reader of one root; `pairs()` iterates. views: pairs of other views come as Rejected; None: all.

    Raises UserError when the root has neither branch, or one that is named does not read.
    """

    def __init__(self, root, *, views=None, mimic_cxr=None, chexpertplus=None, reports=None):
        self.root = check_root(root, "ICG-CXR (it holds chexpertplus/ or mimic_cxr/)")
        self.views = None if views is None else {view.upper(): view for view in views}
        self.branches = [name for name in BRANCHES if (self.root / name).is_dir()]
        if not self.branches:
            raise UserError(f"{self.root}: neither chexpertplus/ nor mimic_cxr/ is there; give the root of ICG-CXR")
        self.images = {
            "mimic_cxr": check_root(mimic_cxr, "MIMIC-CXR-JPG or MIMIC-CXR") if mimic_cxr else None,
            "chexpertplus": check_root(chexpertplus, "CheXpert Plus") if chexpertplus else None,
        }
        self.reports = check_root(reports, "MIMIC-CXR's reports") if reports else self.images["mimic_cxr"]

    def pairs(self) -> Iterator[Given | Rejected]:
        """Every pair, in the order of its path; a broken one, or one without its images, as Rejected."""
        for branch in self.branches:
            found = list(self._read(branch))
            wanted = {_name(meta, side) for _, meta in found if isinstance(meta, dict) for side in _SIDES}
            texts = self._chexpert_reports(wanted) if branch == "chexpertplus" else {}
            for path, meta in found:
                where = str(path.relative_to(self.root))
                if isinstance(meta, str):
                    yield Rejected(path.stem, where, meta)
                else:
                    pair = self._pair(branch, path, meta, texts)
                    yield Rejected(path.stem, where, pair) if isinstance(pair, str) else pair

    def _read(self, branch: str) -> Iterator[tuple[Path, dict | str]]:
        """(path, JSON or the reason why it is refused) of every pair of a branch."""
        for folder, names, files in os.walk(self.root / branch):
            names.sort()
            for name in sorted(files):
                if name.endswith(".json"):
                    path = Path(folder) / name
                    yield path, self._json(path)

    def _json(self, path: Path) -> dict | str:
        relative = path.relative_to(self.root).parts
        if inside(self.root, *relative) is None:
            return "the path leaves the root"
        if len(relative) < 4 or not _PAIR.fullmatch(path.stem) or not safe_id(path.parent.parent.name):
            return "not at <branch>/<view>/.../p<patient>/<pair>/<pair>.json"
        try:
            if path.stat().st_size > MAX_JSON:
                return f"the JSON is larger than {MAX_JSON} bytes"
            meta = json.loads(records.read_text(path))
        except (OSError, ValueError, RecursionError) as error:
            return f"the JSON does not parse ({type(error).__name__})"
        if not isinstance(meta, dict):
            return "the JSON is not an object"
        keys = ("progression-description", "changes-of-findings", *(f"{side}-dicom-id" for side in _SIDES))
        for key in keys:
            if not is_text(meta.get(key)) or not meta[key].strip():
                return f"key {key!r} is missing or not text"
        view = self._view(meta)
        if self.views is not None and view.upper() not in self.views:
            return unwanted(view)
        return meta

    def _view(self, meta: dict) -> str:
        """As it was asked for, in whatever case the JSON writes it."""
        view = meta.get("view") if isinstance(meta.get("view"), str) else "unknown"
        return (self.views or {}).get(view.upper(), view)

    def _chexpert_reports(self, wanted: set[str]) -> dict[str, dict]:
        """Image -> its report, of the wanted images only; the table is streamed."""
        root = self.images["chexpertplus"]
        if root is None:
            return {}
        texts = {}
        for _, row in read_table(find_table(root), ("path_to_dcm", "section_findings", "section_impression")):
            if row and (name := row["path_to_dcm"].removesuffix(".dcm")) in wanted:
                texts[name] = report_of(row)
        return texts

    def _pair(self, branch: str, path: Path, meta: dict, texts: dict) -> Given | str:
        first, study0, second, study1 = _PAIR.fullmatch(path.stem).groups()
        patient = path.parent.parent.name.removeprefix("p")
        ready = [path.with_name(f"{path.stem}-{side}-reg.png") for side in ("ref", "flu")]
        registered = all(p.exists() and inside(self.root, *p.relative_to(self.root).parts) for p in ready)
        studies = []
        for side, study, picture in zip(_SIDES, (study0, study1), ready, strict=True):
            name = _name(meta, side)
            plain = name.rsplit("/", 1)[-1]
            if registered:
                image = picture
            else:
                image = self._image(branch, patient, study, plain if branch == "mimic_cxr" else name)
                if isinstance(image, str):
                    return image
            report = self._report(branch, patient, study, texts.get(name) or meta.get(f"{side}-report"))
            if isinstance(report, str):
                return report
            diseases = meta.get(f"{side}-diseases")
            labels = {k: label_of(diseases.get(k)) for k in findings.CHEXPERT} if isinstance(diseases, dict) else {}
            if not labels and any(report.values()):
                labels = rules.labels(" ".join(report.values()))
            studies.append(
                Study(
                    source=branch,
                    patient_id=patient,
                    study_id=study,
                    image_id=plain if branch == "mimic_cxr" else f"p{patient}-{plain}",
                    image_path=image,
                    view=self._view(meta),
                    order_key=(int(first if side == "reference" else second),),
                    report=report,
                    labels=labels,
                    age=number(meta.get("age")),
                    sex=sex_of(str(meta.get("sex") or "")),
                    group=race_of(str(meta.get("race") or "")),
                    dicom_id=name,
                )
            )
        if not all(safe_id(s.image_id) for s in studies):
            return "a DICOM id is not a plain name"
        comment = meta.get("comment") if isinstance(meta.get("comment"), dict) else {}
        confidence = comment.get("confidence")
        return Given(
            *studies,
            prompt=meta["progression-description"],
            interpretation=meta["changes-of-findings"],
            confidence=confidence if isinstance(confidence, int) and 1 <= confidence <= 5 else 0,
            reason=str(comment.get("reason") or ""),
            ordinals=(int(first), int(second)),
            meta={k: v for k, v in meta.items() if k not in ("progemu", "reference-report", "followup-report")},
            registered=registered,
        )

    def _image(self, branch: str, patient: str, study: str, name: str) -> Path | str:
        """Where the image lies in its cohort, or why it cannot be had."""
        root = self.images[branch]
        if root is None:
            return f"the images are not here: name the cohort by config.data.{branch}"
        places = [("PNG", f"{name}.png")]
        if branch == "mimic_cxr":
            folder = ("files", f"p{patient[:2]}", f"p{patient}", f"s{study}")
            places = [(*folder, f"{name}.jpg"), (*folder, f"{name}.dcm")]
        paths = [inside(root, *parts) for parts in places]
        if None in paths:
            return "the image's path leaves the root"
        return next((path for path in paths if path.exists()), paths[0])

    def _report(self, branch: str, patient: str, study: str, given) -> dict | str:
        """The two sections: those of the JSON or the table, else of MIMIC's report file; "" where there are none."""
        given = given if isinstance(given, dict) else {}
        report = {k: str(given.get(k) or "").strip() for k in ("findings", "impression")}
        report = {k: "" if _REDACTED in v else v for k, v in report.items()}
        if any(report.values()) or branch == "chexpertplus" or self.reports is None:
            return report
        path = inside(self.reports, "files", f"p{patient[:2]}", f"p{patient}", f"s{study}.txt")
        return read_report(path)
