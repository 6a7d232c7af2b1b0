"""Conversion both ways, streaming: memory holds a few blocks of 128 MB, whatever the checkpoint's size."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax import checkpoint, places, vocab
from progemu_jax.config import from_dict, to_dict
from progemu_jax.convert import configs, diffusers, names, tensors
from progemu_jax.convert import huggingface as hf
from progemu_jax.convert.names import LANGUAGE_MODEL, TOKENIZER
from progemu_jax.errors import UserError, disk_trouble
from progemu_jax.image_processor import ImageProcessor
from progemu_jax.models.transformer import STACKED, TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.records import first_difference, write_json
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sequence import Layout

DIALECTS = ("original", "transformers")
_CONFIGS = {LANGUAGE_MODEL: TransformerConfig, TOKENIZER: VQGANConfig}


def convert(source: str | os.PathLike, target: str | os.PathLike, dialect: str | None = None) -> str:
    """Converts a Hugging Face or Diffusers folder to a run directory, or a run directory or export back to one.

    Args:
      source: what it is is found out.
      target: must not exist; it appears when it is complete.
      dialect: of a Hugging Face target, "original" or "transformers"; None: the one it came from, else "original"
        for one part and "transformers" for a language model and a tokenizer in one folder.

    Returns:
      A sentence saying what was written.

    Raises:
      UserError: anything about source or target that stands in the way.
    """
    source, target = Path(source), Path(target)
    kind = places.detect(source)
    if dialect and (kind == places.DIFFUSERS or places.diffusion_exports(source)):
        raise UserError(f"--dialect={dialect}: diffusion models have one dialect; leave it out")
    if kind == places.HUGGING_FACE and dialect:
        raise UserError(f"--dialect={dialect}: is of a Hugging Face target, and {source} is converted to ours")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target={target}: exists; choose another folder, or delete it")
    if dialect not in (None, *DIALECTS):
        raise UserError(f"--dialect={dialect}: expected one of {', '.join(DIALECTS)}")
    temporary = target.with_name(f"{target.name}.tmp")
    if kind == places.DIFFUSERS:
        pipeline = diffusers.open_folder(source)
        write = lambda: diffusers.to_run(pipeline, temporary)  # noqa: E731
    elif found := places.diffusion_exports(source):
        parts = diffusers.plan(found)
        write = lambda: diffusers.from_run(parts, temporary)  # noqa: E731
    elif kind == places.HUGGING_FACE:
        folder = hf.open_folder(source)
        write = lambda: _to_run(folder, temporary)  # noqa: E731
    else:
        plan = _Plan(places.exports(source), dialect)
        write = lambda: _to_hugging_face(plan, temporary)  # noqa: E731
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        said = write()
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except (OSError, ValueError) as error:
        if why := disk_trouble(error) or getattr(error, "strerror", None):
            raise UserError(f"--target={target}: cannot be written ({why}); choose another") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return f"{target}: {said}"


# --- Hugging Face -> run directory ---


def _to_run(folder: hf.Folder, target: Path) -> str:
    said = []
    settings = {TOKENIZER: tokenizer_settings, LANGUAGE_MODEL: language_settings}
    settings = {kind: settings[kind](folder) for kind in folder.parts}  # what is wrong with them is said at once
    vocabulary = folder.vocabulary() if LANGUAGE_MODEL in folder.parts else None
    for kind, part in folder.parts.items():
        with checkpoint.ExportWriter(target / places.IN_RUN[kind]) as writer:
            digest = hf.ContentHash()
            for entry in tqdm(part.entries, f"{kind} in", unit="tensor"):
                tensor = part.tensors[entry.name]
                if entry.layout == "same" and tensor.nbytes > checkpoint.PART_BYTES:
                    blocks = _hashed(digest, tensor)
                    writer.add_rows(entry.leaf, entry.shape, tensors.DTYPES[tensor.dtype], blocks)
                else:
                    array = tensor.read()
                    digest.add(tensor.name, tensor.dtype, tensor.shape, array)
                    writer.add(entry.leaf, entry.ours(array))
            for tensor in part.buffers.values():
                digest.add(tensor.name, tensor.dtype, tensor.shape, tensor.read())
            record = hf.source_record(folder, kind, digest.hexdigest())
            config = {"model": to_dict(part.model), "hash": digest.hexdigest(), "source": record}
            config |= settings[kind]
            if kind == LANGUAGE_MODEL and vocabulary:
                vocabulary.save(writer.folder / places.VOCABULARY)
                config["vocabulary_hash"] = vocabulary.hash
            kept = writer.folder / places.SOURCE
            kept.mkdir()
            for name in hf.SIDE_FILES:
                if (folder.path / name).is_file():
                    shutil.copyfile(tensors.inside(folder.path / name), kept / name)
            writer.finish(config)
        size = sum(t.nbytes for t in part.tensors.values())
        said.append(f"{kind.replace('_', ' ')}, {len(part.tensors)} tensors, {size / 1e9:.2f} GB")
    return f"{'; '.join(said)}; from the {folder.dialect} dialect"


def _hashed(digest, tensor):
    for block in tensor.blocks():
        digest.add(tensor.name, tensor.dtype, tensor.shape, block)
        yield block


def language_settings(folder: hf.Folder) -> dict[str, Any]:
    """layout, policy and stops of a folder's language model, as an export's config has them."""
    own = folder.config.get("progemu_jax")
    length = folder.parts[LANGUAGE_MODEL].model.max_length
    if isinstance(own, dict):
        at = f"{folder.path / hf.CONFIG}: progemu_jax"
        layout, policy = from_dict(Layout, own.get("layout"), at), from_dict(Sampling, own.get("policy"), at)
        stops = tuple(int(token) for token in own.get("stops", folder.stops))
    else:
        layout, policy, stops = default_layout(length), Sampling(), folder.stops
    return {"layout": to_dict(layout), "policy": to_dict(policy), "stops": list(stops), "vocabulary": None}


def tokenizer_settings(folder: hf.Folder) -> dict[str, Any]:
    """image (how the image processor resizes) of a folder's tokenizer, as an export's config has it."""
    factor = folder.parts[TOKENIZER].model.factor
    return {"image": to_dict(ImageProcessor.of(folder.path / hf.PROCESSOR, folder.processor(), factor))}


def default_layout(length: int) -> Layout:
    """ProgEmu's 64 x 64 codes an image where two of them leave room for text, else as many as fit."""
    side = 64
    while side > 1 and 1 + 2 * (9 + side * (side + 1)) > 0.92 * length:
        side -= 1
    return Layout(side, side, length)


