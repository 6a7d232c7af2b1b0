"""Emu3, Emu3-VisionTokenizer and ProgEmu checkpoints as Hugging Face folders, opened and checked.

Opening reads `config.json` and the headers of the weights, and compares every name and shape with the model that the
config describes; the data are read later, tensor by tensor. Nothing in a folder is executed, Python files are ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax

from progemu_jax.checkpoints import arrays, safetensors
from progemu_jax.checkpoints.safetensors import Tensor
from progemu_jax.convert.components import LANGUAGE_MODEL, TOKENIZER, Entry
from progemu_jax.convert.emu3 import configs, names
from progemu_jax.convert.parts import CONFIG, Part, checked_tensors
from progemu_jax.errors import UserError
from progemu_jax.models import transformer, vqgan
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.text.text_tokenizers import byte_characters
from progemu_jax.text.vocabulary import EXTRAS, TEXT_FILE, VISION_FILE, Vocabulary, load

PROCESSOR = "preprocessor_config.json"
# Files beside the weights that go with a converted checkpoint and back.
SIDE_FILES = (
    CONFIG, PROCESSOR, "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.json",
    "chat_template.jinja", TEXT_FILE, VISION_FILE,
)  # fmt: skip
_BUFFERS = ("num_batches_tracked", "rotary_emb.inv_freq")  # not parameters; kept for the way back


@dataclass(frozen=True)
class Folder:
    """An opened Hugging Face folder; `parts` by kind, `config` as it is in config.json."""

    path: Path
    dialect: str
    config: dict[str, Any] = field(repr=False)
    parts: dict[str, Part]

    def vocabulary(self) -> Vocabulary | None:
        """The folder's text tokenizer, or None when there is none."""
        return read_vocabulary(self.path)

    def processor(self) -> dict[str, Any]:
        """preprocessor_config.json, or {}."""
        path = self.path / PROCESSOR
        return safetensors.read_json(path) if path.exists() else {}

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a text (see `configs.stops`)."""
        return configs.stops(self.path / CONFIG, self.config.get("text_config") or self.config)


def is_folder(path: Path) -> bool:
    """Whether the folder looks like a Hugging Face checkpoint, whole or not."""
    return (path / safetensors.INDEX).exists() or (path / safetensors.WEIGHTS).exists() or (path / CONFIG).exists()


def open_folder(path: Path) -> Folder:
    """Opens and checks a folder. Raises UserError that names the tensor, key or file at fault."""
    at = path / CONFIG
    if not at.exists():
        safetensors.refuse_pickles(path)
    config = safetensors.read_json(at)
    kind = config.get("model_type")
    found = safetensors.open_folder(path)
    parts = {}
    if kind == "emu3":
        for key in ("text_config", "vq_config"):
            if not isinstance(config.get(key, {}), dict):
                raise UserError(f"{at}: {key} is not an object; use the original config")
        dialect = "transformers"
        used = _prefixes(found, names.LANGUAGE_PREFIXES[dialect], "layers.")
        tokenizer_prefix = _prefix(found, names.TOKENIZER_PREFIXES[dialect][:2])
        ours = {name: t for name, t in found.items() if name.startswith(tokenizer_prefix)}
        theirs = {name: t for name, t in found.items() if name not in ours}
        parts[LANGUAGE_MODEL] = _language_model(path, config.get("text_config") or {}, theirs, used)
        parts[TOKENIZER] = _tokenizer(path, config.get("vq_config") or {}, dialect, ours, tokenizer_prefix)
    elif kind in configs.LANGUAGE_TYPES:
        dialect = "original"
        parts[LANGUAGE_MODEL] = _language_model(path, config, found, names.LANGUAGE_PREFIXES[dialect][0])
    elif kind in configs.TOKENIZER_TYPES:
        dialect = ("original", "transformers")[configs.TOKENIZER_TYPES.index(kind)]
        parts[TOKENIZER] = _tokenizer(path, config, dialect, found, "")
    else:
        known = ("emu3", *configs.LANGUAGE_TYPES, *configs.TOKENIZER_TYPES)
        raise UserError(f"{at}: model_type={kind!r} is not supported; expected one of {', '.join(known)}")
    return Folder(path, dialect, config, parts)


def _prefixes(found: Mapping[str, Tensor], choices: Sequence[tuple[str, str]], mark: str) -> tuple[str, str]:
    return next((c for c in choices if any(n.startswith(c[0] + mark) for n in found)), choices[0])


def _prefix(found: Mapping[str, Tensor], choices: Sequence[str]) -> str:
    return next((c for c in choices if any(n.startswith(c) for n in found)), choices[0])


def _language_model(path: Path, values: Mapping[str, Any], found: dict[str, Tensor], prefixes: tuple[str, str]) -> Part:
    model = configs.language_model(path / CONFIG, values, safetensors.main_dtype(path, found))
    there = [re.match(re.escape(f"{prefixes[0]}layers.") + r"(\d{1,9})\.", name) for name in found]
    layers = 1 + max((int(layer[1]) for layer in there if layer), default=-1)
    if model.num_layers > layers:  # before as many are traced
        raise UserError(
            f"{path / CONFIG}: num_hidden_layers={model.num_layers}, but the weights have {layers}; use theirs"
        )
    has_head = os.path.lexists(path / names.HEAD_FILE)
    model = replace(model, diagonal=has_head)
    entries = language_entries(model, prefixes)
    if model.tie_embeddings:  # some savers write the shared table twice
        head = f"{prefixes[1]}lm_head.weight"
        extra = found.get(head)
        found = {name: t for name, t in found.items() if name != head}
        if extra is not None:
            raise UserError(f"{extra.file}: tensor {head}: the config ties the head to the embeddings; remove it")
    part = _part(path, LANGUAGE_MODEL, model, [e for e in entries if not names.of_diagonal_head(e.leaf)], found)
    if not has_head:
        return part
    file = path / names.HEAD_FILE
    own, tensors, _ = checked_tensors(
        [e for e in entries if names.of_diagonal_head(e.leaf)],
        safetensors.read_header(safetensors.inside(file)),
        file,
        is_buffer=lambda name: False,
        remedy="use the one that was written with these weights, or delete it and decode in the row order alone",
    )
    return replace(part, entries=part.entries + own, tensors=part.tensors | tensors)


def _tokenizer(path: Path, values: Mapping[str, Any], dialect: str, found: dict[str, Tensor], prefix: str) -> Part:
    model = configs.tokenizer(path / CONFIG, values, dialect, safetensors.main_dtype(path, found))
    return _part(path, TOKENIZER, model, tokenizer_entries(model, dialect, prefix), found)


def _part(
    path: Path, kind: str, model: TransformerConfig | VQGANConfig, entries: list[Entry], found: dict[str, Tensor]
) -> Part:
    index = path / safetensors.INDEX
    checked = checked_tensors(entries, found, index, is_buffer=lambda name: name.endswith(_BUFFERS))
    return Part(kind, path, model, *checked)


def language_entries(model: TransformerConfig, prefixes: tuple[str, str]) -> list[Entry]:
    """Every parameter of a transformer (scan_layers=False) and its tensor."""
    tree = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    shapes = {leaf: a.shape for leaf, a in arrays.flatten(tree).items()}
    return names.language_entries(shapes, *prefixes)


def tokenizer_entries(model: VQGANConfig, dialect: str, prefix: str) -> list[Entry]:
    """Every variable of a VQGAN and its tensor."""
    tree = jax.eval_shape(lambda: vqgan.init_variables(model, jax.random.key(0)))
    shapes = {leaf: a.shape for leaf, a in arrays.flatten(tree).items()}
    return names.tokenizer_entries(shapes, dialect, prefix)


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of Emu3's two files, else of `tokenizer.json`, else None.

    Raises:
      UserError: damaged files.
    """
    if (folder / TEXT_FILE).exists():
        return load(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    values = safetensors.read_json(path)
    try:
        special = {str(token["content"]): int(token["id"]) for token in values["added_tokens"]}
        text = {token: int(i) for token, i in values["model"]["vocab"].items() if token not in special}
        alphabet = {character: byte for byte, character in byte_characters().items()}
        ranks = {bytes(alphabet[c] for c in token): i for token, i in text.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: is not a byte-level BPE tokenizer like Emu3's; use the original file") from None
    first = len(ranks) + 3 + EXTRAS
    vision = sorted((i, token) for token, i in special.items() if i >= first)
    if [i for i, _ in vision] != list(range(first, first + len(vision))):
        raise UserError(f"{path}: the special tokens do not have Emu3's ids; use the original file")
    return Vocabulary(ranks, [token for _, token in vision])


def vocabulary_map(vocabulary: Vocabulary) -> dict[str, int]:
    """{token: id} of special and visual tokens, as the transformers dialect's config has it.

    "<image>" is a second name of extra 0: where it stands, transformers puts the codes of pixels that it is given.
    """
    names = {vocabulary.decode([i]): i for i in range(vocabulary.text_size, vocabulary.size)}
    return names | {"<image>": names["<|extra_0|>"]}
