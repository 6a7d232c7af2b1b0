"""Films as points of the re-identification network, and scorers side by side."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.checkpoints import export
from progemu_jax.files.settings import from_dict
from progemu_jax.models.reidentification import ReidentificationConfig, ReidentificationNet, init_params
from progemu_jax.scorers import batched

IDENTITY = "identity/export"  # in a run directory


class Reidentifier:
    """Places films of one cohort so that those of one patient lie close together.

    Attributes:
      identity: text that changes with the weights or the network, for caches of scores.
      caveat: what a reader of its scores must know.
      usual: the similarity that 99 % of pairs of films of one patient reach; -1 where the export does not say it.
    """

    def __init__(
        self, params: Any, net: ReidentificationConfig, image_size: int, caveat: str = "", usual: float = -1.0
    ):
        self.params, self.image_size, self.caveat, self.usual = params, image_size, caveat, usual
        self.identity = f"reidentification 1, {image_size}, {net}, {batched.digest(params)}"
        self._apply = jax.jit(lambda params, x: {"identity": ReidentificationNet(net).apply({"params": params}, x)})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Reidentifier:
        """From an export of the identity stage. UserError when there is none."""
        place = Path(folder)
        with export.reading(place):
            about = export.read_export_config(place)
            size, caveat = int(about["image_size"]), str(about.get("caveat", ""))
            usual = float(about.get("usual", -1.0))
        init = functools.partial(init_params, image_size=size)
        params, _, net = export.load_model(place, lambda c: from_dict(ReidentificationConfig, c["net"], "net"), init)
        return cls(params, net, size, caveat, usual)

    def __call__(self, images: np.ndarray, source: str, batch_size: int = 64) -> dict[str, np.ndarray]:
        """uint8 [N, S, S] -> identity f32 [N, D], points of length 1. source: not used; the cohort is the export's."""
        return batched.apply(self._apply, self.params, images, self.image_size, batch_size)

    def unlike(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether two films uint8 [S, S] are less alike than 99 % of those of one patient are."""
        points = self(np.stack([first, second]), "")["identity"]
        return bool(points[0] @ points[1] < self.usual)


class Together:
    """Several scorers as one: the arrays of all."""

    def __init__(self, scorers: Sequence[Callable]):
        self.scorers = tuple(scorers)
        self.caveat = " ".join(s.caveat for s in self.scorers if s.caveat)
        self.identity = "; ".join(s.identity for s in self.scorers)

    def __call__(self, images: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """As each scorer: uint8 [N, H, W] -> arrays."""
        return {key: value for scorer in self.scorers for key, value in scorer(images, source).items()}
