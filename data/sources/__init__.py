"""Raw cohorts on disk -> studies: one reader a layout, yielding `Study` or, for a broken row, `Rejected`."""

import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from progemu_jax.errors import UserError

MAX_LINE = 1 << 20  # characters of one CSV line
MAX_REPORT = 1 << 18  # bytes of one report file
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True)
class Study:
    """One image of one study, as its source describes it.

    order_key sorts a patient's studies in time. report: {"findings", "impression"}, "" when absent. labels:
    CheXpert name -> 1 present, 0 absent, -1 uncertain, None not mentioned; {} when the source has none. age
    in years. group: self-reported race or the phantom's group. split: the one the source assigns. days: time
    of the study in days from any origin that holds for the patient.
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


@dataclass(frozen=True)
class Rejected:
    """A study, image or row left out: `path` names the file, `reason` says why in one line."""

    study_id: str
    path: str
    reason: str


def open_source(name: str, root: str | Path, **options):
    """The reader of cohort `name` (phantom, mimic_cxr, open_cxr) at folder `root`; its `studies()` iterates.

    The phantom is written in MIMIC-CXR-JPG's layout and read by the same reader. Options go to the reader.
    Raises UserError for an unknown name and for a root that is missing, empty or not of that layout.
    """
    if name in ("phantom", "mimic_cxr"):
        from progemu_jax.data.sources.mimic_cxr import MimicCxr

        return MimicCxr(root, name=name, **options)
    if name == "open_cxr":
        from progemu_jax.data.sources.open_cxr import OpenCxr

        return OpenCxr(root, **options)
    raise UserError(f"unknown source {name!r}: choose phantom, mimic_cxr or open_cxr")


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


def inside(root: Path, *parts: str) -> Path | None:
    """root/parts, or None where that is absolute, climbs with '..' or leaves `root` through a link."""
    relative = Path(*parts)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    path = root / relative
    real = os.path.realpath(path)
    return path if os.path.commonpath([real, os.path.realpath(root)]) == os.path.realpath(root) else None


def read_table(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str] | None]]:
    """Streams a CSV (gzip by its name): (line number, row), None for a row of another length than the header.

    Raises UserError when the file is missing, does not decompress, is not UTF-8, does not parse or lacks a
    column.
    """
    line = 1
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
                    yield line, dict(zip(header, cells, strict=True)) if len(cells) == len(header) else None
    except FileNotFoundError:
        raise UserError(f"{path}: the file is missing; give the root that holds it") from None
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        why = type(error).__name__ if isinstance(error, UnicodeDecodeError) else str(error)
        raise UserError(f"{path}: does not read as CSV after line {line} ({why}); restore the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or type(error).__name__})") from None


def _bounded(text, path):
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise UserError(f"{path}: a line is longer than {MAX_LINE} characters; restore the file")
        yield line


def number(text: str | None) -> float | None:
    """A finite number, or None for a blank or anything else."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < 1e12 else None
