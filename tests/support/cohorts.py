"""A cohort in MIMIC-CXR-JPG's layout, drawn here with NumPy: small, fast, and free of our own writer."""

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data.sources import Rejected, open_source
from progemu_jax.text.findings import CHEXPERT

OPEN = Path(os.environ.get("PROGEMU_OPEN_CXR", Path(__file__).parents[3] / "shared/open_cxr"))
NIH = Path(os.environ.get("PROGEMU_NIH_CXR14", Path(__file__).parents[3] / "shared/nih_cxr14"))
QUIET = {"size": 64, "processes": 1, "progress": False}  # options of a build
SECRET = "Zebrastripe"  # a word of every report, which must not come out anywhere but in the data


def chest(seed: int, size: int = 64) -> np.ndarray:
    """Two dark lungs in a bright body, uint8 [size, size], slightly different for every seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    dx, dy = rng.uniform(-0.06, 0.06, 2)
    image = 190 - 40 * np.abs(y)
    for side in (-0.42, 0.42):
        image -= 130 * np.exp(-((((x - side - dx) / 0.3) ** 2 + ((y - dy) / 0.6) ** 2) ** 2))
    image += 25 * np.sin(9 * np.pi * y + 2) * np.exp(-(x**2)) + rng.normal(0, 2, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def patient(index: int) -> str:
    """Subject id; every tenth falls into p19."""
    return f"{10 + index % 10}{index:06d}"


def write(root: Path, patients: int = 12, studies: int = 3, size: int = 64, view: str = "PA") -> Path:
    """`patients` x `studies` at weekly intervals; effusion in every second study, the report says so."""
    rows, labels, splits = [], [], []
    for p in range(patients):
        subject = patient(p)
        for s in range(studies):
            study = str(50_000_000 + 100 * p + s)
            folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
            (folder / f"s{study}").mkdir(parents=True)
            dicom = f"{p:04x}-{s:04x}"
            Image.fromarray(chest(100 * p + s, size)).save(folder / f"s{study}" / f"{dicom}.jpg", quality=95)
            sick = s % 2 == 1
            finding = "There is a small left pleural effusion." if sick else "No pleural effusion."
            text = f" FINDINGS:\n\n {finding} {SECRET}.\n\n IMPRESSION:\n\n {finding}\n"
            (folder / f"s{study}.txt").write_text(text)
            rows.append((dicom, subject, study, view, f"2180{1 + s:02d}07", "81303.125"))
            label = {"Pleural Effusion": "1.0" if sick else "0.0"}
            labels.append((subject, study, *(label.get(name, "") for name in CHEXPERT)))
            splits.append((dicom, study, subject, "test" if subject.startswith("19") else "train"))
    table(
        root,
        "metadata",
        ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"),
        rows,
    )
    table(root, "chexpert", ("subject_id", "study_id", *CHEXPERT), labels)
    table(root, "split", ("dicom_id", "study_id", "subject_id", "split"), splits)
    people = [(patient(p), "F" if p % 2 else "M", 50 + p, 2178) for p in range(patients)]
    plain(root / "patients.csv.gz", ("subject_id", "gender", "anchor_age", "anchor_year"), people)
    races = ("WHITE - RUSSIAN", "BLACK/AFRICAN AMERICAN", "UNKNOWN")
    plain(
        root / "admissions.csv.gz",
        ("subject_id", "race"),
        [(patient(p), races[p % 3]) for p in range(patients)],
    )
    return root


def table(root: Path, name: str, header, rows) -> None:
    plain(root / f"mimic-cxr-2.0.0-{name}.csv.gz", header, rows)


def plain(path: Path, header, rows) -> None:
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def edit(root: Path, name: str, change) -> None:
    """Rewrites a table: `change` gets its lines and returns new ones."""
    path = root / f"mimic-cxr-2.0.0-{name}.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(change(lines)).encode()))


def files(root: Path) -> dict[str, bytes]:
    """Relative path -> content of everything under a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def chexpertplus(root: Path, patients: int = 12, studies: int = 3, size: int = 64) -> Path:
    """CheXpert Plus' layout: as many patients and studies, a lateral beside each first film, labels as JSON lines."""
    columns = (
        "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order",
        "report", "section_findings", "section_impression", "age", "sex", "race", "split",
    )  # fmt: skip
    rows, labels = [], []
    for p in range(patients):
        for s in range(studies):
            sick = s % 2 == 1
            finding = "Small left pleural effusion." if sick else "No pleural effusion."
            for view, ap_pa in (("view1_frontal", "PA"), ("view2_lateral", ""))[: 2 if s == 0 else 1]:
                path = f"train/patient{p + 1:05d}/study{s + 1}/{view}"
                (root / "PNG" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(chest(100 * p + s, size)).save(root / "PNG" / f"{path}.png", compress_level=1)
                frontal = "Frontal" if ap_pa else "Lateral"
                person = (
                    60.0 + p,
                    ("Female", "Male")[p % 2],
                    ("White, non-Hispanic", "Black or African American")[p % 2],
                )
                text = f"\n{finding}\n{SECRET}. "
                rows.append((f"{path}.jpg", f"{path}.dcm", frontal, ap_pa, f"patient{p + 1:05d}", 2 * s + 1, text, text,
                             finding, *person, "train"))  # fmt: skip
                label = {"Pleural Effusion": 1.0 if sick else 0.0}
                labels.append({"path_to_image": f"{path}.jpg"} | {name: label.get(name) for name in CHEXPERT})
    with open(root / "df_chexpert_plus_240401.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    (root / "chexbert_labels").mkdir(exist_ok=True)
    (root / "chexbert_labels/impression_fixed.json").write_text("".join(json.dumps(row) + "\n" for row in labels))
    return root


REDACTED = "Due to the license, we are unable to redistribute the CXR data."


def icg_cxr(root: Path, plus: Path, mimic: Path) -> Path:
    """ICG-CXR as distributed: a pair of each patient of both cohorts, as written by `chexpertplus` and `write`."""
    for p in range(len(list((plus / "PNG/train").iterdir()))):
        _icg_pair(root / "chexpertplus/pa/1/train" / f"p{p + 1:05d}", "i01s0001-i03s0002", {
            "reference-dicom-id": f"train/patient{p + 1:05d}/study1/view1_frontal",
            "followup-dicom-id": f"train/patient{p + 1:05d}/study2/view1_frontal",
            "age": 61.0, "sex": "Female", "race": "Other", "split": "train", "reg_metric": 2165.8,
            "reference-diseases": {name: -100 for name in CHEXPERT} | {"No Finding": 1.0},
            "followup-diseases": {name: -100 for name in CHEXPERT} | {"Pleural Effusion": 1.0},
        })  # fmt: skip
    for folder in sorted((mimic / "files").glob("p*/p*")):
        first, second = sorted(f for f in folder.iterdir() if f.is_dir())[:2]
        names = {f"{side}-dicom-id": next(f.iterdir()).stem for side, f in (("reference", first), ("followup", second))}
        pair = f"i01{first.name}-i02{second.name}"
        _icg_pair(root / "mimic_cxr/pa/1" / folder.parent.name / folder.name, pair, names)
    return root


def _icg_pair(folder: Path, pair: str, keys: dict) -> None:
    report = {"findings": REDACTED, "impression": REDACTED}
    meta = {
        "changes-of-findings": "There is blunting of the left costophrenic angle.",
        "progression-description": "Mild pleural effusion has developed on the left.",
        "comment": {"confidence": 4, "reason": "Consistent observations."},
        "reference-report": report, "followup-report": report, "time-interval": None, "view": "PA",
        "subject-id": folder.name.removeprefix("p"),
    }  # fmt: skip
    (folder / pair).mkdir(parents=True)
    (folder / pair / f"{pair}.json").write_text(json.dumps(meta | keys, indent=4))


def plain_folder(root: Path, pairs: int = 12, size: int = 64) -> Path:
    """prior/, follow/ and prompts.csv."""
    rows = []
    for side in ("prior", "follow"):
        (root / side).mkdir(parents=True)
    for p in range(pairs):
        for s, side in enumerate(("prior", "follow")):
            Image.fromarray(chest(100 * p + s, size)).save(root / side / f"case{p}.png")
        rows.append(
            (f"case{p}.png", f"New effusion. {SECRET}", f"q{p // 2}", ("train", "validation", "test")[p // 2 % 3])
        )
    with open(root / "prompts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("name", "prompt", "patient_id", "split"), *rows])
    return root


def read(name, root, **options):
    """(what is read, what is rejected) of a cohort."""
    reader = open_source(name, root, **options)
    items = list(reader.pairs() if hasattr(reader, "pairs") else reader.studies())
    return [i for i in items if not isinstance(i, Rejected)], [i for i in items if isinstance(i, Rejected)]
