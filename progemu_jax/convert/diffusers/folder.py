"""Diffusers folders and the text encoders of `transformers`, opened and checked.

A folder is a pipeline (`model_index.json`; `unet/`, `vae/`, `text_encoder/`, `scheduler/`, `tokenizer/`), or one
component (`config.json` beside its weights). Opening reads configs and headers and compares every
name and shape; the data are read later, tensor by tensor. Nothing in a folder is executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from progemu_jax.checkpoints import safetensors
from progemu_jax.checkpoints.export import too_deep
from progemu_jax.checkpoints.safetensors import DIFFUSERS, Tensor
from progemu_jax.convert.components import AUTOENCODER, TEXT_ENCODER, TEXT_TOKENIZER, UNET
from progemu_jax.convert.diffusers import configs
from progemu_jax.convert.diffusers.names import dialect_of, entries_of
from progemu_jax.convert.parts import CONFIG, Part, checked_tensors
from progemu_jax.errors import UserError
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import BERT
from progemu_jax.text import text_tokenizers

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
FOLDERS = {UNET: "unet", AUTOENCODER: "vae", TEXT_ENCODER: "text_encoder"}  # in a pipeline
_TOKENIZER_FILES = (
    "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json",
    "added_tokens.json",
)  # fmt: skip
_TEXT_TYPES = ("bert", "clip", "clip_text_model")
OPEN_CLIP = "open_clip_config.json"  # BiomedCLIP's
_EXTRAS = {
    "bert": r"(bert\.)?pooler\.|cls\.|visual\.|text\.proj\.|text\.transformer\.pooler\.|logit_scale$",
    "clip": r"vision_model\.|visual_projection\.|text_projection\.|logit_scale$",
}


@dataclass(frozen=True)
class Component(Part):
    """A model in a folder; `config` is its config.json, `stem` what its weights are called."""

    stem: str
    config: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Pipeline:
    """An opened folder: components by kind, the noise schedule, the files of the text tokenizer (or None)."""

    path: Path
    parts: dict[str, Component]
    schedule: Schedule
    tokenizer: Path | None

    def text_tokens(self) -> text_tokenizers.TextTokenizer | None:
        """The text tokenizer, or None when its files are not there."""
        return text_tokenizers.load(self.tokenizer) if self.tokenizer else None


def is_folder(path: Path) -> bool:
    """Whether the folder is of the kinds that are read here, whole or not."""
    if (path / INDEX).exists() or (path / OPEN_CLIP).exists():
        return True
    if not (path / CONFIG).exists():
        return False
    config = safetensors.read_json(path / CONFIG)
    return "_class_name" in config or config.get("model_type") in _TEXT_TYPES


def open_folder(path: Path) -> Pipeline:
    """Opens and checks a folder. Raises UserError that names the tensor, key or file at fault."""
    schedule = Schedule()
    if not (path / INDEX).exists():
        component = _component(path)
        tokenizer = path if component.kind == TEXT_ENCODER and tokenizer_files(path) else None
        return Pipeline(path, {component.kind: component}, schedule, tokenizer)
    index = safetensors.read_json(path / INDEX)
    parts = {}
    for kind, folder in FOLDERS.items():
        if index.get(folder, [None])[0] is None:
            continue
        if not (path / folder).is_dir():
            raise UserError(f"{path / folder}: is not there, though {INDEX} names it; fetch the whole checkpoint")
        parts[kind] = _component(path / folder)
        if parts[kind].kind != kind:
            raise UserError(f"{path / folder}: holds a {parts[kind].kind}; use the original folder")
    if UNET not in parts:
        raise UserError(f"{path / INDEX}: names no UNet; only pipelines with a UNet2DConditionModel are supported")
    if (path / SCHEDULER).exists():
        schedule = configs.schedule(path / SCHEDULER, safetensors.read_json(path / SCHEDULER))
    tokenizer = path / TEXT_TOKENIZER if tokenizer_files(path / TEXT_TOKENIZER) else None
    _check_together(path, parts)
    return Pipeline(path, parts, schedule, tokenizer)


def _check_together(path: Path, parts: dict[str, Component]) -> None:
    denoiser = parts[UNET].model
    wants = denoiser.text_dim or denoiser.cross_attention_dim
    if TEXT_ENCODER in parts and (has := parts[TEXT_ENCODER].model.hidden_size) != wants:
        raise UserError(f"{path}: the text encoder's states have width {has}, the UNet takes {wants}")
    if AUTOENCODER in parts and (has := parts[AUTOENCODER].model.latent_channels) != denoiser.out_channels:
        raise UserError(f"{path}: the autoencoder has {has} latent channels, the UNet {denoiser.out_channels}")


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a text tokenizer that a folder has."""
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def _component(path: Path) -> Component:
    """One component's folder, opened and checked."""
    if (path / OPEN_CLIP).exists() and not (path / CONFIG).exists():
        values, at = None, path / OPEN_CLIP
    else:
        at = path / CONFIG
        if not at.exists():
            safetensors.refuse_pickles(path)
        values = safetensors.read_json(at)
    name = None if values is None else values.get("_class_name", values.get("model_type"))
    stem = DIFFUSERS if name in ("UNet2DConditionModel", "AutoencoderKL") else "model"
    known = ("UNet2DConditionModel", "AutoencoderKL", *_TEXT_TYPES)
    if values is not None and name not in known:
        raise UserError(f"{at}: {name!r} is not supported; expected one of {', '.join(known)}")
    found = safetensors.open_folder(path, stem)
    if values is None:
        values = _open_clip(at, found)
    dtype = safetensors.main_dtype(path, found)
    if name == "UNet2DConditionModel":
        kind, model = UNET, configs.unet(at, values, dtype)
    elif name == "AutoencoderKL":
        kind, model = AUTOENCODER, configs.autoencoder(at, values, dtype)
    else:
        kind, model = TEXT_ENCODER, configs.text_model(at, values, dtype, values.get("context_length"))
    if problem := too_deep(model, len(found)):
        raise UserError(f"{at}: {problem} in the weights; use the config and weights of one model")
    entries = entries_of(model, dialect_of(model, found))
    extras = re.compile(_EXTRAS[model.kind] if kind == TEXT_ENCODER else r"$.")
    checked = checked_tensors(
        entries,
        found,
        path / f"{stem}.safetensors.index.json",
        is_buffer=lambda name: name.endswith("position_ids"),
        is_unused=lambda name: bool(extras.match(name)),
    )
    return Component(kind, path, model, *checked, stem, values)


