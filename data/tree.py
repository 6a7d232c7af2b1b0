"""The ICG-CXR tree on disk.

    <root>/<source>/<view>/1/<group>/p<patient>/<pair>/<pair>{.json,-ref-reg.png,-flu-reg.png}

Keys are ICG-CXR's own; unknown ones are kept. What it has no key for stands under "progemu": pair_id, split,
labels_before, labels_after, group, age, sex, prior_shape, followup_shape, and registration {flag, score,
transform, exposure, crop_prior, crop_followup}; of a cohort of labels also states_before, states_after (finding ->
severity) and prompt_changes, and boxes_before, boxes_after where it has them. With `journeys.Options.history`, older
films lie beside the prior, moved onto it, as <pair>-old1-reg.png (the nearest) and -old2-reg.png, and "progemu" has
older, a list of {study_id, days, flag, score, transform, exposure}; with history or coarse_days, interval where it is
known by ages alone. Beside the pairs: singles.jsonl
(stage 1), images.jsonl (hashes of what was read), rejected.jsonl, sheets/, findings.json of a cohort that has its own
list, funnel.json (written last).
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from progemu_jax.data import images
from progemu_jax.data.journeys import MOST_OLDER, SPLITS, Options, Pair, split_of
from progemu_jax.data.label_progression import severities
from progemu_jax.data.registration import Registration
from progemu_jax.data.sources import Rejected, check_root, inside, is_text, safe_id
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records

MAX_JSON = 1 << 20  # bytes of one pair's JSON
_EXTRAS = {"singles", "sheets", "singles.jsonl", "images.jsonl", "rejected.jsonl", "funnel.json", findings_file.NAME}


@dataclass(frozen=True)
class TreePair:
    """One pair of a tree. `meta` is its JSON as read, reports included; images are paths, the nearest older first."""

    pair_id: str
    patient_id: str
    source: str
    view: str
    prior_path: Path
    followup_path: Path
    meta: dict = field(repr=False)
    older_paths: tuple[Path, ...] = ()

    @property
    def prompt(self) -> str:
        return self.meta["progression-description"]

    @property
    def interpretation(self) -> str:
        return self.meta["changes-of-findings"]

    @property
    def ours(self) -> dict:
        """Our own keys; {} in a tree of other hands."""
        return self.meta.get("progemu", {})

    @property
    def split(self) -> str:
        """train, validation or test; by the patient (`journeys.split_of`) where the tree does not say."""
        return self.ours.get("split") or split_of(self.source, self.patient_id, options=Options())


def pair_folder(root: Path, pair: Pair) -> Path:
    """Where a pair lies. The group is MIMIC's p10..p19, the split for sources without such folders."""
    patient = f"p{pair.prior.patient_id}"
    group = patient[:3] if pair.prior.source in ("mimic_cxr", "phantom") else pair.split
    return root / pair.prior.source / pair.view / "1" / group / patient / pair.name


def move_of(moved: Registration, exposure: tuple[float, float]) -> dict:
    """What the JSON says of a registration and of the gain and offset that the moved film was given."""
    transform = np.asarray(moved.transform, float).tolist()
    return {"flag": int(moved.flag), "score": float(moved.score), "transform": transform, "exposure": list(exposure)}


def meta_of(pair: Pair, text, moved, exposure, prior, followup) -> dict:
    """The JSON of a pair. text: a texts.Text; moved: a Registration; exposure: gain and offset that the follow-up was
    given; prior, followup: what the images' reader gives, pixels, crop and stored shape."""
    a, b = pair.prior, pair.followup
    sides = ("before", a), ("after", b)
    ours = {
        "progression-description": text.prompt,
        "changes-of-findings": text.interpretation,
        "comment": {"confidence": text.confidence, "reason": text.reason},
        "reference-report": a.report,
        "followup-report": b.report,
        "time-interval": None if pair.days is None else round(pair.days, 4),
        "view": pair.view.upper() if pair.view == a.view.lower() else f"{a.view}, {b.view}",
        "subject-id": a.patient_id,
        "reference-study-id": a.study_id,
        "followup-study-id": b.study_id,
        "reference-dicom-id": a.dicom_id or a.image_id,
        "followup-dicom-id": b.dicom_id or b.image_id,
        "reference-study-order": pair.prior_ordinal,
        "followup-study-order": pair.followup_ordinal,
        "progemu": {
            "pair_id": pair.pair_id,
            "split": pair.split,
            "labels_before": a.labels,
            "labels_after": b.labels,
            "group": a.group,
            "age": b.age if a.age is None else a.age,
            "sex": a.sex,
            "prior_shape": list(prior[2]),
            "followup_shape": list(followup[2]),
            "registration": {
                **move_of(moved, exposure),
                "crop_prior": None if prior[1] is None else prior[1].tolist(),
                "crop_followup": None if followup[1] is None else followup[1].tolist(),
            },
        },
    }
    if a.states is not None and b.states is not None:
        ours["progemu"] |= {f"states_{side}": severities(s.states, whole=True) for side, s in sides}
        ours["progemu"]["prompt_changes"] = text.asked
    ours["progemu"] |= {f"boxes_{side}": s.boxes for side, s in sides if s.boxes}
    return ours | pair.given.meta if pair.given else ours  # a pair that came with its JSON keeps it


