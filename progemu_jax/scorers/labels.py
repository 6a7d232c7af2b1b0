"""A scorer that was trained on a cohort's own labels: images of that cohort -> findings, age and sex."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.checkpoints import export
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.models.scorer import AGE_MEAN, AGE_STD, ScorerNet, ScorerNetConfig, init_params
from progemu_jax.scorers import batched
from progemu_jax.scorers.saliency import score_and_explain


class LabelScorer:
    """Scores images of the cohort it was trained on; refuses any other.

    Attributes:
      identity: text that changes with the weights or the network, for caches of scores.
      caveat: what it was trained on, and how well it reads validation patients.
    """

    def __init__(self, params: Any, net: ScorerNetConfig, about: dict):
        self.params, self.labels = params, tuple(map(str, about["labels"]))
        self.image_size, self.source, self.caveat = int(about["image_size"]), str(about["source"]), str(about["caveat"])
        if len(self.labels) != net.findings:
            raise ValueError(f"{len(self.labels)} labels for {net.findings} columns")
        self.identity = (
            f"label scorer 1, {self.source}, {self.image_size}, {self.labels}, {net}, {batched.digest(params)}"
        )
        self._apply = jax.jit(lambda params, x: score_and_explain(ScorerNet(net), params, x))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> LabelScorer:
        """From an export of a real cohort's scorer stage. UserError when there is none."""
        place = Path(folder)
        with export.reading(place):
            about = export.read_export_config(place)
            init = functools.partial(init_params, image_size=int(about["image_size"]))
        params, about, net = export.load_model(place, lambda c: from_dict(ScorerNetConfig, c["net"], "net"), init)
        with export.reading(place):
            return cls(params, net, about)

    def __call__(self, images: np.ndarray, source: str, batch_size: int = 32) -> dict[str, np.ndarray]:
        """Scores images.

        Args:
          images: uint8 [N, S, S] of the size the scorer was trained on.
          source: the cohort they come from; must be the scorer's.

        Returns:
          finding_prob f32 [N, L] of the cohort's labels, age f32 [N] in years, sex_prob f32 [N] (probability of F);
          features f32 [N, 256]; saliency f16 [N, L, S / 8, S / 8], 0..1; names findings, backbone.
        """
        if source != self.source:
            raise UserError(f"source {source!r}: this scorer was trained on {self.source}, and knows no other images")
        out = batched.apply(self._apply, self.params, images, self.image_size, batch_size)
        return {
            "findings": np.asarray(self.labels),
            "finding_prob": np.asarray(jax.nn.sigmoid(out["findings"]), np.float32),
            "age": out["age"].astype(np.float32) * AGE_STD + AGE_MEAN,
            "sex_prob": np.asarray(jax.nn.sigmoid(out["sex"]), np.float32),
            "features": out["features"].astype(np.float32),
            "backbone": np.asarray(f"scorer of the labels of {self.source}, last hidden layer"),
            "saliency": out["saliency"].astype(np.float16),
        }
