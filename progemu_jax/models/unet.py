"""The denoiser: the UNet of Stable Diffusion 1.x (Rombach et al. 2022), as Diffusers' UNet2DConditionModel has it.

Axis legend (einsum strings use these letters only)
  B batch    h, w latent height and width    C channels    Z latent channels
  S text tokens    X text width (cross_attention_dim)    M model of a level    N heads    D head

Latents are NHWC. With `in_channels` 8 the prior's latent stands beside the noisy one (InstructPix2Pix, Brooks et al.
2023; MedJourney, section 3.3); `widen` makes such a UNet from one of 4 channels. Parameters carry the names of
Diffusers' checkpoints, with `_i` for a place in a list (`down_blocks_0/attentions_1/transformer_blocks_0/attn2/to_k` is
`down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight`); linear kernels are `[in, out]`, convolution
kernels `[k, k, in, out]`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.kernels.attention import multi_head_attention
from progemu_jax.models import conv_layers as vl
from progemu_jax.models.layers import LayerNorm, Linear, draw_params


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes and options; the defaults are a small model, `sd15()` is Stable Diffusion 1.5's.

    in_channels, out_channels: of the latents; in_channels is twice out_channels where the prior stands beside.
    channels, layers: widths of the levels, from the finest, and residual blocks in each (one more on the way up).
    attention: for each level, whether its blocks have a transformer each (self- and cross-attention).
    heads: of every attention.
    cross_attention_dim: X, the width of the text that is attended to.
    text_dim: width of the text encoder's states; one trained linear map (`encoder_hid_proj`) takes them to X.
      0: none, the states have width X (Stable Diffusion).
    groups: of every group norm.
    dtype: of the computation; norms, softmax and the embedding of time are float32 in any case.
    remat: recompute each block in the backward pass.
    """

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: tuple[bool, ...] = (True, True)
    heads: int = 4
    cross_attention_dim: int = 64
    text_dim: int = 0
    groups: int = 8
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        if not self.channels or len(self.attention) != len(self.channels):
            raise ValueError(f"attention={self.attention}: give one of true or false for each of {self.channels}")
        for width in self.channels:
            if width % self.groups or width % self.heads or width % 2:
                raise ValueError(f"channels={self.channels}: {width} is no multiple of groups, heads and 2")
        if self.in_channels not in (self.out_channels, 2 * self.out_channels):
            raise ValueError(f"in_channels={self.in_channels}: expected {self.out_channels} or twice that")

    @property
    def conditioned(self) -> bool:
        """Whether the prior's latent is an input."""
        return self.in_channels > self.out_channels

    @property
    def factor(self) -> int:
        """Sides of the latents must be multiples of this."""
        return 2 ** (len(self.channels) - 1)


def sd15(**overrides) -> UNetConfig:
    """Stable Diffusion 1.x: 859,520,964 parameters."""
    return dataclasses.replace(
        UNetConfig(
            channels=(320, 640, 1280, 1280),
            layers=2,
            attention=(True, True, True, False),
            heads=8,
            cross_attention_dim=768,
            groups=32,
        ),
        **overrides,
    )


def medjourney(**overrides) -> UNetConfig:
    """MedJourney: Stable Diffusion's UNet with the prior's latent, and BERT's states through one linear map."""
    return sd15(**({"in_channels": 8, "text_dim": 768} | overrides))


