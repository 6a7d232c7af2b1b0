"""Writes a phantom cohort in MIMIC-CXR-JPG's layout; it is read back by the reader of the real one.

files/p10/p10000032/s50414267/<dicom_id>.jpg, files/p10/p10000032/s50414267.txt
mimic-cxr-2.0.0-{metadata,chexpert,split}.csv.gz, patients.csv.gz, admissions.csv.gz
truth/studies.jsonl     what is depicted, enough to render every study and every counterfactual again
truth/cohort.json       the arguments; written last, so its presence means that the cohort is complete
"""

import csv
import datetime
import gzip
import io
import json
import multiprocessing
import shutil
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from progemu_jax.data import phantom
from progemu_jax.data.phantom import reports
from progemu_jax.errors import UserError
from progemu_jax.text import findings

_FOLDERS = (10, 19, 11, 12, 13, 14, 15, 16, 17, 18)  # p19 second, so that tiny cohorts have a test patient
_METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows",
    "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
_VIEW_NAMES = {"PA": "postero-anterior", "AP": "antero-posterior"}
_FORMAT = 3  # of the phantom: raised when the same seed gives other files
_DEFAULTS = {"split": None, "dynamics": "steps"}  # not in cohort.json


def write_cohort(
    root,
    *,
    patients: int,
    studies_per_patient: int,
    size: int,
    seed: int,
    processes: int = 1,
    progress: bool = True,
    label_noise: float = 0.03,
    uncertain: float = 0.04,
    split: str | None = None,
    dynamics: str = "steps",
) -> Path:
    """Writes `patients` x `studies_per_patient` studies of `size` x `size` pixels under `root`.

    The files depend on the arguments only, not on `processes`. They are written next to `root` and moved
    there when complete; a partial cohort is made again from scratch, and a complete one of the same arguments
    is left alone. label_noise: share of the CheXpert labels that are wrong; uncertain: share that say -1.
    split: "train", "validate" or "test": of the same patients only those. The test patients are the second of each ten,
    whatever the cohort's size. dynamics: of `phantom.DYNAMICS`; "course" adds a key of this name to the truth's rows,
    what `phantom.course.true_state` reads, and tells treatments in reports.

    Returns the root. Raises UserError for a root that holds something else.
    """
    root = Path(root)
    arguments = {
        "format": _FORMAT,
        "patients": patients,
        "studies_per_patient": studies_per_patient,
        "size": size,
        "seed": seed,
        "label_noise": label_noise,
        "uncertain": uncertain,
        "split": split,
        "dynamics": dynamics,
    }
    if dynamics not in phantom.DYNAMICS:
        raise UserError(f"phantom dynamics={dynamics!r}: choose among {', '.join(phantom.DYNAMICS)}")
    for name, low in (("patients", 1), ("studies_per_patient", 1), ("size", 16)):
        if arguments[name] < low:
            raise UserError(f"phantom {name}={arguments[name]}: must be at least {low}")
    if root.exists() and any(root.iterdir()):
        _check_same(root, arguments)
        return root
    partial_root = root.with_name(root.name + ".partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    (partial_root / "truth").mkdir(parents=True)
    work = partial(_write_patient, partial_root, arguments)
    indices = [index for index in range(patients) if split in (None, _ids(seed, index)[1])]
    rows = [row for rows in _map(work, indices, processes, progress) for row in rows]
    rows.sort(key=lambda row: (row["subject_id"], row["truth"]["order"]))
    _write_tables(partial_root, rows)
    with open(partial_root / "truth" / "studies.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row["truth"]) + "\n" for row in rows)
    told = {key: value for key, value in arguments.items() if key not in _DEFAULTS or value != _DEFAULTS[key]}
    (partial_root / "truth" / "cohort.json").write_text(json.dumps(told, indent=1) + "\n")
    if root.exists():
        root.rmdir()  # empty
    partial_root.rename(root)
    return root


def read_truth(root) -> dict[str, dict]:
    """study_id -> its row of truth/studies.jsonl under `root`, as `phantom.counterfactual` takes it."""
    with open(Path(root) / "truth" / "studies.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return {row["study_id"]: row for row in rows}


def _check_same(root: Path, arguments: dict) -> None:
    try:
        found = _DEFAULTS | json.loads((root / "truth" / "cohort.json").read_text())
    except (OSError, ValueError, TypeError):
        raise UserError(f"{root}: holds something that is not a phantom cohort; give another folder") from None
    for key, value in arguments.items():
        if found.get(key) != value:
            raise UserError(
                f"{root}: a phantom cohort with {key}={found.get(key)}, not {value}; delete it or give another folder"
            )


def _map(work, indices, processes, progress):
    n = len(indices)
    bar = partial(tqdm, total=n, desc="phantom", unit="patient", disable=not progress)
    if processes <= 1:
        yield from bar(map(work, indices))
        return
    # spawn: the parent may hold jax threads, which do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from bar(pool.imap(work, indices, chunksize=max(1, min(16, n // (4 * processes)))))


def _ids(seed: int, index: int) -> tuple[str, str]:
    """Subject id and split: p19 is test, about a tenth of p10-p18 validates, the rest trains."""
    folder = _FOLDERS[index % 10]
    # An odd multiplier is a bijection modulo a power of two: scattered ids that never collide.
    scattered = (index // 10 * 300_007 + seed * 7919 + folder * 104_729) % (1 << 19)
    trained = index - (index + 8) // 10  # rank among the patients of p10-p18
    split = "test" if folder == 19 else "validate" if trained % 10 == 1 else "train"
    return f"{folder * 1_000_000 + scattered:08d}", split


def _write_patient(root: Path, arguments: dict, index: int) -> list[dict]:
    rng = phantom.generator("cohort", arguments["seed"], index)
    words = phantom.generator("cohort", arguments["seed"], index, 1)  # so that wording never moves the pictures
    patient = phantom.sample_patient(rng)
    count, size = arguments["studies_per_patient"], arguments["size"]
    studies = _studies(rng, patient, count, arguments["dynamics"])
    subject, split = _ids(arguments["seed"], index)
    folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
    start = datetime.datetime(int(rng.integers(2110, 2200)), 1, 1) + datetime.timedelta(
        days=int(rng.integers(365)), seconds=int(rng.integers(7 * 3600, 19 * 3600))
    )
    rows, previous = [], None
    for order, (state, course) in enumerate(studies):
        acquisition = phantom.sample_acquisition(rng)
        study = str(50_000_000 + ((index * count + order) * 3_141_593 + arguments["seed"]) % (1 << 23))
        dicom = "-".join(f"{x:08x}" for x in rng.integers(0, 2**32, 5))
        moment = start + datetime.timedelta(days=state.days)
        image = phantom.render(patient, state, acquisition, size).image
        (folder / f"s{study}").mkdir(parents=True)
        Image.fromarray(image).save(folder / f"s{study}" / f"{dicom}.jpg", quality=95)
        report = reports.report(words, patient, state, previous, course.get("treated", ()))
        (folder / f"s{study}.txt").write_text(_report_file(report, previous), encoding="utf-8")
        age = float(patient.age + moment.year - start.year)
        rows.append(
            {
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "moment": moment,
                "split": split,
                "size": size,
                "view": acquisition.view_label,
                "gender": patient.sex,
                "anchor_age": int(patient.age),
                "anchor_year": start.year,
                "race": f"GROUP {patient.group}",
                "labels": _labels(words, state, arguments["label_noise"], arguments["uncertain"]),
                "truth": {
                    "study_id": study,
                    "patient_id": subject,
                    "image_id": dicom,
                    "order": order,
                    "split": split,
                    "state": state.as_mapping(),
                    "age": age,
                    "sex": patient.sex,
                    "group": f"GROUP {patient.group}",
                    "seed": arguments["seed"],
                    "size": size,
                    "patient": patient.to_dict(),
                    "disease": state.to_dict(),
                    "acquisition": acquisition.to_dict(),
                    **({"course": course} if course else {}),
                },
            }
        )
        previous = state
    return rows


def _studies(rng, patient, count: int, dynamics: str) -> list[tuple[phantom.State, dict]]:
    """The state of each study of a patient, and what the truth tells of its course; {} where it has none."""
    if dynamics == "steps":
        return [(state, {}) for state in phantom.sample_trajectory(rng, patient, count)]
    return [
        (state, latent.to_dict() | {"treated": treated})
        for state, latent, treated in phantom.sample_course(rng, patient, count)
    ]


def _report_file(report: dict, previous) -> str:
    comparison = "None." if previous is None else "Prior chest radiograph."
    return (
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA)\n\n INDICATION:  ___\n\n"
        f" COMPARISON:  {comparison}\n\n FINDINGS:\n\n {report['findings']}\n\n"
        f" IMPRESSION:\n\n {report['impression']}\n"
    )


def _labels(rng, state, noise: float, uncertain: float) -> dict[str, float | None]:
    """CheXpert observation -> 1, 0, -1 or None (not mentioned), as the labeller would read the report."""
    labels: dict[str, float | None] = dict.fromkeys(findings.CHEXPERT)
    present = state.present
    for name in dict.fromkeys(findings.CHEXPERT_OF.values()):
        true = any(present[i] for i, f in enumerate(findings.FINDINGS) if findings.CHEXPERT_OF[f] == name)
        flip, doubt, silent = rng.random(3)
        value = float(true != (flip < noise))
        labels[name] = -1.0 if doubt < uncertain else None if value == 0 and silent < 0.3 else value
    positive = {name for name, value in labels.items() if value == 1.0}
    labels["No Finding"] = None if positive else 1.0
    if positive & {"Edema", "Atelectasis", "Consolidation"} and rng.random() < 0.5:
        labels["Lung Opacity"] = 1.0
    return labels


def _write_tables(root: Path, rows: list[dict]) -> None:
    name = "mimic-cxr-2.0.0-{}.csv.gz".format
    _csv(
        root / name("metadata"),
        _METADATA,
        (
            (
                r["dicom_id"], r["subject_id"], r["study_id"], "CHEST (PA)", r["view"], r["size"], r["size"],
                f"{r['moment']:%Y%m%d}", f"{r['moment']:%H%M%S}.0", "CHEST (PA)", _VIEW_NAMES[r["view"]],
                "Erect",
            )
            for r in rows
        ),
    )  # fmt: skip
    _csv(
        root / name("chexpert"),
        ("subject_id", "study_id", *findings.CHEXPERT),
        ((r["subject_id"], r["study_id"], *("" if v is None else v for v in r["labels"].values())) for r in rows),
    )
    _csv(
        root / name("split"),
        ("dicom_id", "study_id", "subject_id", "split"),
        ((r["dicom_id"], r["study_id"], r["subject_id"], r["split"]) for r in rows),
    )
    people = list({r["subject_id"]: r for r in rows}.values())
    _csv(
        root / "patients.csv.gz",
        ("subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"),
        ((r["subject_id"], r["gender"], r["anchor_age"], r["anchor_year"], "2011 - 2013", "") for r in people),
    )
    _csv(
        root / "admissions.csv.gz",
        ("subject_id", "hadm_id", "admittime", "dischtime", "race"),
        (
            (
                r["subject_id"],
                20_000_000 + i,
                f"{r['moment']:%Y-%m-%d 00:00:00}",
                f"{r['moment']:%Y-%m-%d 23:59:00}",
                r["race"],
            )
            for i, r in enumerate(people)
        ),
    )


def _csv(path: Path, header, rows) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    # mtime 0: the same cohort is the same bytes.
    path.write_bytes(gzip.compress(text.getvalue().encode(), 6, mtime=0))
