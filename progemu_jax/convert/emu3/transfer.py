"""Emu3 folders to exports and back, in blocks."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax.checkpoints import export
from progemu_jax.convert import components, folders, safetensors
from progemu_jax.convert.components import LANGUAGE_MODEL, TOKENIZER
from progemu_jax.convert.emu3 import configs as emu3_configs
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3 import names as emu3_names
from progemu_jax.convert.emu3.image_processor import ImageProcessor
from progemu_jax.errors import UserError
from progemu_jax.files.records import first_difference, write_json
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.models.transformer import STACKED, TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import Vocabulary

_CONFIGS = {LANGUAGE_MODEL: TransformerConfig, TOKENIZER: VQGANConfig}


def to_run(folder: emu3_folder.Folder, target: Path) -> str:
    said = []
    settings = {TOKENIZER: tokenizer_settings, LANGUAGE_MODEL: language_settings}
    settings = {kind: settings[kind](folder) for kind in folder.parts}  # what is wrong with them is said at once
    vocabulary = folder.vocabulary() if LANGUAGE_MODEL in folder.parts else None
    for kind, part in folder.parts.items():
        with export.ExportWriter(target / components.IN_RUN[kind]) as writer:
            digest = safetensors.ContentHash()
            for entry in tqdm(part.entries, f"{kind} in", unit="tensor"):
                tensor = part.tensors[entry.name]
                if entry.layout == "same" and tensor.nbytes > export.PART_BYTES:
                    blocks = _hashed(digest, tensor)
                    writer.add_rows(entry.leaf, entry.shape, safetensors.DTYPES[tensor.dtype], blocks)
                else:
                    array = tensor.read()
                    digest.add(tensor.name, tensor.dtype, tensor.shape, array)
                    writer.add(entry.leaf, entry.ours(array))
            for tensor in part.buffers.values():
                digest.add(tensor.name, tensor.dtype, tensor.shape, tensor.read())
            record = emu3_folder.source_record(folder, kind, digest.hexdigest())
            config = {"model": to_dict(part.model), "hash": digest.hexdigest(), "source": record}
            config |= settings[kind]
            if kind == LANGUAGE_MODEL and vocabulary:
                vocabulary.save(writer.folder / components.VOCABULARY)
                config["vocabulary_hash"] = vocabulary.hash
            kept = writer.folder / components.SOURCE
            kept.mkdir()
            for name in emu3_folder.SIDE_FILES:
                if (folder.path / name).is_file():
                    shutil.copyfile(safetensors.inside(folder.path / name), kept / name)
            writer.finish(config)
        size = sum(t.nbytes for t in part.tensors.values())
        said.append(f"{kind.replace('_', ' ')}, {len(part.tensors)} tensors, {size / 1e9:.2f} GB")
    return f"{'; '.join(said)}; from the {folder.dialect} dialect"


def _hashed(digest, tensor):
    for block in tensor.blocks():
        digest.add(tensor.name, tensor.dtype, tensor.shape, block)
        yield block


def language_settings(folder: emu3_folder.Folder) -> dict[str, Any]:
    """layout, policy and stops of a folder's language model, as an export's config has them."""
    own = folder.config.get("progemu_jax")
    length = folder.parts[LANGUAGE_MODEL].model.max_length
    if isinstance(own, dict):
        at = f"{folder.path / emu3_folder.CONFIG}: progemu_jax"
        layout, policy = from_dict(Layout, own.get("layout"), at), from_dict(Sampling, own.get("policy"), at)
        stops = tuple(int(token) for token in own.get("stops", folder.stops))
    else:
        layout, policy, stops = default_layout(length), Sampling(), folder.stops
    return {"layout": to_dict(layout), "policy": to_dict(policy), "stops": list(stops), "vocabulary": None}


def tokenizer_settings(folder: emu3_folder.Folder) -> dict[str, Any]:
    """image (how the image processor resizes) of a folder's tokenizer, as an export's config has it."""
    factor = folder.parts[TOKENIZER].model.factor
    return {"image": to_dict(ImageProcessor.of(folder.path / emu3_folder.PROCESSOR, folder.processor(), factor))}


def default_layout(length: int) -> Layout:
    """ProgEmu's 64 x 64 codes an image where two of them leave room for text, else as many as fit."""
    side = 64
    while side > 1 and 1 + 2 * (9 + side * (side + 1)) > 0.92 * length:
        side -= 1
    return Layout(side, side, length)


