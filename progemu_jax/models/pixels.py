"""Images as files have them, uint8, and as networks take and give them, [-1, 1]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def normalize(images: jax.Array, channels: int) -> jax.Array:
    """uint8 [B, H, W], repeated over the channels, or [B, H, W, channels] -> f32 [B, H, W, channels] in [-1, 1]."""
    gray = images.ndim == 3
    x = images.astype(jnp.float32)
    x = (x[..., None] if gray else x) / 127.5 - 1
    return jnp.repeat(x, channels, axis=-1) if gray else x


def to_uint8(images: np.ndarray) -> np.ndarray:
    """What a network gives, float [...] about in [-1, 1], rounded and clipped to uint8 [...]; on the host."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)
