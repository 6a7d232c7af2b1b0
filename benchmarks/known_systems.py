"""Systems whose faults are known, made on a phantom run's test cases, scored and judged; prints JSON lines.

    python benchmarks/known_systems.py --run=runs/phantom [--cases=N]

- perfect: the true counterfactual with the reference interpretation.
- copy: the prior again, "no change".
- shuffled: the true counterfactual of another case's follow-up state in this patient.
- mean: the mean of all priors.
- other_group, older: the true counterfactual, but the diffuse signs of group (or of age) are those of the other
  group (of a patient 20 years older), as a system would make that amplifies an attribute nobody asked it to touch.

A row a system: accuracy, retention and amplification with 95 % intervals over patients.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from progemu_jax.data import foreground, images, phantom
from progemu_jax.data.sources import Rejected
from progemu_jax.data.sources.phantom import read_truth
from progemu_jax.data.tree import read_pairs
from progemu_jax.files import records
from progemu_jax.text.controls import mean_image
from progemu_jax.text.findings import NO_CHANGE

SHOWN = (
    "finding_auroc", "finding_auroc_changed", "directional_accuracy", "gap_closed", "others_still",
    "group_auroc", "age_r", "cmig", "ssim_unchanged", "ssim_counterfactual", "text_right",
    "group_flip", "group_shift", "age_shift",
)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=0, help="0: all")
    args = parser.parse_args()
    references = args.run / "data/references"
    rows = [row for _, row in records.read_lines(references / "references.jsonl")][: args.cases or None]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        write(args.run, references, rows, out)
        judge(args.run, out)


def write(run, references, rows, out):
    """references/ of these cases and a predictions folder a system."""
    kept = out / "references"
    kept.mkdir()
    (kept / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("images", "masks"):
        (kept / name).symlink_to((references / name).resolve())
    truth = read_truth(run / "data/source")
    pairs = {p.pair_id: p for p in read_pairs(run / "data/tree") if not isinstance(p, Rejected)}
    mean = mean_image(np.asarray(Image.open(references / row["prior"])) for row in rows)
    order = np.roll(np.arange(len(rows)), 1)
    lines = {}
    for i, row in enumerate(tqdm(rows, desc="render", unit="case")):
        before, after, place = states(pairs[row["pair_id"]], truth, len(mean))
        other = states(pairs[rows[order[i]]["pair_id"]], truth, len(mean))[1]
        made = {
            "perfect": (place(before, after), row["interpretation"]),
            "copy": (np.asarray(Image.open(references / row["prior"])), NO_CHANGE),
            "shuffled": (place(before, other), rows[order[i]]["interpretation"]),
            "mean": (mean, NO_CHANGE),
            "other_group": (place(other_group(before), after), row["interpretation"]),
            "older": (place(older(before), after), row["interpretation"]),
        }
        for name, (image, text) in made.items():
            file = f"{i}.png"
            records.write_bytes(out / name / file, images.png(image), durable=False)
            lines.setdefault(name, []).append(
                {"pair_id": row["pair_id"], "sample": 0, "prompt": row["prompt"], "text": text, "image": file}
            )
    for name, its in lines.items():
        (out / name / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in its))


def states(pair, truth, side):
    """Truth of the prior and of the follow-up, and what renders one in the state of the other."""
    before, after = (truth[str(pair.meta[f"{side}-study-id"]).removeprefix("s")] for side in ("reference", "followup"))
    moved, stored = pair.ours["registration"], pair.ours["prior_shape"][0]
    size = Image.open(pair.prior_path).size[0]

    def place(before, after):
        image = phantom.counterfactual(before, after, stored)
        if moved["crop_prior"] is not None:
            image = foreground.warp(image, np.asarray(moved["crop_prior"], float))
        return images.resize(images.resize(image, size), side)

    return before, after, place


def other_group(row):
    """A truth row whose patient has the diffuse signs of the other group (`phantom.patient.sample_patient`)."""
    patient = phantom.Patient.from_dict(row["patient"])
    b = 1.0 if patient.group == "A" else -1.0  # towards the other
    patient = dataclasses.replace(
        patient,
        bone=patient.bone + 0.30 * b,
        soft_tissue=patient.soft_tissue + 0.16 * b,
        vessels=patient.vessels - 0.16 * b,
        texture=patient.texture + 0.34 * b,
    )
    return {**row, "patient": patient.to_dict()}


def older(row, years=20):
    """A truth row whose patient has the diffuse signs of one `years` older."""
    patient, old = phantom.Patient.from_dict(row["patient"]), years / 17
    patient = dataclasses.replace(
        patient,
        bone=patient.bone - 0.16 * old,
        calcification=min(patient.calcification + 0.27 * old, 1.0),
        aorta=min(patient.aorta + 0.25 * old, 1.0),
    )
    return {**row, "patient": patient.to_dict()}


def judge(run, out):
    """Scores and evaluates every folder by the public commands."""
    names = [p.parent.name for p in sorted(out.glob("*/predictions.jsonl"))]
    names = ["perfect", *(n for n in names if n != "perfect")]
    folders = [f"--predictions={out / n}" for n in names]
    command = [sys.executable, "-m"]
    scorer = f"--scorer=phantom:{run / 'scorer/export'}"
    references = f"--references={out / 'references'}"
    subprocess.run(
        [*command, "progemu_jax.scorers", scorer, references, *folders], check=True, stdout=subprocess.DEVNULL
    )
    evaluate = ["progemu_jax.eval", references, f"--out={out / 'judged'}", "--cases=0"]
    folders = [f"--predictions={n}={out / n}" for n in names]
    subprocess.run([*command, *evaluate, *folders], check=True, stdout=subprocess.DEVNULL)
    systems = json.loads((out / "judged/metrics.json").read_text())["systems"]
    for name in (*names, "followup"):
        shown = {}
        for key in SHOWN:
            metric = systems[name]["metrics"].get(key)
            if metric:
                shown[key] = [metric[k] if metric[k] is None else round(metric[k], 3) for k in ("value", "low", "high")]
        print(json.dumps({"system": name, **shown}), flush=True)


if __name__ == "__main__":
    main()
