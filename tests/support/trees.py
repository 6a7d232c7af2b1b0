"""Studies of invented patients, and trees of pairs as other hands would ship them."""

import json
from pathlib import Path

from PIL import Image

from progemu_jax.data import images
from progemu_jax.data.sources import Study
from progemu_jax.files import records
from support import cohorts

TEXT = {"findings": "Effusion.", "impression": ""}
META = {"progression-description": "New edema.", "changes-of-findings": "Edema is new."}


def study(patient="10000001", number=1, day=0.0, view="PA", labels=("Edema",), **changes):
    fields = {
        "source": "mimic_cxr", "patient_id": patient, "study_id": str(number), "image_id": f"{number}-{view}",
        "image_path": Path(f"{number}.jpg"), "view": view, "order_key": (day,), "report": TEXT,
        "labels": dict.fromkeys(labels, 1) | {"No Finding": None}, "days": day,
    }  # fmt: skip
    return Study(**(fields | changes))


def external(root, patient="pa/1/train/p00023", name="i01s0001-i04s0002", source="chexpertplus", **changes):
    """A pair as the authors of ICG-CXR would ship it."""
    folder = root / source / patient / name
    folder.mkdir(parents=True)
    meta = META | {"comment": {"confidence": 4, "reason": "r"}, "time-interval": None, "mystery": [1]} | changes
    (folder / f"{name}.json").write_text(json.dumps(meta))
    for side in ("ref-reg", "flu-reg", "ref-init"):
        Image.fromarray(cohorts.chest(1)).save(folder / f"{name}-{side}.png")
    return folder / f"{name}.json"


def make_tree(root, pairs=6, singles=4):
    """`pairs` pairs of other hands in two splits, and singles of the training split."""
    for i in range(pairs):
        split = "test" if i % 3 == 2 else "train"
        ours = {
            "split": split,
            "labels_after": {"Edema": 1, "Fracture": -1, "Pneumonia": 0},
            "age": 50 + i,
            "sex": "F",
        }
        path = external(root, f"pa/1/train/p{i:05d}", progemu=ours, **{"progression-description": f"Prompt {i}."})
        for side, seed in (("ref", 2 * i), ("flu", 2 * i + 1)):
            Image.fromarray(cohorts.chest(seed)).save(path.with_name(f"{path.stem}-{side}-reg.png"))
    rows = []
    for i in range(singles):
        name = f"singles/x/p{i}/{i}-a.png"
        records.write_bytes(root / name, images.png(cohorts.chest(50 + i)))
        row = {"image": name, "text": f"Report {i}.", "study_id": str(i), "patient_id": str(i)}
        rows.append(row | {"source": "x", "split": "train"})
    records.write_lines(root / "singles.jsonl", rows)
    return root
