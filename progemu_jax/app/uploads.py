"""An uploaded film -> gray pixels, or one sentence that says what is wrong with it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from progemu_jax.data import dicom, images
from progemu_jax.errors import UserError
from progemu_jax.files import records

MOST_BYTES = 128 << 20  # of an upload: 64 million pixels of 16 bits
_REMEDY = "upload a PNG, JPEG or DICOM file of a radiograph"


def read(path: str | os.PathLike) -> tuple[np.ndarray, str]:
    """(uint8 [H, W], one sentence on what was done with the file, or "").

    What the file is is read in its first bytes: its name may say anything. DICOM needs the extra [dicom].

    Raises:
      UserError: one sentence, without the file's name.
    """
    try:
        with records.open_file(path) as file:
            start = file.read(132)
        if start[128:] == b"DICM":
            image = dicom.read_gray(path)
            note = "DICOM: its own window was applied, and nothing of its header, which may name a patient, was kept."
        elif start[:4] == b"GIF8":
            raise images.BrokenImage("a GIF, animated or not, holds no film's gray levels")
        else:
            modes: list[str] = []
            image = images.read(path, lambda opened: (modes.append(opened.mode), images.to_gray(opened))[1])
            deep = modes[0].startswith(("I", "F"))
            note = "16-bit image: its gray levels were stretched from the least to the greatest." if deep else ""
    except images.BrokenImage as error:
        raise UserError(f"This file cannot be used: {error}; {_REMEDY}.") from None
    except OSError:  # another user's equal file had the same place, and was deleted when it was read
        raise UserError(f"This file cannot be used: it is no longer there; {_REMEDY}.") from None
    if image.min() == image.max():
        raise UserError(f"This file cannot be used: the image is blank; {_REMEDY}.")
    return image, note


def delete(path: str | os.PathLike) -> None:
    """Deletes an upload, and its folder where nothing else is in it."""
    path = Path(path)
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