def _open_clip(at: Path, found: dict[str, Tensor]) -> dict[str, Any]:
    """The BERT in an open_clip folder; its sizes are those of its tensors, with heads of 64 as BERT has them."""
    text = safetensors.read_json(at).get("model_cfg", {}).get("text_cfg", {})
    prefix = "text.transformer."
    shapes = {name.removeprefix(prefix): t.shape for name, t in found.items() if name.startswith(prefix)}
    try:
        vocabulary, hidden = shapes["embeddings.word_embeddings.weight"]
        values = {
            "model_type": BERT,
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "num_attention_heads": max(1, hidden // 64),
            "num_hidden_layers": len({n.split(".")[2] for n in shapes if n.startswith("encoder.layer.")}),
            "intermediate_size": shapes["encoder.layer.0.intermediate.dense.weight"][0],
            "max_position_embeddings": shapes["embeddings.position_embeddings.weight"][0],
            "type_vocab_size": shapes["embeddings.token_type_embeddings.weight"][0],
        }
    except (KeyError, ValueError):
        raise UserError(
            f"{at}: the weights beside it hold no BERT under {prefix}; only BiomedCLIP's kind is read"
        ) from None
    length = text.get("context_length")
    return values | ({"context_length": length} if isinstance(length, int) and length > 1 else {})
