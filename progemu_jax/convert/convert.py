"""Conversion both ways, streaming: memory holds a few blocks of 128 MB, whatever the checkpoint's size."""

from __future__ import annotations

import functools
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from progemu_jax.convert import folders, taming
from progemu_jax.convert.components import DIFFUSION, IN_RUN, PRIOR_DECODER, PROGEMU, TOKENIZER
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.diffusers import transfer as diffusers_transfer
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3 import transfer as emu3_transfer
from progemu_jax.errors import UserError, disk_trouble

_log = logging.getLogger(__name__)

DIALECTS = ("original", "transformers")
UNFINISHED = ".progemu-unfinished"  # marks a folder as ours to delete


def convert(source: str | os.PathLike, target: str | os.PathLike, dialect: str | None = None) -> str:
    """Converts a Hugging Face or Diffusers folder to a run directory, or a run directory or export back to one.

    A VQGAN in taming-transformers' names goes in, not out.

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
    kind = folders.detect(source)
    diffusion = folders.exports(source, DIFFUSION) if kind == folders.OURS else {}
    if dialect and (kind == folders.DIFFUSERS or diffusion):
        raise UserError(f"--dialect={dialect}: diffusion models have one dialect; leave it out")
    if kind in (folders.HUGGING_FACE, folders.VQGAN) and dialect:
        raise UserError(f"--dialect={dialect}: is of a Hugging Face target, and {source} is converted to ours")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target={target}: exists; choose another folder, or delete it")
    if dialect not in (None, *DIALECTS):
        raise UserError(f"--dialect={dialect}: expected one of {', '.join(DIALECTS)}")
    left_out = None
    temporary = target.with_name(f"{target.name}.tmp")
    if kind == folders.DIFFUSERS:
        write = functools.partial(diffusers_transfer.to_run, diffusers_folder.open_folder(source))
    elif kind == folders.HUGGING_FACE:
        write = functools.partial(emu3_transfer.to_run, emu3_folder.open_folder(source))
    elif kind == folders.VQGAN:
        write = functools.partial(taming.to_run, taming.open_model(source))
    elif diffusion:
        write = functools.partial(diffusers_transfer.from_run, diffusers_transfer.outgoing_parts(diffusion))
    else:
        parts = folders.exports(source, PROGEMU)
        if not parts:
            raise UserError(
                f"{source}: no folder of others has a place for the {PRIOR_DECODER.replace('_', ' ')}; "
                "convert the run directory that it lies in"
            )
        write = functools.partial(emu3_transfer.from_run, emu3_transfer.Target(parts, dialect))
        left_out = _prior_decoder(parts)
    if temporary.is_dir() and any(temporary.iterdir()) and not (temporary / UNFINISHED).is_file():
        raise UserError(f"{temporary}: is in the way, and no conversion made it; move it, or choose another --target")
    _remove(temporary)
    try:
        temporary.mkdir(parents=True)
        (temporary / UNFINISHED).touch()
        (temporary / target.name).mkdir()
        said = write(temporary / target.name)
        if target.exists():
            target.rmdir()
        (temporary / target.name).rename(target)
    except (OSError, ValueError) as error:
        if why := disk_trouble(error) or getattr(error, "strerror", None):
            raise UserError(f"--target={target}: cannot be written ({why}); choose another") from None
        raise
    finally:
        _remove(temporary)
    if left_out:
        _log.warning(
            "%s: left out, a Hugging Face folder has no place for it; images of %s are painted from codes alone, "
            "load %s for the prior's own detail",
            left_out,
            target,
            left_out.parents[1],
        )
    return f"{target}: {said}"


def _remove(temporary: Path) -> None:
    """Deletes a folder of ours, its mark last: whenever this is killed, what is left is ours to delete."""
    for path in temporary.iterdir() if temporary.is_dir() else ():
        if path.name != UNFINISHED:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)


def _prior_decoder(parts: Mapping[str, Path]) -> Path | None:
    """The export of the decoder that sees the prior, in the run directory of a tokenizer's export; None without one."""
    if TOKENIZER not in parts:
        return None
    found = Path(os.path.abspath(parts[TOKENIZER])).parents[1] / IN_RUN[PRIOR_DECODER]
    return found if (found / "export.json").exists() else None
