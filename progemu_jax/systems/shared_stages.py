"""The stages that every system has: data, scorer, identity, score, evaluate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from progemu_jax.config import Config, PhantomConfig
from progemu_jax.data import build
from progemu_jax.data.sources import PLACES
from progemu_jax.data.sources.phantom import write_cohort
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.eval import System, evaluate
from progemu_jax.files.settings import to_dict
from progemu_jax.files.stages import Stage
from progemu_jax.systems import judges
from progemu_jax.systems.interface import ROOTS, Slices
from progemu_jax.systems.meshes import training_mesh
from progemu_jax.systems.predict import ANSWERS, OWN_ANSWERS
from progemu_jax.tasks.scorer import ScorerConfig
from progemu_jax.training.loop import TrainConfig

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
    """The evaluating scorer: the phantom's, trained on patients of its own, or one of a real cohort's labels.

    trained: as in `meshes.training_mesh`. name: of the stage and its folder. scorer: its config; None: `config.scorer`.
    """
    if config.data.source != "phantom":
        return Stage(
            name=name,
            outputs=(name,),
            inputs=(SINGLE,),
            config_slice=slices.of("scorer"),
            run=lambda workdir: judges.train_label_scorer(config, workdir, training_mesh(config, trained)),
        )
    about = {"phantom": slices.data["phantom"], "image_size": slices.data["image_size"]}
    own = slices.of("scorer") if scorer is None else {"scorer": to_dict(scorer)}
    return Stage(
        name=name,
        outputs=(name,),
        inputs=(),
        config_slice={**own, **about},
        run=lambda workdir: judges.train_phantom_scorer(
            config, scorer or config.scorer, workdir / name, training_mesh(config, trained)
        ),
        kind={"scorer": ScorerConfig, "phantom": PhantomConfig},  # this slice is no part of a `Config`
    )


def identity_stages(config: Config, slices: Slices, trained: Mapping[str, TrainConfig]) -> list[Stage]:
    """The network that tells whether two films are of one patient; none where it takes no step."""
    if not config.identity.train.steps:
        return []
    return [
        Stage(
            name="identity",
            outputs=("identity",),
            holds=(judges.IDENTITY,),
            inputs=(PAIRS,),
            config_slice=slices.of("identity"),
            run=lambda workdir: judges.train_identity(config, workdir, training_mesh(config, trained)),
        )
    ]


def score_stage(config: Config, slices: Slices) -> Stage:
    """Scores of predictions and references; the audit for copies of training images."""
    identity = ("identity",) if config.identity.train.steps else ()
    return Stage(
        name="score",
        outputs=("scores",),
        inputs=("predictions", "scorer", *identity, "data/references"),
        config_slice=slices.of(),
        run=partial(judges.score, config),
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
            dynamics=config.data.phantom.dynamics,
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
        caveats=(*config.evaluate.caveats, *judges.caveats(workdir)),
        cases_shown=config.evaluate.cases,
    )
    print(f"report: {workdir / 'report/index.html'}")
