"""Stage `sample`: counterfactuals of held-out pairs, for a diffusion model and its controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from progemu_jax.config import Config
from progemu_jax.inference.load import load
from progemu_jax.systems.diffusion.conditioning import prompt_reader
from progemu_jax.systems.meshes import local_mesh
from progemu_jax.systems.predict import held_out, predict_systems


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for the system and its controls, and what the autoencoder alone does."""
    model = load(workdir).on(local_mesh(config))

    def rebuild(examples: list[dict]) -> np.ndarray:
        latents = model.codec.encode(np.stack([e["followup"] for e in examples]))
        return model.codec.decode(latents * model.codec.config.scale)

    examples, read = held_out(config, workdir, "pairs"), prompt_reader(config, workdir)
    predict_systems(
        config,
        workdir,
        model,
        examples,
        own=config.diffusion.name,
        prompts=[read(e) for e in examples],
        policy=config.diffusion.policy,
        reconstruct={"reconstruction": rebuild},
    )
