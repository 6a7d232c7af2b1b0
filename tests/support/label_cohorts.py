"""Cohorts that have labels and no reports, in the full layouts of NIH ChestX-ray14, PadChest and CheXpert."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.data.sources import label_findings
from support.cohorts import SECRET, chest

NIH_HEADER = (
    "Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position",
    "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]",
)  # fmt: skip
SICK, WELL = "Effusion|Nodule", "No Finding"
PAD_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PAD_SICK = "['pleural effusion', ' nodule']", "[['pleural effusion', 'loc pleural', 'loc left'], ['nodule']]"
PAD_WELL = "['normal']", "['normal', 'loc cardiac']"


def table(path: Path, header, rows) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def edit(path: Path, *pairs: tuple[str, str]) -> None:
    """Puts the second of each pair where its first stands first; it must stand there."""
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)


def nih(root: Path, patients: int = 6, studies: int = 3, size: int = 64, archives: bool = False) -> Path:
    """Every second film sick, in the order of follow-up numbers, against the order of the names.

    archives: the images lie in images_001/images and images_002/images, beside the earlier table, whose ages are 058Y.
    """
    rows, lists = [], {"train_val_list.txt": [], "test_list.txt": []}
    for p in range(patients):
        for s in range(studies):
            name = f"{p + 1:08d}_{studies - 1 - s:03d}.png"
            folder = root / (f"images_{1 + p % 2:03d}/images" if archives else "images")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chest(100 * p + s, size)).save(folder / name, compress_level=1)
            lists["test_list.txt" if p % 3 == 2 else "train_val_list.txt"].append(name)
            age = f"{50 + p:03d}Y" if archives else 50 + p
            rows.append((name, SICK if s % 2 else WELL, s, p + 1, age, "FM"[p % 2], "PA", 2500, 2048, 0.171, 0.171))
    table(root / ("Data_Entry_2017.csv" if archives else "Data_Entry_2017_v2020.csv"), NIH_HEADER, rows)
    for name, images in lists.items():
        (root / name).write_text("\n".join(images) + "\n")
    header = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
    boxed = [(rows[1][0], "Effusion", 100.0, 512, 256, 256), (rows[1][0], "Nodule", 600, 128, 64, 64, "", "", "")]
    table(root / "BBox_List_2017.csv", header, boxed)
    return root


def chexpert(root: Path, patients: int = 6, studies: int = 3, size: int = 64, name: str = "CheXpert-v1.0") -> Path:
    """Every second study has an effusion; a lateral beside each first film; the last patient in valid.csv."""
    columns = tuple(f.label for f in label_findings.CHEXPERT)
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *columns)
    tables = {"train": [], "valid": []}
    for p in range(patients):
        split = "valid" if p == patients - 1 else "train"
        for s in range(studies):
            cells = {"Pleural Effusion": "1.0", "Cardiomegaly": "-1.0", "Edema": "-1.0"} if s % 2 else {}
            for view, ap_pa in (("view1_frontal", "PA"), ("view2_lateral", ""))[: 2 if s == 0 else 1]:
                path = f"{split}/patient{p + 1:05d}/study{s + 1}/{view}.jpg"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(chest(100 * p + s, size)).save(root / path, quality=95)
                kind = "Frontal" if ap_pa else "Lateral"
                values = ("" if cells else "1.0", *(cells.get(c, "") for c in columns))
                tables[split].append((f"{name}/{path}", ("Female", "Male")[p % 2], 60 + p, kind, ap_pa, *values))
    for split, rows in tables.items():
        table(root / f"{split}.csv", header, rows)
    return root


def padchest(root: Path, patients: int = 6, studies: int = 3, size: int = 64, flat: bool = False) -> Path:
    """Every second study sick; 12 of 16 bits, shown in a window. flat: all images in images/."""
    header = (
        "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
        "ViewPosition_DICOM", "Projection", "Pediatric", "BitsStored_DICOM", "WindowCenter_DICOM", "WindowWidth_DICOM",
        "ReportID", "Report", "MethodLabel", "Labels", "Localizations", "LabelsLocalizationsBySentence",
    )  # fmt: skip
    rows = []
    for p in range(patients):
        for s in range(studies):
            folder = "images" if flat else str(p % 2)
            (root / folder).mkdir(parents=True, exist_ok=True)
            study = f"{100 + p}31372317427108{s:02d}928-2476108022664036405{s:02d}"
            name = f"{study.replace('-', '')}_{p:03x}{s:03x}.png"
            pixels = chest(100 * p + s, size).astype(np.uint16) * 8 + 1000
            Image.fromarray(pixels).save(root / folder / name, compress_level=1)
            labels, sentences = PAD_SICK if s % 2 else PAD_WELL
            rows.append((
                len(rows), name, p % 2, f"201{s}0{1 + p % 9}15", study, f"{839860488694292331637988235681460000 + p}",
                f"{1950 + p}.0", "FM"[p % 2], "POSTEROANTERIOR", "PA", "No", 12, "2000", "2.000000e+03", 4765777 + p,
                f" {SECRET.lower()} derram pleural .", "Physician", labels, "[]", sentences,
            ))  # fmt: skip
    table(root / PAD_TABLE, header, rows)
    return root
