"""Emu3 folders to the exports of a run directory, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax.checkpoints import export
from progemu_jax.convert import components, folders, transfer
from progemu_jax.convert.components import LANGUAGE_MODEL, TOKENIZER
from progemu_jax.convert.config_reader import Reader
from progemu_jax.convert.emu3 import configs, names
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3.image_processor import ImageProcessor
from progemu_jax.errors import UserError
from progemu_jax.files.records import first_difference, write_json
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.models.transformer import STACKED, TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text.sequence import Layout
from progemu_jax.text.timeline import TEXT
from progemu_jax.text.vocabulary import Vocabulary

_MODELS = {LANGUAGE_MODEL: TransformerConfig, TOKENIZER: VQGANConfig}


def to_run(folder: emu3_folder.Folder, target: Path) -> str:
    """Writes the exports of a run directory; returns a sentence saying what."""
    settings = {TOKENIZER: tokenizer_settings, LANGUAGE_MODEL: language_settings}
    settings = {kind: settings[kind](folder) for kind in folder.parts}  # what is wrong with them is said at once
    vocabulary = folder.vocabulary() if LANGUAGE_MODEL in folder.parts else None
    for kind, part in folder.parts.items():
        with export.ExportWriter(target / components.IN_RUN[kind]) as writer:
            content_hash = transfer.write_export(part, writer)
            source = transfer.source_record(part, folder.config, content_hash, dialect=folder.dialect)
            config = {"kind": kind, "model": to_dict(part.model), "hash": content_hash, "source": source}
            config |= settings[kind]
            if kind == LANGUAGE_MODEL and vocabulary:
                vocabulary.save(writer.folder / components.VOCABULARY)
                config["vocabulary_hash"] = vocabulary.hash
            for name in emu3_folder.SIDE_FILES:
                transfer.copy_if_there(folder.path / name, writer.folder / components.SOURCE / name)
            writer.finish(config)
    return f"{transfer.said_of(folder.parts.values())}; from the {folder.dialect} dialect"


def language_settings(folder: emu3_folder.Folder) -> dict[str, Any]:
    """layout, policy, stops and slack of a folder's language model, as an export's config has them."""
    own = folder.config.get("progemu_jax")
    length = folder.parts[LANGUAGE_MODEL].model.max_length
    if isinstance(own, dict):
        at = f"{folder.path / emu3_folder.CONFIG}: progemu_jax"
        layout, policy = from_dict(Layout, own.get("layout"), at), from_dict(Sampling, own.get("policy"), at)
        stops = tuple(int(token) for token in own.get("stops", folder.stops))
        slack = Reader(folder.path / emu3_folder.CONFIG, own).number("slack", 0.0)
    else:
        layout, policy, stops, slack = default_layout(length), Sampling(), folder.stops, 0.0
    found = {"layout": to_dict(layout), "policy": to_dict(policy), "stops": list(stops), "slack": slack}
    return {**found, "vocabulary": None}


def tokenizer_settings(folder: emu3_folder.Folder) -> dict[str, Any]:
    """image (how the image processor resizes) of a folder's tokenizer, as an export's config has it."""
    factor = folder.parts[TOKENIZER].model.factor
    return {"image": to_dict(ImageProcessor.of(folder.path / emu3_folder.PROCESSOR, folder.processor(), factor))}


def default_layout(length: int) -> Layout:
    """ProgEmu's 64 x 64 codes an image where two of them leave room for text, else as many as fit; days as text."""
    side = 64
    while side > 1 and 1 + 2 * (9 + side * (side + 1)) > 0.92 * length:
        side -= 1
    return Layout(side, side, length, interval=TEXT)


