"""A latent diffusion model as a run sees it:

data -> autoencoder -> text_encoder -> train -> scorer -> sample -> score -> evaluate
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from jax.sharding import Mesh

from progemu_jax.config import Config
from progemu_jax.convert import components
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.errors import UserError
from progemu_jax.files.stages import Stage
from progemu_jax.systems import shared_stages
from progemu_jax.systems.diffusion.encoders import make_autoencoder, make_text_encoder
from progemu_jax.systems.diffusion.sample import sample
from progemu_jax.systems.diffusion.train import train
from progemu_jax.systems.interface import Slices
from progemu_jax.systems.meshes import training_mesh
from progemu_jax.systems.predict import CONTROLS, check_systems, needed_references
from progemu_jax.training.loop import TrainConfig


class Diffusion:
    """See `interface.System`."""

    name = "diffusion"

    def trained(self, config: Config) -> dict[str, TrainConfig]:
        return {
            "autoencoder.train": config.autoencoder.train,
            "diffusion.stage1": config.diffusion.stage1,
            "diffusion.stage2": config.diffusion.stage2,
            "scorer.train": config.scorer.train,
            **({"identity.train": config.identity.train} if config.identity.train.steps else {}),
        }

    def check(self, config: Config) -> None:
        c = config.diffusion
        if not c.stage1.steps and not c.stage2.steps:
            raise UserError(
                "config.diffusion: neither stage1.steps nor stage2.steps is above 0; nothing would be trained"
            )
        check_systems(config, (c.name, *CONTROLS))
        if config.autoencoder.weights == "":
            step = c.model.factor * config.autoencoder.model.factor
            if config.data.image_size % step:
                raise UserError(f"config.data.image_size={config.data.image_size}: give a multiple of {step}")
        for name in ("autoencoder", "text_encoder", "diffusion"):
            weights = getattr(config, name).weights
            if weights and not diffusers_folder.is_folder(Path(weights)):
                raise UserError(f"config.{name}.weights={weights}: is no Diffusers folder; name one, or leave it empty")

    def check_mesh(self, config: Config, mesh: Mesh) -> None:
        """Parameters are replicated: nothing has to divide."""

    def stages(self, config: Config, slices: Slices) -> list[Stage]:
        trained, shards = self.trained(config), (shared_stages.PAIRS, shared_stages.SINGLE)
        reports = ("data/tree",) if config.diffusion.task.prompt == "impression" else ()
        # How it is sampled changes no training, and how it is trained is in the digest of what was trained.
        learnt, asked = slices.of("diffusion"), slices.of("sample", "diffusion")
        learnt["diffusion"] = {k: v for k, v in learnt["diffusion"].items() if k not in ("policy", "name")}
        asked["diffusion"] = {k: asked["diffusion"][k] for k in ("policy", "name")}
        return [
            shared_stages.data_stage(config, slices),
            Stage(
                name="autoencoder",
                outputs=("autoencoder",),
                holds=(components.IN_RUN[components.AUTOENCODER],),
                inputs=(*shards, config.autoencoder.weights),
                config_slice=slices.of("autoencoder"),
                run=lambda workdir: make_autoencoder(config, workdir, training_mesh(config, trained)),
            ),
            Stage(
                name="text_encoder",
                outputs=("text_encoder",),
                holds=(components.IN_RUN[components.TEXT_ENCODER],),
                inputs=(*shards, config.text_encoder.weights),
                config_slice=slices.of("text_encoder"),
                run=partial(make_text_encoder, config),
            ),
            Stage(
                name="train",
                outputs=("train",),
                holds=(components.IN_RUN[components.UNET],),
                inputs=(*shards, "autoencoder", "text_encoder", *reports, config.diffusion.weights),
                config_slice=learnt,
                run=lambda workdir: train(config, workdir, training_mesh(config, trained)),
            ),
            shared_stages.scorer_stage(config, slices, trained),
            *shared_stages.identity_stages(config, slices, trained),
            Stage(
                name="sample",
                outputs=("predictions",),
                inputs=(
                    "train",
                    "autoencoder",
                    "text_encoder",
                    shared_stages.PAIRS,
                    *needed_references(config),
                    *reports,
                ),
                config_slice=asked,
                run=partial(sample, config),
            ),
            shared_stages.score_stage(config, slices),
            shared_stages.evaluate_stage(config, slices),
        ]
