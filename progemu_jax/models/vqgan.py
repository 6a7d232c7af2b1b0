"""The image tokenizer: a VQGAN (Esser et al. 2021) with a MoVQ decoder, shaped like Emu3-VisionVQ, or with its own.

Axis legend (einsum strings use these letters only)
  B batch    H, W image height and width    h, w code height and width    F frames    C channels
  N latents  E code size (embed_dim)        Q codes (codebook_size)

Parameters carry the names of Emu3-VisionVQ's checkpoint with `.` as nesting (`encoder/down_0/block_1/conv1`,
`decoder/up_3/attn_0/q`, `quantize/embedding`); convolution kernels are `[k, k, in, out]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from progemu_jax.models import conv_layers as vl


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """Sizes and options; the defaults suit small grey images, `emu3_vq()` is the full tokenizer.

    ch, ch_mult, num_res_blocks: widths ch * m of the levels, and residual blocks in each (one more in the
      decoder); every level but the last halves the size. attn_levels: levels with attention after each block.
    patch: side of the squares folded into channels before the first convolution and unfolded after the last
      (1 in Emu3); the spatial factor is patch * 2 ** (len(ch_mult) - 1).
    temporal: Emu3's temporal path; a still image is seen as temporal_factor equal frames.
    spatial_norm: whether the decoder's norms see the codes (MoVQ, Emu3); else it is the first VQGAN's.
    normalize_codes: cosine look-up: latents and codes on the unit sphere (Yu et al. 2022).
    group_channels: fewest channels in a group of a norm, which has at most 32 groups (1 in Emu3: always 32).
    dtype: of the computation; distances and norms are float32 in any case.
    """

    in_channels: int = 1
    out_channels: int = 1
    ch: int = 32
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 1
    attn_levels: tuple[int, ...] = (3,)
    z_channels: int = 16
    embed_dim: int = 16
    codebook_size: int = 512
    dropout: float = 0.0
    patch: int = 1
    temporal: bool = False
    temporal_factor: int = 4
    spatial_norm: bool = True
    normalize_codes: bool = False
    group_channels: int = 4
    dtype: str = "float32"
    param_dtype: str = "float32"

    @property
    def factor(self) -> int:
        """Image pixels per code along each side."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)


def emu3_vq(**overrides) -> VQGANConfig:
    """Emu3-VisionVQ (`Emu3VisionVQConfig` of the public code): 32,768 codes of size 4, factor 8."""
    return dataclasses.replace(
        VQGANConfig(
            in_channels=3,
            out_channels=3,
            ch=256,
            ch_mult=(1, 2, 2, 4),
            num_res_blocks=2,
            attn_levels=(3,),
            z_channels=4,
            embed_dim=4,
            codebook_size=32_768,
            temporal=True,
            temporal_factor=4,
            group_channels=1,
        ),
        **overrides,
    )


class Level(nn.Module):
    """Residual blocks of one resolution, attention after each if asked, then a change of size or None."""

    features: int
    blocks: int
    attention: bool
    resize: str | None
    dropout: float
    param_dtype: Any
    group_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, codes: jax.Array | None, train: bool) -> jax.Array:
        dtype, group = self.param_dtype, self.group_channels
        for index in range(self.blocks):
            block = vl.ResBlock(self.features, self.dropout, dtype, group, name=f"block_{index}")
            x = block(x, codes, train)
            if self.attention:
                x = vl.AttnBlock(dtype, group, name=f"attn_{index}")(x, codes)
        if self.resize == "downsample":
            x = vl.Downsample(dtype, name="downsample")(x)
        elif self.resize == "upsample":
            x = vl.Upsample(dtype, name="upsample")(x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    dropout: float
    param_dtype: Any
    group_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, codes: jax.Array | None, train: bool) -> jax.Array:
        C, dtype, group = x.shape[-1], self.param_dtype, self.group_channels
        x = vl.ResBlock(C, self.dropout, dtype, group, name="block_1")(x, codes, train)
        x = vl.AttnBlock(dtype, group, name="attn_1")(x, codes)
        return vl.ResBlock(C, self.dropout, dtype, group, name="block_2")(x, codes, train)