class Plan:
    """Everything about a Hugging Face target that can be said, and refused, before any data are read."""

    def __init__(self, exports: dict[str, Path], dialect: str | None):
        self.exports = exports
        self.configs = {kind: export.read_export_config(path) for kind, path in exports.items()}
        sources = [config.get("source") for config in self.configs.values()]
        own = sources[0]["dialect"] if all(sources) else None
        whole = [bool(s) and s["config"].get("model_type") == "emu3" for s in sources]
        self.dialect = dialect or own or ("transformers" if len(exports) == 2 else "original")
        both = len(exports) == 2
        if both and self.dialect == "original":
            where = " and ".join(str(path) for path in exports.values())
            raise UserError(f"--dialect=original: keeps the two parts in two folders; convert {where} one by one")
        # The source's names, files and config are those of the target when it is the same folder again.
        self.as_source = own == self.dialect and (
            all(whole) and not first_difference(sources[0]["config"], sources[1]["config"]) if both else not whole[0]
        )
        self.entries, self.dtypes, self.files, self.buffers = {}, {}, {}, {}
        for kind, config in self.configs.items():
            self._add(kind, config, both)
        self.config = self._config(both)

    def _add(self, kind, config, both):
        where = self.exports[kind]
        model = from_dict(_CONFIGS[kind], config["model"], f"{where}: model")
        tree = export.read_export_tree(where)
        shapes = {leaf: tuple(shape) for leaf, (shape, _) in tree.items()}
        if any(leaf.startswith(f"{STACKED}.") for leaf in shapes):
            raise UserError(f"{where}: its layers are stacked; export transformer.unstack_layers(params) instead")
        if kind == LANGUAGE_MODEL:
            prefixes = emu3_names.LANGUAGE_PREFIXES["transformers" if both else "original"][0]
            self.config_of_model = emu3_configs.write_language_model(model, str(where), self.dialect, self._ids(kind))
            entries = emu3_names.language_entries(shapes, *prefixes)
        else:
            prefix = emu3_names.TOKENIZER_PREFIXES["transformers" if both else "original"][0]
            self.config_of_tokenizer = emu3_configs.write_tokenizer(model, str(where), self.dialect)
            entries = emu3_names.tokenizer_entries(shapes, self.dialect, prefix)
        source = config["source"] if self.as_source else None
        for entry in entries:
            leaf = entry.leaf
            name = source["names"][leaf] if source else entry.name
            dtype = source["dtypes"][leaf] if source else safetensors.NAMES[tree[leaf][1]]
            self.entries[kind, leaf] = components.Entry(leaf, entry.shape, name, entry.layout)
            self.dtypes[name] = dtype, entry.tensor_shape
            if leaf.startswith("batch_stats.") and leaf.endswith(".mean") and not source:
                count = name.removesuffix("running_mean") + "num_batches_tracked"
                self.buffers[count] = np.zeros((), np.int64)
                self.dtypes[count] = "I64", ()
        if source:
            self.files |= source["files"]
            for name, (dtype, shape, data) in source["buffers"].items():
                array = np.frombuffer(base64.b64decode(data), safetensors.DTYPES[dtype]).reshape(shape)
                self.buffers[name], self.dtypes[name] = array, (dtype, tuple(shape))

    def vocabulary(self) -> Vocabulary | None:
        """The text tokenizer that belongs to the language model, or None."""
        if LANGUAGE_MODEL not in self.exports:
            return None
        return folders.vocabulary(self.exports[LANGUAGE_MODEL], self.configs[LANGUAGE_MODEL])

    def _ids(self, kind):
        vocabulary = self.vocabulary()
        keys = ("pad", "bos", "eos") + (("img", "boi", "eoi", "eol", "eof") if self.dialect == "original" else ())
        return {key: getattr(vocabulary, key) for key in keys} if vocabulary else {}

    def _config(self, both) -> dict:
        if self.as_source:
            return next(iter(self.configs.values()))["source"]["config"]
        config = self.config_of_model if LANGUAGE_MODEL in self.exports else self.config_of_tokenizer
        if both:
            vocabulary = self.vocabulary()
            config = {
                "architectures": ["Emu3ForConditionalGeneration"],
                "model_type": "emu3",
                "text_config": self.config_of_model,
                "vq_config": self.config_of_tokenizer,
                "vocabulary_map": emu3_folder.vocabulary_map(vocabulary) if vocabulary else None,
            }
        if LANGUAGE_MODEL in self.exports:
            own = self.configs[LANGUAGE_MODEL]
            stops = own.get("stops") or ([vocabulary.eos] if (vocabulary := self.vocabulary()) else [])
            config["progemu_jax"] = {"layout": own["layout"], "policy": own["policy"], "stops": stops}
        return config

    def shards(self) -> dict[str, dict]:
        """{file: {tensor: (dtype, shape)}}: the source's, or files of 5 GB; wide dtypes first, for alignment."""
        order = sorted(self.dtypes, key=lambda name: (-safetensors.DTYPES[self.dtypes[name][0]].itemsize, name))
        if not self.files:
            return safetensors.shard({name: self.dtypes[name] for name in order})
        out: dict[str, dict] = {}
        for name in order:
            out.setdefault(self.files[name], {})[name] = self.dtypes[name]
        return out


