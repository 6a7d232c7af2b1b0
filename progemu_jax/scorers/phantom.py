"""The phantom scorer: phantom images -> findings and their severity, group, age, sex and organ masks."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax import pretrained
from progemu_jax.checkpoints import export
from progemu_jax.data.phantom import GROUPS
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.models.scorer import AGE_MEAN, AGE_STD, ScorerNet, ScorerNetConfig, init_params
from progemu_jax.scorers import batched
from progemu_jax.scorers.saliency import score_and_explain
from progemu_jax.text.findings import FINDINGS, ORGANS

VERSION = 2  # of what is made of the network's outputs; a cached score of another version is made again


class PhantomScorer:
    """Scores phantom images; refuses any other source, on which its numbers would mean nothing.

    Attributes:
      identity: text that changes with the weights or the network, for caches of scores.
      caveat: what a reader of its scores must know.
    """

    caveat = "Scores are a phantom scorer's: they say nothing of real radiographs."

    def __init__(self, params: Any, net: ScorerNetConfig, image_size: int):
        self.params, self.image_size = params, image_size
        self.identity = f"phantom scorer {VERSION}, {image_size}, {net}, {batched.digest(params)}"
        self._apply = jax.jit(lambda params, x: score_and_explain(ScorerNet(net), params, x))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> PhantomScorer:
        """From an export of the scorer stage, or "phantom": that of the package. UserError when there is none."""
        place = Path(pretrained.find(folder, pretrained.SCORER))
        with export.reading(place):
            size = int(export.read_export_config(place)["image_size"])
        init = functools.partial(init_params, image_size=size)
        params, _, net = export.load_model(place, lambda c: from_dict(ScorerNetConfig, c["net"], "net"), init)
        return cls(params, net, size)

    def __call__(self, images: np.ndarray, source: str, batch_size: int = 64) -> dict[str, np.ndarray]:
        """Scores images.

        Args:
          images: uint8 [N, S, S] of the size the scorer was trained on.
          source: the cohort they come from; must be "phantom".

        Returns:
          finding_prob f32 [N, F], group_prob f32 [N, G], age f32 [N] in years, sex_prob f32 [N] (probability of
          F), masks uint8 [N, 6, S, ceil(S / 8)], bits packed along rows, mask_shape int [4]; features f32 [N, 256];
          saliency f16 [N, F, S / 8, S / 8], Grad-CAM of each finding, 0..1; names findings, groups, organs, backbone;
          finding_severity f32 [N, F] in [0, 1] where the network has a head for it.
        """
        if source != "phantom":
            raise UserError(f"source {source!r}: phantom scorers know phantom images only; use a scorer for real ones")
        out = batched.apply(self._apply, self.params, images, self.image_size, batch_size)
        masks = out["organs"].transpose(0, 3, 1, 2) > 0
        severity = {}
        if "severity" in out:
            severity["finding_severity"] = np.asarray(jax.nn.sigmoid(out["severity"]), np.float32)
        return {
            "findings": np.asarray(FINDINGS),
            "finding_prob": np.asarray(jax.nn.sigmoid(out["findings"]), np.float32),
            "groups": np.asarray([f"GROUP {g}" for g in GROUPS]),  # as the cohort's tables spell them
            "group_prob": np.asarray(jax.nn.softmax(out["group"]), np.float32),
            "age": out["age"].astype(np.float32) * AGE_STD + AGE_MEAN,
            "sex_prob": np.asarray(jax.nn.sigmoid(out["sex"]), np.float32),
            "organs": np.asarray(ORGANS),
            "masks": np.packbits(masks, axis=-1),
            "mask_shape": np.asarray(masks.shape),
            "features": out["features"].astype(np.float32),
            "backbone": np.asarray("progemu-jax phantom scorer, last hidden layer"),
            "saliency": out["saliency"].astype(np.float16),
            **severity,
        }