class Encoder(nn.Module):
    """Images `[B, H, W, C]` -> `[B, F', h, w, z_channels]` (F' = 1)."""

    cfg: VQGANConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        x = vl.Conv(cfg.ch, param_dtype=dtype, name="conv_in")(space_to_depth(x, cfg.patch))
        last = len(cfg.ch_mult) - 1
        for i, multiplier in enumerate(cfg.ch_mult):
            resize = "downsample" if i < last else None
            level = Level(
                cfg.ch * multiplier, cfg.num_res_blocks, i in cfg.attn_levels, resize, cfg.dropout, dtype,
                cfg.group_channels, name=f"down_{i}",
            )  # fmt: skip
            x = level(x, None, train)
        x = Middle(cfg.dropout, dtype, cfg.group_channels, name="mid")(x, None, train)
        x = jax.nn.silu(vl.GroupNorm(dtype, cfg.group_channels, name="norm_out")(x))
        x = vl.Conv(cfg.z_channels, param_dtype=dtype, name="conv_out")(x)
        if not cfg.temporal:
            return x[:, None]
        # The part above sees one frame at a time: run it once, then repeat its output.
        x = jnp.repeat(x[:, None], cfg.temporal_factor, axis=1)
        for i in range(cfg.temporal_factor.bit_length() - 1):
            conv = vl.CausalConv3D(cfg.z_channels, (4, 3, 3), (2, 1, 1), dtype, name=f"time_conv_{i}")
            x = jax.nn.silu(conv(x))
        for i in range(cfg.num_res_blocks):
            x = vl.TemporalResBlock(dtype, name=f"time_res_stack_{i}")(x)
        return x


class Decoder(nn.Module):
    """Latents and codes' vectors, `[B, 1, h, w, .]` each -> images `[B, H, W, C]`.

    With the temporal path, frame 0 of the video is decoded alone: the convolutions over time are causal, so
    frame 0 depends on nothing else, and doubling the frames leaves frame 0 as it was.
    """

    cfg: VQGANConfig

    @nn.compact
    def __call__(self, z: jax.Array, codes: jax.Array, train: bool) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        if cfg.temporal:  # the same layers carry the latents and the vectors that modulate the norms
            both = jnp.concatenate([z, codes], axis=0)
            for i in range(cfg.num_res_blocks):
                both = vl.TemporalResBlock(dtype, name=f"time_res_stack_{i}")(both)
            for i in range(cfg.temporal_factor.bit_length() - 1):
                conv = vl.CausalConv3D(cfg.z_channels, (3, 3, 3), param_dtype=dtype, name=f"time_conv_{i}")
                both = jax.nn.silu(conv(both))
            z, codes = jnp.split(both, 2, axis=0)
        z, codes = z[:, 0], codes[:, 0] if cfg.spatial_norm else None
        x = vl.Conv(cfg.ch * cfg.ch_mult[-1], param_dtype=dtype, name="conv_in")(z)
        x = Middle(cfg.dropout, dtype, cfg.group_channels, name="mid")(x, codes, train)
        for i, multiplier in reversed(list(enumerate(cfg.ch_mult))):
            resize = "upsample" if i > 0 else None
            level = Level(
                cfg.ch * multiplier, cfg.num_res_blocks + 1, i in cfg.attn_levels, resize, cfg.dropout, dtype,
                cfg.group_channels, name=f"up_{i}",
            )  # fmt: skip
            x = level(x, codes, train)
        extra = () if codes is None else (codes,)
        x = jax.nn.silu(vl.make_norm(codes, "norm_out", dtype, cfg.group_channels)(x, *extra))
        x = vl.Conv(cfg.out_channels * cfg.patch**2, param_dtype=dtype, name="conv_out")(x)
        return depth_to_space(x, cfg.patch)


