"""The films of a request: one prior, or several of one patient, of which the newest is the base."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from progemu_jax.data import registration
from progemu_jax.errors import FilmWarning, UserError
from progemu_jax.inference import request
from progemu_jax.scorers.reidentification import Reidentifier


def asked(prior: Any, priors: Any, intervals: Any) -> tuple[list[Any], list[float | None]]:
    """All films, the oldest first, and the days from each but the last to the last (None: unknown).

    prior: one film in any form; priors, intervals: in place of it several, and the days from each to the next. Raises
    UserError for both, for what is no list, and for films out of order.
    """
    if priors is None:
        if intervals is not None:
            raise UserError("intervals: are of several films; give them as priors=[oldest, ..., newest]")
        return [prior], []
    if prior is not None:
        raise UserError("prior, priors: give one of them")
    no_list = isinstance(priors, str | os.PathLike) or not isinstance(priors, Sequence) or not priors
    if no_list or any(film is None for film in priors):
        raise UserError("priors: expected a list of films, the oldest first")
    return list(priors), request.intervals(intervals, len(priors))


def onto(prior: np.ndarray, film: np.ndarray, name: str) -> np.ndarray:
    """An older film moved onto the prior, both uint8 [H, W], as the films of a cohort are; UserError: no match."""
    found = registration.register(prior, film)
    if found.flag < 0:
        raise UserError(f"{name}: finds no match on the newest film (score {found.score:.2f}); is it of this patient?")
    filled = registration.fill_uncovered(found.image, prior, found.transform, film.shape)
    return registration.match_exposure(filled, prior)[0]


def warn_stranger(network: Reidentifier | None, prior: np.ndarray, film: np.ndarray, name: str) -> None:
    """A `FilmWarning` where an older film is less alike to the prior than 99 % of films of one patient; both uint8
    [S, S] of the network's size. Nothing else depends on it."""
    if network is not None and prior.shape == (network.image_size,) * 2 and network.unlike(film, prior):
        warnings.warn(
            f"{name}: may be of another patient: it is less alike to the newest film than 99 % of films of one patient "
            "are; check it, or leave it out",
            FilmWarning,
            stacklevel=4,
        )
