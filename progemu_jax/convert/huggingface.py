"""Emu3, Emu3-VisionTokenizer and ProgEmu checkpoints as Hugging Face folders, opened and checked.

Opening reads `config.json` and the headers of the weights, and compares every name and shape with the model that the
config describes; the data are read later, tensor by tensor. Nothing in a folder is executed, Python files are ignored.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax import checkpoint, vocab
from progemu_jax.convert import configs, names, tensors
from progemu_jax.convert.names import LANGUAGE_MODEL, TOKENIZER, Entry
from progemu_jax.convert.tensors import Tensor
from progemu_jax.errors import UserError
from progemu_jax.models import transformer, vqgan
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.records import normal

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# Files beside the weights that go with a converted checkpoint and back.
SIDE_FILES = (
    CONFIG, PROCESSOR, "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.json",
    "chat_template.jinja", vocab.TEXT_FILE, vocab.VISION_FILE,
)  # fmt: skip
_BUFFERS = ("num_batches_tracked", "rotary_emb.inv_freq")  # not parameters; kept for the way back
_BUFFER_BYTES = 2**16
BLOCKED = 2**27  # bytes from which an embedding table is read in blocks of rows


@dataclass(frozen=True)
class Part:
    """A language model or an image tokenizer in a folder.

    Attributes:
      kind: names.LANGUAGE_MODEL or names.TOKENIZER.
      model: our config of it.
      entries: its parameters; `tensors` has theirs by the checkpoint's names.
      buffers: {name: Tensor} of what is no parameter.
    """

    kind: str
    model: TransformerConfig | VQGANConfig
    entries: tuple[Entry, ...]
    tensors: dict[str, Tensor] = field(repr=False)
    buffers: dict[str, Tensor] = field(repr=False)

    def params(self) -> dict:
        """All parameters as a nested dict of jax arrays."""
        flat = {}
        for entry in self.entries:
            tensor = self.tensors[entry.name]
            flat[entry.leaf] = jax.device_put(entry.ours(tensor.read()))
        return checkpoint.unflatten(flat)


def packed_buffers(buffers: dict[str, Tensor]) -> dict[str, list]:
    """{name: [dtype, shape, base64]} of buffers, for a JSON record."""
    out = {}
    for name, tensor in buffers.items():
        data = base64.b64encode(tensor.read().tobytes()).decode()
        out[name] = [tensor.dtype, list(tensor.shape), data]
    return out


@dataclass(frozen=True)
class Folder:
    """An opened Hugging Face folder; `parts` by kind, `config` as it is in config.json."""

    path: Path
    dialect: str
    config: dict[str, Any] = field(repr=False)
    parts: dict[str, Part]

    def vocabulary(self) -> vocab.Vocabulary | None:
        """The folder's text tokenizer, or None when there is none."""
        return read_vocabulary(self.path)

    def processor(self) -> dict[str, Any]:
        """preprocessor_config.json, or {}."""
        path = self.path / PROCESSOR
        return tensors.read_json(path) if path.exists() else {}

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end a text (see `configs.stops`)."""
        return configs.stops(self.path / CONFIG, self.config.get("text_config") or self.config)


def is_folder(path: Path) -> bool:
    """Whether the folder looks like a Hugging Face checkpoint, whole or not."""
    return (path / tensors.INDEX).exists() or (path / tensors.WEIGHTS).exists() or (path / CONFIG).exists()


def open_folder(path: Path) -> Folder:
    """Opens and checks a folder. Raises UserError that names the tensor, key or file at fault."""
    at = path / CONFIG
    if not at.exists():
        tensors.refuse_pickles(path)
    config = tensors.read_json(at)
    kind = config.get("model_type")
    found = tensors.open_folder(path)
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


def _prefixes(found, choices, mark):
    return next((c for c in choices if any(n.startswith(c[0] + mark) for n in found)), choices[0])


def _prefix(found, choices):
    return next((c for c in choices if any(n.startswith(c) for n in found)), choices[0])


def _language_model(path, values, found, prefixes) -> Part:
    model = configs.language_model(path / CONFIG, values, tensors.main_dtype(path, found))
    entries = language_entries(model, prefixes)
    if model.tie_embeddings:  # some savers write the shared table twice
        head = f"{prefixes[1]}lm_head.weight"
        extra = found.get(head)
        found = {name: t for name, t in found.items() if name != head}
        if extra is not None:
            raise UserError(f"{extra.file}: tensor {head}: the config ties the head to the embeddings; remove it")
    return _part(path, LANGUAGE_MODEL, model, entries, found)


def _tokenizer(path, values, dialect, found, prefix) -> Part:
    model = configs.tokenizer(path / CONFIG, values, dialect, tensors.main_dtype(path, found))
    return _part(path, TOKENIZER, model, tokenizer_entries(model, dialect, prefix), found)


def language_entries(model: TransformerConfig, prefixes: tuple[str, str]) -> list[Entry]:
    """Every parameter of a transformer (scan_layers=False) and its tensor."""
    tree = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
    shapes = {leaf: a.shape for leaf, a in checkpoint.flatten(tree).items()}
    return names.language_entries(shapes, *prefixes)


def tokenizer_entries(model: VQGANConfig, dialect: str, prefix: str) -> list[Entry]:
    """Every variable of a VQGAN and its tensor."""
    tree = jax.eval_shape(lambda: vqgan.init_variables(model, jax.random.key(0)))
    shapes = {leaf: a.shape for leaf, a in checkpoint.flatten(tree).items()}
    return names.tokenizer_entries(shapes, dialect, prefix)


def _part(path, kind, model, entries, found) -> Part:
    expected = {entry.name: entry for entry in entries}
    tensors.check(found, {name: entry.tensor_shape for name, entry in expected.items()}, path / tensors.INDEX, CONFIG)
    buffers = {}
    for name, tensor in found.items():
        if name in expected:
            continue
        if not name.endswith(_BUFFERS) or tensor.nbytes > _BUFFER_BYTES:
            raise UserError(
                f"{tensor.file}: tensor {name} belongs to no parameter that {CONFIG} implies; "
                "use the config and weights of one model"
            )
        buffers[name] = tensor
    return Part(kind, model, tuple(entries), {name: found[name] for name in expected}, buffers)


class ContentHash:
    """SHA-256 of a set of tensors by name, dtype, shape and data, whatever their order and files."""

    def __init__(self):
        self._heads: dict[str, str] = {}
        self._data: dict[str, Any] = {}

    def add(self, name: str, dtype: str, shape: tuple[int, ...], block: np.ndarray) -> None:
        """A tensor as it is in the file, or its next block of rows."""
        self._heads[name] = f"{name} {dtype} {list(shape)}"
        digest = self._data.setdefault(name, hashlib.sha256())
        digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8))

    def hexdigest(self) -> str:
        rows = (f"{self._heads[name]} {self._data[name].hexdigest()}\n" for name in sorted(self._heads))
        return hashlib.sha256("".join(rows).encode()).hexdigest()


# --- text tokenizer ---


def _byte_characters() -> dict[str, int]:
    """The characters that stand for bytes in a `tokenizer.json` (GPT-2's printable alphabet)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other)}


def read_vocabulary(folder: Path) -> vocab.Vocabulary | None:
    """The vocabulary of Emu3's two files, else of `tokenizer.json`, else None.

    Raises:
      UserError: damaged files.
    """
    if (folder / vocab.TEXT_FILE).exists():
        return vocab.load(folder)
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    values = tensors.read_json(path)
    try:
        special = {str(token["content"]): int(token["id"]) for token in values["added_tokens"]}
        text = {token: int(i) for token, i in values["model"]["vocab"].items() if token not in special}
        alphabet = _byte_characters()
        ranks = {bytes(alphabet[c] for c in token): i for token, i in text.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: is not a byte-level BPE tokenizer like Emu3's; use the original file") from None
    first = len(ranks) + 3 + vocab.EXTRAS
    vision = sorted((i, token) for token, i in special.items() if i >= first)
    if [i for i, _ in vision] != list(range(first, first + len(vision))):
        raise UserError(f"{path}: the special tokens do not have Emu3's ids; use the original file")
    return vocab.Vocabulary(ranks, [token for _, token in vision])


def vocabulary_map(vocabulary: vocab.Vocabulary) -> dict[str, int]:
    """{token: id} of special and visual tokens, as the transformers dialect's config has it."""
    return {vocabulary.decode([i]): i for i in range(vocabulary.text_size, vocabulary.size)}


def source_record(folder: Folder, kind: str, content_hash: str) -> dict:
    """What an export keeps of its source, so that the way back gives the same names, dtypes and files."""
    part = folder.parts[kind]
    tensor = {e.leaf: part.tensors[e.name].dtype for e in part.entries}
    every = {**part.tensors, **part.buffers}
    return normal(
        {
            "dialect": folder.dialect,
            "config": folder.config,
            "content_hash": content_hash,
            "names": {entry.leaf: entry.name for entry in part.entries},
            "dtypes": tensor,
            "files": {name: t.file.name for name, t in every.items()},
            "buffers": packed_buffers(part.buffers),
        }
    )