class Quantizer(nn.Module):
    """Nearest code of each latent, with a straight-through gradient (van den Oord et al. 2017).

    z: `[..., E]` -> (vectors `[..., E]`, codes int32 `[...]`, aux): aux holds, in float32,
      codebook_loss  mean |sg(z) - e|^2, moves codes to latents (leave it out when codes follow `ema_update`)
      commit_loss    mean |z - sg(e)|^2, moves latents to codes
      counts `[Q]`   how often each code was used, sums `[Q, E]` of the latents that used it, latents
                     `[N, E]`: for moving averages and for reviving unused codes (all without gradient)
      perplexity     exp of the entropy of the code frequencies
    """

    cfg: VQGANConfig

    def setup(self):
        cfg = self.cfg
        shape = (cfg.codebook_size, cfg.embed_dim)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape, jnp.dtype(cfg.param_dtype))

    def table(self) -> jax.Array:
        """The codes' vectors, float32 `[Q, E]`, on the unit sphere with normalize_codes."""
        table = self.embedding.astype(jnp.float32)
        return unit(table) if self.cfg.normalize_codes else table

    def distance(self, z: jax.Array, codes: jax.Array) -> jax.Array:
        """Squared distance float32 `[...]` of latents `[..., E]` from codes int32 `[...]`."""
        z = z.astype(jnp.float32)
        return jnp.sum(jnp.square((unit(z) if self.cfg.normalize_codes else z) - self.table()[codes]), axis=-1)

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        table = self.table()
        z32 = z.astype(jnp.float32)
        if self.cfg.normalize_codes:
            z32 = unit(z32)
        flat = z32.reshape(-1, table.shape[1])
        codes = nearest(jax.lax.stop_gradient(flat), jax.lax.stop_gradient(table))
        vectors = table[codes]
        codebook_loss = jnp.mean(jnp.square(jax.lax.stop_gradient(flat) - vectors))
        commit_loss = jnp.mean(jnp.square(flat - jax.lax.stop_gradient(vectors)))
        straight = flat + jax.lax.stop_gradient(vectors - flat)
        latents = jax.lax.stop_gradient(flat)
        counts = jnp.zeros(table.shape[0], jnp.float32).at[codes].add(1.0)
        frequency = counts / flat.shape[0]
        aux = {
            "codebook_loss": codebook_loss,
            "commit_loss": commit_loss,
            "counts": counts,
            "sums": jnp.zeros_like(table).at[codes].add(latents),
            "latents": latents,
            "perplexity": jnp.exp(-jnp.sum(frequency * jnp.log(frequency + 1e-10))),
        }
        aux = {n: v if n.endswith("loss") else jax.lax.stop_gradient(v) for n, v in aux.items()}
        return straight.reshape(z.shape).astype(z.dtype), codes.reshape(z.shape[:-1]), aux


def unit(x: jax.Array) -> jax.Array:
    """x scaled to length 1 along the last axis."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def nearest(z: jax.Array, table: jax.Array, entries: int = 2**26) -> jax.Array:
    """Index of the closest row of table `[Q, E]` for each row of z `[N, E]` (float32) -> int32 `[N]`.

    At most `entries` distances are held at a time (4,096 latents against 32,768 codes would take 0.5 GB).
    """
    half_norms = 0.5 * jnp.sum(jnp.square(table), axis=-1)

    def closest(rows):
        return jnp.argmin(half_norms - jnp.einsum("NE,QE->NQ", rows, table), axis=-1).astype(jnp.int32)

    if z.shape[0] * table.shape[0] <= entries:
        return closest(z)
    return jax.lax.map(lambda row: closest(row[None])[0], z, batch_size=max(1, entries // table.shape[0]))


def ema_update(
    embedding: jax.Array, counts: jax.Array, sums: jax.Array, aux: Mapping[str, jax.Array], decay: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes as moving averages of the latents that use them (van den Oord et al. 2017, appendix A.1).

    embedding `[Q, E]`; counts `[Q]`, sums `[Q, E]`: the averages so far (start: ones and the embedding);
    aux of this step -> (embedding, counts, sums) after it. A code that is hardly used keeps its place.
    """
    counts = decay * counts + (1 - decay) * aux["counts"]
    sums = decay * sums + (1 - decay) * aux["sums"]
    means = sums / jnp.maximum(counts, 1e-3)[:, None]
    return jnp.where(counts[:, None] > 1e-3, means, embedding).astype(embedding.dtype), counts, sums


