"""Requests in blocks of passes: between them the host says how far one is, and can end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

BLOCK = 0.1  # seconds that a block takes, where a pass does not take longer


class Progress(NamedTuple):
    """How far a request is.

    unit: "codes" of an image or, when all images are drawn, "tokens" of a text, those of the case that has the most to
      go; "steps" of denoising.
    done, of: so many of how many; of tokens `of` is the most, since a text ends when it does.
    step, steps: of a course (`ProgEmu.rollout`), from 1.
    """

    unit: str
    done: int
    of: int
    step: int = 1
    steps: int = 1


Watch = Callable[[Progress], None]
"""Called after each block, in the thread of the request; what it raises ends the request."""


def in_blocks(advance: Callable[[int], Progress | None], watch: Watch) -> None:
    """Calls `advance` with how many passes to make, and `watch` with what comes back, until that is None: all done.

    The number of passes is doubled and halved so that a call takes about `BLOCK` seconds.
    """
    passes = 1
    while True:
        start = time.monotonic()
        if (progress := advance(passes)) is None:
            return
        passes = 2 * passes if time.monotonic() - start < BLOCK else max(passes // 2, 1)
        watch(progress)