# --- run directory or export -> Hugging Face ---


class _Plan:
    """Everything about a Hugging Face target that can be said, and refused, before any data are read."""

    def __init__(self, exports: dict[str, Path], dialect: str | None):
        self.exports = exports
        self.configs = {kind: checkpoint.read_export_config(path) for kind, path in exports.items()}
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
        tree = checkpoint.read_export_tree(where)
        shapes = {leaf: tuple(shape) for leaf, (shape, _) in tree.items()}
        if any(leaf.startswith(f"{STACKED}.") for leaf in shapes):
            raise UserError(f"{where}: its layers are stacked; export transformer.unstack_layers(params) instead")
        if kind == LANGUAGE_MODEL:
            prefixes = names.LANGUAGE_PREFIXES["transformers" if both else "original"][0]
            self.config_of_model = configs.write_language_model(model, str(where), self.dialect, self._ids(kind))
            entries = names.language_entries(shapes, *prefixes)
        else:
            prefix = names.TOKENIZER_PREFIXES["transformers" if both else "original"][0]
            self.config_of_tokenizer = configs.write_tokenizer(model, str(where), self.dialect)
            entries = names.tokenizer_entries(shapes, self.dialect, prefix)
        source = config["source"] if self.as_source else None
        for entry in entries:
            leaf = entry.leaf
            name = source["names"][leaf] if source else entry.name
            dtype = source["dtypes"][leaf] if source else tensors.NAMES[tree[leaf][1]]
            self.entries[kind, leaf] = names.Entry(leaf, entry.shape, name, entry.layout)
            self.dtypes[name] = dtype, entry.tensor_shape
            if leaf.startswith("batch_stats.") and leaf.endswith(".mean") and not source:
                count = name.removesuffix("running_mean") + "num_batches_tracked"
                self.buffers[count] = np.zeros((), np.int64)
                self.dtypes[count] = "I64", ()
        if source:
            self.files |= source["files"]
            for name, (dtype, shape, data) in source["buffers"].items():
                array = np.frombuffer(base64.b64decode(data), tensors.DTYPES[dtype]).reshape(shape)
                self.buffers[name], self.dtypes[name] = array, (dtype, tuple(shape))

    def vocabulary(self) -> vocab.Vocabulary | None:
        """The text tokenizer that belongs to the language model, or None."""
        if LANGUAGE_MODEL not in self.exports:
            return None
        return places.vocabulary(self.exports[LANGUAGE_MODEL], self.configs[LANGUAGE_MODEL])

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
                "vocabulary_map": hf.vocabulary_map(vocabulary) if vocabulary else None,
            }
        if LANGUAGE_MODEL in self.exports:
            own = self.configs[LANGUAGE_MODEL]
            stops = own.get("stops") or ([vocabulary.eos] if (vocabulary := self.vocabulary()) else [])
            config["progemu_jax"] = {"layout": own["layout"], "policy": own["policy"], "stops": stops}
        return config

    def shards(self) -> dict[str, dict]:
        """{file: {tensor: (dtype, shape)}}: the source's, or files of 5 GB; wide dtypes first, for alignment."""
        order = sorted(self.dtypes, key=lambda name: (-tensors.DTYPES[self.dtypes[name][0]].itemsize, name))
        if not self.files:
            return tensors.shard({name: self.dtypes[name] for name in order})
        out: dict[str, dict] = {}
        for name in order:
            out.setdefault(self.files[name], {})[name] = self.dtypes[name]
        return out


