"""`progemu_jax.load`: what a folder holds, as a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from progemu_jax.checkpoints import export
from progemu_jax.convert import folders
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3 import transfer as emu3_transfer
from progemu_jax.convert.emu3.image_processor import ImageProcessor
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.inference import diffusion
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.inference.progemu import Model
from progemu_jax.models import linear
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text.sequence import Layout


def load(path: str | os.PathLike, tokenizer: str | os.PathLike | None = None, quantize: str | None = None) -> Model:
    """Loads a model; a `diffusion.DiffusionModel` where the folder holds one.

    Args:
      path: a run directory of `progemu_jax.main` (complete up to its train stage), an export, or a Hugging Face
        folder of Emu3 or ProgEmu, in either dialect, or of Diffusers.
      tokenizer: the folder of the image tokenizer, of the same kinds, where `path` holds the language model alone.
      quantize: "int8": the language model's linear maps in 8 bits (`models.linear.quantize`); None leaves them.

    The default sampling policy is the one in a run's config.json, so that a later change of `config.sample.policy`
    counts; an export alone has the policy that it was trained with.

    Raises:
      UserError: nothing there that can be loaded, naming what is missing.
    """
    if quantize not in (None, "int8"):
        raise UserError(f"quantize={quantize!r}: expected 'int8' or None")
    if folders.is_diffusion(Path(path)):
        if tokenizer is not None:
            raise UserError(f"tokenizer={tokenizer}: {path} is a diffusion model with an autoencoder of its own")
        if quantize:
            raise UserError(f"quantize={quantize!r}: {path} is a diffusion model, which is not quantised")

        return diffusion.load(Path(path))
    parts = _load_parts(Path(path))
    if quantize and "params" in parts:
        parts["params"] = linear.quantize(parts["params"])
    if tokenizer is not None:
        other = _load_parts(Path(tokenizer), emu3_folder.TOKENIZER)
        if "tokenizer" not in other:
            raise UserError(f"{tokenizer}: holds no image tokenizer; give the folder of one as tokenizer=")
        parts["tokenizer"] = other["tokenizer"]
    found = parts.get("vocabulary")
    if found and "tokenizer" in parts and found.codebook_size != parts["tokenizer"].config.codebook_size:
        raise UserError(
            f"{path}: its vocabulary has {found.codebook_size} visual tokens, the image tokenizer "
            f"{parts['tokenizer'].config.codebook_size} codes; use those that belong together"
        )
    if found and found.size > parts["config"].vocab_size:
        raise UserError(
            f"{path}: its vocabulary has {found.size} ids, the model {parts['config'].vocab_size}; use its own"
        )
    names = ("params", "config", "layout", "vocabulary", "tokenizer", "stops")
    name = f"{Path(path).name}@{parts['hash'][:12]}"
    return Model(**{key: parts.get(key) for key in names}, policy=parts.get("policy", Sampling()), name=name)


def _load_parts(path: Path, only: str | None = None) -> dict[str, Any]:
    """What a folder holds, as arguments of `Model` (and "hash"); only: one of its parts."""
    if folders.detect(path) == folders.HUGGING_FACE:
        return _load_hugging_face(emu3_folder.open_folder(path), only)
    parts: dict[str, Any] = {}
    for part, folder in folders.exports(path).items():
        if only not in (None, part):
            continue
        if part == emu3_folder.TOKENIZER:
            parts = {"hash": export.read_export_config(folder).get("hash", ""), **parts}
            parts["tokenizer"] = Tokenizer.load(folder)
            continue
        params, config = export.load_export(folder)
        policy, where = folders.run_policy(path) or (config["policy"], "sampling")
        parts |= {
            "params": params,
            "config": from_dict(TransformerConfig, config["model"], "model"),
            "layout": from_dict(Layout, config["layout"], "layout"),
            "policy": from_dict(Sampling, policy, where),
            "vocabulary": folders.vocabulary(folder, config),
            "stops": tuple(config["stops"]) if config.get("stops") else None,
            "hash": config["hash"],
        }
    return parts


def _load_hugging_face(folder: emu3_folder.Folder, only: str | None) -> dict[str, Any]:
    parts: dict[str, Any] = {"hash": ""}
    for kind, part in folder.parts.items():
        if only not in (None, kind):
            continue
        if kind == emu3_folder.TOKENIZER:
            processor = from_dict(ImageProcessor, emu3_transfer.tokenizer_settings(folder)["image"], "image")
            parts["tokenizer"] = Tokenizer(part.params(), part.model, processor)
            continue
        settings = emu3_transfer.language_settings(folder)
        parts |= {
            "params": part.params(),
            "config": part.model,
            "layout": from_dict(Layout, settings["layout"], "layout"),
            "policy": from_dict(Sampling, settings["policy"], "sampling"),
            "vocabulary": folder.vocabulary(),
            "stops": tuple(settings["stops"]) or None,
        }
    return parts
