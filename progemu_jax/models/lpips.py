"""LPIPS (Zhang et al. 2018), the perceptual distance of VQGAN training, on VGG-16 (Simonyan & Zisserman 2015). NHWC.

Parameters are given, not trained: `convert.lpips` reads them from torchvision's and lpips' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from progemu_jax.kernels.convolution import conv2d

# Convolutions of VGG-16 by torchvision's index in `features`; a tuple is a stage, and stages are pooled between.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
# Of the images in [-1, 1] (lpips' scaling layer).
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def features(params: Mapping[str, Any], images: jax.Array) -> list[jax.Array]:
    """The last ReLU of each stage: images float `[B, H, W, 3]` -> five float `[B, H / 2^i, W / 2^i, C]`."""
    x, out = images, []
    for index, stage in enumerate(STAGES):
        if index:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for number in stage:
            layer = params[f"conv_{number}"]
            x = jax.nn.relu(conv2d(x, layer["kernel"].astype(x.dtype)) + layer["bias"].astype(x.dtype))
        out.append(x)
    return out


def distance(params: Mapping[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """LPIPS of two batches of images, float `[B, H, W, C]` in [-1, 1] with C 1 or 3, sides at least 16 -> `[B]`.

    params: {"conv_N": {"kernel" `[3, 3, C, D]`, "bias" `[D]`}, "lin_i": `[C_i]`, non-negative}.
    """
    shift, scale = jnp.asarray(SHIFT), jnp.asarray(SCALE)
    both = jnp.concatenate([x, y]).astype(jnp.float32)
    both = (jnp.broadcast_to(both, (*both.shape[:3], 3)) - shift) / scale
    total = jnp.zeros(x.shape[0], jnp.float32)
    for index, f in enumerate(features(params, both)):
        # The square root of 0 has no derivative; a channel vector of zeros stays zero.
        norm = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(f), axis=-1, keepdims=True), 1e-20))
        one, two = jnp.split(f / (norm + 1e-10), 2)
        total += jnp.einsum("BHWC,C->BHW", jnp.square(one - two), params[f"lin_{index}"]).mean((1, 2))
    return total
