"""What a folder is (run directory, export, checkpoint of others), and where its parts lie."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from progemu_jax.checkpoints import safetensors
from progemu_jax.checkpoints.export import read_export_config, reading
from progemu_jax.convert import components, taming
from progemu_jax.convert.components import DIFFUSION, IN_RUN, PROGEMU, VOCABULARY
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.errors import UserError
from progemu_jax.files.records import read_json
from progemu_jax.text.vocabulary import Vocabulary, is_built_in, load

HUGGING_FACE, OURS, DIFFUSERS = "Hugging Face folder", "run directory or export", "Diffusers folder"
VQGAN = "VQGAN"


def detect(path: Path) -> str:
    """OURS, HUGGING_FACE, DIFFUSERS or VQGAN. Raises UserError for anything else, and for pickled weights."""
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a run directory, an export or a Hugging Face folder")
    if not path.is_dir():
        safetensors.refuse_pickles(path)
        if taming.is_model(path):
            return VQGAN
        raise UserError(f"{path}: is a file; give the folder that it is in")
    if exports(path):
        return OURS
    if diffusers_folder.is_folder(path):
        return DIFFUSERS
    if taming.is_model(path):
        return VQGAN
    if emu3_folder.is_folder(path):
        return HUGGING_FACE
    safetensors.refuse_pickles(path)
    raise UserError(
        f"{path}: no model here: expected a run directory ({' or '.join(IN_RUN[kind] for kind in PROGEMU)}), an export "
        "(export.json) or a Hugging Face folder (config.json, model.safetensors; model_index.json)"
    )


def exports(path: Path, kinds: Collection[str] = tuple(IN_RUN)) -> dict[str, Path]:
    """{kind: folder} of the exports in a run directory, or of an export itself; {} when there is none of the kinds.

    Raises:
      UserError: an export that is of no part of a model (a scorer's, say).
    """
    if (path / "export.json").exists():
        kind = components.kind_of(read_export_config(path))
        if kind not in IN_RUN:
            raise UserError(f"{path}: an export of neither a language model nor an image tokenizer")
        return {kind: path} if kind in kinds else {}
    found = {kind: path / IN_RUN[kind] for kind in kinds}
    return {kind: folder for kind, folder in found.items() if (folder / "export.json").exists()}


def run_policy(path: Path) -> tuple[dict[str, Any], str] | None:
    """The sampling policy in a run directory's config.json, and its place for messages; None without one.

    Raises UserError for a config.json that does not parse: it may say otherwise than the export.
    """
    file = path / "config.json"
    if not file.exists():
        return None
    config = read_json(file)
    section = config.get("sample") if isinstance(config, dict) else None
    policy = section.get("policy") if isinstance(section, dict) else None
    if policy is None:
        raise UserError(f"{file}: holds no sample.policy; run a stage again, which writes it, or delete the file")
    return policy, f"{file}: sample.policy"


def weights(path: Path, kind: str) -> Path:
    """The folder in which a part's weights lie: of a run directory its export, else the folder itself."""
    inside = path / IN_RUN[kind]
    return inside if (inside / "export.json").exists() else path


def vocabulary(export: Path, config: dict[str, Any], codebook_size: int | None = None) -> Vocabulary | None:
    """The vocabulary of a language model's export, or None when its source had none.

    Raises:
      UserError: it is not the one that the model was trained with, or has another number of codes.
    """
    with reading(export):
        if (export / VOCABULARY).is_dir():
            found = load(export / VOCABULARY, codebook_size)
        elif config["vocabulary"] is None:
            return None
        else:
            if is_built_in(config["vocabulary"]) and codebook_size is None:
                codebook_size = config["model"]["vocab_size"] - load(config["vocabulary"] or None).visual_start
            found = load(config["vocabulary"] or None, codebook_size)
        if found.hash != config["vocabulary_hash"]:
            raise UserError(f"{export}: trained with another vocabulary (hash {config['vocabulary_hash'][:12]})")
        return found


def is_diffusion(path: Path) -> bool:
    """Whether the folder holds a diffusion model, ours or Diffusers'."""
    if exports(path):
        return bool(exports(path, DIFFUSION))
    return path.is_dir() and diffusers_folder.is_folder(path)
