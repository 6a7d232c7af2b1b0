"""Stages `autoencoder` and `text_encoder`: what a diffusion model works between."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from progemu_jax.checkpoints import arrays, export
from progemu_jax.config import Config
from progemu_jax.convert import components
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.diffusers import transfer as diffusers_transfer
from progemu_jax.data import batches
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.diffusion import Codec
from progemu_jax.models import text_encoder
from progemu_jax.models.text_encoder import BERT
from progemu_jax.systems.fitting import fit_on_images
from progemu_jax.tasks.autoencoder import AutoencoderTask
from progemu_jax.tasks.words import drawn_changes
from progemu_jax.text.restate import restate
from progemu_jax.text.text_tokenizers import WordPiece

_WORDINGS = 10_000  # prompts that have nearly every word of the grammar


def _import(weights: str, kind: str, workdir: Path) -> None:
    """The export of one component of a Diffusers folder, in its place."""
    pipeline = diffusers_folder.open_folder(Path(weights))
    if kind not in pipeline.parts:
        raise UserError(f"{weights}: holds no {kind.replace('_', ' ')}; name a folder that does")
    part = dataclasses.replace(pipeline, parts={kind: pipeline.parts[kind]})
    hosts.on_first_host(lambda: diffusers_transfer.to_run(part, workdir), f"import of {weights}")


def make_autoencoder(config: Config, workdir: Path, mesh: Mesh) -> None:
    """Trains the KL autoencoder on the images of the training split, or takes the weights that the config names."""
    c, shards = config.autoencoder, workdir / "data/shards"
    if c.weights:
        return _import(c.weights, components.AUTOENCODER, workdir)
    task = AutoencoderTask(c.model, c.loss, c.train)
    state = fit_on_images(task, c.train, shards, workdir / "autoencoder", mesh, config=c)
    train = batches.examples(shards, "single", "train")
    params = jax.device_get(export.whole(task.inference_params(state)))
    images = np.stack([train[i]["image"] for i in range(min(len(train), 256))])
    # Latents with a standard deviation of 1, which the noise schedule supposes (Rombach et al. 2022, appendix G).
    scale = 1 / max(Codec(params, c.model).latent_std(images), 1e-6)
    model = to_dict(dataclasses.replace(c.model, scale=scale))
    place = workdir / components.IN_RUN[components.AUTOENCODER]
    export.export(params, {"kind": components.AUTOENCODER, "model": model}, place)


def make_text_encoder(config: Config, workdir: Path) -> None:
    """The frozen text encoder: the weights that the config names, else a random one over the training texts' words.

    With `diffusion.task.restate` these are also those of the grammar that tells prompts anew.
    """
    c = config.text_encoder
    if c.weights:
        return _import(c.weights, components.TEXT_ENCODER, workdir)
    if c.model.kind != BERT:
        raise UserError("config.text_encoder.model.kind='clip': needs text_encoder.weights; without, choose 'bert'")
    shards = workdir / "data/shards"
    singles, pairs = (batches.examples(shards, name, "train") for name in ("single", "pairs"))
    said = [singles[i]["text"] for i in range(len(singles))] + [pairs[i]["prompt"] for i in range(len(pairs))]
    if config.diffusion.task.restate:
        rng = np.random.default_rng(config.seed)
        said += [restate(drawn_changes(rng), rng) for _ in range(_WORDINGS)]
    tokenizer = WordPiece.of_texts(sorted(set(said)))
    model = dataclasses.replace(c.model, vocab_size=tokenizer.size)
    params = text_encoder.init_params(model, jax.random.key(config.seed))

    def write() -> None:
        with export.ExportWriter(workdir / components.IN_RUN[components.TEXT_ENCODER]) as writer:
            for name, leaf in arrays.flatten(params).items():
                writer.add(name, leaf)
            (writer.folder / components.TEXT_TOKENIZER).mkdir()
            tokenizer.save(writer.folder / components.TEXT_TOKENIZER)
            writer.finish({"kind": components.TEXT_ENCODER, "model": to_dict(model)})

    hosts.on_first_host(write, "stage text_encoder")
