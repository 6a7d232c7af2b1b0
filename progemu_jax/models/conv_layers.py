"""Blocks of VQGAN, autoencoder and UNet: convolutions, norms, residual and attention blocks. Images are NHWC.

Axis legend (einsum strings use these letters only)
  B batch    H height    W width    C channels in    D channels out
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.kernels import convolution
from progemu_jax.kernels.attention import pixel_attention
from progemu_jax.kernels.convolution import conv2d
from progemu_jax.models.layers import lecun


class Conv(nn.Module):
    """2-D convolution with bias; padding "SAME" or explicit ((top, bottom), (left, right)).

    `[B, H, W, C]` -> `[B, H', W', D]` in x's dtype; kernel `[k, k, C, D]`.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: str | tuple = "SAME"
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    kernel_init: nn.initializers.Initializer = lecun
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k = self.kernel
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features), self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
        if k == 1 and self.stride == 1:
            return jnp.einsum("BHWC,CD->BHWD", x, kernel[0, 0]) + bias
        plain = (self.stride, self.padding) == (1, "SAME")
        if plain and self.has_variable(convolution.COLLECTION, "kernel") and convolution.pays(x):
            return convolution.winograd_conv2d(x, self.get_variable(convolution.COLLECTION, "kernel")) + bias
        return conv2d(x, kernel, self.stride, self.padding) + bias


class Downsample(nn.Module):
    """Halves the size: 3 x 3 convolution of stride 2 on an image padded below and on the right only."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = Conv(x.shape[-1], 3, 2, ((0, 1), (0, 1)), param_dtype=self.param_dtype, name="conv")
        return conv(x)


class Upsample(nn.Module):
    """Doubles the size: nearest neighbours, then a 3 x 3 convolution."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return Conv(x.shape[-1], 3, param_dtype=self.param_dtype, name="conv")(x)


