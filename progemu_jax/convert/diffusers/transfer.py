"""Diffusers folders to exports and back, tensor by tensor."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax.checkpoints.export import ExportWriter, iterate_export, read_export_config, read_export_tree
from progemu_jax.convert import safetensors
from progemu_jax.convert.components import (
    AUTOENCODER,
    DIFFUSION_IN_RUN,
    TEXT_ENCODER,
    TEXT_TOKENIZER,
    UNET,
    UNUSED,
    Entry,
)
from progemu_jax.convert.diffusers import configs as diffusers_configs
from progemu_jax.convert.diffusers.folder import (
    CONFIG,
    FOLDERS,
    INDEX,
    OPEN_CLIP,
    SCHEDULER,
    Component,
    Pipeline,
    tokenizer_files,
)
from progemu_jax.convert.diffusers.names import dialect_of, entries_of
from progemu_jax.convert.safetensors import DIFFUSERS, ContentHash, packed_buffers
from progemu_jax.files.records import normal, write_json
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import BERT, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.sampling.diffusion import DiffusionSampling


def to_run(pipeline: Pipeline, target: Path) -> str:
    """Writes the exports of a run directory; returns a sentence saying what."""
    said = []
    for kind, part in pipeline.parts.items():
        with ExportWriter(target / DIFFUSION_IN_RUN[kind]) as writer:
            digest = ContentHash()
            for entry in tqdm(part.entries, f"{kind} in", unit="tensor"):
                tensor = part.tensors[entry.name]
                array = tensor.read()
                digest.add(tensor.name, tensor.dtype, tensor.shape, array)
                writer.add(entry.leaf, entry.ours(array))
            for tensor in part.buffers.values():
                digest.add(tensor.name, tensor.dtype, tensor.shape, tensor.read())
            config = {"model": to_dict(part.model), "kind": kind, "hash": digest.hexdigest()}
            config["source"] = _source(part, digest.hexdigest())
            if kind == UNET:
                config |= {"schedule": to_dict(pipeline.schedule), "policy": to_dict(DiffusionSampling())}
                config["image_size"] = image_size(pipeline)
                for name in (INDEX, SCHEDULER):
                    _keep(pipeline.path / name, writer.folder / "source" / name)
            if kind == TEXT_ENCODER and pipeline.tokenizer:
                for path in tokenizer_files(pipeline.tokenizer):
                    _keep(path, writer.folder / TEXT_TOKENIZER / path.name)
            for name in (CONFIG, OPEN_CLIP):
                _keep(part.folder / name, writer.folder / "source" / name)
            writer.finish(config)
        size = sum(t.nbytes for t in part.tensors.values())
        said.append(f"{kind.replace('_', ' ')}, {len(part.tensors)} tensors, {size / 1e9:.2f} GB")
    return f"{'; '.join(said)}; from Diffusers' layout"


def image_size(pipeline: Pipeline) -> int:
    """Side of the images that a pipeline was trained on, in pixels; Stable Diffusion's 512 where it does not say."""
    side = pipeline.parts[UNET].config.get("sample_size")
    factor = pipeline.parts[AUTOENCODER].model.factor if AUTOENCODER in pipeline.parts else 8
    return side * factor if isinstance(side, int) and 1 <= side <= 1024 else 64 * factor