def write_pair(
    root: Path, pair: Pair, prior: np.ndarray, followup: np.ndarray, meta: dict, older: Sequence[np.ndarray] = ()
) -> Path:
    """Writes one pair (uint8 [S, S]) complete or not at all; an existing one is left. Returns its folder.

    older: films from before the prior, the nearest first.
    """
    target = pair_folder(root, pair)
    if target.is_dir():
        return target
    temporary = root / ".tmp" / f"{pair.pair_id}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for side, image in zip(_sides(len(older)), (prior, followup, *older), strict=True):
        (temporary / f"{pair.name}-{side}-reg.png").write_bytes(images.png(image))
    (temporary / f"{pair.name}.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(temporary, target)
    return target


def _sides(older: int) -> tuple[str, ...]:
    """What tells the names of a pair's images apart."""
    return "ref", "flu", *(f"old{n + 1}" for n in range(older))


def read_pairs(root: str | Path) -> Iterator[TreePair | Rejected]:
    """Every pair under `root`, in the order of their paths; a broken one as Rejected.

    Images are not opened. Raises UserError when the root is missing, empty or without any pair.
    """
    root = check_root(root, "an ICG-CXR tree")
    found = False
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if not n.startswith(".") and not (folder == str(root) and n in _EXTRAS))
        for name in sorted(files):
            if name.endswith(".json") and name not in _EXTRAS:
                found = True
                yield _read_pair(root, Path(folder) / name)
    if not found:
        raise UserError(f"{root}: no pair of an ICG-CXR tree in it (<source>/<view>/1/.../<pair>.json)")


def _read_pair(root: Path, path: Path) -> TreePair | Rejected:
    relative = path.relative_to(root)

    def reject(reason):
        return Rejected(path.stem, str(relative), reason)

    if len(relative.parts) < 4:
        return reject("not at <source>/<view>/.../<pair>.json")
    if inside(root, *relative.parts) is None:
        return reject("the path leaves the root")
    try:
        if path.stat().st_size > MAX_JSON:
            return reject(f"the JSON is larger than {MAX_JSON} bytes")
        meta = json.loads(records.read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        return reject(f"the JSON does not parse ({type(error).__name__})")
    if not isinstance(meta, dict) or not isinstance(meta.get("progemu", {}), dict):
        return reject("the JSON is not an object")
    for key in ("progression-description", "changes-of-findings"):
        if not is_text(meta.get(key)):
            return reject(f"key {key!r} is missing or not text")
    if not _storable(meta.get("progemu", {}), required=False):
        return reject("split or group is not one that can be stored")
    source, view, patient, name = *relative.parts[:2], path.parent.parent.name, path.stem
    patient = patient.removeprefix("p")
    pair_id = meta.get("progemu", {}).get("pair_id") or f"{source}-{view}-p{patient}-{name}"
    if not (isinstance(pair_id, str) and safe_id(pair_id) and safe_id(patient)):
        return reject("the pair's name is not a plain name")
    older = meta.get("progemu", {}).get("older", [])
    if not (isinstance(older, list) and len(older) <= MOST_OLDER and all(isinstance(film, dict) for film in older)):
        return reject(f"'older' is not a list of at most {MOST_OLDER} films")
    pictures = [path.with_name(f"{name}-{side}-reg.png") for side in _sides(len(older))]
    for picture in pictures:
        if not picture.exists():
            return reject(f"{picture.name} is missing")
        if inside(root, *picture.relative_to(root).parts) is None:
            return reject("an image's path leaves the root")
    return TreePair(pair_id, patient, source, view, *pictures[:2], meta, tuple(pictures[2:]))


def _storable(row, required=True):
    """Whether split and group of a row are such that the shards can hold them."""
    split, group = row.get("split"), row.get("group")
    return (split in SPLITS if required or split else True) and (group is None or is_text(group))


def read_singles(root: str | Path) -> Iterator[dict | Rejected]:
    """Rows of singles.jsonl, "image" made an absolute Path; a broken row as Rejected."""
    root = Path(root)
    for line, row in records.read_lines(root / "singles.jsonl"):
        where = f"singles.jsonl:{line}"
        texts = ("image", "text", "study_id", "patient_id", "source", "split")
        if not isinstance(row, dict) or not all(is_text(row.get(key)) for key in texts) or not _storable(row):
            yield Rejected("", where, "the row does not parse")
        elif (path := inside(root, row["image"])) is None:
            yield Rejected("", where, "the image's path leaves the root")
        else:
            yield {**row, "image": path}
