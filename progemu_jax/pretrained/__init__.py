"""The model in the box: where the trained phantom model and its scorer lie when the package holds them.

`progemu_jax.load("phantom")` gives the model, `PhantomScorer.load("phantom")` the scorer that judges it. No patient is
in either. `python -m progemu_jax.pretrained --run=RUN` makes them of a run.
"""

from __future__ import annotations

import os
from pathlib import Path

from progemu_jax.errors import UserError

NAME = "phantom"
MODEL, SCORER = NAME, "scorer"  # folders of the package: laid out as a run directory; an export
PLACE = Path(__file__).parent


def find(path: str | os.PathLike, part: str = MODEL) -> str | os.PathLike:
    """The folder of `part` for the text "phantom"; any other path as it is, so that `./phantom` is a folder.

    Raises:
      UserError: this copy of the package has no weights.
    """
    if path != NAME or not isinstance(path, str):  # Path("./phantom") has lost its dot: a Path is always a folder
        return path
    if not is_there(part):
        raise UserError(
            f"{NAME}: this copy of progemu_jax holds no pretrained weights ({PLACE / part}): make them of a finished "
            f"run, python -m progemu_jax.pretrained --run=RUN, or give a folder (of that name: ./{NAME})"
        )
    return PLACE / part


def is_there(part: str = MODEL) -> bool:
    """Whether this copy of the package holds the part."""
    return (PLACE / part).is_dir()
