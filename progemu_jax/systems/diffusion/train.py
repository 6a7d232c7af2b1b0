"""Stage `train`: the two stages of the curriculum of a diffusion model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.checkpoints import arrays, export
from progemu_jax.config import Config
from progemu_jax.convert import components
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.data import batches
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.diffusion import Codec, DiffusionModel, TextStates
from progemu_jax.models import unet
from progemu_jax.systems.diffusion.conditioning import _frozen, texts
from progemu_jax.systems.interface import SHOWN
from progemu_jax.systems.meshes import share, training_mesh
from progemu_jax.tasks.diffusion import DiffusionTask, packer
from progemu_jax.training.loop import fit


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


def train(config: Config, workdir: Path) -> None:
    """The two stages of the curriculum; exports the UNet."""
    shards, c = workdir / "data/shards", config.diffusion
    frozen, codec, text_model, tokenizer = _frozen(workdir)
    text_of, length = texts(config, workdir), text_model.text_length
    null = tuple(x[0] for x in tokenizer([""], length))
    identity = {
        "model": to_dict(c.model),
        "task": to_dict(c.task),
        "codec": to_dict(codec),
        "text_encoder": to_dict(text_model),
    }

    def fit_stage(name: str, kind: str, train_config: Any, before: Any) -> Any:
        task = DiffusionTask(c.model, codec, text_model, c.task, train_config, frozen, null)
        source = batches.examples(shards, kind, "train")
        held_out = batches.examples(shards, "pairs", "validation")
        pack = [packer(c.task, tokenizer, length, text_of, on) for on in (True, False)]
        size = train_config.batch_size
        state = fit(
            task,
            train_config,
            lambda seed: batches.example_batches(
                shards, kind, "train", size, seed, transform=pack[0], source=source, **share()
            ),
            lambda: batches.example_batches(
                shards, "pairs", "validation", size, 0, transform=pack[1], repeat=False, source=held_out
            ),
            workdir / "train" / name,
            mesh=training_mesh(config),
            init_state=lambda: task.from_params(first_params(config, c.model) if before is None else before),
            config=identity,
            show=lambda state: pictures(task.inference_params(state), held_out),
        )
        return task.inference_params(state)

    def pictures(params: Any, held_out: Any) -> np.ndarray:
        """uint8 [N, S, 3 S]: prior, counterfactual and real follow-up of the first validation cases."""
        cases = [held_out[i] for i in range(min(len(held_out), SHOWN))]
        coder = Codec(frozen[components.AUTOENCODER], codec)
        reader = TextStates(frozen[components.TEXT_ENCODER], text_model, tokenizer)
        current = DiffusionModel(
            jax.device_get(params),
            c.model,
            coder,
            reader,
            c.task.schedule,
            c.policy,
            config.data.image_size,
            "training",
        )
        out = current.sample([Case(e["pair_id"], e["prior"], text_of(e)) for e in cases])
        sides = [np.stack([e[name] for e in cases]) for name in ("prior", "followup")]
        return np.concatenate([sides[0], out.images, sides[1]], axis=2)

    params = fit_stage("stage1", "single", c.stage1, None) if c.stage1.steps else None
    if c.stage2.steps:
        params = fit_stage("stage2", "pairs", c.stage2, params)
    export_config = {
        "kind": components.UNET,
        "model": to_dict(c.model),
        "schedule": to_dict(c.task.schedule),
        "policy": to_dict(c.policy),
        "image_size": config.data.image_size,
        "prompt": c.task.prompt,
        "hash": records.digest({**identity, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    export.export(params, export_config, workdir / components.IN_RUN[components.UNET])
