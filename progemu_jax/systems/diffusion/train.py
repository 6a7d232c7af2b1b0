"""Stage `train`: the two stages of the curriculum of a diffusion model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from progemu_jax.checkpoints import arrays, export
from progemu_jax.config import Config
from progemu_jax.convert import components
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.data import batches
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.diffusion import Codec, DiffusionModel, TextStates
from progemu_jax.models import unet
from progemu_jax.systems.diffusion.conditioning import frozen_parts, prompt_reader
from progemu_jax.systems.fitting import fit_curriculum, fit_on_examples, side_by_side
from progemu_jax.tasks.diffusion import DiffusionTask, packer
from progemu_jax.training.loop import TrainConfig


def first_params(config: Config, model: unet.UNetConfig) -> Any:
    """The UNet that training starts from: a fresh one, or the weights that the config names.

    Weights of a UNet of Z input channels become one of 2 Z whose new channels are zero; a text projection that they
    lack starts as the identity where the widths agree, else at random.
    """
    fresh = unet.init_params(model, jax.random.key(config.diffusion.stage1.seed))
    if not config.diffusion.weights:
        return fresh
    part = diffusers_folder.open_folder(Path(config.diffusion.weights)).parts.get(components.UNET)
    if part is None:
        raise UserError(f"{config.diffusion.weights}: holds no UNet; name a folder that does")
    free = ("in_channels", "text_dim", "dropout", "dtype", "param_dtype", "remat")
    want = dataclasses.replace(model, **{name: getattr(part.model, name) for name in free})
    if difference := records.first_difference(to_dict(part.model), to_dict(want)):
        key, old, new = difference
        raise UserError(f"config.diffusion.model.{key}={new!r}: {config.diffusion.weights} has {old!r}")
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(jax.device_get(leaf), model.param_dtype), part.params())
    if model.conditioned and not part.model.conditioned:
        params = unet.widen(params)
    if model.text_dim and not part.model.text_dim:
        projection = fresh["encoder_hid_proj"]
        if model.text_dim == model.cross_attention_dim:
            projection = {**projection, "kernel": jax.numpy.eye(model.text_dim, dtype=model.param_dtype)}
        params["encoder_hid_proj"] = projection
    if arrays.flatten(jax.tree.map(np.shape, params)) != arrays.flatten(jax.tree.map(np.shape, fresh)):
        raise UserError(f"{config.diffusion.weights}: its UNet is not the one of config.diffusion.model; change one")
    return params


def train(config: Config, workdir: Path, mesh: Mesh) -> None:
    """The two stages of the curriculum; exports the UNet."""
    shards, c = workdir / "data/shards", config.diffusion
    frozen, codec, text_model, tokenizer = frozen_parts(workdir)
    text_of, length = prompt_reader(config, workdir), text_model.text_length
    null = tuple(x[0] for x in tokenizer([""], length))
    findings = findings_file.read(shards)
    identity = {"model": c.model, "task": c.task, "codec": codec, "text_encoder": text_model}

    def fit_stage(name: str, train_config: TrainConfig, before: Any) -> Any:
        """The stage's final parameters."""
        kind = {"stage1": "single", "stage2": "pairs"}[name]
        task = DiffusionTask(c.model, codec, text_model, c.task, train_config, frozen, null)
        state = fit_on_examples(
            task,
            train_config,
            (batches.examples(shards, kind, "train"), batches.examples(shards, "pairs", "validation")),
            tuple(packer(c.task, tokenizer, length, text_of, on, findings) for on in (True, False)),
            workdir / "train" / name,
            mesh,
            show=lambda state, cases: pictures(task.inference_params(state), cases),
            init_state=lambda: task.from_params(first_params(config, c.model) if before is None else before),
            config=identity,
        )
        return task.inference_params(state)

    def pictures(params: Any, cases: list[dict]) -> np.ndarray:
        current = DiffusionModel(
            jax.device_get(params),
            c.model,
            Codec(frozen[components.AUTOENCODER], codec),
            TextStates(frozen[components.TEXT_ENCODER], text_model, tokenizer),
            c.task.schedule,
            c.policy,
            config.data.image_size,
            "training",
        )
        made = current.sample([Case(e["pair_id"], e["prior"], text_of(e)) for e in cases]).images
        return side_by_side(np.stack([e["prior"] for e in cases]), made, np.stack([e["followup"] for e in cases]))

    params = fit_curriculum({"stage1": c.stage1, "stage2": c.stage2}, fit_stage)
    export_config = {
        "kind": components.UNET,
        "model": to_dict(c.model),
        "schedule": to_dict(c.task.schedule),
        "policy": to_dict(c.policy),
        "image_size": config.data.image_size,
        "prompt": c.task.prompt,
        "hash": records.digest({**identity, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    export.export(params, export_config, workdir / components.IN_RUN[components.UNET], findings_file.beside(findings))
