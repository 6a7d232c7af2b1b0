"""Raw cohorts on disk -> studies: one reader a layout, yielding `Study` or, for a broken row, `Rejected`."""

import csv
import functools
import gzip
import importlib
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text import rules

MAX_LINE = 1 << 20  # characters of one CSV line
MAX_BLANK = 10_000  # blank lines of a CSV in a row
MAX_REPORT = 1 << 18  # bytes of one report file
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class State:
    """A finding of one study, as a source without reports labels it.

    present: None where the source is uncertain. grade: of `findings.GRADES`. side: the patient's left or right, or
    both. zone: upper, mid or lower. The last three None where nothing is said.
    """

    present: bool | None
    grade: str | None = None
    side: str | None = None
    zone: str | None = None


@dataclass(frozen=True)
class Study:
    """One image of one study, as its source describes it.

    order_key sorts a patient's studies in time. report: {"findings", "impression"}, "" when absent. labels:
    CheXpert name -> 1 present, 0 absent, -1 uncertain, None not mentioned; {} when the source has none. age
    in years. group: self-reported race or the phantom's group. split: the one the source assigns, or "train_val" where
    it leaves the two to its users. days: time of the study in days from any origin that holds for the patient.
    dicom_id: how the source names the image, where that is no plain name.

    Of a source that has labels and no reports, whose reader has `findings`, the cohort's list: states, finding ->
    State, where a finding left out is unknown; `labels` has the list's label columns. boxes: finding -> [x, y, w, h] in
    shares of the image's width and height. window: least and greatest gray value shown, and the greatest that can be
    stored.
    """

    source: str
    patient_id: str
    study_id: str
    image_id: str
    image_path: Path
    view: str
    order_key: tuple
    report: dict = field(repr=False)  # patients' text stays out of logs
    labels: dict
    age: float | None = None
    sex: str | None = None
    group: str | None = None
    split: str | None = None
    days: float | None = None
    dicom_id: str | None = None
    states: dict[str, State] | None = None
    boxes: dict[str, list] | None = None
    window: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Rejected:
    """A study, image or row left out: `path` names the file, `reason` says why in one line."""

    study_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Given:
    """A pair that its source names itself, with its texts; `journeys` then looks for no pairs of its own.

    ordinals: of the two studies among the patient's. meta: further keys for the tree's JSON. registered: the
    images lie on each other already, and are taken as they are.
    """

    prior: Study
    followup: Study
    prompt: str = field(repr=False)
    interpretation: str = field(repr=False)
    confidence: int = 0  # 1..5, 0 unknown
    reason: str = field(default="source", repr=False)
    ordinals: tuple[int, int] = (1, 2)
    meta: dict = field(default_factory=dict, repr=False)
    registered: bool = False


@dataclass(frozen=True)
class Layout:
    """What is known of a source before it is opened.

    reader: "module:class" under `progemu_jax.data.sources`; options: config keys of further folders that it
    takes; files: (config key of the folder, path in it, what for), "?" in front of what may be absent.
    credentialed: under a data use agreement, so that no text of it goes to another machine unasked. labelled: it has
    labels and no reports.
    """

    reader: str
    what: str
    files: tuple[tuple[str, str, str], ...]
    options: tuple[str, ...] = ()
    credentialed: bool = False
    labelled: bool = False


