"""Stages `tokenizer` and `tokens`: the VQGAN, and the codes of all pairs and single images."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from functools import partial
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
    shared, time = _SharedCodes(workdir / ".cache/tokens"), config.tokens.time
    slack = leaning(config, coder, shards)
    dummy = coder.tokenize(np.full((size, size), DUMMY_PRIOR, np.uint8))

    def chunks(source: Any, n: int = 256) -> Iterator[list[dict]]:
        for start in range(0, len(source), n):
            yield [source[i] for i in range(start, min(start + n, len(source)))]

    def pairs(split: str) -> Iterator[dict]:
        crops = config.tokens.crops if split == "train" else 1
        for crop, flip in ((c, f) for f in range(1 + (config.tokens.flip and split == "train")) for c in range(crops)):
            rng, reach = np.random.default_rng((config.seed, crop)), max(1, size // 16) if crop else 0
            for number, chunk in enumerate(chunks(batches.examples(shards, "pairs", split))):
                chunk = [mirrored(e) for e in chunk] if flip else chunk
                # A pair moves as one: its images stay registered.
                films = [[e["prior"], e["followup"], *(e.get("older", ()) if time else ())] for e in chunk]
                views = [shifted(np.stack(of_pair), rng, reach) for of_pair in films]
                name = f"{split}-{crop}-{flip:d}-{number}{'-time' * time}"
                found = shared(name, partial(_codes, coder, views, 0.0 if split == "test" else slack, slack))
                if found is None:
                    continue
                prior, followup, older = (*found, found[0][:0])[:3]
                older = np.split(older, np.cumsum([len(view) - 2 for view in views])[:-1])
                for e, p, f, o in zip(chunk, prior, followup, older, strict=True):
                    row = {k: e[k] for k in ("patient_id", "prompt", "interpretation")}
                    name = f"{e['pair_id']}#{crop}" if crop else e["pair_id"]
                    name = f"{name}#mirrored" if flip else name
                    row |= _time_of(e, o) if time else {}
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
                row |= _time_of({}, dummy[None][:0]) if time else {}
                yield {
                    **row,
                    "prompt": text.prompt,
                    "interpretation": text.interpretation,
                    "prior": dummy,
                    "followup": f,
                }

    splits = {s: partial(pairs, s) for s in ("train", "validation", "test")}
    splits["train_single"] = lambda: singles("train")
    height, width = dummy.shape
    shared.fill(splits.values())
    write = partial(icg_cxr.write_tokens, shards, splits, height=height, width=width, time=time)
    hosts.on_first_host(write, "stage tokens")
    shared.close()


def _codes(coder: Tokenizer, views: list[np.ndarray], slack: float, older_slack: float) -> tuple[np.ndarray, ...]:
    """Codes int32 [N, h, w] of the N priors and follow-ups; where there are M older films, theirs, [M, h, w].

    views: of each pair uint8 [2 + K, S, S], prior, follow-up and its K older films. slack: of follow-ups, 0 in the test
    split: what the tokenizer alone makes of them is the ceiling of every system. older_slack: older films are what a
    model is given and no answer, so they lean to the prior by the model's slack in every split, as when it is used.
    """
    prior = coder.tokenize(np.stack([view[0] for view in views]))
    followup = coder.tokenize(np.stack([view[1] for view in views]), near=prior, slack=slack)
    near = np.repeat(prior, [len(view) - 2 for view in views], axis=0)
    if not len(near):
        return prior, followup
    older = np.concatenate([view[2:] for view in views])
    return prior, followup, coder.tokenize(older, near=near, slack=older_slack)


def _time_of(example: dict, older: np.ndarray) -> dict:
    """What token shards say of time: nothing of a single image, nor of a reversed pair, which goes back in it."""
    days = example.get("days", np.nan)
    older_days = example.get("older_days", np.zeros(0, np.float32))
    return {"days": days if days >= 0 else np.nan, "older": older, "older_days": older_days}


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
