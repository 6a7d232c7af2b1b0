"""The PatchGAN discriminator (Isola et al. 2017, "NLayer"): a logit for each overlapping patch. NHWC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.models import conv_layers as vl


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """ch: width of the first layer; num_layers: that many halve the size, doubling the width (to 8 ch)."""

    ch: int = 32
    num_layers: int = 2
    dtype: str = "float32"
    param_dtype: str = "float32"


class Discriminator(nn.Module):
    """Images float `[B, H, W, C]` in [-1, 1] -> logits float32 `[B, H', W', 1]`, positive = real.

    4 x 4 convolutions and leaky ReLU 0.2; the norm is a group norm where the original has a batch norm, so
    that real and generated images of a batch never meet in a statistic.
    """

    cfg: DiscriminatorConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        pad = ((1, 1), (1, 1))
        x = vl.Conv(cfg.ch, 4, 2, pad, param_dtype=dtype, name="conv_0")(images.astype(cfg.dtype))
        x = jax.nn.leaky_relu(x, 0.2)
        for i in range(1, cfg.num_layers + 1):
            stride = 2 if i < cfg.num_layers else 1
            x = vl.Conv(cfg.ch * min(2**i, 8), 4, stride, pad, param_dtype=dtype, name=f"conv_{i}")(x)
            x = jax.nn.leaky_relu(vl.GroupNorm(param_dtype=dtype, name=f"norm_{i}")(x), 0.2)
        return vl.Conv(1, 4, 1, pad, param_dtype=dtype, name="conv_out")(x).astype(jnp.float32)


def init_params(cfg: DiscriminatorConfig, key: jax.Array, channels: int = 1) -> Mapping[str, Any]:
    """Fresh parameters for images of that many channels."""
    side = 8 * 2**cfg.num_layers
    return Discriminator(cfg).init(key, jnp.zeros((1, side, side, channels)))["params"]
