"""Diffusers folders to the exports of a run directory, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progemu_jax.checkpoints import safetensors
from progemu_jax.checkpoints.export import ExportWriter, read_export_config, read_export_tree, reading, too_deep
from progemu_jax.checkpoints.safetensors import DIFFUSERS
from progemu_jax.convert import transfer
from progemu_jax.convert.components import (
    AUTOENCODER,
    IN_RUN,
    SOURCE,
    TEXT_ENCODER,
    TEXT_TOKENIZER,
    UNET,
    UNUSED,
    Entry,
)
from progemu_jax.convert.diffusers import configs
from progemu_jax.convert.diffusers.folder import FOLDERS, INDEX, OPEN_CLIP, SCHEDULER, Pipeline, tokenizer_files
from progemu_jax.convert.diffusers.names import dialect_of, entries_of
from progemu_jax.convert.parts import CONFIG
from progemu_jax.convert.transfer import copy_if_there
from progemu_jax.errors import UserError
from progemu_jax.files.records import write_json
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import BERT, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.sampling.diffusion import DiffusionSampling


def to_run(pipeline: Pipeline, target: Path) -> str:
    """Writes the exports of a run directory; returns a sentence saying what."""
    for kind, part in pipeline.parts.items():
        with ExportWriter(target / IN_RUN[kind]) as writer:
            content_hash = transfer.write_export(part, writer)
            config = {"model": to_dict(part.model), "kind": kind, "hash": content_hash}
            config["source"] = transfer.source_record(part, part.config, content_hash, stem=part.stem)
            kept = writer.folder / SOURCE
            if kind == UNET:
                config |= {"schedule": to_dict(pipeline.schedule), "policy": to_dict(DiffusionSampling())}
                config["image_size"] = image_size(pipeline)
                for name in (INDEX, SCHEDULER):
                    copy_if_there(pipeline.path / name, kept / name)
            if kind == TEXT_ENCODER and pipeline.tokenizer:
                for path in tokenizer_files(pipeline.tokenizer):
                    copy_if_there(path, writer.folder / TEXT_TOKENIZER / path.name)
            for name in (CONFIG, OPEN_CLIP):
                copy_if_there(part.folder / name, kept / name)
            writer.finish(config)
    return f"{transfer.said_of(pipeline.parts.values())}; from Diffusers' layout"


def image_size(pipeline: Pipeline) -> int:
    """Side of the images that a pipeline was trained on, in pixels; Stable Diffusion's 512 where it does not say."""
    side = pipeline.parts[UNET].config.get("sample_size")
    factor = pipeline.parts[AUTOENCODER].model.factor if AUTOENCODER in pipeline.parts else 8
    return side * factor if isinstance(side, int) and 1 <= side <= 1024 else 64 * factor


_MODELS = {UNET: UNetConfig, AUTOENCODER: AutoencoderConfig, TEXT_ENCODER: TextEncoderConfig}
_WRITE: dict[str, Callable] = {
    UNET: configs.write_unet,
    AUTOENCODER: configs.write_autoencoder,
    TEXT_ENCODER: configs.write_text_model,
}


@dataclass(frozen=True)
class OutgoingPart:
    """One component of a target: all that can be said, and refused, before any data are read.

    Attributes:
      tensors: what is written of it, and where from.
      config: of the export. values: its config.json, where no source has one. stem: what its files are called.
    """

    tensors: transfer.Outgoing
    config: dict[str, Any]
    values: dict[str, Any]
    stem: str

    @property
    def kind(self) -> str:
        return self.tensors.kind

    @property
    def export(self) -> Path:
        return self.tensors.export


def outgoing_parts(exports: dict[str, Path]) -> list[OutgoingPart]:
    """What becomes of the exports {kind: folder}. Raises UserError for what Diffusers' format has no place for."""
    if len(exports) > 1 and UNET not in exports:
        where = " and ".join(str(folder) for folder in exports.values())
        raise UserError(f"{where}: a pipeline needs a UNet too; train it, or convert these one by one")
    return [_outgoing_part(kind, folder) for kind, folder in exports.items()]


