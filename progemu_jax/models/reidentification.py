"""Are two films of one patient? A film becomes a point on a sphere; films of one patient lie close together.

Axes: B images, H W pixels, D dimensions. After Packhaeuser et al. 2022 (Scientific Reports 12, 14851), who recognise
patients of ChestX-ray14 so; the points make comparing all with all cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp

from progemu_jax.models.scorer import Block


@dataclass(frozen=True)
class ReidentificationConfig:
    """Widths of the levels (strides 2, 4, 8, ...), blocks of each, and dimensions of a point."""

    widths: tuple[int, ...] = (24, 48, 96, 128)
    blocks: int = 1
    dimensions: int = 64


class ReidentificationNet(nn.Module):
    """A residual trunk; where things lie counts, so that the head sees a coarse map and not its mean alone."""

    config: ReidentificationConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """f32 [B, H, W] in [0, 1], sides even -> f32 [B, D] of length 1."""
        c = self.config
        b, h, w = images.shape
        # The exposure is the film's, not the patient's.
        mean, deviation = images.mean((1, 2), keepdims=True), images.std((1, 2), keepdims=True)
        images = (images - mean) / (deviation + 0.05)
        x = images.reshape(b, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, h // 2, w // 2, 4)
        for level, width in enumerate(c.widths):
            for block in range(c.blocks):
                x = Block(width, 2 if level and not block else 1)(x)
        side = max(1, x.shape[1] // 4), max(1, x.shape[2] // 4)
        coarse = nn.avg_pool(nn.Conv(32, (1, 1))(x), side, side).reshape(b, -1)
        pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2)), coarse], axis=-1)
        points = nn.Dense(c.dimensions)(nn.silu(nn.Dense(2 * c.dimensions)(pooled)))
        return points / jnp.linalg.norm(points + 1e-9, axis=-1, keepdims=True)


def init_params(cfg: ReidentificationConfig, key: jax.Array, image_size: int) -> dict:
    """Random parameters of a network for images of this size."""
    return ReidentificationNet(cfg).init(key, jnp.zeros((1, image_size, image_size)))["params"]
