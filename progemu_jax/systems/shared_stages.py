"""The stages that every system has: data, scorer, score, evaluate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from progemu_jax.checkpoints import export
from progemu_jax.config import Config, PhantomConfig
from progemu_jax.convert.components import SCORER
from progemu_jax.data import build, memorisation
from progemu_jax.data.batches import ArrayBatches
from progemu_jax.data.phantom.scorer_set import labelled_arrays
from progemu_jax.data.sources import PLACES
from progemu_jax.data.sources.phantom import write_cohort
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.eval import System, evaluate
from progemu_jax.files import records
from progemu_jax.files.settings import to_dict
from progemu_jax.files.stages import Stage
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.files import write_prediction_scores, write_reference_scores
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.systems.fitting import process_share
from progemu_jax.systems.interface import ROOTS, Slices
from progemu_jax.systems.meshes import training_mesh
from progemu_jax.systems.predict import ANSWERS, OWN_ANSWERS
from progemu_jax.tasks.scorer import ScorerConfig, ScorerTask
from progemu_jax.training.loop import TrainConfig, fit

PAIRS, SINGLE = "data/shards/icg_cxr/pairs", "data/shards/icg_cxr/single"


def processes(config: Config) -> int:
    """Processes of work on the CPU."""
    return config.data.processes or os.cpu_count() or 1


def data_stage(config: Config, slices: Slices) -> Stage:
    """Source layout -> ICG-CXR tree, references of the test split, shards."""
    phantom = config.data.source == "phantom"
    return Stage(
        name="data",
        outputs=(*(("data/source",) if phantom else ()), "data/tree", "data/references", PAIRS, SINGLE),
        inputs=() if phantom else tuple(getattr(config.data, place) for place in ROOTS),  # one that is off is empty
        config_slice={"seed": config.seed, "data": slices.data},
        run=partial(make_data, config),
    )


def scorer_stage(
    config: Config,
    slices: Slices,
    trained: Mapping[str, TrainConfig],
    name: str = "scorer",
    scorer: ScorerConfig | None = None,
) -> Stage:
    """The evaluating scorer of the phantom, trained on patients of its own, or another one.

    trained: as in `meshes.training_mesh`. name: of the stage and its folder. scorer: its config; None: `config.scorer`.
    """
    about = {"phantom": slices.data["phantom"], "image_size": slices.data["image_size"]}
    own = slices.of("scorer") if scorer is None else {"scorer": to_dict(scorer)}
    return Stage(
        name=name,
        outputs=(name,),
        inputs=(),
        config_slice={**own, **about},
        run=lambda workdir: train_scorer(
            config, scorer or config.scorer, workdir / name, training_mesh(config, trained)
        ),
        kind={"scorer": ScorerConfig, "phantom": PhantomConfig},  # this slice is no part of a `Config`
    )


def score_stage(config: Config, slices: Slices) -> Stage:
    """Scores of predictions and references; the audit for copies of training images."""
    return Stage(
        name="score",
        outputs=("scores",),
        inputs=("predictions", "scorer", "data/references"),
        config_slice=slices.of(),
        run=partial(score, config),
    )


def evaluate_stage(config: Config, slices: Slices) -> Stage:
    """metrics.json and the report."""
    return Stage(
        name="evaluate",
        outputs=("report", "metrics.json"),
        inputs=("predictions", "scores", "data/references"),
        config_slice=slices.of("evaluate", "name"),
        run=partial(judge, config),
    )


def make_data(config: Config, workdir: Path) -> None:
    """Runs the stage `data`."""
    hosts.on_first_host(lambda: _make_data(config, workdir), "stage data")


def _make_data(config: Config, workdir: Path) -> None:
    source, root, truth = config.data.source, config.data.root, None
    if source == "phantom":
        root = write_cohort(
            workdir / "data/source",
            patients=config.data.phantom.patients,
            studies_per_patient=config.data.phantom.studies_per_patient,
            size=config.data.phantom.size,
            seed=config.seed,
            processes=processes(config),
        )
        source, truth = "mimic_cxr", root / "truth"
    elif not root:
        raise UserError(f"config.data.root is empty; give the folder of {source}, --config.data.root=DIR")
    result = build.build(
        source,
        root,
        workdir / "data",
        size=config.data.tree_size,
        image_size=config.data.image_size,
        options=config.data.journeys,
        unchanged=config.data.no_change_share,
        text_options=config.data.texts,
        exclude=config.data.exclude or None,
        truth=truth,
        processes=processes(config),
        source_options={k: v for k in PLACES if (v := getattr(config.data, k))} or None,
        beam=config.data.beam,
    )
    for split in ("train", "validation"):
        if not result["funnel"][f"pairs kept, {split}"]:
            raise UserError(
                f"{workdir / 'data/tree'}: no pair of the {split} split; give more patients or other shares "
                f"(config.data.journeys.validation, .test)"
            )


def train_scorer(config: Config, c: ScorerConfig, folder: Path, mesh: Mesh) -> None:
    """Trains a phantom scorer on its own patients; nothing to do for real cohorts."""
    if config.data.source != "phantom":
        print(f"scorer: phantom scorers do not judge {config.data.source}; pathology metrics will be undefined")
        folder.mkdir(parents=True, exist_ok=True)
        return

    def labelled() -> dict[str, dict]:
        sizes = (config.data.phantom.size, config.data.image_size, processes(config))
        parts = (("train", 0, c.images), ("valid", c.images, c.valid_images))
        return {
            name: labelled_arrays(folder / f"{name}.npz", c.seed, start, n, *sizes, severity=c.net.severity)
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
        lambda seed: ArrayBatches(arrays["train"], c.train.batch_size, seed, **process_share()),
        valid,
        folder,
        mesh=mesh,
        config=c.net,
    )
    export_config = {"kind": SCORER, "net": to_dict(c.net), "image_size": config.data.image_size}
    export.export(state["params"], export_config, folder / "export")


def score(config: Config, workdir: Path) -> None:
    """Scores of every predictions folder and of the references' images; the audit for copies of training images."""
    out, source = workdir / "scores", config.data.source
    out.mkdir(parents=True, exist_ok=True)
    name = config.sample.systems[0]

    def audit() -> None:
        folders = (workdir / "data/shards", workdir / "predictions" / name, workdir / "data/references")
        found = memorisation.audit(*folders, processes=processes(config), progress=True)
        records.write_json(out / f"{name}.memorisation.json", found)

    hosts.on_first_host(audit, "stage score")
    if source != "phantom":
        return
    judge = Cached(PhantomScorer.load(workdir / "scorer/export"), workdir / ".cache/scores")
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


def judge(config: Config, workdir: Path) -> None:
    """metrics.json and report/index.html."""
    hosts.on_first_host(lambda: _judge(config, workdir), "stage evaluate")


def _judge(config: Config, workdir: Path) -> None:
    scores, asked = workdir / "scores", config.sample.systems

    def score_file(name: str, kind: str = "npz") -> Path | None:
        path = scores / f"{name}.{kind}"
        return path if path.exists() else None

    systems = {
        name.replace("-", "_"): System(
            workdir / "predictions" / name, score_file(name), memorisation=score_file(name, "memorisation.json")
        )
        for name in [*asked, *map(ANSWERS.format, asked), OWN_ANSWERS, "reconstruction", "reconstruction-with-prior"]
        if (workdir / "predictions" / name).is_dir()
    }
    kinds = ("prior", "followup", "counterfactual", "mean", "reconstruction")
    evaluate(
        systems,
        workdir / "data/references",
        {name: path for name in kinds if (path := score_file(name))},
        workdir,
        bootstrap=config.evaluate.bootstrap,
        seed=config.evaluate.seed,
        title=config.name,
        caveats=config.evaluate.caveats,
        cases_shown=config.evaluate.cases,
    )
    print(f"report: {workdir / 'report/index.html'}")
