"""Stages `tokenizer` and `tokens`: the VQGAN, and the codes of all pairs and single images."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.convert.components import IN_RUN, TOKENIZER
from progemu_jax.data import batches, icg_cxr
from progemu_jax.data.augment import mirrored, shifted
from progemu_jax.data.label_progression import label_progression, states_of_labels
from progemu_jax.data.progression import Progression, progression
from progemu_jax.devices import hosts
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.systems.fitting import fit_on_images
from progemu_jax.systems.meshes import local_mesh
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.systems.progemu.model_config import load_tokenizer, perceptual
from progemu_jax.tasks.tokenizer import TokenizerTask
from progemu_jax.text.controls import DUMMY_PRIOR
from progemu_jax.text.findings import PHANTOM, Finding

TOKENS = "data/shards/icg_cxr/tokens"


def train_tokenizer(config: Config, workdir: Path, mesh: Mesh) -> None:
    """Trains the VQGAN on the images of the training split; exports it."""
    c = config.tokenizer
    start = open_folder(c.init, TOKENIZER, c.model) if c.init else None
    model = start.model if start else c.model
    task = TokenizerTask(
        model, c.loss, c.train, config.data.image_size, c.freeze, fresh=start is None, perceptual=perceptual(config)
    )
    state = fit_on_images(
        task,
        c.train,
        workdir / "data/shards",
        workdir / "tokenizer",
        mesh,
        show=lambda state, followups: task.pictures(state, {"image": followups}),
        init_state=start and (lambda: task.from_variables(start.variables(), jax.random.key(c.train.seed))),
        config=dataclasses.replace(c, init="", model=model),  # where the start lies does not count
    )
    export_config = {"kind": TOKENIZER, "model": to_dict(model)}
    export.export(task.inference_variables(state), export_config, workdir / IN_RUN[TOKENIZER])


def as_change(example: dict, findings: tuple[Finding, ...]) -> Progression:
    """What a single image shows as a change from nothing: the same short language as a pair's.

    By the rules, or, of a cohort with its own list, which they do not read whole, by its labels.
    """
    if findings == PHANTOM:
        return progression({}, {"findings": example["text"]})
    states = states_of_labels(example["labels"], example["text"], findings)
    return label_progression({}, states, findings, example["image_id"])


def make_tokens(config: Config, workdir: Path) -> None:
    """Images -> codes: token shards of all pairs, and of the training split's single images for stage 1."""
    coder = load_tokenizer(workdir).on(local_mesh(config))
    shards, size = workdir / "data/shards", config.data.image_size
    shared = _SharedCodes(workdir / ".cache/tokens")
    dummy = coder.tokenize(np.full((size, size), DUMMY_PRIOR, np.uint8))

    def chunks(source: Any, n: int = 256) -> Iterator[list[dict]]:
        for start in range(0, len(source), n):
            yield [source[i] for i in range(start, min(start + n, len(source)))]

    def pairs(split: str, slack: float) -> Iterator[dict]:
        crops = config.tokens.crops if split == "train" else 1
        for crop, flip in ((c, f) for f in range(1 + (config.tokens.flip and split == "train")) for c in range(crops)):
            rng, reach = np.random.default_rng((config.seed, crop)), max(1, size // 16) if crop else 0
            for number, chunk in enumerate(chunks(batches.examples(shards, "pairs", split))):
                chunk = [mirrored(e) for e in chunk] if flip else chunk
                # A pair moves as one: its images stay registered.
                views = [shifted(np.stack([e["prior"], e["followup"]]), rng, reach) for e in chunk]
                priors, followups = (np.stack(side) for side in zip(*views, strict=True))

                def codes(priors: np.ndarray = priors, followups: np.ndarray = followups) -> tuple:
                    prior = coder.tokenize(priors)
                    return prior, coder.tokenize(followups, near=prior, slack=slack)

                found = shared(f"{split}-{crop}-{flip:d}-{number}", codes)
                if found is None:
                    continue
                prior, followup = found
                for e, p, f in zip(chunk, prior, followup, strict=True):
                    row = {k: e[k] for k in ("patient_id", "prompt", "interpretation")}
                    name = f"{e['pair_id']}#{crop}" if crop else e["pair_id"]
                    name = f"{name}#mirrored" if flip else name
                    yield {**row, "pair_id": name, "kind": "pair", "prior": p, "followup": f}

    of_cohort = findings_file.read(shards)

    def singles(split: str) -> Iterator[dict]:
        for number, chunk in enumerate(chunks(batches.examples(shards, "single", split))):
            images = np.stack([e["image"] for e in chunk])
            found = shared(f"{split}-single-{number}", lambda images=images: (coder.tokenize(images),))
            if found is None:
                continue
            for e, f in zip(chunk, found[0], strict=True):
                text = as_change(e, of_cohort)
                row = {"pair_id": e["image_id"], "patient_id": e["patient_id"], "kind": "single"}
                yield {
                    **row,
                    "prompt": text.prompt,
                    "interpretation": text.interpretation,
                    "prior": dummy,
                    "followup": f,
                }

    slack = leaning(config, coder, shards)
    # The test split's follow-ups are what the tokenizer alone makes of them: the ceiling of every system.
    splits = {s: (lambda s=s: pairs(s, 0.0 if s == "test" else slack)) for s in ("train", "validation", "test")}
    splits["train_single"] = lambda: singles("train")
    height, width = dummy.shape
    shared.fill(splits.values())
    hosts.on_first_host(lambda: icg_cxr.write_tokens(shards, splits, height=height, width=width), "stage tokens")
    shared.close()


def leaning(config: Config, coder: Tokenizer, shards: Path) -> float:
    """How much further than the nearest code the prior's may be, squared distance: `tokens.slack` in mean errors."""
    if not config.tokens.slack:
        return 0.0
    sample = batches.examples(shards, "single", "train")
    return config.tokens.slack * coder.error(np.stack([sample[i]["image"] for i in range(min(len(sample), 512))]))


class _SharedCodes:
    """Codes that several hosts compute: each its share of the chunks, into a folder that all of them see.

    shared(name, compute) -> tuple of arrays; with one process it is compute(). While `fill` runs it is None.
    """

    def __init__(self, folder: Path):
        self.folder, self.turns, self.filling = folder, itertools.count(), False
        self.count, self.index = jax.process_count(), jax.process_index()

    def __call__(self, name: str, compute: Callable[[], tuple]) -> tuple | None:
        if self.count == 1:
            return compute()
        path = self.folder / f"{name}.npz"
        if self.filling:
            if next(self.turns) % self.count == self.index and not path.exists():
                records.write_npz(path, {str(i): array for i, array in enumerate(compute())})
            return None
        with records.open_npz(path) as file:
            return tuple(file[key] for key in sorted(file))

    def fill(self, generators: Any) -> None:
        """Runs through all of them, so that every chunk has been computed by one of the hosts."""
        if self.count > 1:
            self.filling = True
            for generator in generators:
                for _ in generator():
                    pass
            self.filling = False
            hosts.barrier()

    def close(self) -> None:
        """Removes the folder."""
        hosts.on_first_host(lambda: shutil.rmtree(self.folder, ignore_errors=True), str(self.folder))
