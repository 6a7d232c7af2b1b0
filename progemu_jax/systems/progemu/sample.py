"""Stage `sample`: counterfactuals of held-out pairs, for ProgEmu and its controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from progemu_jax.config import Config
from progemu_jax.inference.load import load
from progemu_jax.systems.meshes import local_mesh
from progemu_jax.systems.predict import CONTROLS, held_out, predict_systems
from progemu_jax.text.controls import DUMMY_PRIOR

OWN, TEXT_ONLY = "progemu", "text-only"
SYSTEMS = (OWN, "shuffled-prompts", TEXT_ONLY, *CONTROLS[1:])


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for our system and those it is compared with."""
    model = load(workdir).on(local_mesh(config))
    examples = held_out(config, workdir, "tokens")
    size = (config.data.image_size,) * 2
    predict_systems(
        config,
        workdir,
        model,
        examples,
        own=OWN,
        prompts=[e["prompt"] for e in examples],
        policy=config.sample.policy,
        reconstruct=model.detokenize,
        priors={TEXT_ONLY: model.tokenize(np.full(size, DUMMY_PRIOR, np.uint8))},
    )
