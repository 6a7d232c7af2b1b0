"""A synthetic cohort of 10,000 studies to shards: speed, memory, and the same bytes after kill -9; prints JSON lines.

    python benchmarks/cohort.py --layout=mimic_cxr --work=DIR [--studies=10000] [--kills=3] [--processes=N]
    python benchmarks/cohort.py --layout=chexpertplus --work=DIR ...
    python benchmarks/cohort.py --layout=mimic_cxr_dicom --work=DIR ...    # 12 bits; views and dates in the headers

Writes the layout once (a phantom-like chest of NumPy, 96 x 96, two studies a patient) and runs the data stage as a
process of its own; memory is the resident set of it and its workers, summed, every half second. With --kills it is run
again into a second folder, killed that many times at even shares of the undisturbed time, taken up again each time,
and every file of both shard folders is compared. Cut, the script goes on where it was: the seconds add up.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from progemu_jax.text.findings import CHEXPERT

SIZE, PER_PATIENT = 96, 2
BUILD = """
import sys
from progemu_jax.data.build import build
if __name__ == "__main__":
    build(sys.argv[1], sys.argv[2], sys.argv[3], size=64, image_size=64, processes=int(sys.argv[4]),
          options={"split": "auto", "finding": True})
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layout", choices=("mimic_cxr", "mimic_cxr_dicom", "chexpertplus"), required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    work = args.work / f"{args.layout}-{args.studies}"
    source = work / "source"
    if not (work / "written").exists():
        start = time.time()
        shutil.rmtree(source, ignore_errors=True)
        write(source, args.layout, args.studies // PER_PATIENT)
        (work / "written").touch()
        say(layout=args.layout, studies=args.studies, writing_s=round(time.time() - start, 1))
    script = work / "run.py"
    script.write_text(BUILD)
    command = [sys.executable, str(script), args.layout, str(source)]
    once = watched(work / "once.json", [*command, str(work / "once"), str(args.processes)])
    funnel = json.loads((work / "once/tree/funnel.json").read_text())["funnel"]
    say(
        layout=args.layout, studies=funnel["images in the source"], pairs=funnel["pairs kept"],
        processes=args.processes, seconds=round(once["seconds"], 1), peak_mb=round(once["peak"] / 2**20),
        pairs_per_second=round(funnel["candidate pairs"] / once["seconds"], 1),
    )  # fmt: skip
    if args.kills:
        killed, times = work / "killed", work / "kills"
        while (done := int(times.read_text()) if times.exists() else 0) < args.kills:
            _, _, code = run([*command, str(killed), str(args.processes)], once["seconds"] / (args.kills + 1))
            times.write_text(str(done + 1))
            say(kill=done + 1, killed=code == -signal.SIGKILL)
        _, _, code = run([*command, str(killed), str(args.processes)])
        a, b = (digests(work / name / "shards") for name in ("once", "killed"))
        say(status=code, kills=args.kills, files=len(a), shards_identical=a == b and bool(a))


def watched(record, command):
    """Runs the build, going on where an earlier go of this script was cut; {"seconds", "peak"} over all goes."""
    total = json.loads(record.read_text()) if record.exists() else {"seconds": 0, "peak": 0, "done": False}
    if not total["done"]:
        before = dict(total)

        def note(seconds, peak, done=False):
            total.update(seconds=before["seconds"] + seconds, peak=max(before["peak"], peak), done=done)
            record.with_suffix(".tmp").write_text(json.dumps(total))
            record.with_suffix(".tmp").rename(record)

        seconds, peak, code = run(command, note=note)
        if code:
            sys.exit(f"the build ended with {code}")
        note(seconds, peak, True)
    return total


def say(**row):
    print(json.dumps(row), flush=True)


def run(command, limit=None, note=None):
    """(seconds, peak resident bytes of it and its children, exit status); killed after `limit` seconds."""
    import psutil

    start, peak = time.time(), 0
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_MININTERVAL": "20"})
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        if limit and time.time() - start > limit:
            process.kill()
            break
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(p.memory_info().rss for p in family))
        except psutil.Error:
            pass
        if note:
            note(time.time() - start, peak)
        time.sleep(0.5)
    process.wait()
    seconds = time.time() - start
    time.sleep(1)  # for its workers to notice
    return seconds, peak, process.returncode


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write(root, layout, patients):
    root.mkdir(parents=True)
    if layout.startswith("mimic_cxr"):
        make = partial(mimic_patient, root, save_dicom if layout == "mimic_cxr_dicom" else save_jpeg)
        with ProcessPoolExecutor() as pool:
            rows = [r for part in pool.map(make, range(patients), chunksize=16) for r in part]
        if layout == "mimic_cxr_dicom":
            header = ("subject_id", "study_id", "dicom_id", "path")
            listed = [(subject, study, dicom, "") for (dicom, subject, study, *_), *_ in rows]
            table(root / "cxr-record-list.csv.gz", header, listed)
            return
        headers = {
            "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"),
            "chexpert": ("subject_id", "study_id", *CHEXPERT),
            "split": ("dicom_id", "study_id", "subject_id", "split"),
        }
        for (name, header), part in zip(headers.items(), zip(*rows, strict=True), strict=True):
            table(root / f"mimic-cxr-2.0.0-{name}.csv.gz", header, part)
        return
    with ProcessPoolExecutor() as pool:
        rows = [r for part in pool.map(partial(plus_patient, root), range(patients), chunksize=16) for r in part]
    columns = (
        "path_to_image", "path_to_dcm", "frontal_lateral", "ap_pa", "deid_patient_id", "patient_report_date_order",
        "section_findings", "section_impression", "age", "sex", "race", "split",
    )  # fmt: skip
    with open(root / "df_chexpert_plus_240401.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def table(path, header, rows):
    with gzip.open(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def chest(patient, study):
    """Two lungs in a body that is the patient's own, in a pose that is the study's; an effusion in every second."""
    own, now = np.random.default_rng(patient), np.random.default_rng([patient, study])
    size, offset, waves = own.uniform(0.9, 1.1, 4), own.uniform(-0.05, 0.05, 2), own.uniform(0, 6, (6, 3))
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    shift, scale = now.normal(0, 0.04, 2), now.normal(1, 0.04)
    x, y = (x - shift[0]) * scale, (y - shift[1]) * scale
    image = 190 - 40 * np.abs(y)
    for k, side in enumerate((-0.42, 0.42)):
        image -= 130 * np.exp(-((((x - side * size[0] - offset[k]) / 0.3) ** 2 + (y / (0.6 * size[1])) ** 2) ** 2))
    for a, b, c in waves:
        image += 6 * np.sin(a * 3 * x + b * 3 * y + c)
    image += 25 * np.sin(9 * np.pi * size[2] * y + 2) * np.exp(-(x**2))
    if study % 2:
        image += 70 / (1 + np.exp(-25 * (y - 0.35))) * (x > 0.1) * (x < 0.75)
    return np.clip(now.uniform(0.9, 1.1) * image + now.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def report(study):
    return "There is a small left pleural effusion." if study % 2 else "No pleural effusion or pneumothorax."


def save_jpeg(pixels, path, date, time):
    Image.fromarray(pixels).save(f"{path}.jpg", quality=95)


def save_dicom(pixels, path, date, time):
    """12 of 16 bits with a window; January's are MONOCHROME1."""
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[path.name])
    found = pydicom.dataset.FileDataset(f"{path}.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Modality, found.ViewPosition, found.StudyDate, found.StudyTime = "DX", "PA", date, time
    turned = int(date[4:6]) % 2
    found.PhotometricInterpretation, found.SamplesPerPixel = f"MONOCHROME{2 - turned}", 1
    found.Rows, found.Columns = pixels.shape
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = 16, 12, 11, 0
    found.WindowCenter, found.WindowWidth = 2048, 4096
    values = pixels.astype("<u2") * 16
    found.PixelData = (4095 - values if turned else values).tobytes()
    found["PixelData"].VR = "OW"
    found.save_as(f"{path}.dcm", enforce_file_format=True)


def mimic_patient(root, save, p):
    subject, rows = f"{10 + p % 10}{p:06d}", []
    for s in range(PER_PATIENT):
        study, dicom = str(50_000_000 + PER_PATIENT * p + s), f"{p:08x}-{s:04x}"
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
        (folder / f"s{study}").mkdir(parents=True)
        date, time = f"2180{1 + s:02d}07", "081303.125"
        save(chest(p, s), folder / f"s{study}" / dicom, date, time)
        (folder / f"s{study}.txt").write_text(f" FINDINGS:\n\n {report(s)}\n\n IMPRESSION:\n\n {report(s)}\n")
        label = {"Pleural Effusion": "1.0" if s % 2 else "0.0"}
        rows.append((
            (dicom, subject, study, "PA", date, time),
            (subject, study, *(label.get(name, "") for name in CHEXPERT)),
            (dicom, study, subject, "test" if subject.startswith("19") else "train"),
        ))  # fmt: skip
    return rows


def plus_patient(root, p):
    rows = []
    for s in range(PER_PATIENT):
        path = f"train/patient{p + 1:05d}/study{s + 1}/view1_frontal"
        (root / "PNG" / path).parent.mkdir(parents=True)
        Image.fromarray(chest(p, s)).save(root / "PNG" / f"{path}.png", compress_level=1)
        rows.append((f"{path}.jpg", f"{path}.dcm", "Frontal", "PA", f"patient{p + 1:05d}", s, report(s), report(s),
                     60, "Female", "White", "train"))  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
