"""`progemu_jax.load`: the model that a folder holds, of either system."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from progemu_jax import hub, pretrained
from progemu_jax.convert import folders
from progemu_jax.devices import compilation
from progemu_jax.errors import UserError
from progemu_jax.inference import diffusion, progemu
from progemu_jax.inference.diffusion import DiffusionModel
from progemu_jax.inference.progemu import ProgEmu


class Found(NamedTuple):
    """A model's folder, and its address with the commit where it is of the Hub, else None."""

    folder: str | os.PathLike
    pinned: str | None


def load(
    path: str | os.PathLike | Found, tokenizer: str | os.PathLike | None = None, quantize: str | None = None
) -> ProgEmu | DiffusionModel:
    """Loads a model; both kinds are a `counterfactual.CounterfactualModel`.

    Args:
      path: a run directory of `progemu_jax.main` (complete up to its train stage), an export, or a Hugging Face
        folder of Emu3 or ProgEmu, in either dialect, or of Diffusers. The text "phantom": the model that comes with
        the package (`progemu_jax.pretrained`); a folder of that name is "./phantom". The text
        "hf:owner/name[@revision]": such a folder in a repository of the Hugging Face Hub (`hub.fetch`); the model's
        `name`, which provenance keeps, is then that address with the commit. Or what `find` gives, which fetched and
        compared the files already.
      tokenizer: the folder of the image tokenizer, of the same kinds, or a VQGAN in taming-transformers' names (a file,
        too), where `path` holds the language model alone.
      quantize: "int8": the language model's linear maps in 8 bits (`models.linear.quantize`); None leaves them.

    The default sampling policy is the one in a run's config.json, so that a later change of `config.sample.policy`
    counts; an export alone has the policy that it was trained with.

    From the first call on, what JAX compiles in this process is kept on disk (`devices.compilation`).

    Raises:
      UserError: nothing there that can be loaded, naming what is missing; of the Hub also what `hub.fetch` says.
    """
    if quantize not in (None, "int8"):
        raise UserError(f"quantize={quantize!r}: expected 'int8' or None")
    folder, pinned = path if isinstance(path, Found) else find(path)
    model = _load(folder, tokenizer and find(tokenizer)[0], quantize)
    model.name = pinned or model.name
    return model


def find(path: str | os.PathLike) -> Found:
    """Where lies what `load` takes: the texts "phantom" and "hf:...", which is fetched, else a path."""
    return Found(*hub.fetch(path)) if hub.is_address(path) else Found(pretrained.find(path), None)


def _load(
    path: str | os.PathLike, tokenizer: str | os.PathLike | None, quantize: str | None
) -> ProgEmu | DiffusionModel:
    for name, folder in (("path", path), ("tokenizer", tokenizer)):
        if folder is not None or name == "path":
            _check_name(name, folder)
    compilation.keep_programs()
    if not folders.is_diffusion(Path(path)):
        return progemu.load(path, tokenizer, quantize)
    if tokenizer is not None:
        raise UserError(f"tokenizer={tokenizer}: {path} is a diffusion model with an autoencoder of its own")
    if quantize:
        raise UserError(f"quantize={quantize!r}: {path} is a diffusion model, which is not quantised")
    return diffusion.load(Path(path))


def _check_name(name: str, folder: Any) -> None:
    """UserError for what could be no folder's name, existing or not."""
    try:
        if not str(folder).strip():
            raise ValueError("empty")
        os.stat(os.fspath(folder))
    except (FileNotFoundError, NotADirectoryError):
        pass  # said further on, with what is expected there
    except (OSError, TypeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{name}={str(folder)[:60]!r}: names no folder ({why})") from None
