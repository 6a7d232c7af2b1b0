"""A cohort in MIMIC-CXR-JPG's layout, drawn here with NumPy: small, fast, and free of our own writer."""

import csv
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.radtext import CHEXPERT

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