_MIMIC_TABLES = (
    ("root", "mimic-cxr-2.0.0-metadata.csv.gz", "views, dates"),
    ("root", "mimic-cxr-2.0.0-chexpert.csv.gz", "labels"),
    ("root", "mimic-cxr-2.0.0-split.csv.gz", "the source's splits"),
)
_MIMIC_IV = (
    ("mimic_iv", "?patients.csv.gz", "sex, age"),
    ("mimic_iv", "?admissions.csv.gz", "race"),
)
_MIMIC_OPTIONS = ("reports", "mimic_iv")
SOURCES = {
    "phantom": Layout("mimic_cxr:MimicCxr", "the built-in phantom", ()),
    "mimic_cxr": Layout(
        "mimic_cxr:MimicCxr",
        "MIMIC-CXR-JPG",
        (*_MIMIC_TABLES, ("root", "files", "images: pXX/pXXXXXXXX/sXXXXXXXX/<dicom_id>.jpg"),
         ("reports", "files", "reports: pXX/pXXXXXXXX/sXXXXXXXX.txt"), *_MIMIC_IV),
        _MIMIC_OPTIONS,
        credentialed=True,
    ),
    "mimic_cxr_dicom": Layout(
        "mimic_cxr:MimicCxrDicom",
        "MIMIC-CXR (DICOM)",
        (("root", "?cxr-record-list.csv.gz", "the images, where the next table is absent"),
         *((place, f"?{path}", f"{what}, of MIMIC-CXR-JPG") for place, path, what in _MIMIC_TABLES),
         ("root", "files", "images: pXX/pXXXXXXXX/sXXXXXXXX/<dicom_id>.dcm"),
         ("reports", "files", "reports: pXX/pXXXXXXXX/sXXXXXXXX.txt"), *_MIMIC_IV),
        _MIMIC_OPTIONS,
        credentialed=True,
    ),
    "chexpertplus": Layout(
        "chexpertplus:CheXpertPlus",
        "CheXpert Plus",
        (("root", "df_chexpert_plus_240401.csv", "reports, demographics"),
         ("root", "?chexbert_labels/impression_fixed.json", "labels; else by our rules"),
         ("root", "PNG", "images: train/patientXXXXX/studyN/viewN_frontal.png")),
        credentialed=True,
    ),
    "icg_cxr": Layout(
        "icg_cxr:IcgCxr",
        "ICG-CXR",
        (("root", "?chexpertplus/pa/1/train", "pairs: pXXXXX/<pair>/<pair>.json"),
         ("root", "?mimic_cxr/pa/1", "pairs: pXX/pXXXXXXXX/<pair>/<pair>.json"),
         ("chexpertplus", "?df_chexpert_plus_240401.csv", "redacted reports"),
         ("chexpertplus", "?PNG", "images of the first branch"),
         ("mimic_cxr", "?files", "images (and reports) of the second branch"),
         ("reports", "?files", "reports of the second branch")),
        ("mimic_cxr", "chexpertplus", "reports"),
        credentialed=True,
    ),
    "nih_cxr14": Layout(
        "nih_cxr14:NihCxr14",
        "NIH ChestX-ray14",
        (("root", "Data_Entry_2017_v2020.csv", "labels, ages, order; or Data_Entry_2017.csv"),
         ("root", "images", "images; or images_001/images to images_012/images"),
         ("root", "?train_val_list.txt", "the source's splits"), ("root", "?test_list.txt", "the source's splits"),
         ("root", "?BBox_List_2017.csv", "boxes of 880 images")),
        labelled=True,
    ),
    "padchest": Layout(
        "padchest:PadChest",
        "PadChest",
        (("root", "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", "all but the images; compressed or not"),
         ("root", "?0", "images: <ImageDir>/<ImageID>; or all in images/")),
        credentialed=True,
        labelled=True,
    ),
    "chexpert": Layout(
        "chexpert:CheXpert",
        "CheXpert (CheXpert-v1.0 or CheXpert-v1.0-small)",
        (("root", "train.csv", "labels, ages"), ("root", "?valid.csv", "the same of the validation split"),
         ("root", "train", "images: patientXXXXX/studyN/viewN_frontal.jpg"), ("root", "?valid", "images")),
        credentialed=True,
        labelled=True,
    ),
    "open_cxr": Layout(
        "open_cxr:OpenCxr",
        "the COVID-19 Image Data Collection",
        (("root", "metadata.csv", "all but the images"), ("root", "images", "images")),
    ),
    "folder": Layout(
        "folder:Folder",
        "a plain folder of pairs",
        (("root", "prompts.csv", "name, prompt; and see docs/formats.md"), ("root", "prior", "images"),
         ("root", "follow", "images")),
        credentialed=True,  # nothing is known of them
    ),
}  # fmt: skip
PLACES = ("reports", "mimic_iv", "mimic_cxr", "chexpertplus")  # config keys of folders beside the root


def open_source(name: str, root: str | Path, **options):
    """The reader of cohort `name` (one of SOURCES) at folder `root`.

    Its `studies()` iterates over `Study` and `Rejected`; or, where the source names its pairs, `pairs()` over
    `Given` and `Rejected`. The phantom is written in MIMIC-CXR-JPG's layout and read by the same reader. Options
    go to the reader. Raises UserError for an unknown name, an option that the source does not take, and a root
    that is missing, empty or not of that layout.
    """
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}: choose among {', '.join(SOURCES)}")
    layout = SOURCES[name]
    for option in options:
        if option in PLACES and option not in layout.options and name != "phantom":
            raise UserError(f"config.data.{option}: the source {name} has no use for it; leave it empty")
    module, reader = layout.reader.split(":")
    factory = getattr(importlib.import_module(f"{__name__}.{module}"), reader)
    return factory(root, name=name, **options) if name == "phantom" else factory(root, **options)


def needed_files(name: str, places: dict[str, str]) -> list[str]:
    """A line for each file or folder that a source reads. places: config key -> folder ("" means the root's)."""
    lines, root = [], places.get("root", "")
    for place, path, what in SOURCES[name].files:
        optional, path = path.startswith("?"), path.removeprefix("?")
        folder = places.get(place) or root
        there = bool(folder) and any((Path(folder) / p).exists() for p in (path, path.removesuffix(".gz")))
        note = "" if there else " [absent, optional]" if optional else " [missing]"
        lines.append(f"  {Path(folder or f'<config.data.{place}>') / path} ({what}){note}")
    return lines or ["  none: it is made"]


