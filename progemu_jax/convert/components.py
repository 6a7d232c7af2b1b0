"""The parts of a model, where their exports lie, and how a parameter is laid out in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LANGUAGE_MODEL, TOKENIZER = PROGEMU = ("language_model", "tokenizer")
UNET, AUTOENCODER, TEXT_ENCODER = DIFFUSION = ("unet", "autoencoder", "text_encoder")
PRIOR_DECODER = "prior_decoder"  # beside a tokenizer; no checkpoint of others has a place for it
SCORER = "scorer"
# Where the export of each part lies in a run directory.
IN_RUN = {
    LANGUAGE_MODEL: "train/export",
    TOKENIZER: "tokenizer/export",
    PRIOR_DECODER: "decoder/export",
    UNET: "train/unet",
    AUTOENCODER: "autoencoder/export",
    TEXT_ENCODER: "text_encoder/export",
}
# Folders in an export: a vocabulary, a text encoder's tokenizer (as in a pipeline), the files of its source.
VOCABULARY, TEXT_TOKENIZER, SOURCE = "vocabulary", "tokenizer", "source"
UNUSED = "unused"  # first part of the names of parameters of other heads and towers, kept for the way back


@dataclass(frozen=True)
class Entry:
    """One parameter: `leaf` and `shape` are ours, `name` and `tensor_shape` the checkpoint's.

    layout: "same"; "linear": `[out, in]`, which is ours transposed, with axes split; "conv": `[out, in, k, ...]`
    against ours `[k, ..., in, out]`; "point": `[out, in]` against `[1, 1, in, out]`; "frame": `[out, in, k, k]` against
    `[1, k, k, in, out]`, of one frame.
    """

    leaf: str
    shape: tuple[int, ...]
    name: str
    layout: str

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        shape = self.shape
        if self.layout == "linear":
            inputs = -1 if self.leaf.endswith("o_proj") else 1  # o_proj is [N, D, M], the others [M, ...]
            return math.prod(shape[inputs:]), math.prod(shape[:inputs])
        if self.layout == "conv":
            return shape[-1], shape[-2], *shape[:-2]
        if self.layout == "frame":
            return shape[-1], shape[-2], *shape[1:-2]
        if self.layout == "point":
            return shape[-1], shape[-2]
        return shape

    def ours(self, tensor: np.ndarray) -> np.ndarray:
        """The checkpoint's tensor in our layout, contiguous."""
        if self.layout in ("conv", "frame"):
            tensor = tensor.transpose(*range(2, tensor.ndim), 1, 0)
        elif self.layout != "same":
            tensor = tensor.T
        return np.ascontiguousarray(tensor).reshape(self.shape)

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """Our parameter in the checkpoint's layout, contiguous."""
        array = array[0] if self.layout == "frame" else array
        if self.layout in ("conv", "frame"):
            array = array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
        elif self.layout != "same":
            array = array.reshape(self.tensor_shape[::-1]).T
        return np.ascontiguousarray(array)


def kind_of(config: Mapping[str, Any]) -> str | None:
    """What an export is of: its config's "kind"; an older one has none, but a key that only its kind has. Else None."""
    if "kind" in config:
        return config["kind"]
    old = {LANGUAGE_MODEL: "hidden_size", TOKENIZER: "codebook_size"}
    found = [kind for kind, key in old.items() if key in config.get("model", {})]
    return found[0] if found else SCORER if "net" in config else None