def num_groups(channels: int, least: int = 4, most: int = 32) -> int:
    """Groups of a GroupNorm: `most`, but of `least` channels or more (a lone channel loses its mean)."""
    groups = max(1, min(most, channels // least))
    while channels % groups:
        groups -= 1
    return groups


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018), eps 1e-6, statistics in float32: `[B, H, W, C]` -> the same.

    The sums go over pixels first and over the channels of a group after: the long sum is then contiguous.
    """

    param_dtype: jnp.dtype = jnp.float32
    group_channels: int = 4
    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        G = num_groups(C, self.group_channels)
        scale = self.param("scale", nn.initializers.ones, (C,), self.param_dtype).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (C,), self.param_dtype).astype(jnp.float32)
        x32 = x.astype(jnp.float32)

        def group_mean(y: jax.Array) -> jax.Array:  # [B, H, W, C] -> [B, 1, 1, C]
            y = jnp.mean(y, axis=(1, 2)).reshape(-1, G, C // G).mean(axis=-1, keepdims=True)
            return jnp.broadcast_to(y, (*y.shape[:2], C // G)).reshape(-1, 1, 1, C)

        centred = x32 - group_mean(x32)
        factor = scale * jax.lax.rsqrt(group_mean(jnp.square(centred)) + self.eps)
        return (centred * factor + bias).astype(x.dtype)


class SpatialNorm(nn.Module):
    """Group norm modulated by the quantised latent (MoVQ, Zheng et al. 2022, eq. 5).

    x: `[B, H, W, C]`, codes: `[B, h, w, E]` with H / h and W / w whole -> norm(x) * conv_y(codes) +
    conv_b(codes) on the nearest-upsampled codes. The two are 1 x 1 convolutions, which commute with that
    upsampling, so they run at the codes' size and are broadcast.
    """

    param_dtype: jnp.dtype = jnp.float32
    group_channels: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, codes: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        h, w = codes.shape[1:3]
        y = GroupNorm(self.param_dtype, self.group_channels, name="norm_layer")(x)
        ones = nn.initializers.ones  # starts as the plain norm
        scale = Conv(C, 1, bias_init=ones, param_dtype=self.param_dtype, name="conv_y")(codes)
        shift = Conv(C, 1, param_dtype=self.param_dtype, name="conv_b")(codes)
        y = y.reshape(B, h, H // h, w, W // w, C)
        y = y * scale[:, :, None, :, None] + shift[:, :, None, :, None]
        return y.reshape(B, H, W, C)


def make_norm(codes: jax.Array | None, name: str, param_dtype: jnp.dtype, group_channels: int) -> nn.Module:
    """`SpatialNorm` where there are codes, `GroupNorm` where there are none (codes None)."""
    return (GroupNorm if codes is None else SpatialNorm)(param_dtype, group_channels, name=name)


class ResBlock(nn.Module):
    """Twice norm, SiLU, 3 x 3 conv, plus the input (through a 1 x 1 conv when the widths differ)."""

    features: int
    dropout: float = 0.0
    param_dtype: jnp.dtype = jnp.float32
    group_channels: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, codes: jax.Array | None = None, train: bool = False) -> jax.Array:
        extra = () if codes is None else (codes,)
        dtype = self.param_dtype
        h = jax.nn.silu(make_norm(codes, "norm1", dtype, self.group_channels)(x, *extra))
        h = Conv(self.features, param_dtype=dtype, name="conv1")(h)
        h = jax.nn.silu(make_norm(codes, "norm2", dtype, self.group_channels)(h, *extra))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.features, param_dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, param_dtype=dtype, name="nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels, added to its input; softmax in float32."""

    param_dtype: jnp.dtype = jnp.float32
    group_channels: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, codes: jax.Array | None = None) -> jax.Array:
        B, H, W, C = x.shape
        extra = () if codes is None else (codes,)
        y = make_norm(codes, "norm", self.param_dtype, self.group_channels)(x, *extra)
        q, k, v = (Conv(C, 1, param_dtype=self.param_dtype, name=n)(y).reshape(B, H * W, C) for n in "qkv")
        out = pixel_attention(q, k, v)
        return x + Conv(C, 1, param_dtype=self.param_dtype, name="proj_out")(out.reshape(B, H, W, C))


class CausalConv3D(nn.Module):
    """3-D convolution over `[B, F, H, W, C]` that sees no later frame, SAME in space."""

    features: int
    kernel: tuple[int, int, int] = (3, 1, 1)
    stride: tuple[int, int, int] = (1, 1, 1)
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", lecun, shape, self.param_dtype).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype).astype(x.dtype)
        space = [(k - s) for k, s in zip(self.kernel[1:], self.stride[1:], strict=True)]
        padding = ((self.kernel[0] - self.stride[0], 0), *((p - p // 2, p // 2) for p in space))
        return (
            jax.lax.conv_general_dilated(x, kernel, self.stride, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
            + bias
        )


class FrozenBatchNorm(nn.Module):
    """Batch norm by its stored statistics (collection "batch_stats"), eps 1e-5, in float32.

    They come with a converted checkpoint and stay as they are: repeated still images have no statistics of
    motion to learn. A fresh one is affine only (mean 0, variance 1).
    """

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype).astype(jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        var = self.variable("batch_stats", "var", jnp.ones, shape).value
        y = (x.astype(jnp.float32) - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias
        return y.astype(x.dtype)


class TemporalResBlock(nn.Module):
    """Residual block of causal 3 x 3 x 3 convolutions and batch norms over `[B, F, H, W, C]`."""

    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C, dtype = x.shape[-1], self.param_dtype
        h = jax.nn.silu(FrozenBatchNorm(dtype, name="norm1")(x))
        h = CausalConv3D(C, (3, 3, 3), param_dtype=dtype, name="conv1")(h)
        h = jax.nn.silu(FrozenBatchNorm(dtype, name="norm2")(h))
        return x + CausalConv3D(C, (3, 3, 3), param_dtype=dtype, name="conv2")(h)
