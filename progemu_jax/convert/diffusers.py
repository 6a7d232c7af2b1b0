"""Diffusers folders and the text encoders of `transformers`, opened and checked; and the way in and out.

A folder is a pipeline (`model_index.json`; `unet/`, `vae/`, `text_encoder/`, `scheduler/`, `tokenizer/`), or one
component (`config.json` beside its weights). As in `huggingface`, opening reads configs and headers and compares every
name and shape; the data are read later, tensor by tensor. Nothing in a folder is executed.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from progemu_jax import checkpoint, text_tokens
from progemu_jax.config import from_dict, to_dict
from progemu_jax.convert import diffusion_configs as configs
from progemu_jax.convert import tensors
from progemu_jax.convert.huggingface import ContentHash, packed_buffers
from progemu_jax.convert.names import Entry
from progemu_jax.convert.tensors import DIFFUSERS, Tensor
from progemu_jax.errors import UserError
from progemu_jax.models import autoencoder, text_encoder, unet
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.text_encoder import BERT, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.records import normal, write_json
from progemu_jax.sampling.diffusion import DiffusionSampling, Schedule

UNET, AUTOENCODER, TEXT_ENCODER = "unet", "autoencoder", "text_encoder"
INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler/scheduler_config.json"
FOLDERS = {UNET: "unet", AUTOENCODER: "vae", TEXT_ENCODER: "text_encoder"}  # in a pipeline
IN_RUN = {UNET: "train/unet", AUTOENCODER: "autoencoder/export", TEXT_ENCODER: "text_encoder/export"}
UNUSED = "unused"  # parameters of other heads and towers, kept for the way back
TOKENIZER = "tokenizer"  # folder of the text tokenizer, in a pipeline and in our export
_TOKENIZER_FILES = (
    "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json",
    "added_tokens.json",
)  # fmt: skip
_TEXT_TYPES = ("bert", "clip", "clip_text_model")
_OPEN_CLIP = "open_clip_config.json"  # BiomedCLIP's
_BUFFER_BYTES = 2**16
_EXTRAS = {
    "bert": r"(bert\.)?pooler\.|cls\.|visual\.|text\.proj\.|text\.transformer\.pooler\.|logit_scale$",
    "clip": r"vision_model\.|visual_projection\.|text_projection\.|logit_scale$",
}


@dataclass(frozen=True)
class Component:
    """A model in a folder.

    Attributes:
      kind: UNET, AUTOENCODER or TEXT_ENCODER.
      folder: where it lies; `config` is its config.json.
      model: our config of it.
      entries: its parameters; `tensors` has theirs by the checkpoint's names.
      buffers: {name: Tensor} of what is no parameter.
    """

    kind: str
    folder: Path
    stem: str
    config: dict[str, Any] = field(repr=False)
    model: UNetConfig | AutoencoderConfig | TextEncoderConfig
    entries: tuple[Entry, ...] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    buffers: dict[str, Tensor] = field(repr=False)

    def params(self) -> dict:
        """The parameters of our model as a nested dict of jax arrays."""
        used = (e for e in self.entries if not e.leaf.startswith(f"{UNUSED}."))
        flat = {e.leaf: jax.device_put(e.ours(self.tensors[e.name].read())) for e in used}
        return checkpoint.unflatten(flat)


@dataclass(frozen=True)
class Pipeline:
    """An opened folder: components by kind, the noise schedule, the files of the text tokenizer (or None)."""

    path: Path
    parts: dict[str, Component]
    schedule: Schedule
    tokenizer: Path | None

    def text_tokens(self) -> text_tokens.TextTokenizer | None:
        """The text tokenizer, or None when its files are not there."""
        return text_tokens.load(self.tokenizer) if self.tokenizer else None


def is_folder(path: Path) -> bool:
    """Whether the folder is of the kinds that are read here, whole or not."""
    if (path / INDEX).exists() or (path / _OPEN_CLIP).exists():
        return True
    if not (path / CONFIG).exists():
        return False
    config = tensors.read_json(path / CONFIG)
    return "_class_name" in config or config.get("model_type") in _TEXT_TYPES


def open_folder(path: Path) -> Pipeline:
    """Opens and checks a folder. Raises UserError that names the tensor, key or file at fault."""
    schedule = Schedule()
    if not (path / INDEX).exists():
        component = _component(path)
        tokenizer = path if component.kind == TEXT_ENCODER and _tokenizer_files(path) else None
        return Pipeline(path, {component.kind: component}, schedule, tokenizer)
    index = tensors.read_json(path / INDEX)
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
        schedule = configs.schedule(path / SCHEDULER, tensors.read_json(path / SCHEDULER))
    tokenizer = path / TOKENIZER if _tokenizer_files(path / TOKENIZER) else None
    _check_together(path, parts)
    return Pipeline(path, parts, schedule, tokenizer)


def _check_together(path: Path, parts: dict[str, Component]) -> None:
    denoiser = parts[UNET].model
    wants = denoiser.text_dim or denoiser.cross_attention_dim
    if TEXT_ENCODER in parts and (has := parts[TEXT_ENCODER].model.hidden_size) != wants:
        raise UserError(f"{path}: the text encoder's states have width {has}, the UNet takes {wants}")
    if AUTOENCODER in parts and (has := parts[AUTOENCODER].model.latent_channels) != denoiser.out_channels:
        raise UserError(f"{path}: the autoencoder has {has} latent channels, the UNet {denoiser.out_channels}")


def _tokenizer_files(folder: Path) -> list[Path]:
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def _component(path: Path) -> Component:
    if (path / _OPEN_CLIP).exists() and not (path / CONFIG).exists():
        values, at = None, path / _OPEN_CLIP
    else:
        at = path / CONFIG
        if not at.exists():
            tensors.refuse_pickles(path)
        values = tensors.read_json(at)
    name = None if values is None else values.get("_class_name", values.get("model_type"))
    stem = DIFFUSERS if name in ("UNet2DConditionModel", "AutoencoderKL") else "model"
    known = ("UNet2DConditionModel", "AutoencoderKL", *_TEXT_TYPES)
    if values is not None and name not in known:
        raise UserError(f"{at}: {name!r} is not supported; expected one of {', '.join(known)}")
    found = tensors.open_folder(path, stem)
    if values is None:
        values = _open_clip(at, found)
    dtype = tensors.main_dtype(path, found)
    if name == "UNet2DConditionModel":
        kind, model = UNET, configs.unet(at, values, dtype)
    elif name == "AutoencoderKL":
        kind, model = AUTOENCODER, configs.autoencoder(at, values, dtype)
    else:
        kind, model = TEXT_ENCODER, configs.text_model(at, values, dtype, values.get("context_length"))
    entries = entries_of(model, dialect_of(model, found))
    return _checked(kind, path, stem, values, model, entries, found)


def _open_clip(at: Path, found: dict[str, Tensor]) -> dict[str, Any]:
    """The BERT in an open_clip folder; its sizes are those of its tensors, with heads of 64 as BERT has them."""
    text = tensors.read_json(at).get("model_cfg", {}).get("text_cfg", {})
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


# --- names ---


@dataclass(frozen=True)
class Dialect:
    """How a checkpoint's names differ from the first choice: a prefix, and older names of some layers."""

    prefix: str = ""
    old: bool = False


