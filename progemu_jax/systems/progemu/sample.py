"""Stage `sample`: counterfactuals of held-out pairs, for ProgEmu and its controls."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from progemu_jax.config import Config
from progemu_jax.inference.load import load
from progemu_jax.systems.meshes import local_mesh
from progemu_jax.systems.predict import CONTROLS, held_out, predict_systems, queued
from progemu_jax.text.controls import DUMMY_PRIOR
from progemu_jax.text.timeline import of_example

OWN, TEXT_ONLY = "progemu", "text-only"
SYSTEMS = (OWN, "shuffled-prompts", TEXT_ONLY, *CONTROLS[1:])


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for our system and those it is compared with."""
    model = load(workdir).on(local_mesh(config))
    if not config.decoder.train.steps:
        model.tokenizer.painter = None  # one of another config may lie there
    examples = held_out(config, workdir, "tokens")
    takes = model.layout.older, model.layout.interval != ""
    examples = [{**e, "timeline": of_example(e, *takes)} for e in examples]
    size = (config.data.image_size,) * 2
    reconstruct = {"reconstruction": lambda some: model.detokenize(np.stack([e["followup"] for e in some]))}
    if model.tokenizer.painter:
        pairs = {e["pair_id"]: e["prior"] for e in held_out(config, workdir, "pairs")}
        examples = [{**e, "pixels": pairs[e["pair_id"]]} for e in examples]

        def with_prior(some: list[dict]) -> np.ndarray:
            codes, prior, near = (np.stack([e[name] for e in some]) for name in ("followup", "pixels", "prior"))
            return model.detokenize(codes, prior=prior, prior_codes=near)

        reconstruct["reconstruction-with-prior"] = with_prior
    c = config.sample
    through_queue = partial(model.sample_queued, seed=c.seed, policy=c.policy, slots=c.batch_size)
    predict_systems(
        config,
        workdir,
        model,
        examples,
        own=OWN,
        prompts=[e["prompt"] for e in examples],
        policy=c.policy,
        reconstruct=reconstruct,
        priors={TEXT_ONLY: model.tokenize(np.full(size, DUMMY_PRIOR, np.uint8))},
        predict=through_queue if queued(config, workdir) else None,
    )
