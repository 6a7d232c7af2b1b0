"""uint8 images <-> what networks take and give, [-1, 1]."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pixels(images: jax.Array, channels: int) -> jax.Array:
    """uint8 [B, H, W] -> f32 [B, H, W, channels] in [-1, 1]."""
    x = images.astype(jnp.float32)[..., None] / 127.5 - 1
    return jnp.repeat(x, channels, axis=-1)
