"""Held-out phantom patients, rendered as a cohort's are, and what a model makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from progemu_jax import pretrained
from progemu_jax.data import images
from progemu_jax.data.build import build_tree
from progemu_jax.data.references import build_references
from progemu_jax.data.sources.phantom import write_cohort
from progemu_jax.files import records
from progemu_jax.inference.counterfactual import Counterfactual, CounterfactualModel
from progemu_jax.inference.load import Found
from progemu_jax.scorers.files import read_images
from progemu_jax.text.findings import FINDINGS
from progemu_jax.text.understood import Understood, understood

COHORT_SEED = 0  # of every cohort whose config does not say otherwise
STUDIES = 4  # a patient, as in every cohort
TEST_EVERY = 10  # of ten phantom patients one is of the test split, whatever the cohort's size
SIZE = 128  # pixels of a film and of the tree where no config.json says otherwise, as every cohort for a CPU has them


@dataclass(frozen=True)
class Origin:
    """What a model was trained on. cohort: `config.data.source`; film, tree: pixels a side of the phantom's films as
    rendered and in the tree; scorer: its own, a folder or the name of the package's, or None."""

    cohort: str
    film: int
    tree: int
    scorer: str | Path | None


@dataclass(frozen=True)
class HeldOut:
    """A patient's first pair. prior, truth: uint8 [S, S], truth the prior's patient and film with the follow-up's
    disease; changes: {finding: +1 or -1} that the prompt names."""

    patient: str
    pair_id: str
    prompt: str
    changes: dict[str, int]
    prior: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Edited:
    """A patient and one future.

    prior, truth: uint8 [H, W], at the model's size; out: the model's answer, one sample; read: what the rules read in
    the prompt; scores: {finding that the prompt names: its probability in (prior, edited, truth)}, or None unscored.
    """

    case: HeldOut
    prior: np.ndarray
    truth: np.ndarray
    out: Counterfactual
    read: Understood
    scores: dict[str, tuple[float, float, float]] | None

    @property
    def image(self) -> np.ndarray:
        """The edited image, uint8 [H, W]."""
        return self.out.images[0]

    @property
    def text(self) -> str:
        """The interpretation; empty for a diffusion model."""
        return self.out.texts[0] if self.out.texts else ""


def origin(found: Found) -> Origin:
    """Of a model that was found (`inference.load.find`). A folder without a config.json counts as the phantom's."""
    folder = Path(found.folder)
    data = (records.read_json(folder / "config.json") or {}).get("data", {})
    scorer = pretrained.NAME if folder == pretrained.PLACE / pretrained.MODEL else folder / "scorer/export"
    there = scorer == pretrained.NAME or (scorer / "export.json").exists()
    sizes = data.get("phantom", {}).get("size", SIZE), data.get("tree_size", SIZE)
    return Origin(data.get("source", "phantom"), *sizes, scorer if there else None)


def held_out(folder: Path, patients: int, render_size: int, size: int) -> list[HeldOut]:
    """The first `patients` held-out patients of the phantom of seed 0, each with the first pair that it has.

    Patient i of a seed is the same in cohorts of all sizes, and of the test split for i = 1, 11, 21, ...: no training
    by `progemu_jax.main` sees these, nor does any scorer's, whose patients are drawn from another domain. (A run split
    by hash is the exception.) They go the way of every cohort: MIMIC's layout, crop, resize, rules for the prompt.

    folder: work goes there. render_size: pixels of a film; size: of the images that come back, the tree's.
    """
    source = write_cohort(
        folder / "source",
        patients=TEST_EVERY * patients,
        studies_per_patient=STUDIES,
        size=render_size,
        seed=COHORT_SEED,
        split="test",
    )
    build_tree("mimic_cxr", source, folder / "tree", size=size, processes=1, progress=False)
    references = folder / "references"
    build_references(folder / "tree", references, truth=source / "truth", size=size, processes=1, progress=False)
    first: dict[str, dict] = {}
    for row in records.read_rows(references / "references.jsonl", "pair_id", "patient_id"):
        first.setdefault(row["patient_id"], row)
    out = []
    for patient, row in first.items():
        prior, truth = read_images(references, [row["prior"], row["counterfactual"]])
        out.append(HeldOut(patient, row["pair_id"], row["prompt"], row["prompt_changes"], prior, truth))
    return out


def edit(model: CounterfactualModel, scorer: Callable | None, cases: Sequence[HeldOut], seed: int) -> Iterator[Edited]:
    """One future of each, as it comes; scorer: of phantom images (`scorers.phantom.PhantomScorer`), or None."""
    for case in tqdm(cases, desc="edit", unit="patient"):
        out = model.counterfactual(case.prior, case.prompt, seed=seed)
        size = out.images.shape[1:]
        prior, truth = (images.resize(image, size) for image in (case.prior, case.truth))
        scores = None
        if scorer is not None:
            probability = scorer(np.stack([prior, out.images[0], truth]), "phantom", batch_size=3)["finding_prob"]
            named = [name for name in FINDINGS if case.changes.get(name)]
            scores = {name: tuple(map(float, probability[:, FINDINGS.index(name)])) for name in named}
        yield Edited(case, prior, truth, out, understood(case.prompt), scores)