class Target:
    """Everything about a Hugging Face target that can be said, and refused, before any data are read.

    Attributes:
      exports: {kind: folder} that it is made from.
      configs: {kind: the export's config}.
      dialect: "original" or "transformers".
      as_source: whether names, files and config are those of the folder that it all came from.
      config: its config.json.
      parts: its tensors.
    """

    def __init__(self, exports: dict[str, Path], dialect: str | None):
        self.exports = exports
        self.configs = {kind: export.read_export_config(path) for kind, path in exports.items()}
        sources, whole = [], []
        for kind, config in self.configs.items():
            with export.reading(exports[kind]):
                sources.append(config.get("source") and {k: config["source"][k] for k in ("dialect", "config")})
                whole.append(bool(sources[-1]) and sources[-1]["config"].get("model_type") == "emu3")
        own = sources[0]["dialect"] if all(sources) else None
        both = len(exports) == 2
        self.dialect = dialect or own or ("transformers" if both else "original")
        if both and self.dialect == "original":
            where = " and ".join(str(path) for path in exports.values())
            raise UserError(f"--dialect=original: keeps the two parts in two folders; convert {where} one by one")
        self.as_source = own == self.dialect and (
            all(whole) and not first_difference(sources[0]["config"], sources[1]["config"]) if both else not whole[0]
        )
        self._vocabulary = self.vocabulary()
        prefixes = "transformers" if both else "original"
        written = {kind: self._part(kind, prefixes) for kind in exports}
        self.parts = [part for part, _ in written.values()]
        self.config = sources[0]["config"] if self.as_source else self._config({k: c for k, (_, c) in written.items()})

    def _part(self, kind: str, prefixes: str) -> tuple[transfer.Outgoing, dict]:
        """A part's tensors, and its config as a folder of its own has it."""
        where, config = self.exports[kind], self.configs[kind]
        with export.reading(where):
            model = from_dict(_MODELS[kind], config["model"], f"{where}: model")
        tree = export.read_export_tree(where)
        shapes = {leaf: tuple(shape) for leaf, (shape, _) in tree.items()}
        if any(leaf.startswith(f"{STACKED}.") for leaf in shapes):
            raise UserError(f"{where}: its layers are stacked; export transformer.unstack_layers(params) instead")
        if kind == LANGUAGE_MODEL:
            values = configs.write_language_model(model, str(where), self.dialect, self._special_ids())
            entries = names.language_entries(shapes, *names.LANGUAGE_PREFIXES[prefixes][0])
        else:
            values = configs.write_tokenizer(model, str(where), self.dialect)
            entries = names.tokenizer_entries(shapes, self.dialect, names.TOKENIZER_PREFIXES[prefixes][0])
        # Batch norms of PyTorch count their batches, which ours do not.
        means = (e for e in entries if e.leaf.startswith("batch_stats.") and e.leaf.endswith(".mean"))
        counts = {e.name.removesuffix("running_mean") + "num_batches_tracked": np.zeros((), np.int64) for e in means}
        source = config["source"] if self.as_source else None
        apart = {e.leaf: names.HEAD_FILE for e in entries if names.of_diagonal_head(e.leaf)}
        return transfer.outgoing(kind, where, tree, entries, source, buffers=counts, apart=apart), values

    def vocabulary(self) -> Vocabulary | None:
        """The text tokenizer that belongs to the language model, or None."""
        if LANGUAGE_MODEL not in self.exports:
            return None
        return folders.vocabulary(self.exports[LANGUAGE_MODEL], self.configs[LANGUAGE_MODEL])

    def _special_ids(self) -> dict[str, int]:
        keys = ("pad", "bos", "eos") + (("img", "boi", "eoi", "eol", "eof") if self.dialect == "original" else ())
        return {key: getattr(self._vocabulary, key) for key in keys} if self._vocabulary else {}

    def _config(self, written: dict[str, dict]) -> dict:
        """config.json, of the parts' configs."""
        config, words = next(iter(written.values())), self._vocabulary
        if len(written) == 2:
            config = {
                "architectures": ["Emu3ForConditionalGeneration"],
                "model_type": "emu3",
                "text_config": written[LANGUAGE_MODEL],
                "vq_config": written[TOKENIZER],
                "vocabulary_map": emu3_folder.vocabulary_map(words) if words else None,
            }
        if LANGUAGE_MODEL in self.exports:
            own = self.configs[LANGUAGE_MODEL]
            stops = own.get("stops") or ([words.eos] if words else [])
            kept = {"layout": own["layout"], "policy": own["policy"], "slack": own.get("slack", 0.0)}
            config["progemu_jax"] = {**kept, "stops": stops}
        return config


def from_run(target: Target, folder: Path) -> str:
    """Writes a Hugging Face folder; returns a sentence saying what."""
    unchanged = transfer.write_folder(target.parts, folder)
    write_json(folder / emu3_folder.CONFIG, target.config)
    _write_side_files(target, folder)
    count = sum(len(part.dtypes) for part in target.parts)
    same = "; every tensor bit for bit the source's" if unchanged else ""
    return f"{count} tensors in the {target.dialect} dialect{same}"


def _write_side_files(target: Target, folder: Path) -> None:
    if target.as_source:
        kept = next(iter(target.exports.values())) / components.SOURCE
        for path in kept.iterdir() if kept.is_dir() else ():
            transfer.copy_if_there(path, folder / path.name)
        return
    if TOKENIZER in target.exports:
        config = target.configs[TOKENIZER]
        factor = from_dict(VQGANConfig, config["model"], "model").factor
        processor = from_dict(ImageProcessor, config.get("image") or {"factor": factor}, "image")
        kinds = {"original": "Emu3VisionVQImageProcessor", "transformers": "Emu3ImageProcessor"}
        values = {"image_processor_type": kinds[target.dialect], **processor.config()}
        (folder / emu3_folder.PROCESSOR).write_text(json.dumps(values, indent=2) + "\n")
    if vocabulary := target.vocabulary():
        vocabulary.save(folder)