def dialect_of(model: Any, found: dict[str, Tensor] | None = None) -> Dialect:
    """The dialect of the tensors that were found; None: the one that is written."""
    if found is None:
        return Dialect()
    if isinstance(model, AutoencoderConfig):
        return Dialect(old=any(name.endswith("attentions.0.query.weight") for name in found))
    if isinstance(model, TextEncoderConfig):
        prefixes = ("bert.", "text.transformer.") if model.kind == BERT else ("text_model.",)
        prefix = next((p for p in prefixes if any(name.startswith(f"{p}embeddings.") for name in found)), "")
        return Dialect(prefix, old=any(name.endswith("LayerNorm.gamma") for name in found))
    return Dialect()


_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_LISTS = re.compile(
    r"\b(down_blocks|up_blocks|attentions|resnets|transformer_blocks|downsamplers|upsamplers|to_out|net|layer|layers)_(\d+)"
)


@functools.lru_cache(maxsize=16)  # tracing a model takes a second
def entries_of(model: UNetConfig | AutoencoderConfig | TextEncoderConfig, dialect: Dialect) -> tuple[Entry, ...]:
    """Every parameter of a model of ours and its tensor."""
    kinds = {UNetConfig: unet, AutoencoderConfig: autoencoder, TextEncoderConfig: text_encoder}
    tree = jax.eval_shape(lambda: kinds[type(model)].init_params(model, jax.random.key(0)))
    entries = []
    for leaf, array in checkpoint.flatten(tree).items():
        *parts, last = leaf.split(".")
        name = ".".join((*parts, _LAST.get(last, last)))
        layout = {2: "linear", 4: "conv"}[len(array.shape)] if last == "kernel" else "same"
        if isinstance(model, AutoencoderConfig):
            name, point = _autoencoder_name(name, len(model.channels), dialect.old)
            layout = "point" if point and last == "kernel" else layout
        else:
            name = dialect.prefix + _LISTS.sub(r"\1.\2", name)
        if dialect.old and parts[-1] == "LayerNorm":
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        entries.append(Entry(leaf, array.shape, name, layout))
    return tuple(entries)


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def _autoencoder_name(name: str, levels: int, old: bool) -> tuple[str, bool]:
    """(Diffusers' name of a VQGAN name, whether it is a map of the attention block)."""
    name = name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")
    name = re.sub(r"\bdown_(\d+)\.block_(\d+)", r"down_blocks.\1.resnets.\2", name)
    name = re.sub(r"\bdown_(\d+)\.downsample\b", r"down_blocks.\1.downsamplers.0", name)
    name = re.sub(r"\bup_(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"(\bup_blocks\.\d+)\.block_(\d+)", r"\1.resnets.\2", name)
    name = re.sub(r"(\bup_blocks\.\d+)\.upsample\b", r"\1.upsamplers.0", name)
    name = re.sub(r"\bmid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
    maps = _OLD_ATTENTION if old else _VAE_ATTENTION
    renamed = re.sub(r"\bmid\.attn_1\.(\w+)\.", lambda m: f"mid_block.attentions.0.{maps[m[1]]}.", name)
    return renamed, renamed != name and "group_norm" not in renamed


def _checked(kind, path, stem, config, model, entries, found) -> Component:
    expected = {entry.name: entry for entry in entries}
    shapes = {name: entry.tensor_shape for name, entry in expected.items()}
    tensors.check(found, shapes, path / f"{stem}.safetensors.index.json", CONFIG)
    extras = re.compile(_EXTRAS[model.kind] if kind == TEXT_ENCODER else r"$.")
    entries, buffers = list(entries), {}
    for name, tensor in found.items():
        if name in expected:
            continue
        if name.endswith("position_ids") and tensor.nbytes <= _BUFFER_BYTES:
            buffers[name] = tensor
        elif extras.match(name):
            entries.append(Entry(f"{UNUSED}.{name}", tensor.shape, name, "same"))
        else:
            raise UserError(
                f"{tensor.file}: tensor {name} belongs to no parameter, which {CONFIG} implies; "
                "use the config and weights of one model"
            )
    wanted = {entry.name: found[entry.name] for entry in entries}
    return Component(kind, path, stem, config, model, tuple(entries), wanted, buffers)


# --- in ---


def to_run(pipeline: Pipeline, target: Path) -> str:
    """Writes the exports of a run directory; returns a sentence saying what."""
    said = []
    for kind, part in pipeline.parts.items():
        with checkpoint.ExportWriter(target / IN_RUN[kind]) as writer:
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
                for path in _tokenizer_files(pipeline.tokenizer):
                    _keep(path, writer.folder / TOKENIZER / path.name)
            for name in (CONFIG, _OPEN_CLIP):
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
        shutil.copyfile(tensors.inside(source), target)


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


# --- out ---

_MODELS = {UNET: UNetConfig, AUTOENCODER: AutoencoderConfig, TEXT_ENCODER: TextEncoderConfig}
_WRITE: dict[str, Callable] = {
    UNET: configs.write_unet,
    AUTOENCODER: configs.write_autoencoder,
    TEXT_ENCODER: configs.write_text_model,
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
    config = checkpoint.read_export_config(folder)
    model = from_dict(_MODELS[kind], config["model"], f"{folder}: model")
    tree, source = checkpoint.read_export_tree(folder), config.get("source")
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
            buffers[name] = np.frombuffer(base64.b64decode(data), tensors.DTYPES[dtype]).reshape(shape)
    else:
        values = _WRITE[kind](model, str(folder))
    dtypes = {}
    for leaf, entry in entries.items():
        dtype = source["dtypes"][leaf] if source else tensors.NAMES[tree[leaf][1]]
        dtypes[entry.name] = dtype, entry.tensor_shape
    for name, array in buffers.items():
        dtypes[name] = tensors.NAMES[str(array.dtype)], array.shape
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
        tokenizer = part.export / TOKENIZER
        if part.kind == TEXT_ENCODER and tokenizer.is_dir():
            place = target / TOKENIZER if whole else target
            shutil.copytree(tokenizer, place, dirs_exist_ok=True)
    if whole:
        _write_index(parts, target)
    same = "; every tensor bit for bit the source's" if all(unchanged) else ""
    return f"{'; '.join(said)} in Diffusers' layout{same}"


def _write(part: _Out, folder: Path) -> bool:
    """Writes one component; whether its tensors are those of its source."""
    order = sorted(part.dtypes, key=lambda name: (-tensors.DTYPES[part.dtypes[name][0]].itemsize, name))
    shards: dict[str, dict] = {}
    if part.files:
        for name in order:
            shards.setdefault(part.files[name], {})[name] = part.dtypes[name]
    else:
        shards = tensors.shard({name: part.dtypes[name] for name in order}, stem=part.stem)
    writer, digest = tensors.Writer(folder, shards, part.stem), ContentHash()
    with tqdm(total=len(part.entries), desc=f"{part.kind} out", unit="tensor") as bar:
        held: list[np.ndarray] = []
        for leaf, rows, array in checkpoint.iterate_export(part.export):
            if rows is not None:  # a large array in blocks of rows: one tensor at a time is held whole
                held.append(np.asarray(array))
                if rows[1] < part.entries[leaf].shape[0]:
                    continue
                array, held = np.concatenate(held), []
            entry = part.entries[leaf]
            dtype, shape = part.dtypes[entry.name]
            array = entry.theirs(np.asarray(array).astype(tensors.DTYPES[dtype], copy=False))
            writer.write(entry.name, array)
            digest.add(entry.name, dtype, shape, array)
            bar.update()
    for name, array in part.buffers.items():
        writer.write(name, array)
        digest.add(name, *part.dtypes[name], array)
    writer.close()
    kept = part.export / "source"
    if part.config.get("source"):
        for name in (CONFIG, _OPEN_CLIP):
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
            if (target / TOKENIZER).is_dir():
                index[TOKENIZER] = ["transformers", "BertTokenizer" if bert else "CLIPTokenizer"]
    for name, value in index.items():
        carried = name in there or (name == TOKENIZER and (target / TOKENIZER).is_dir())
        if isinstance(value, list) and not carried:
            index[name] = [None, None]
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    if (kept / SCHEDULER).is_file():
        _keep(kept / SCHEDULER, target / SCHEDULER)
    else:
        schedule = from_dict(Schedule, denoiser.config["schedule"], f"{denoiser.export}: schedule")
        write_json(target / SCHEDULER, configs.write_schedule(schedule))
