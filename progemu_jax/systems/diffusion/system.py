"""A latent diffusion model as a run sees it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from progemu_jax.config import Config
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.errors import UserError
from progemu_jax.systems.diffusion.encoders import autoencoder, text_encoder_stage
from progemu_jax.systems.diffusion.sample import sample
from progemu_jax.systems.diffusion.train import train

CONTROLS = ("shuffled-prompts", "contradicting-prompts", "null-prompt")


def check(config: Config) -> None:
    """Raises UserError for values that make no sense or do not go together, before any work is done."""
    c = config.diffusion
    if not c.stage1.steps and not c.stage2.steps:
        raise UserError("config.diffusion: neither stage1.steps nor stage2.steps is above 0; nothing would be trained")
    wanted = (c.name, *CONTROLS)
    for name in config.sample.systems:
        if name not in wanted:
            raise UserError(f"config.sample.systems: {name!r} is unknown; choose among {', '.join(wanted)}")
    if config.autoencoder.weights == "":
        step = c.model.factor * config.autoencoder.model.factor
        if config.data.image_size % step:
            raise UserError(f"config.data.image_size={config.data.image_size}: give a multiple of {step}")
    for name in ("autoencoder", "text_encoder", "diffusion"):
        weights = getattr(config, name).weights
        if weights and not diffusers_folder.is_folder(Path(weights)):
            raise UserError(f"config.{name}.weights={weights}: is no Diffusers folder; name one, or leave it empty")


def stages(config: Config, part: Callable[..., dict], kept: dict[str, list], states: tuple[str, ...]) -> list[tuple]:
    """(name, outputs, inputs, slice of the config) of each stage, as `main.build_stages` has them.

    part: the slice of the config that named sections make up. kept: {name: (outputs, inputs, slice)} of the stages
    that are the same for every system. states: references that control prompts need.
    """
    shards = tuple(f"data/shards/icg_cxr/{name}" for name in ("pairs", "single"))
    models = ("autoencoder", "text_encoder")
    weights = {name: tuple(filter(None, [getattr(config, name).weights])) for name in (*models, "diffusion")}
    reports = ("data/tree",) if config.diffusion.task.prompt == "impression" else ()
    trained, asked = part("diffusion"), part("sample", "diffusion")
    # How it is sampled changes no training, and how it is trained is in the digest of what was trained.
    trained["diffusion"] = {k: v for k, v in trained["diffusion"].items() if k not in ("policy", "name")}
    asked["diffusion"] = {k: asked["diffusion"][k] for k in ("policy", "name")}
    return [
        ("data", *kept["data"]),
        *((name, (name,), (*shards, *weights[name]), part(name)) for name in models),
        ("train", ("train",), (*shards, *models, *reports, *weights["diffusion"]), trained),
        ("scorer", *kept["scorer"]),
        ("sample", ("predictions",), ("train", *models, shards[0], *states, *reports), asked),
        *((name, *kept[name]) for name in ("score", "evaluate")),
    ]


MAKERS = {"autoencoder": autoencoder, "text_encoder": text_encoder_stage, "train": train, "sample": sample}