def _to_hugging_face(plan: _Plan, target: Path) -> str:
    writer = tensors.Writer(target, plan.shards())
    digests = {}
    for kind, folder in plan.exports.items():
        digest = digests[kind] = hf.ContentHash()
        total = sum(1 for k, _ in plan.entries if k == kind)
        with tqdm(total=total, desc=f"{kind} out", unit="tensor") as bar:
            for leaf, rows, array in checkpoint.iterate_export(folder):
                entry = plan.entries[kind, leaf]
                dtype, shape = plan.dtypes[entry.name]
                array = np.asarray(array).astype(tensors.DTYPES[dtype], copy=False)
                array = entry.theirs(array) if rows is None else array
                writer.write(entry.name, array, rows[0] if rows else 0)
                digest.add(entry.name, dtype, shape, array)
                bar.update(rows is None or rows[1] == shape[0])
    for name, array in plan.buffers.items():
        writer.write(name, array)
    writer.close()
    write_json(target / hf.CONFIG, plan.config)
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


def _write_side_files(plan: _Plan, target: Path) -> None:
    if plan.as_source:
        kept = next(iter(plan.exports.values())) / places.SOURCE
        for path in kept.iterdir() if kept.is_dir() else ():
            shutil.copyfile(path, target / path.name)
        return
    if TOKENIZER in plan.exports:
        config = plan.configs[TOKENIZER]
        factor = from_dict(VQGANConfig, config["model"], "model").factor
        processor = from_dict(ImageProcessor, config.get("image") or {"factor": factor}, "image")
        kinds = {"original": "Emu3VisionVQImageProcessor", "transformers": "Emu3ImageProcessor"}
        values = {"image_processor_type": kinds[plan.dialect], **processor.config()}
        (target / hf.PROCESSOR).write_text(json.dumps(values, indent=2) + "\n")
    if vocabulary := plan.vocabulary():
        vocabulary.save(target)
