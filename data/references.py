"""The references that predictions are judged by: images, texts, states, masks and the true counterfactual.

The only reader of the phantom's truth/. Everything that is not an image of the tree (masks, counterfactual)
is carried through the same crop, resize and registration as its image, so that it lies on it.
"""

from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from progemu_jax.data import foreground, images, phantom, radiograph, registration, tree
from progemu_jax.data.pool import ordered_map
from progemu_jax.data.sources import Rejected
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records
from progemu_jax.text import findings, rules

_SIDES = ("reference", "followup")


def build_references(
    tree_root: str | Path,
    out: str | Path,
    split: str = "test",
    truth: str | Path | None = None,
    size: int = 512,
    processes: int | None = None,
    progress: bool = True,
) -> int:
    """Writes `out`/references.jsonl, images/ and masks/ for one split of a tree; returns the number of pairs.

    images: gray uint8 PNG [size, size]; masks: npz, key "masks", bool [6, size, size] in radtext.ORGANS' order. truth:
    the phantom's truth/ folder, which gives severities, masks and counterfactuals; without it, states are 1.0 or 0.0
    where the reports speak of a finding, or the tree's own where it was made from labels, and there are no masks. The
    tree's findings.json goes along. references.jsonl is written last; when it is there, nothing is done. A broken pair
    is listed in rejected.jsonl of `out`. Raises UserError when the tree or the truth is missing or the split has no
    pair.
    """
    out = Path(out)
    if (out / "references.jsonl").exists():
        return sum(1 for _ in records.read_lines(out / "references.jsonl"))
    pairs = [p for p in tree.read_pairs(tree_root) if isinstance(p, Rejected) or p.split == split]
    rejected = [p for p in pairs if isinstance(p, Rejected)]
    pairs = [p for p in pairs if not isinstance(p, Rejected)]
    if not pairs:
        raise UserError(f"{tree_root}: no pair of the {split} split; give more patients or a larger share of it")
    truths = read_truth(truth) if truth else {}
    todo = [(p, *(truths.get(str(p.meta.get(f"{side}-study-id"))) for side in _SIDES)) for p in pairs]
    made = ordered_map(partial(_reference, out=out, split=split, size=size), todo, processes, least=64)
    made = list(tqdm(made, desc="references", total=len(todo), unit="pair", disable=not progress))
    rejected += [r for r in made if isinstance(r, Rejected)]
    rows = [r for r in made if not isinstance(r, Rejected)]
    records.remove_leftovers(out)
    findings_file.write(out, findings_file.read(tree_root))
    records.write_lines(out / "rejected.jsonl", map(vars, rejected))
    records.write_lines(out / "references.jsonl", rows)
    return len(rows)


def _reference(item, out: Path, split: str, size: int) -> dict | Rejected:
    """The row of (pair, truth of its prior or None, truth of its follow-up or None); writes its files."""
    pair, before, after = item
    try:
        prior, followup = radiograph.read_gray(pair.prior_path), radiograph.read_gray(pair.followup_path)
    except images.BrokenImage as error:
        return Rejected(pair.pair_id, pair.prior_path.parent.name, f"broken image: {error}")
    meta, ours, name = pair.meta, pair.ours, pair.pair_id
    row = {
        "pair_id": name,
        "patient_id": pair.patient_id,
        "split": split,
        "source": pair.source,
        "prior": f"images/{name}-prior.png",
        "followup": f"images/{name}-followup.png",
        "prompt": pair.prompt,
        "interpretation": pair.interpretation,
        "labels_before": ours.get("labels_before", {}),
        "labels_after": ours.get("labels_after", {}),
        "states_before": _states(meta.get("reference-report")),
        "states_after": _states(meta.get("followup-report")),
        "prompt_changes": dict(rules.changes(pair.prompt)),
        "group": ours.get("group"),
        "age": ours.get("age"),
        "sex": ours.get("sex"),
        "masks_prior": None,
        "masks_followup": None,
        "counterfactual": None,
    }
    row |= {key: ours[key] for key in ("states_before", "states_after", "prompt_changes") if key in ours}
    _write(out / row["prior"], images.resize(prior, size))
    _write(out / row["followup"], images.resize(followup, size))
    if before and after:
        row["states_before"], row["states_after"] = _severities(before), _severities(after)
        _write_truth(row, ours, prior.shape, out, before, after, size)
    return row