class VQGAN(nn.Module):
    """images -> reconstruction; `encode`, `quantize` and `decode` are its parts (apply with method=...).

    Images are float `[B, H, W, C]` in [-1, 1], sides divisible by cfg.factor. With cfg.temporal the variables
    hold "batch_stats" beside "params".
    """

    cfg: VQGANConfig

    def setup(self):
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.param_dtype)
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quantizer = Quantizer(cfg, name="quantize")
        kernel = (3, 1, 1) if cfg.temporal else (1, 1, 1)
        self.quant_conv = vl.CausalConv3D(cfg.embed_dim, kernel, param_dtype=dtype)
        self.post_quant_conv = vl.CausalConv3D(cfg.z_channels, kernel, param_dtype=dtype)

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """-> (reconstruction float32 `[B, H, W, C]`, codes int32 `[B, h, w]`, aux of `Quantizer`)."""
        vectors, codes, aux = self.quantize(self.encode(images, train))
        return self.decode(vectors, train), codes, aux

    def encode(self, images: jax.Array, train: bool = False) -> jax.Array:
        """-> latents `[B, h, w, E]` before quantisation, cfg.dtype."""
        return self.quant_conv(self.encoder(images.astype(self.cfg.dtype), train))[:, 0]

    def quantize(self, z: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """latents `[B, h, w, E]` -> (vectors `[B, h, w, E]`, codes int32 `[B, h, w]`, aux)."""
        return self.quantizer(z)

    def decode(self, vectors: jax.Array, train: bool = False) -> jax.Array:
        """code vectors `[B, h, w, E]` -> images float32 `[B, H, W, C]`, not clipped."""
        vectors = vectors.astype(self.cfg.dtype)[:, None]
        return self.decoder(self.post_quant_conv(vectors), vectors, train).astype(jnp.float32)

    def tokenize(
        self, images: jax.Array, near: jax.Array | None = None, slack: float = 0.0
    ) -> tuple[jax.Array, jax.Array]:
        """images -> (codes int32 `[B, h, w]`, squared distances of the latents from their nearest codes).

        A code of `near`, int32 `[B, h, w]`, is kept where its distance exceeds the nearest code's by at most slack.
        """
        z = self.encode(images)
        codes = self.quantizer(z)[1]
        least = self.quantizer.distance(z, codes)
        if near is not None:
            codes = jnp.where(self.quantizer.distance(z, near) <= least + slack, near, codes)
        return codes, least

    def table(self) -> jax.Array:
        """The codes' vectors, float32 `[Q, E]`."""
        return self.quantizer.table()

    def detokenize(self, codes: jax.Array) -> jax.Array:
        """codes int32 `[B, h, w]` -> images float32 `[B, H, W, C]`, clipped to [-1, 1]."""
        return jnp.clip(self.decode(self.table()[codes]), -1.0, 1.0)


def init_variables(cfg: VQGANConfig, key: jax.Array) -> Mapping[str, Any]:
    """Fresh variables: {"params"} and, with the temporal path, {"batch_stats"}."""
    side = 2 * cfg.factor
    return VQGAN(cfg).init(key, jnp.zeros((1, side, side, cfg.in_channels)))


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H / patch, W / patch, patch * patch * C]`."""
    if patch == 1:
        return x
    B, H, W, C = x.shape
    x = x.reshape(B, H // patch, patch, W // patch, patch, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H // patch, W // patch, patch * patch * C)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    if patch == 1:
        return x
    B, H, W, C = x.shape
    x = x.reshape(B, H, W, patch, patch, C // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H * patch, W * patch, C // patch**2)
