"""What scorers that run on JAX share: the digest of their weights, and images in batches of one shape."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.errors import UserError


def digest(params: Any) -> str:
    """16 hexadecimal digits that change with the weights."""
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))).hexdigest()[:16]


def apply(
    network: Callable[[Any, jax.Array], dict[str, jax.Array]],
    params: Any,
    images: np.ndarray,
    size: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """The outputs of `network(params, f32 [batch_size, size, size] in [0, 1])` for uint8 [N, size, size] images.

    The last batch is filled up with black images, so that it is compiled once. UserError for images of another size.
    """
    if images.shape[1:] != (size, size):
        raise UserError(f"images of {images.shape[1:]} pixels: this scorer wants {size}x{size}")
    parts = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        padded = np.concatenate([chunk, np.zeros((batch_size - len(chunk), *chunk.shape[1:]), np.uint8)])
        out = network(params, jnp.asarray(padded, jnp.float32) / 255)
        parts.append({k: np.asarray(v)[: len(chunk)] for k, v in out.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