def timestep_embedding(times: jax.Array, features: int) -> jax.Array:
    """Sinusoids of a timestep: times `[B]` -> float32 `[B, features]`, cosines first (Ho et al. 2020)."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = times.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nn.Module):
    """`[B, C]` -> `[B, features]`: linear, SiLU, linear."""

    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.silu(Linear(self.features, param_dtype=self.param_dtype, name="linear_1")(x))
        return Linear(self.features, param_dtype=self.param_dtype, name="linear_2")(x)


class ResnetBlock(nn.Module):
    """Twice norm, SiLU, 3 x 3 conv, the time added between; plus the input: `[B, h, w, C]` -> `[B, h, w, features]`."""

    cfg: UNetConfig
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, train: bool) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        y = jax.nn.silu(group_norm(cfg, x, 1e-5, "norm1"))
        y = vl.Conv(self.features, param_dtype=dtype, name="conv1")(y)
        y = y + Linear(self.features, param_dtype=dtype, name="time_emb_proj")(jax.nn.silu(time))[:, None, None]
        y = jax.nn.silu(group_norm(cfg, y, 1e-5, "norm2"))
        y = nn.Dropout(cfg.dropout, deterministic=not train)(y)
        y = vl.Conv(self.features, param_dtype=dtype, name="conv2")(y)
        if x.shape[-1] != self.features:
            x = vl.Conv(self.features, 1, param_dtype=dtype, name="conv_shortcut")(x)
        return x + y


def group_norm(cfg: UNetConfig, x: jax.Array, eps: float, name: str) -> jax.Array:
    """cfg.groups groups; call it inside a module's `__call__`."""
    norm = vl.GroupNorm(jnp.dtype(cfg.param_dtype), max(1, x.shape[-1] // cfg.groups), eps, name=name)
    return norm(x)


class Attention(nn.Module):
    """Attention of `[B, T, M]` over `[B, S, X]` (itself: None) -> `[B, T, M]`."""

    cfg: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array | None, mask: jax.Array | None) -> jax.Array:
        M, dtype = x.shape[-1], jnp.dtype(self.cfg.param_dtype)
        seen = x if text is None else text
        q, k, v = (
            Linear(M, bias=False, param_dtype=dtype, name=name)(y)
            for name, y in (("to_q", x), ("to_k", seen), ("to_v", seen))
        )
        return Linear(M, param_dtype=dtype, name="to_out_0")(multi_head_attention(q, k, v, self.cfg.heads, mask))


class GEGLU(nn.Module):
    """`[..., M]` -> `[..., features]`: a linear map times the GELU of another (Shazeer 2020)."""

    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, gate = jnp.split(Linear(2 * self.features, param_dtype=self.param_dtype, name="proj")(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU of four times the width, then linear; names as in Diffusers' list `net`."""

    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        M = x.shape[-1]
        return Linear(M, param_dtype=self.param_dtype, name="net_2")(GEGLU(4 * M, self.param_dtype, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each normed first and added: `[B, T, M]`."""

    cfg: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, mask: jax.Array | None) -> jax.Array:
        dtype = jnp.dtype(self.cfg.param_dtype)

        def norm(i: int) -> jax.Array:
            return LayerNorm(1e-5, dtype, name=f"norm{i}")(x)

        x = x + Attention(self.cfg, name="attn1")(norm(1), None, None)
        x = x + Attention(self.cfg, name="attn2")(norm(2), text, mask)
        return x + FeedForward(dtype, name="ff")(norm(3))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels, between 1 x 1 convolutions, added: `[B, h, w, M]`."""

    cfg: UNetConfig

    @nn.compact
    def __call__(self, x: jax.Array, text: jax.Array, mask: jax.Array | None) -> jax.Array:
        B, h, w, M = x.shape
        dtype = jnp.dtype(self.cfg.param_dtype)
        y = group_norm(self.cfg, x, 1e-6, "norm")
        y = vl.Conv(M, 1, param_dtype=dtype, name="proj_in")(y).reshape(B, h * w, M)
        y = TransformerBlock(self.cfg, name="transformer_blocks_0")(y, text, mask).reshape(B, h, w, M)
        return x + vl.Conv(M, 1, param_dtype=dtype, name="proj_out")(y)


class Level(nn.Module):
    """One level, down (skips None) or up: blocks, transformers, a change of size.

    Down: -> (x, [every output]); up: each block takes the last of `skips` beside x; -> (x, the skips that are left).
    """

    cfg: UNetConfig
    features: int
    attends: bool
    resize: bool

    @nn.compact
    def __call__(self, x, skips, time, text, mask, train):
        cfg, up, outputs = self.cfg, skips is not None, []
        dtype = jnp.dtype(cfg.param_dtype)
        block = nn.remat(ResnetBlock, static_argnums=(3,)) if cfg.remat else ResnetBlock
        transformer = nn.remat(SpatialTransformer) if cfg.remat else SpatialTransformer
        for i in range(cfg.layers + int(up)):
            if up:
                x, skips = jnp.concatenate([x, skips[-1]], axis=-1), skips[:-1]
            x = block(cfg, self.features, name=f"resnets_{i}")(x, time, train)
            if self.attends:
                x = transformer(cfg, name=f"attentions_{i}")(x, text, mask)
            outputs.append(x)
        if self.resize and up:
            x = vl.Upsample(dtype, name="upsamplers_0")(x)
        elif self.resize:
            x = Downsample(dtype, name="downsamplers_0")(x)
            outputs.append(x)
        return x, skips if up else outputs


class Downsample(nn.Module):
    """Halves the size: 3 x 3 convolution of stride 2, padded on all sides (the autoencoder pads two)."""

    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return vl.Conv(x.shape[-1], 3, 2, ((1, 1), (1, 1)), param_dtype=self.param_dtype, name="conv")(x)


class Middle(nn.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    cfg: UNetConfig

    @nn.compact
    def __call__(self, x, time, text, mask, train):
        cfg, C = self.cfg, x.shape[-1]
        x = ResnetBlock(cfg, C, name="resnets_0")(x, time, train)
        x = SpatialTransformer(cfg, name="attentions_0")(x, text, mask)
        return ResnetBlock(cfg, C, name="resnets_1")(x, time, train)


class UNet(nn.Module):
    """Predicts the noise in a noisy latent."""

    cfg: UNetConfig

    @nn.compact
    def __call__(
        self, latents: jax.Array, times: jax.Array, text: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """
        Args:
          latents: float `[B, h, w, in_channels]`, the prior's latent in the last channels; h, w multiples of
            cfg.factor.
          times: int or float `[B]`, 0 .. 999 of the schedule that the model was trained with.
          text: float `[B, S, text_dim]`, or `[B, S, X]` without `text_dim`.
          mask: bool `[B, S]`, True = a token that is attended to; None: all are.
          train: dropout (needs the rng "dropout").

        Returns:
          float32 `[B, h, w, out_channels]`.
        """
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x, text = latents.astype(cfg.dtype), text.astype(cfg.dtype)
        mask = None if mask is None else mask[:, None, None, :]
        if cfg.text_dim:
            text = Linear(cfg.cross_attention_dim, param_dtype=dtype, name="encoder_hid_proj")(text)
        time = timestep_embedding(times, cfg.channels[0]).astype(cfg.dtype)
        time = TimestepEmbedding(4 * cfg.channels[0], dtype, name="time_embedding")(time)
        x = vl.Conv(cfg.channels[0], param_dtype=dtype, name="conv_in")(x)
        skips, last = [x], len(cfg.channels) - 1
        for i, (features, attends) in enumerate(zip(cfg.channels, cfg.attention, strict=True)):
            level = Level(cfg, features, attends, i < last, name=f"down_blocks_{i}")
            x, new = level(x, None, time, text, mask, train)
            skips += new
        x = Middle(cfg, name="mid_block")(x, time, text, mask, train)
        for i, (features, attends) in enumerate(zip(cfg.channels[::-1], cfg.attention[::-1], strict=True)):
            level = Level(cfg, features, attends, i < last, name=f"up_blocks_{i}")
            x, skips = level(x, skips, time, text, mask, train)
        x = jax.nn.silu(group_norm(cfg, x, 1e-5, "conv_norm_out"))
        return vl.Conv(cfg.out_channels, param_dtype=dtype, name="conv_out")(x).astype(jnp.float32)


def init_params(cfg: UNetConfig, key: jax.Array) -> dict:
    """Random parameters; of a conditioned model the prior's channels start at zero (MedJourney, section 3.3)."""
    side = cfg.factor
    text = jnp.zeros((1, 1, cfg.text_dim or cfg.cross_attention_dim))
    x = jnp.zeros((1, side, side, cfg.in_channels))
    params = draw_params(UNet(cfg), key, x, jnp.zeros(1), text)
    # The output starts at zero, as the reference's does not: a fresh model then predicts no noise, not much of it.
    params["conv_out"]["kernel"] = jnp.zeros_like(params["conv_out"]["kernel"])
    if cfg.conditioned:
        params["conv_in"]["kernel"] = params["conv_in"]["kernel"].at[:, :, cfg.out_channels :].set(0)
    return params


def widen(params: dict) -> dict:
    """Parameters of a UNet of Z input channels -> of 2 Z: the prior's channels get zeros, so the output stays."""
    kernel = params["conv_in"]["kernel"]
    kernel = jnp.concatenate([kernel, jnp.zeros_like(kernel)], axis=2)
    return {**params, "conv_in": {**params["conv_in"], "kernel": kernel}}
