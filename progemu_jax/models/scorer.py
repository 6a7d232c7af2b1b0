"""One small network for all heads of a scorer, the phantom's or one of a cohort's labels.

Axes: B images, H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

AGE_MEAN, AGE_STD = 60.0, 16.0  # years; the head predicts (age - mean) / std


@dataclass(frozen=True)
class ScorerNetConfig:
    """Widths of the three levels (strides 2, 4, 8), sizes of the heads (groups, organs, views: 0 for none), and whether
    there is one for severities."""

    widths: tuple[int, ...] = (24, 48, 96)
    blocks: int = 1
    findings: int = 8
    groups: int = 2
    organs: int = 6
    severity: bool = field(default=False, repr=False)  # kept scores of older scorers are found by their repr
    views: int = field(default=0, repr=False)


class _Block(nn.Module):
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups = min(8, self.width // 4)
        y = nn.Conv(self.width, (3, 3), self.stride, use_bias=False)(x)
        y = nn.silu(nn.GroupNorm(groups)(y))
        y = nn.GroupNorm(groups)(nn.Conv(self.width, (3, 3), use_bias=False)(y))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False)(x)
        return nn.silu(x + y)


Block = _Block  # its own name is in the parameters' names of every export


class ScorerNet(nn.Module):
    """Heads on a residual trunk, and a small U-shaped decoder for the organs."""

    config: ScorerNetConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, Any]:
        """Scores images.

        Args:
          images: f32 [B, H, W] in [0, 1], sides divisible by 8.

        Returns:
          findings f32 [B, F] logits; group f32 [B, G] logits; age f32 [B], standardised; sex f32 [B] logit of F;
          organs f32 [B, H, W, 6] logits; features f32 [B, 256], what the heads see; with `config.severity`, severity
          f32 [B, F] logits of the severity in [0, 1]; with `config.views`, view f32 [B, V] logits. Heads of size 0 are
          not there.

        The last map of the trunk, f32 [B, H / 8, W / 8, C], is sown as intermediates/trunk and can be perturbed
        (perturbations/trunk), for saliency.
        """
        c = self.config
        b, h, w = images.shape
        # Space to depth: the first convolution at full resolution costs most of a CPU's time.
        x = images.reshape(b, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 2, 4).reshape(b, h // 2, w // 2, 4) * 4 - 2
        skips = []
        for level, width in enumerate(c.widths):
            for block in range(c.blocks):
                x = _Block(width, 2 if level and not block else 1)(x)
            skips.append(x)
        self.sow("intermediates", "trunk", x)
        x = self.perturb("trunk", x)
        # Mean and max: a small effusion is a local thing, age is not.
        pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
        pooled = nn.silu(nn.Dense(128)(pooled))
        # Location matters (left or right): a coarse map goes to the head as well.
        coarse = nn.avg_pool(nn.Conv(16, (1, 1))(x), (h // 32, w // 32), (h // 32, w // 32)).reshape(b, -1)
        features = jnp.concatenate([pooled, nn.silu(nn.Dense(128)(coarse))], axis=-1)
        out: dict[str, Any] = {"features": features}
        if c.organs:
            y = x
            for skip, width in zip(skips[-2::-1], c.widths[-2::-1], strict=True):
                y = jax.image.resize(y, (*skip.shape[:3], y.shape[-1]), "nearest")
                y = jnp.concatenate([y, skip], -1)
                y = nn.silu(nn.GroupNorm(min(8, width // 4))(nn.Conv(width, (3, 3))(y)))
            organs = nn.Conv(4 * c.organs, (1, 1))(y).reshape(b, h // 2, w // 2, 2, 2, c.organs)
            out["organs"] = organs.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c.organs)
        out["findings"] = nn.Dense(c.findings)(features)
        if c.groups:
            out["group"] = nn.Dense(c.groups)(features)
        out["age"] = nn.Dense(1)(features)[:, 0]
        out["sex"] = nn.Dense(1)(features)[:, 0]
        # Last and named: the other heads keep their names.
        if c.severity:
            out["severity"] = nn.Dense(c.findings, name="severity")(features)
        if c.views:
            out["view"] = nn.Dense(c.views, name="view")(features)
        return out


def init_params(cfg: ScorerNetConfig, key: jax.Array, image_size: int) -> dict:
    """Random parameters of a network for images of this size."""
    return ScorerNet(cfg).init(key, jnp.zeros((1, image_size, image_size)))["params"]