def check_root(root: str | Path, what: str) -> Path:
    """`root` as a path; UserError unless it is a folder with something in it."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the root of {what}")
    with os.scandir(root) as entries:
        if next(entries, None) is None:
            raise UserError(f"{root}: the folder is empty; give the root of {what}")
    return root


def safe_id(text: str) -> bool:
    """Whether an identifier from a file may become part of a path of ours: one plain name, no '..'."""
    return bool(_ID.fullmatch(text)) and ".." not in text


def is_text(value: object) -> bool:
    """Whether a value of a file is text that can be stored: JSON can hold half a character ("\\ud800")."""
    return isinstance(value, str) and not records.oddity(value)


def unwanted(view: str) -> str:
    """Why a film of another view is left out; what is no view's name is not quoted: a shifted column holds notes."""
    return f"view {view if safe_id(view) else '?'} is not asked for"


def inside(root: Path, *parts: str) -> Path | None:
    """root/parts, or None where that is absolute, climbs with '..', leaves `root` through a link or can be no path."""
    relative = Path(*parts)
    if not records.can_be_inside(str(relative)):
        return None
    path, real_root = root / relative, _real(str(root))
    return path if os.path.commonpath([os.path.realpath(path), real_root]) == real_root else None


def files_in(root: Path, folders: Iterable[str], suffix: str = ".png") -> dict[str, Path | None]:
    """Name -> path of every file of that ending in `folders` of the root, those that are there; "" is the root itself.

    None for a link that leaves the root. One listing a folder: to ask for each of 10^5 images takes longer than their
    table. The first folder counts where a name is in several.
    """
    found: dict[str, Path | None] = {}
    for folder in folders:
        path = inside(root, folder) if folder else root
        if path is not None and path.is_dir():
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.endswith(suffix) and entry.name not in found:
                        link = entry.is_symlink()
                        found[entry.name] = inside(root, folder, entry.name) if link else path / entry.name
    return found


def settled(states: Mapping[str, State] | None) -> bool:
    """Whether the labels of a study settle any finding."""
    return any(state.present is not None for state in (states or {}).values())


@functools.lru_cache(maxsize=64)
def _real(root: str) -> str:
    return os.path.realpath(root)


def read_table(
    path: Path, required: tuple[str, ...], whole: bool = True
) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Streams a CSV (gzip by its name): (line number, row), None for a row of another length than the header.

    whole: False takes such a row as far as header and row both go, for tables with blank columns at their end. Raises
    UserError when the file is missing, does not decompress, is not UTF-8, does not parse or lacks a column.
    """
    line = 1
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; restore it")  # a pipe would be waited for
    try:
        with open(path, "rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
            text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
            reader = csv.reader(_bounded(text, path), strict=True)
            header = next(reader, [])
            for column in required:
                if column not in header:
                    raise UserError(f"{path}: column {column!r} is missing; restore the file")
            for cells in reader:
                line = reader.line_num
                if cells:
                    fits = not whole or len(cells) == len(header)
                    yield line, dict(zip(header, cells, strict=whole)) if fits else None
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing; give the root that holds it") from None
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = type(error).__name__ if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"{path}: does not read as CSV after line {line} ({why}); restore the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from None


def _bounded(text, path):
    blank = 0  # lines in a row: gzip packs any number of them into a small file
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise UserError(f"{path}: a line is longer than {MAX_LINE} characters; restore the file")
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK:
            raise UserError(f"{path}: more than {MAX_BLANK} blank lines in a row; restore the file")
        yield line


def number(text: str | None) -> float | None:
    """A finite number, or None for a blank or anything else."""
    try:
        value = float(text)
    except (OverflowError, TypeError, ValueError):
        return None
    return value if abs(value) < 1e12 else None


_NO_RACE = ("", "UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED TO ANSWER", "PATIENT REFUSED")


def race_of(text: str) -> str | None:
    """One name a race: "WHITE - RUSSIAN" -> "WHITE", "Black or African American" -> "BLACK"; None: not told."""
    text = text.strip().upper()
    if text in _NO_RACE:
        return None
    first = re.split(r"[ /,]", text)[0]
    return first if first in ("WHITE", "BLACK", "ASIAN", "HISPANIC") else text


def sex_of(text: str) -> str | None:
    """F, M or None, of "F", "Female", ..."""
    return {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}.get(text.strip().upper())


def label_of(value) -> int | None:
    """A CheXpert label: 1, 0, -1 uncertain, or None for anything else (null, NaN, -100)."""
    return int(value) if isinstance(value, int | float) and value in (1, 0, -1) else None


def read_report(path: Path | None) -> dict | str:
    """The two sections of a report file ("" where it is missing), or why it cannot be read."""
    if path is None:
        return "the report's path leaves the root"
    if path.exists() and not path.is_file():
        return "the report is no regular file"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_REPORT + 1)
    except FileNotFoundError:
        return {"findings": "", "impression": ""}
    except OSError as error:
        return f"the report cannot be read ({type(error).__name__})"
    if len(content) > MAX_REPORT or b"\0" in content:
        return "the report is not a text file"
    found = rules.sections(content.decode("utf-8", "replace"))
    return {"findings": found["findings"], "impression": found["impression"]}
