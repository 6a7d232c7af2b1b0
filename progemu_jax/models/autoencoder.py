"""The image codec of latent diffusion: a KL autoencoder (Rombach et al. 2022), as Diffusers' AutoencoderKL has it.

Axis legend: B batch    H, W image height and width    h, w latent height and width    C channels    Z latent channels

The levels are the VQGAN's (`models.vqgan`), without codes; parameters carry the VQGAN's names.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.models import conv_layers as vl
from progemu_jax.models.layers import draw_params
from progemu_jax.models.vqgan import Level, Middle, depth_to_space, space_to_depth


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and options; the defaults suit small grey images, `sd15()` is Stable Diffusion's.

    channels, layers: widths of the levels, from the finest, and residual blocks in each (one more on the way up);
      every level but the last halves the size.
    patch: side of the squares folded into channels before the first convolution (1 in Stable Diffusion); the spatial
      factor is patch * 2 ** (len(channels) - 1).
    scale: latents are multiplied by it to have a standard deviation near 1; images in, noise beside.
    group_channels: fewest channels in a group of a norm, which has at most 32 groups (1 in Stable Diffusion).
    dtype: of the computation; norms are float32 in any case.
    """

    in_channels: int = 1
    out_channels: int = 1
    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    latent_channels: int = 4
    patch: int = 2
    scale: float = 0.18215
    group_channels: int = 4
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        if not self.channels or min(self.channels) < 1 or self.patch < 1:
            raise ValueError(f"channels={self.channels}, patch={self.patch}: expected whole numbers from 1")
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale={self.scale}: expected a finite number above 0")

    @property
    def factor(self) -> int:
        """Image pixels per latent along each side."""
        return self.patch * 2 ** (len(self.channels) - 1)


def sd15(**overrides) -> AutoencoderConfig:
    """Stable Diffusion 1.x: factor 8, 4 channels, 83,653,863 parameters."""
    return dataclasses.replace(
        AutoencoderConfig(
            in_channels=3, out_channels=3, channels=(128, 256, 512, 512), layers=2, patch=1, group_channels=1
        ),
        **overrides,
    )


class Encoder(nn.Module):
    """Images `[B, H, W, C]` -> `[B, h, w, 2 Z]`."""

    cfg: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = vl.Conv(cfg.channels[0], param_dtype=dtype, name="conv_in")(space_to_depth(x, cfg.patch))
        last = len(cfg.channels) - 1
        for i, features in enumerate(cfg.channels):
            resize = "downsample" if i < last else None
            x = Level(features, cfg.layers, False, resize, 0.0, dtype, cfg.group_channels, name=f"down_{i}")(
                x, None, False
            )
        x = Middle(0.0, dtype, cfg.group_channels, name="mid")(x, None, False)
        x = jax.nn.silu(vl.GroupNorm(dtype, cfg.group_channels, name="norm_out")(x))
        return vl.Conv(2 * cfg.latent_channels, param_dtype=dtype, name="conv_out")(x)


class Decoder(nn.Module):
    """Latents `[B, h, w, Z]` -> images `[B, H, W, C]`."""

    cfg: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = vl.Conv(cfg.channels[-1], param_dtype=dtype, name="conv_in")(x)
        x = Middle(0.0, dtype, cfg.group_channels, name="mid")(x, None, False)
        for i, features in reversed(list(enumerate(cfg.channels))):
            resize = "upsample" if i > 0 else None
            x = Level(features, cfg.layers + 1, False, resize, 0.0, dtype, cfg.group_channels, name=f"up_{i}")(
                x, None, False
            )
        x = jax.nn.silu(vl.GroupNorm(dtype, cfg.group_channels, name="norm_out")(x))
        x = vl.Conv(cfg.out_channels * cfg.patch**2, param_dtype=dtype, name="conv_out")(x)
        return depth_to_space(x, cfg.patch)


class Autoencoder(nn.Module):
    """`moments`, `encode` and `decode` are its parts (apply with method=...).

    Images are float `[B, H, W, C]` in [-1, 1], sides divisible by cfg.factor; latents are before `scale`.
    """

    cfg: AutoencoderConfig

    def setup(self):
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = vl.Conv(2 * cfg.latent_channels, 1, param_dtype=dtype)
        self.post_quant_conv = vl.Conv(cfg.latent_channels, 1, param_dtype=dtype)

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """-> (reconstruction, mean, log variance); the latent is drawn with `key`, or the mean without."""
        mean, logvar = self.moments(images)
        z = mean if key is None else mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return self.decode(z), mean, logvar

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """-> mean and log variance (clipped to -30 .. 20) of the latents, float32 `[B, h, w, Z]` each."""
        moments = self.quant_conv(self.encoder(images.astype(self.cfg.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def encode(self, images: jax.Array) -> jax.Array:
        """-> the mean of the latents, float32 `[B, h, w, Z]`."""
        return self.moments(images)[0]

    def decode(self, latents: jax.Array) -> jax.Array:
        """latents `[B, h, w, Z]` -> images float32 `[B, H, W, C]`, not clipped."""
        return self.decoder(self.post_quant_conv(latents.astype(self.cfg.dtype))).astype(jnp.float32)


def init_params(cfg: AutoencoderConfig, key: jax.Array) -> dict:
    """Random parameters."""
    return draw_params(Autoencoder(cfg), key, jnp.zeros((1, cfg.factor, cfg.factor, cfg.in_channels)))