def _to_hugging_face(plan: Plan, target: Path) -> str:
    writer = safetensors.Writer(target, plan.shards())
    digests = {}
    for kind, folder in plan.exports.items():
        digest = digests[kind] = safetensors.ContentHash()
        total = sum(1 for k, _ in plan.entries if k == kind)
        with tqdm(total=total, desc=f"{kind} out", unit="tensor") as bar:
            for leaf, rows, array in export.iterate_export(folder):
                entry = plan.entries[kind, leaf]
                dtype, shape = plan.dtypes[entry.name]
                array = np.asarray(array).astype(safetensors.DTYPES[dtype], copy=False)
                array = entry.theirs(array) if rows is None else array
                writer.write(entry.name, array, rows[0] if rows else 0)
                digest.add(entry.name, dtype, shape, array)
                bar.update(rows is None or rows[1] == shape[0])
    for name, array in plan.buffers.items():
        writer.write(name, array)
    writer.close()
    write_json(target / emu3_folder.CONFIG, plan.config)
    _write_side_files(plan, target)
    count = len(plan.dtypes)
    unchanged = plan.as_source and all(_unchanged(plan, kind, digest) for kind, digest in digests.items())
    same = "; every tensor bit for bit the source's" if unchanged else ""
    return f"{count} tensors in the {plan.dialect} dialect{same}"


def _unchanged(plan, kind, digest):
    source = plan.configs[kind]["source"]
    for name in source["buffers"]:
        digest.add(name, *plan.dtypes[name], plan.buffers[name])
    return digest.hexdigest() == source["content_hash"]


def _write_side_files(plan: Plan, target: Path) -> None:
    if plan.as_source:
        kept = next(iter(plan.exports.values())) / components.SOURCE
        for path in kept.iterdir() if kept.is_dir() else ():
            shutil.copyfile(path, target / path.name)
        return
    if TOKENIZER in plan.exports:
        config = plan.configs[TOKENIZER]
        factor = from_dict(VQGANConfig, config["model"], "model").factor
        processor = from_dict(ImageProcessor, config.get("image") or {"factor": factor}, "image")
        kinds = {"original": "Emu3VisionVQImageProcessor", "transformers": "Emu3ImageProcessor"}
        values = {"image_processor_type": kinds[plan.dialect], **processor.config()}
        (target / emu3_folder.PROCESSOR).write_text(json.dumps(values, indent=2) + "\n")
    if vocabulary := plan.vocabulary():
        vocabulary.save(target)