def _write_truth(row: dict, ours: dict, shape: tuple, out: Path, before: dict, after: dict, size: int) -> None:
    moved = ours["registration"]
    name, stored, stored_after = row["pair_id"], ours["prior_shape"][0], ours["followup_shape"][0]

    def masks(truth_row, stored, corners, transform=None):
        transform = transform if moved["flag"] == 1 else None
        drawn = _render(truth_row, stored).masks
        return np.stack([carried(m.astype(np.uint8) * 255, shape, size, corners, transform) >= 128 for m in drawn])

    row["masks_prior"], row["masks_followup"] = f"masks/{name}-prior.npz", f"masks/{name}-followup.npz"
    row["counterfactual"] = f"images/{name}-counterfactual.png"
    _write_masks(out / row["masks_prior"], masks(before, stored, moved["crop_prior"]))
    _write_masks(out / row["masks_followup"], masks(after, stored_after, moved["crop_followup"], moved["transform"]))
    drawn = phantom.counterfactual(before, after, stored)
    _write(out / row["counterfactual"], carried(drawn, shape, size, moved["crop_prior"]))


def carried(image: np.ndarray, shape: tuple, size: int, corners: list | None, transform: list | None = None):
    """As stored by the source -> on the tree's image of `shape` -> at `size`; uint8 [H, W] -> uint8 [size, size].

    corners: the crop, or None. transform: 2 x 3 of a registration that moved the image, or None.
    """
    if corners is not None:
        image = foreground.warp(image, np.asarray(corners, float))
    image = images.resize(image, shape[0])
    if transform is not None:
        image = registration.resample(image, np.asarray(transform, float), shape, linear=True)
    return images.resize(image, size)


def _render(row: dict, size: int):
    """The study of a truth row again: phantom.Rendered."""
    patient, state = phantom.Patient.from_dict(row["patient"]), phantom.State.from_dict(row["disease"])
    return phantom.render(patient, state, phantom.Acquisition.from_dict(row["acquisition"]), size)


def read_truth(folder: str | Path) -> dict[str, dict]:
    """Study id -> its row of truth/studies.jsonl. Raises UserError when it is missing or a row does not parse."""
    path = Path(folder) / "studies.jsonl"
    if not path.exists():
        raise UserError(f"{path}: the file is missing; give the truth/ folder of a phantom cohort")
    rows = {}
    for line, row in records.read_lines(path):
        if not isinstance(row, dict) or "study_id" not in row or "state" not in row:
            raise UserError(f"{path}:{line}: the row does not parse; write the phantom cohort again")
        rows[str(row["study_id"]).removeprefix("s")] = row
    return rows


def _severities(row: dict) -> dict[str, float]:
    return {name: float(row["state"][name]) for name in findings.FINDINGS}


def _states(report: dict | None) -> dict[str, float] | None:
    """What a report says: 1.0 present, 0.0 absent, no entry where it is silent. None without a report."""
    if not isinstance(report, dict):
        return None
    text = " ".join(t for t in (report.get("findings"), report.get("impression")) if isinstance(t, str) and t)
    return {name: float(value) for name, value in rules.states(text).items()} if text else None


def _write(path: Path, image: np.ndarray) -> None:
    records.write_bytes(path, images.png(image), durable=False)


def _write_masks(path: Path, masks: np.ndarray) -> None:
    records.write_npz(path, {"masks": masks}, durable=False)
