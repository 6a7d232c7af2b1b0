"""The networks that judge a run: the phantom's scorer, one of a real cohort's labels, and re-identification."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.convert.components import SCORER
from progemu_jax.data import batches, icg_cxr, memorisation
from progemu_jax.data.phantom.scorer_set import labelled_arrays
from progemu_jax.devices import hosts
from progemu_jax.eval.bootstrap import Bootstrap, estimate
from progemu_jax.eval.definitions import cell
from progemu_jax.eval.metrics.roc import Ranking
from progemu_jax.eval.scores import read_scores
from progemu_jax.files import records
from progemu_jax.files.settings import to_dict
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.files import write_prediction_scores, write_reference_scores
from progemu_jax.scorers.labels import LabelScorer
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.scorers.reidentification import IDENTITY, Reidentifier, Together
from progemu_jax.systems.fitting import fit_on_examples, process_share
from progemu_jax.tasks.label_scorer import LabelScorerTask
from progemu_jax.tasks.reidentification import ReidentificationTask
from progemu_jax.tasks.scorer import ScorerConfig, ScorerTask
from progemu_jax.training.loop import fit

SCORER_EXPORT = "scorer/export"
VALIDATION = "scorer/validation.json"
DRAWS = 500  # of the intervals in it
SPLITS = ("train", "validation")


def train_phantom_scorer(config: Config, c: ScorerConfig, folder: Path, mesh: Mesh) -> None:
    """Trains a phantom scorer on its own patients."""

    def labelled() -> dict[str, dict]:
        processes = config.data.processes or os.cpu_count() or 1
        sizes = (config.data.phantom.size, config.data.image_size, processes)
        options = {"severity": c.net.severity, "dynamics": config.data.phantom.dynamics}
        parts = (("train", 0, c.images), ("valid", c.images, c.valid_images))
        return {
            name: labelled_arrays(folder / f"{name}.npz", c.seed, start, n, *sizes, **options)
            for name, start, n in parts
        }

    hosts.on_first_host(labelled, "stage scorer")  # they lie in files then
    arrays = labelled()
    task = ScorerTask(c.net, c.train, config.data.image_size)

    def valid() -> Iterator[dict]:
        for start in range(0, c.valid_images, c.train.batch_size):
            yield {k: v[start : start + c.train.batch_size] for k, v in arrays["valid"].items()}

    state = fit(
        task,
        c.train,
        lambda seed: batches.ArrayBatches(arrays["train"], c.train.batch_size, seed, **process_share()),
        valid,
        folder,
        mesh=mesh,
        config=c.net,
    )
    export_config = {"kind": SCORER, "net": to_dict(c.net), "image_size": config.data.image_size}
    export.export(state["params"], export_config, folder / "export")


def train_label_scorer(config: Config, workdir: Path, mesh: Mesh) -> None:
    """Trains a scorer on the labels of a real cohort's training patients; nothing to do for a cohort without labels.

    It writes how well it reads validation patients to `scorer/validation.json`.
    """
    c, folder, shards = config.scorer, workdir / "scorer", workdir / "data/shards"
    folder.mkdir(parents=True, exist_ok=True)
    labels, sources = icg_cxr.label_columns(shards), [batches.examples(shards, "single", s) for s in SPLITS]
    views = sorted(set(config.data.journeys.view_of().values()))
    kept = [i for i, name in enumerate(labels) if name != "No Finding"]
    if not c.train.steps or not any((sources[0][i]["labels"] == 1).any() for i in range(min(len(sources[0]), 1000))):
        print(f"scorer: no labels of {config.data.source} to learn from; pathology metrics will be undefined")
        return

    def pack(example: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        return {
            "image": example["image"],
            "findings": known(example["labels"])[kept],
            "age": np.float32(example["age"]),
            "sex": np.float32({"F": 1, "M": 0}.get(example["sex"], np.nan)),
            "view": np.int32(views.index(example["view"]) if example["view"] in views else 0),
        }

    net = replace(
        c.net, findings=len(kept), groups=0, organs=0, severity=False, views=len(views) if len(views) > 1 else 0
    )
    task = LabelScorerTask(net, c.train, config.data.image_size)
    state = fit_on_examples(task, c.train, tuple(sources), (pack, pack), folder, mesh, config={"net": net})
    about = {"kind": SCORER, "net": to_dict(net), "image_size": config.data.image_size}
    about |= {"labels": [labels[i] for i in kept], "source": config.data.source, "caveat": ""}
    scorer = LabelScorer(state["params"], net, about)
    found = _validation(scorer, sources, pack)
    hosts.on_first_host(lambda: records.write_json(workdir / VALIDATION, found), "stage scorer")
    export.export(state["params"], about | {"caveat": _said(config.data.source, found)}, workdir / SCORER_EXPORT)


def known(labels: np.ndarray) -> np.ndarray:
    """int8 [L] of the shards -> f32 [L]: 1, 0, NaN uncertain; what is not mentioned is absent, as Irvin et al. 2019,
    section 4, train."""
    return np.where(labels == -1, np.nan, labels == 1).astype(np.float32)


def _validation(scorer: LabelScorer, sources: list, pack: Callable) -> dict:
    """AUROC of each label, with intervals over patients, on the images of validation patients."""
    learnt, held_out = sources
    rows = [pack(example) | {"patient": example["patient_id"]} for example in held_out]
    columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    got, truth = scorer(columns["image"], scorer.source), columns["findings"]
    names, patient = np.unique(columns["patient"], return_inverse=True)
    rankings = {name: Ranking(got["finding_prob"][:, j], truth[:, j]) for j, name in enumerate(scorer.labels)}
    rankings["sex"] = Ranking(got["sex_prob"], columns["sex"])
    drawn = Bootstrap(len(names), DRAWS).distributions(patient, {}, {k: r.auroc for k, r in rankings.items()})
    about = {"source": scorer.source, "training_images": len(learnt), "images": len(rows), "patients": len(names)}
    auroc = {
        name: {**estimate(drawn[name]).to_json(), "positives": r.positives, "negatives": r.negatives}
        for name, r in rankings.items()
    }
    error = np.abs(got["age"] - columns["age"])
    return {**about, "auroc": auroc, "age_error": float(np.nanmean(error)) if np.isfinite(error).any() else None}


def _said(source: str, found: dict) -> str:
    """One sentence for the page."""
    parts = [f"{name} {cell(row, 2)}" for name, row in found["auroc"].items() if row["value"] is not None]
    return (
        f"Findings, age and sex are scored by a network trained on the labels of {found['training_images']:,} images "
        f"of {source}'s training patients, which is no independent judge. Its AUROC on {found['images']:,} images of "
        f"{found['patients']:,} validation patients: {', '.join(parts) or 'undefined'}."
    )


def train_identity(config: Config, workdir: Path, mesh: Mesh) -> None:
    """Trains re-identification on pairs of studies of the training patients, whatever changed between them."""
    c, shards = config.identity, workdir / "data/shards"
    sources = tuple(batches.examples(shards, "pairs", split) for split in SPLITS)

    def pack(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        # A number that every host gives the patient.
        patient = np.array(zlib.crc32(example["patient_id"].encode()), np.uint32).view(np.int32)
        return {"prior": example["prior"], "followup": example["followup"], "patient": patient}

    task = ReidentificationTask(c.net, c.train, config.data.image_size)
    state = fit_on_examples(task, c.train, sources, (pack, pack), workdir / "identity", mesh, config={"net": c.net})
    caveat = (
        f"Identity is judged by a network trained on {len(sources[0]):,} ordered pairs of films of "
        f"{config.data.source}'s training patients: a film is verified where it is more alike to the prior than 99 % "
        "of strangers' real films."
    )
    about = {"kind": "identity", "net": to_dict(c.net), "image_size": config.data.image_size, "caveat": caveat}
    about["usual"] = _usual(Reidentifier(state["params"], c.net, config.data.image_size), sources[1])
    export.export(state["params"], about, workdir / IDENTITY)


def _usual(network: Reidentifier, pairs: batches.Examples) -> float:
    """The similarity that 99 % of the pairs of films of one patient reach (validation)."""
    alike = []
    for start in range(0, len(pairs), 256):
        some = [pairs[i] for i in range(start, min(start + 256, len(pairs)))]
        sides = (network(np.stack([e[key] for e in some]), "")["identity"] for key in ("prior", "followup"))
        alike.append(np.multiply(*sides).sum(1))
    return float(np.quantile(np.concatenate(alike), 0.01))


def load(workdir: Path) -> list:
    """The judges that a run has trained."""
    out: list = []
    if (place := workdir / SCORER_EXPORT).exists():
        kind = LabelScorer if "labels" in export.read_export_config(place) else PhantomScorer
        out.append(kind.load(place))
    if (place := workdir / IDENTITY).exists():
        out.append(Reidentifier.load(place))
    return out


def caveats(workdir: Path) -> tuple[str, ...]:
    """What the exports of the judges say of themselves."""
    places = [place for name in (SCORER_EXPORT, IDENTITY) if (place := workdir / name).exists()]
    return tuple(said for place in places if (said := str(export.read_export_config(place).get("caveat", ""))))


def _nearest_patients(network: Reidentifier, shards: Path, made: np.ndarray, real: np.ndarray) -> dict[str, dict]:
    """How near each film lies to a training patient, as re-identification sees it: {"generated", "real": row}.

    made, real: float [N, D] and [M, D], the points of both. A row: median, greatest, and beyond, the share that lies
    nearer than 99 % of the real follow-ups do.
    """

    def trained() -> Iterator[np.ndarray]:
        for name, (_, keys) in memorisation.IMAGES.items():
            source = batches.examples(shards, name, "train", cache=False)
            for start in tqdm(range(0, len(source), 256), desc=f"training films, {name}", unit="256"):
                examples = [source[i] for i in range(start, min(start + 256, len(source)))]
                yield network(np.stack([example[key] for example in examples for key in keys]), "")["identity"]

    value = memorisation.nearest(np.concatenate([made, real]), trained())[1]
    near = {"generated": value[: len(made)], "real": value[len(made) :]}
    usual = np.quantile(near["real"], 0.99)
    return {
        kind: {
            "median": round(float(np.median(found)), 4),
            "greatest": round(float(found.max()), 4),
            "beyond": round(float((found > usual).mean()), 4),
        }
        for kind, found in near.items()
    }


def score(config: Config, workdir: Path) -> None:
    """Scores of every predictions folder and of the references' images; the audit for copies of training images."""
    out, name, networks = workdir / "scores", config.sample.systems[0], load(workdir)
    out.mkdir(parents=True, exist_ok=True)
    if networks:
        _score(networks, workdir, out, config.data.source)

    def audit() -> None:
        shards, references = workdir / "data/shards", workdir / "data/references"
        found = memorisation.audit(
            shards, workdir / "predictions" / name, references,
            processes=config.data.processes or os.cpu_count() or 1, progress=True,
        )  # fmt: skip
        for network in (n for n in networks if isinstance(n, Reidentifier)):
            made, real = (read_scores(out / f"{kind}.npz") for kind in (name, "followup"))
            cases = sorted({pair for pair, _ in made.keys})
            points = real.identity[real.take(cases, [0] * len(cases))]
            for kind, row in _nearest_patients(network, shards, made.identity, points).items():
                found[kind]["identity"] = row
        records.write_json(out / f"{name}.memorisation.json", found)

    hosts.on_first_host(audit, "stage score")


def _score(networks: list, workdir: Path, out: Path, source: str) -> None:
    judge = Cached(Together(networks), workdir / ".cache/scores")
    folders = sorted(p.parent for p in (workdir / "predictions").glob("*/predictions.jsonl"))
    for folder in hosts.own_share(folders):  # each host fills the cache, process 0 writes the files from it
        write_prediction_scores(judge, folder, out / f".{folder.name}.npz.tmp", source)
    hosts.barrier()

    def write() -> None:
        for folder in folders:
            write_prediction_scores(judge, folder, out / f"{folder.name}.npz", source)
            records.delete(out / f".{folder.name}.npz.tmp")
        write_reference_scores(judge, workdir / "data/references", out, source)

    hosts.on_first_host(write, "stage score")
