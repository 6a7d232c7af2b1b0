"""Paints a follow-up from its codes and the prior's own pixels: what codes lose of the patient comes back.

y = d + g (p - d_p) + r, where d is what the follow-up's codes decode to, p the prior, d_p what the prior's codes decode
to, g a gate in (0, 1) and r a residual. With g = 1 and r = 0, as it starts, the detail that coding takes from the prior
is put back everywhere; a trained gate closes where the prior's detail belongs to what has changed.

Axes: B images, H W pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.models.conv_layers import Conv, num_groups
from progemu_jax.models.vqgan import depth_to_space, space_to_depth


@dataclass(frozen=True)
class PriorDecoderConfig:
    """Sizes of the network behind the tokenizer's decoder.

    Attributes:
      patch: pixels a side that become channels, so that convolutions run on a smaller image.
      widths: channels of each level, the size halved from one to the next.
      blocks: residual blocks a level, on the way down and on the way up.
    """

    patch: int = 2
    widths: tuple[int, ...] = (32, 64)
    blocks: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def factor(self) -> int:
        """What an image's sides must divide by."""
        return self.patch * 2 ** (len(self.widths) - 1)


class PriorDecoder(nn.Module):
    """See the module."""

    config: PriorDecoderConfig

    @nn.compact
    def __call__(self, decoded: jax.Array, prior: jax.Array, decoded_prior: jax.Array, apart: jax.Array) -> jax.Array:
        """f32 [B, H, W] each in [-1, 1], and apart f32 [B, h, w] -> the follow-up f32 [B, H, W].

        decoded, decoded_prior: what the codes of follow-up and prior decode to. apart: how far the two codes of a place
        lie from each other, 0 where they are equal, about 1 for two codes at random.
        """
        c = self.config
        B, H, W = decoded.shape
        dtype, detail = jnp.dtype(c.dtype), prior - decoded_prior
        apart = jax.image.resize(jnp.minimum(apart, 4.0), (B, H, W), "nearest")
        x = jnp.stack([decoded, prior, decoded_prior, 4 * detail, apart], axis=-1)
        x = space_to_depth(x, c.patch).astype(dtype)
        param = jnp.dtype(c.param_dtype)
        x, skips = Conv(c.widths[0], param_dtype=param)(x), []
        for level, width in enumerate(c.widths):
            if level:
                x = Conv(width, stride=2, padding=((0, 1), (0, 1)), param_dtype=param)(x)
            for _ in range(c.blocks):
                x = _Block(width, param)(x)
            skips.append(x)
        for width, skip in zip(c.widths[-2::-1], skips[-2::-1], strict=True):
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "nearest")
            x = Conv(width, param_dtype=param)(jnp.concatenate([x, skip], axis=-1))
            for _ in range(c.blocks):
                x = _Block(width, param)(x)
        # Zero kernels: training starts from the sum that needs none.
        out = Conv(
            2 * c.patch**2,
            kernel=1,
            kernel_init=nn.initializers.zeros,
            bias_init=_open_gate(c.patch),
            param_dtype=param,
        )(nn.silu(x))
        gate, residual = jnp.moveaxis(depth_to_space(out.astype(jnp.float32), c.patch), -1, 0)
        return decoded + jax.nn.sigmoid(gate) * detail + residual


class _Block(nn.Module):
    """Residual block: norm, SiLU, convolution, twice."""

    width: int
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for _ in range(2):
            y = nn.GroupNorm(num_groups(self.width), param_dtype=self.param_dtype, dtype=x.dtype)(y)
            y = Conv(self.width, param_dtype=self.param_dtype)(nn.silu(y))
        return x + y


def _open_gate(patch: int) -> nn.initializers.Initializer:
    """Biases [2 patch^2] of the head: the gate's at 4 (0.98 open), the residual's at 0."""
    return lambda key, shape, dtype=jnp.float32: jnp.tile(jnp.asarray([4.0, 0.0], dtype), patch**2)


def code_distance(table: jax.Array, codes: jax.Array, others: jax.Array) -> jax.Array:
    """Squared distance of code vectors in units of that of two random codes, f32 [B, h, w]; 0 for equal codes.

    table: f32 [Q, E]; codes, others: int32 [B, h, w].
    """
    table = table.astype(jnp.float32)
    random = 2 * jnp.var(table, axis=0).sum()
    return jnp.square(table[codes] - table[others]).sum(-1) / random


def init_params(config: PriorDecoderConfig, key: jax.Array) -> dict:
    """Random parameters, in `config.param_dtype`."""
    side = 2 * config.factor
    image, apart = jnp.zeros((1, side, side)), jnp.zeros((1, 2, 2))
    return PriorDecoder(config).init(key, image, image, image, apart)["params"]
