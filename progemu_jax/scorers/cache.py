"""Scores kept by the content of the image: what was scored once, by the same weights, is not scored again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from progemu_jax.files import records

_NAMES = ("findings", "groups", "organs", "backbone")
_BROKEN = (OSError, ValueError, KeyError, EOFError)


class Cached:
    """A scorer whose scores lie in `folder`, one small file an image; a killed run keeps what it has.

    The key is the SHA-256 of the image's size and pixels, under the digest of the scorer's identity: other weights
    or another preprocessing never meet. A damaged file is scored again.
    """

    def __init__(self, scorer: Callable, folder: str | os.PathLike, batch_size: int = 64):
        self.scorer, self.batch_size = scorer, batch_size
        self.caveat, self.identity = scorer.caveat, scorer.identity
        self.folder = Path(folder) / hashlib.sha256(scorer.identity.encode()).hexdigest()[:16]
        self.scored = 0  # images that had to be scored, for the curious and the tests

    def __call__(self, images: np.ndarray, source: str) -> dict[str, np.ndarray]:
        """As the scorer: images uint8 [N, H, W] -> its arrays. N must not be 0."""
        keys = [_key(image) for image in images]
        found = {key: kept for key in dict.fromkeys(keys) if (kept := self._read(key)) is not None}
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        missing = list(first)
        for start in range(0, len(missing), self.batch_size):
            part = missing[start : start + self.batch_size]
            out = self.scorer(np.stack([images[first[key]] for key in part]), source)
            for row, key in enumerate(part):
                found[key] = {k: v if k in _NAMES else v[row] for k, v in out.items() if k != "mask_shape"}
                if "mask_shape" in out:
                    found[key]["mask_shape"] = np.asarray(out["mask_shape"])[1:]
                records.write_npz(self._path(key), found[key], durable=False)
            self.scored += len(part)
        rows = [found[key] for key in keys]
        out = {k: rows[0][k] if k in _NAMES else np.stack([r[k] for r in rows]) for k in rows[0] if k != "mask_shape"}
        if "mask_shape" in rows[0]:
            out["mask_shape"] = np.array([len(rows), *rows[0]["mask_shape"]])
        return out

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def _read(self, key: str) -> dict[str, np.ndarray] | None:
        try:
            with records.open_npz(self._path(key)) as file:
                return dict(file)
        except Exception as error:
            # zipfile and zlib have errors of their own for a file that is cut short.
            if isinstance(error, _BROKEN) or type(error).__module__ in ("zipfile", "zlib"):
                return None
            raise


def _key(image: np.ndarray) -> str:
    return hashlib.sha256(f"{image.shape}{image.dtype}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
