"""ICG-CXR as a TFDS data set in ArrayRecord files, without TensorFlow: configs pairs, single and tokens.

    build_shards("runs/x/data/tree", "runs/x/data/shards", image_size=64)
    tfds.builder_from_directory("runs/x/data/shards/icg_cxr/pairs/1.0.0").as_data_source("train")

The same input gives the same bytes. TFDS writes a config under a temporary name and renames it when complete.
"""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from progemu_jax.data import images, radiograph, tree
from progemu_jax.data.pool import ordered_map
from progemu_jax.data.sources import Rejected, number, safe_id
from progemu_jax.errors import UserError
from progemu_jax.files import findings as cohort
from progemu_jax.files import records
from progemu_jax.text import findings

NAME, VERSION = "icg_cxr", "1.0.0"


def config_folder(data_dir: str | Path, config: str) -> Path:
    """Where TFDS keeps a config of the data set."""
    return Path(data_dir) / NAME / config / VERSION


def label_columns(data_dir: str | Path) -> tuple[str, ...]:
    """Names of the columns of labels in the shards: CheXpert's, or the labels of the cohort's `findings.json`."""
    return findings.label_columns(cohort.read(data_dir))


def build_shards(
    tree_root: str | Path,
    data_dir: str | Path,
    image_size: int,
    *,
    processes: int | None = None,
    progress: bool = True,
    beam: Sequence[str] = (),
) -> Path:
    """Tree -> configs `pairs` and `single` under `data_dir`, images [S, S, 1]; returns `data_dir`.

    image_size: S. beam: arguments of Apache Beam, which then does the work instead of `processes`; the shards are the
    same to the byte. A complete config of the same tree and size is left. Broken pairs and rows are listed in
    `data_dir`/rejected.jsonl; the tree's findings.json goes along, and settles the columns of labels. Of a tree with
    history, `pairs` has older films too. Raises UserError for a tree without a pair, and where another tree's or size's
    shards lie; also where nothing of a split can be read.
    """
    found = list(tree.read_pairs(tree_root))
    rejected = [p for p in found if isinstance(p, Rejected)]
    pairs = sorted((p for p in found if not isinstance(p, Rejected)), key=lambda p: p.pair_id)
    rows = list(tree.read_singles(tree_root))
    rejected += [r for r in rows if isinstance(r, Rejected)]
    singles = [r for r in rows if not isinstance(r, Rejected)]
    root, of_cohort = Path(tree_root), cohort.read(tree_root)
    columns = findings.label_columns(of_cohort)
    time = _time_of(pairs)
    make = partial(_example, size=image_size, columns=columns, time="history" in time)
    items = {
        "pairs": [(p.split, p.pair_id, p) for p in pairs],
        "single": [(r["split"], r["image"].relative_to(root).as_posix(), r) for r in singles],
    }

    def generator(split, keyed):
        left = 0
        for result in ordered_map(make, keyed, processes, chunk=16, least=256):
            if isinstance(result, Rejected):
                rejected.append(result)
            else:
                left += 1
                yield result
        if not left:  # a split cannot be without shards
            last = rejected[-1]
            raise UserError(f"{tree_root}: nothing of split {split!r} can be read ({last.path}: {last.reason})")

    for config, split_items in items.items():
        by_split: dict[str, list] = {}
        seen: set[str] = set()
        for split, key, item in split_items:
            if key in seen:
                rejected.append(Rejected("", key, "is there twice"))
            else:
                by_split.setdefault(split, []).append((key, item))
            seen.add(key)
        if by_split:
            names = {split: [key for key, _ in keyed] for split, keyed in by_split.items()}
            identity = {"items": records.digest(names), "image_size": image_size}
            if of_cohort != findings.PHANTOM:
                identity["labels"] = list(columns)
            if config == "pairs":
                identity |= time
            splits = {s: (partial(generator, s, keyed), len(keyed)) for s, keyed in by_split.items()}
            if beam:
                lists = {s: Path(data_dir) / f".rejected-{config}-{s}" for s in by_split}
                splits = {s: _on_beam(keyed, make, lists[s]) for s, keyed in by_split.items()}
            shape = {"image_size": image_size, "labels": len(columns), "time": "history" in identity}
            _write(data_dir, config, splits, identity, progress, beam=beam, **shape)
            if beam:
                for path in (p for prefix in lists.values() for p in prefix.parent.glob(f"{prefix.name}-*")):
                    rejected += [Rejected(*row) for _, row in records.read_lines(path)]
                    path.unlink()
    cohort.write(data_dir, of_cohort)
    if rejected or not (Path(data_dir) / "rejected.jsonl").exists():
        records.write_lines(Path(data_dir) / "rejected.jsonl", map(vars, rejected))
    return Path(data_dir)


