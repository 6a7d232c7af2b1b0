"""What a request to a model may hold. Each check ends in one clear line, before any work on the device."""

from __future__ import annotations

import contextlib
import operator
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from progemu_jax.errors import PromptWarning, UserError
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text.findings import PHANTOM, Finding
from progemu_jax.text.understood import known, understood

LONGEST_PROMPT = 10_000  # characters; the model's own limit, in tokens, is lower and checked by `sequence`
MOST_SAMPLES = 1024


@dataclass(frozen=True)
class Checked:
    """A request that has passed its checks, without prior.

    prompts: as the model reads them (`prompt`). mask: bool [h, w], or "auto". days: to the follow-up.
    """

    prompts: list[str]
    num_samples: int
    seed: int
    policy: Sampling
    mask: np.ndarray | str
    text: bool
    days: float | None = None


@contextlib.contextmanager
def prefix_errors(name: str) -> Iterator[None]:
    """A UserError raised within begins with `name`: the argument, step or case that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def prompt(text: Any, *, empty: bool = False) -> str:
    """The prompt as the model is to read it: in lower case where it has no lower-case letter, else as it came.

    A vocabulary spells capitals almost letter by letter: "NEW LEFT EFFUSION." would be too long, or misread.

    empty: an empty one is allowed (the text of a given pair needs none).
    """
    example = "say what changed, e.g. 'New small left pleural effusion.'"
    if not isinstance(text, str):
        raise UserError(f"prompt: expected text, got {type(text).__name__}; {example}")
    if not text.strip() and not (empty and not text):
        raise UserError(f"prompt: empty; {example}")
    if len(text) > LONGEST_PROMPT:
        raise UserError(f"prompt: {len(text)} characters, at most {LONGEST_PROMPT} are taken; shorten the prompt")
    # Cc: control characters, NUL too; Cs: halves of surrogate pairs, which no encoding can hold.
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None)
    if bad is not None:
        raise UserError(f"prompt: holds the control character U+{ord(bad):04X}; remove it")
    return text.lower() if text.isupper() else text


def warn_unread(text: str, findings: tuple[Finding, ...] = PHANTOM) -> None:
    """A `PromptWarning` where the rules understood nothing of a prompt, or it names a finding of no model's training.

    For the person who calls the caller of this. Nothing else depends on it. findings: of the model's cohort.
    """
    found = understood(text, findings)
    if found.warning and (found.unknown or not found.read):
        names = known(findings)
        remedy = f"Ask for {', '.join(names[:-1])} or {names[-1]}."
        warnings.warn(f"prompt {text[:60]!r}: {found.warning} {remedy}", PromptWarning, stacklevel=3)


def seed(value: Any) -> int:
    """A seed 0 <= seed < 2**32; any integer type, not a bool."""
    return _integer("seed", value, 0, 2**32 - 1)


def num_samples(value: Any) -> int:
    """Futures of one request, 1 to `MOST_SAMPLES`."""
    return _integer("num_samples", value, 1, MOST_SAMPLES)


def _integer(name: str, value: Any, low: int, high: int) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise UserError(f"{name}={str(value)[:40]}: expected an integer in {low}..{high}")
    return number


MOST_DAYS = 36_525  # a century


def days(value: Any, name: str = "days") -> float | None:
    """Days from one film to a later one, 0 to `MOST_DAYS`; None where unknown."""
    if value is None:
        return None
    number = value if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) else None
    if number is None or not 0 <= number <= MOST_DAYS:
        raise UserError(f"{name}={str(value)[:40]}: expected days, 0 to {MOST_DAYS}, or None where unknown")
    return float(number)


def intervals(value: Any, films: int) -> list[float | None]:
    """Days from each of `films` films to the last one, of the days from each to the next; None: all unknown."""
    if value is None:
        return [None] * (films - 1)
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != films - 1:
        raise UserError(f"intervals: expected {films - 1} for {films} films, the days from each film to the next")
    for number, one in enumerate(value):
        if isinstance(one, (int, float, np.integer, np.floating)) and one < 0:
            raise UserError(
                f"intervals[{number}]={one}: the films are out of order; give the oldest first and the days from each "
                "to the next"
            )
    steps = [days(one, f"intervals[{number}]") for number, one in enumerate(value)]
    whole: list[float | None] = [0.0]
    for step in reversed(steps):
        whole.append(None if step is None or whole[-1] is None else whole[-1] + step)
    return whole[:0:-1]


def codes(value: Any, grid: tuple[int, int], codebook_size: int) -> np.ndarray | None:
    """int32 [h, w] where `value` is an array of the code map's shape and of signed integers, else None: then it is an
    image, as uint8 always is."""
    if not isinstance(value, np.ndarray) or value.shape != grid or not np.issubdtype(value.dtype, np.signedinteger):
        return None
    if value.min() < 0 or value.max() >= codebook_size:
        raise UserError(f"codes must lie in [0, {codebook_size}), got {value.min()}..{value.max()}")
    return value.astype(np.int32)


def array(name: str, value: Any, dtype: Any = None) -> np.ndarray:
    """`value` as an array; UserError names it where it is none."""
    try:
        return np.asarray(value, dtype)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}: is no array of numbers, or has rows of different lengths") from None


def mask(value: Any, grid: tuple[int, int], factor: int) -> np.ndarray:
    """A region as places of the code map, bool [h, w], True where the image may change.

    Args:
      value: bool [h, w], or bool [H, W] of the model's image size (h, w times `factor`): a place is inside as soon as
        one of its pixels is.
      grid: (h, w).
    """
    image = (grid[0] * factor, grid[1] * factor)
    wanted = f"bool {list(image)} (pixels) or {list(grid)} (codes)"
    value = array("mask", value)
    if value.dtype != bool:
        raise UserError(f"mask: expected {wanted}, got {value.dtype}; pass mask > 0")
    if value.shape == image and factor > 1:
        value = value.reshape(grid[0], factor, grid[1], factor).any(axis=(1, 3))
    if value.shape != grid:
        raise UserError(f"mask: expected {wanted}, got shape {list(value.shape)}; resize it")
    if not value.any():
        raise UserError("mask: marks no place, so nothing could change; mark the region to edit")
    return value
