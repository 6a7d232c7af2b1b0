"""The order of anti-diagonal decoding: an image's tokens by the diagonals of its grid, and rows packed so (NumPy).

All codes of a diagonal, r + c = d, are drawn in one pass, and go through the model in the next: h + w - 1 passes for
h x w codes (NAR, arXiv 2503.10696; FlashAR, arXiv 2605.09430). The tokens lie diagonal by diagonal, so that attention
stays plainly causal and the cache contiguous; each keeps the position id of its place in the row order:

    row order   (0,0) (0,1) .. EOL (1,0) .. EOL .. EOF EOI
    here        (0,0) | (0,1) (1,0) | (0,2) (1,1) (2,0) | .. | EOL of row r, codes r + c = r + w | .. EOL EOF EOI

An EOL goes through with its own diagonal, r + w; the last row's, EOF and EOI with the last code. The code at (r, c) is
told by its neighbours on the left, (r, c - 1), and above, (r - 1, c), both of the diagonal before.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from progemu_jax.text.sequence import Kind, Layout


class Diagonals(NamedTuple):
    """I = h (w + 1) places of codes and EOLs, then EOF and EOI; D = h + w - 1 passes of at most T tokens.

    order: int32 [I + 2], place in the row order of each token in this one.
    first: int32 [D + 1], tokens that went through before each pass.
    rows: int32 [D, T], row of the code that each token of a pass is, -1 for others and where there is none.
    """

    order: np.ndarray
    first: np.ndarray
    rows: np.ndarray


@functools.cache
def diagonals(height: int, width: int) -> Diagonals:
    """Of an image of so many codes."""
    order, first, rows = [], [0], []
    for d in range(height + width - 1):
        codes = range(max(0, d - width + 1), min(d, height - 1) + 1)
        ends = [d - width] if d >= width else []
        order += [r * (width + 1) + width for r in ends] + [r * (width + 1) + d - r for r in codes]
        rows.append([-1] * len(ends) + list(codes))
        first.append(len(order))
    end = height * (width + 1)
    order += [end - 1, end, end + 1]
    first[-1] = len(order)
    most = max(np.diff(first))
    table = [row + [-1] * (most - len(row)) for row in rows]
    return Diagonals(np.asarray(order, np.int32), np.asarray(first, np.int32), np.asarray(table, np.int32))


def in_diagonals(row: dict[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """A packed row (`sequence.pack`) with its target image's tokens in this order, and what the diagonal head reads.

    Returns the row's arrays, those of each token moved with it, and int32 [length] each: `beside`, the prior's token at
    the place that a token fills (-1: none); `left` and `above`, the indices of the tokens that tell it (-1: none, and
    for all but the image's codes).
    """
    order = diagonals(layout.height, layout.width).order
    start, length = int(np.argmax(row["kinds"] == Kind.VISUAL)), len(row["tokens"])
    places = start + order
    moved = np.arange(length)
    moved[start : start + len(order)] = places
    out = {name: values[moved] for name, values in row.items()}
    out["beside"] = np.pad(row["aligned"][:-1], (1, 0), constant_values=-1)[moved]
    index = np.full(length, -1, np.int32)  # of each place's token in this order
    index[places] = start + np.arange(len(order))
    left, above = np.full(length, -1, np.int32), np.full(length, -1, np.int32)
    r, c = np.divmod(order[order < layout.height * (layout.width + 1)], layout.width + 1)
    code = c < layout.width
    at, r, c = index[start + r * (layout.width + 1) + c][code], r[code], c[code]
    place = start + r * (layout.width + 1) + c
    left[at] = np.where(c > 0, index[place - 1], np.where(r == 0, start - 1, -1))
    above[at] = np.where(r > 0, index[np.maximum(place - layout.width - 1, 0)], -1)
    return {**out, "left": left, "above": above}