def _time_of(pairs: list[tree.TreePair]) -> dict:
    """What a tree knows of time beyond exact days: history, its most older films of a pair, and coarse_days; or {}."""
    older = [len(p.older_paths) for p in pairs if "older" in p.ours]
    coarse = any("interval" in p.ours for p in pairs)
    return ({"history": max(older)} if older else {}) | ({"coarse_days": True} if coarse else {})


def _on_beam(keyed: list, make: Callable, rejected: Path):
    """The examples as a Beam transform; the rejected ones go to files."""
    import apache_beam as beam

    class Examples(beam.PTransform):
        def expand(self, pipeline):
            made = pipeline | beam.Create(keyed) | beam.Reshuffle() | beam.Map(make)
            bad = made | beam.Filter(lambda result: isinstance(result, Rejected))
            bad | beam.Map(lambda r: json.dumps([r.study_id, r.path, r.reason])) | beam.io.WriteToText(str(rejected))
            return made | beam.Filter(lambda result: not isinstance(result, Rejected))

    return Examples()


def _example(keyed: tuple, size: int, columns: tuple[str, ...], time: bool) -> tuple[str, dict] | Rejected:
    key, item = keyed
    try:
        if not isinstance(item, tree.TreePair):
            return key, _single(item, size, columns)
        return key, _pair(item, size, columns) | (_older(item, size) if time else {})
    except images.BrokenImage as error:
        return Rejected(key, key, f"broken image: {error}")


def write_tokens(
    data_dir: str | Path,
    splits: dict[str, Callable[[], Iterable[dict]]],
    *,
    height: int,
    width: int,
    time: bool = False,
    identity: dict | None = None,
    progress: bool = True,
) -> Path:
    """Config `tokens` under `data_dir` from functions that return iterables of examples; returns its folder.

    An example: pair_id (unique in its split; the study and image of a single), kind "pair" or "single",
    patient_id, prior and followup int32 [height, width] (codes >= 0), prompt, interpretation; with `time` also days
    (float, NaN unknown), older int32 [K, height, width], the nearest first, and older_days [K] (to the prior). Splits
    are named freely ([a-z_0-9]). identity: what made the tokens (tokenizer digest, ...): JSON-able, kept in
    metadata.json. A complete config of the same identity is left; another one is a UserError.
    """

    def keyed(examples):
        return lambda: ((e["pair_id"], e) for e in examples())

    sized = {name: (keyed(examples), None) for name, examples in splits.items()}
    what = {**(identity or {}), "height": height, "width": width, "splits": sorted(splits)}
    what |= {"time": True} if time else {}
    return _write(data_dir, "tokens", sized, what, progress, height=height, width=width, time=time)