def _outgoing_part(kind: str, folder: Path) -> OutgoingPart:
    config, tree = read_export_config(folder), read_export_tree(folder)
    with reading(folder):
        model = from_dict(_MODELS[kind], config["model"], f"{folder}: model")
    if problem := too_deep(model, len(tree)):
        raise UserError(f"{folder / 'export.json'}: model.{problem}: export it again")
    unused = [leaf for leaf in tree if leaf.startswith(f"{UNUSED}.")]
    with reading(folder):
        known = entries_of(model, dialect_of(model))
    entries = [
        *known,
        *(Entry(leaf, tuple(tree[leaf][0]), leaf.removeprefix(f"{UNUSED}."), "same") for leaf in unused),
    ]
    source = config.get("source")
    with reading(folder):
        values = source["config"] if source else _WRITE[kind](model, str(folder))
        stem = source["stem"] if source else DIFFUSERS if kind != TEXT_ENCODER else "model"
    return OutgoingPart(transfer.outgoing(kind, folder, tree, entries, source), config, values, stem)


def from_run(parts: list[OutgoingPart], target: Path) -> str:
    """Writes a pipeline folder, or the folder of the only component; returns a sentence saying what."""
    whole = len(parts) > 1 or parts[0].kind == UNET
    said, unchanged = [], []
    for part in parts:
        folder = target / FOLDERS[part.kind] if whole else target
        folder.mkdir(parents=True, exist_ok=True)
        unchanged.append(transfer.write_folder([part.tensors], folder, part.stem))
        _write_config(part, folder)
        said.append(f"{part.kind.replace('_', ' ')}, {len(part.tensors.dtypes)} tensors")
        tokenizer = part.export / TEXT_TOKENIZER
        if part.kind == TEXT_ENCODER and tokenizer.is_dir():
            place = target / TEXT_TOKENIZER if whole else target
            for path in tokenizer.iterdir():
                copy_if_there(path, place / path.name)
    if whole:
        _write_index(parts, target)
    same = "; every tensor bit for bit the source's" if all(unchanged) else ""
    return f"{'; '.join(said)} in Diffusers' layout{same}"


def _write_config(part: OutgoingPart, folder: Path) -> None:
    """The source's config files where there is one, else one made from ours."""
    if part.config.get("source"):
        for name in (CONFIG, OPEN_CLIP):
            copy_if_there(part.export / SOURCE / name, folder / name)
    else:
        write_json(folder / CONFIG, part.values)


def _write_index(parts: list[OutgoingPart], target: Path) -> None:
    """model_index.json and the scheduler: the source's where there is one, without the components not carried."""
    denoiser = next(p for p in parts if p.kind == UNET)
    kept = denoiser.export / SOURCE
    model = from_dict(UNetConfig, denoiser.config["model"], f"{denoiser.export}: model")
    index = safetensors.read_json(kept / INDEX) if (kept / INDEX).is_file() else {}
    there = {FOLDERS[p.kind] for p in parts} | {"scheduler"}
    if not index:
        kind = "StableDiffusionInstructPix2PixPipeline" if model.conditioned else "StableDiffusionPipeline"
        index = {
            "_class_name": kind,
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        }
        if "vae" in there:
            index["vae"] = ["diffusers", "AutoencoderKL"]
        if "text_encoder" in there:
            text = next(p for p in parts if p.kind == TEXT_ENCODER)
            bert = text.config["model"]["kind"] == BERT
            index["text_encoder"] = ["transformers", "BertModel" if bert else "CLIPTextModel"]
            if (target / TEXT_TOKENIZER).is_dir():
                index[TEXT_TOKENIZER] = ["transformers", "BertTokenizer" if bert else "CLIPTokenizer"]
    for name, value in index.items():
        carried = name in there or (name == TEXT_TOKENIZER and (target / TEXT_TOKENIZER).is_dir())
        if isinstance(value, list) and not carried:
            index[name] = [None, None]
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if (kept / SCHEDULER).is_file():
        copy_if_there(kept / SCHEDULER, target / SCHEDULER)
    else:
        with reading(denoiser.export):
            schedule = from_dict(Schedule, denoiser.config["schedule"], f"{denoiser.export}: schedule")
        write_json(target / SCHEDULER, configs.write_schedule(schedule))