def _keep(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(safetensors.inside(source), target)


def _source(part: Component, content_hash: str) -> dict:
    every = {**part.tensors, **part.buffers}
    return normal(
        {
            "config": part.config,
            "content_hash": content_hash,
            "stem": part.stem,
            "names": {entry.leaf: entry.name for entry in part.entries},
            "dtypes": {entry.leaf: part.tensors[entry.name].dtype for entry in part.entries},
            "files": {name: t.file.name for name, t in every.items()},
            "buffers": packed_buffers(part.buffers),
        }
    )


_MODELS = {UNET: UNetConfig, AUTOENCODER: AutoencoderConfig, TEXT_ENCODER: TextEncoderConfig}
_WRITE: dict[str, Callable] = {
    UNET: diffusers_configs.write_unet,
    AUTOENCODER: diffusers_configs.write_autoencoder,
    TEXT_ENCODER: diffusers_configs.write_text_model,
}


@dataclass(frozen=True)
class _Out:
    """One component of a target: all that can be said, and refused, before any data are read."""

    kind: str
    export: Path
    config: dict[str, Any]
    values: dict[str, Any]
    entries: dict[str, Entry]
    dtypes: dict[str, tuple[str, tuple[int, ...]]]
    files: dict[str, str]
    buffers: dict[str, np.ndarray]
    stem: str


def plan(exports: dict[str, Path]) -> list[_Out]:
    """What becomes of the exports {kind: folder}. Raises UserError for what Diffusers' format has no place for."""
    return [_plan(kind, folder) for kind, folder in exports.items()]


def _plan(kind: str, folder: Path) -> _Out:
    config = read_export_config(folder)
    model = from_dict(_MODELS[kind], config["model"], f"{folder}: model")
    tree, source = read_export_tree(folder), config.get("source")
    entries = {e.leaf: e for e in entries_of(model, dialect_of(model))}
    for leaf in (leaf for leaf in tree if leaf.startswith(f"{UNUSED}.")):
        entries[leaf] = Entry(leaf, tuple(tree[leaf][0]), leaf.removeprefix(f"{UNUSED}."), "same")
    stem = DIFFUSERS if kind != TEXT_ENCODER else "model"
    values, files, buffers = {}, {}, {}
    if source:
        values, stem, files = source["config"], source["stem"], source["files"]
        for leaf, name in source["names"].items():
            entries[leaf] = dataclasses.replace(entries[leaf], name=name)
        for name, (dtype, shape, data) in source["buffers"].items():
            buffers[name] = np.frombuffer(base64.b64decode(data), safetensors.DTYPES[dtype]).reshape(shape)
    else:
        values = _WRITE[kind](model, str(folder))
    dtypes = {}
    for leaf, entry in entries.items():
        dtype = source["dtypes"][leaf] if source else safetensors.NAMES[tree[leaf][1]]
        dtypes[entry.name] = dtype, entry.tensor_shape
    for name, array in buffers.items():
        dtypes[name] = safetensors.NAMES[str(array.dtype)], array.shape
    return _Out(kind, folder, config, values, entries, dtypes, files, buffers, stem)


def from_run(parts: list[_Out], target: Path) -> str:
    """Writes a pipeline folder, or the folder of the only component; returns a sentence saying what."""
    whole = len(parts) > 1 or parts[0].kind == UNET
    said, unchanged = [], []
    for part in parts:
        folder = target / FOLDERS[part.kind] if whole else target
        folder.mkdir(parents=True, exist_ok=True)
        unchanged.append(_write(part, folder))
        said.append(f"{part.kind.replace('_', ' ')}, {len(part.dtypes)} tensors")
        tokenizer = part.export / TEXT_TOKENIZER
        if part.kind == TEXT_ENCODER and tokenizer.is_dir():
            place = target / TEXT_TOKENIZER if whole else target
            shutil.copytree(tokenizer, place, dirs_exist_ok=True)
    if whole:
        _write_index(parts, target)
    same = "; every tensor bit for bit the source's" if all(unchanged) else ""
    return f"{'; '.join(said)} in Diffusers' layout{same}"


def _write(part: _Out, folder: Path) -> bool:
    """Writes one component; whether its tensors are those of its source."""
    order = sorted(part.dtypes, key=lambda name: (-safetensors.DTYPES[part.dtypes[name][0]].itemsize, name))
    shards: dict[str, dict] = {}
    if part.files:
        for name in order:
            shards.setdefault(part.files[name], {})[name] = part.dtypes[name]
    else:
        shards = safetensors.shard({name: part.dtypes[name] for name in order}, stem=part.stem)
    writer, digest = safetensors.Writer(folder, shards, part.stem), ContentHash()
    with tqdm(total=len(part.entries), desc=f"{part.kind} out", unit="tensor") as bar:
        held: list[np.ndarray] = []
        for leaf, rows, array in iterate_export(part.export):
            if rows is not None:  # a large array in blocks of rows: one tensor at a time is held whole
                held.append(np.asarray(array))
                if rows[1] < part.entries[leaf].shape[0]:
                    continue
                array, held = np.concatenate(held), []
            entry = part.entries[leaf]
            dtype, shape = part.dtypes[entry.name]
            array = entry.theirs(np.asarray(array).astype(safetensors.DTYPES[dtype], copy=False))
            writer.write(entry.name, array)
            digest.add(entry.name, dtype, shape, array)
            bar.update()
    for name, array in part.buffers.items():
        writer.write(name, array)
        digest.add(name, *part.dtypes[name], array)
    writer.close()
    kept = part.export / "source"
    if part.config.get("source"):
        for name in (CONFIG, OPEN_CLIP):
            _keep(kept / name, folder / name)
        return digest.hexdigest() == part.config["source"]["content_hash"]
    write_json(folder / CONFIG, part.values)
    return False


def _write_index(parts: list[_Out], target: Path) -> None:
    """model_index.json and the scheduler: the source's where there is one, without the components not carried."""
    denoiser = next(p for p in parts if p.kind == UNET)
    kept = denoiser.export / "source"
    model = from_dict(UNetConfig, denoiser.config["model"], f"{denoiser.export}: model")
    index = json.loads((kept / INDEX).read_text()) if (kept / INDEX).is_file() else {}
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
        _keep(kept / SCHEDULER, target / SCHEDULER)
    else:
        schedule = from_dict(Schedule, denoiser.config["schedule"], f"{denoiser.export}: schedule")
        write_json(target / SCHEDULER, diffusers_configs.write_schedule(schedule))