def _write(data_dir, config: str, splits: dict, identity: dict, progress: bool, beam=(), **shape) -> Path:
    folder = config_folder(data_dir, config)
    identity = records.normal(identity)
    if folder.exists():
        difference = records.first_difference(records.read_json(folder / "metadata.json"), identity)
        if difference:
            key, before, now = difference
            raise UserError(
                f"{folder}: shards were written with {key}={before!r}, asked for {now!r}; "
                "give another folder or delete it"
            )
        return folder
    for unsafe in (s for s in splits if not (safe_id(s) and s.replace("_", "").isalnum())):
        raise UserError(f"split {unsafe!r}: letters, digits and _ only")
    for leftover in folder.parent.glob("incomplete.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    import tensorflow_datasets as tfds

    from progemu_jax.data.icg_cxr import icg_cxr_dataset_builder

    tfds.disable_progress_bar()  # its bars are nested four deep; ours shows the time left
    builder = icg_cxr_dataset_builder.Builder(
        data_dir=str(data_dir), config=config, file_format="array_record", identity=identity, **shape
    )
    how = {}
    if not beam:
        builder.examples = {name: _Bar(f"{config} {name}", *rest, progress) for name, rest in splits.items()}
    else:
        from apache_beam.options.pipeline_options import PipelineOptions

        builder.examples = splits
        how["download_config"] = tfds.download.DownloadConfig(beam_options=PipelineOptions(list(beam)))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(**how)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or type(error).__name__})") from None
    return folder


class _Bar:
    """An iterable of (key, example) that opens its source, and a progress bar, only when iterated."""

    def __init__(self, name, source, total, progress):
        self.name, self.source, self.total, self.progress = name, source, total, progress

    def __iter__(self):
        yield from tqdm(self.source(), desc=self.name, total=self.total, unit="example", disable=not self.progress)


def _pair(pair: tree.TreePair, size: int, columns: tuple[str, ...]) -> dict:
    meta, ours = pair.meta, pair.ours
    comment = meta.get("comment")
    confidence = comment.get("confidence") if isinstance(comment, dict) else None
    days = _float(meta.get("time-interval"))
    return {
        "pair_id": pair.pair_id,
        "patient_id": pair.patient_id,
        "source": pair.source,
        "view": pair.view,
        "prior": images.png(images.resize(radiograph.read_gray(pair.prior_path), size)),
        "followup": images.png(images.resize(radiograph.read_gray(pair.followup_path), size)),
        "prompt": pair.prompt,
        "interpretation": pair.interpretation,
        "confidence": confidence if isinstance(confidence, int) and 1 <= confidence <= 5 else 0,
        "days": _float(ours.get("interval")) if np.isnan(days) else days,
        "labels_before": _labels(ours.get("labels_before"), columns),
        "labels_after": _labels(ours.get("labels_after"), columns),
        **_person(ours),
    }


def _older(pair: tree.TreePair, size: int) -> dict:
    films = [images.png(images.resize(radiograph.read_gray(path), size)) for path in pair.older_paths]
    return {"older": films, "older_days": [_float(row.get("days")) for row in pair.ours.get("older", [])]}


def _single(row: dict, size: int, columns: tuple[str, ...]) -> dict:
    return {
        "study_id": row["study_id"],
        "image_id": row["image"].stem,
        "patient_id": row["patient_id"],
        "source": row["source"],
        "view": str(row.get("view") or ""),
        "image": images.png(images.resize(radiograph.read_gray(row["image"]), size)),
        "text": row["text"],
        "labels": _labels(row.get("labels"), columns),
        **_person(row),
    }


def _person(row: dict) -> dict:
    sex = row.get("sex")
    return {
        "age": _float(row.get("age")),
        "sex": sex if sex in ("F", "M") else "",
        "group": str(row.get("group") or ""),
    }


def _float(value) -> float:
    found = number(value) if isinstance(value, int | float) else None
    return float("nan") if found is None else found


def _labels(labels, columns):
    """Label columns -> int8 [their number]: 1, 0, -1 uncertain, -2 not mentioned."""
    labels = labels if isinstance(labels, dict) else {}
    values = [labels.get(name) for name in columns]
    return np.array([v if v in (1, 0, -1) else -2 for v in values], np.int8)
