"""Configs of Diffusers' and `transformers`' components <-> our model configs.

What our models do not compute (linear projections around transformers, other block types, v-prediction, ...) is refused
rather than ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progemu_jax.convert.config_reader import Reader
from progemu_jax.errors import UserError
from progemu_jax.models import text_encoder
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.conv_layers import num_groups
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import BERT, CLIP, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig

# Keys of UNet2DConditionModel whose only value here is Stable Diffusion 1.x's; absent counts as that.
_UNET_ONLY = {
    "act_fn": ("silu", "swish"), "addition_embed_type": (None,), "attention_type": ("default",),
    "center_input_sample": (False,), "class_embed_type": (None,), "conv_in_kernel": (3,), "conv_out_kernel": (3,),
    "cross_attention_norm": (None,), "downsample_padding": (1,), "dual_cross_attention": (False,),
    "flip_sin_to_cos": (True,), "freq_shift": (0,), "mid_block_scale_factor": (1,),
    "mid_block_only_cross_attention": (None, False), "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,), "num_class_embeds": (None,), "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,), "resnet_skip_time_act": (False,), "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,), "time_cond_proj_dim": (None,), "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,), "time_embedding_type": ("positional",), "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,), "upcast_attention": (False, None), "use_linear_projection": (False,),
    "encoder_hid_dim_type": (None, "text_proj"),
}  # fmt: skip
_VAE_ONLY = {
    "act_fn": ("silu", "swish"), "latents_mean": (None,), "latents_std": (None,), "mid_block_add_attention": (True,),
    "shift_factor": (None, 0, 0.0), "use_post_quant_conv": (True,), "use_quant_conv": (True,),
}  # fmt: skip
_DOWN, _UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")


def _dtypes(dtype: str) -> dict[str, str]:
    return {"dtype": "bfloat16" if dtype == "bfloat16" else "float32", "param_dtype": dtype}


def _build(path: Path, cls: type, **fields: Any) -> Any:
    try:
        return cls(**fields)
    except ValueError as error:
        raise UserError(f"{path}: {error}; use the original config") from None


def _only(read: Reader, allowed: Mapping[str, tuple]) -> None:
    for key, values in allowed.items():
        read.only(key, values, values[0])


def unet(path: Path, values: Mapping[str, Any], dtype: str) -> UNetConfig:
    """The UNet of a config.json of UNet2DConditionModel; dtype: of its tensors."""
    read = Reader(path, values)
    _only(read, _UNET_ONLY)
    channels = read.wholes("block_out_channels", (320, 640, 1280, 1280), 1)
    kinds = values.get("down_block_types", [*_DOWN[1:] * (len(channels) - 1), _DOWN[0]])
    if not isinstance(kinds, list | tuple) or len(kinds) != len(channels) or any(k not in _DOWN for k in kinds):
        raise read.refuse("down_block_types", f"expected {len(channels)} of {' and '.join(_DOWN)}")
    attends = tuple(kind == _DOWN[1] for kind in kinds)
    wanted = [_UP[int(a)] for a in attends[::-1]]
    read.only("up_block_types", (wanted, tuple(wanted)), wanted)
    # Diffusers' misnomer: attention_head_dim is the number of heads, where num_attention_heads is not given.
    key = "attention_head_dim" if values.get("num_attention_heads") is None else "num_attention_heads"
    return _build(
        path,
        UNetConfig,
        in_channels=read.whole("in_channels", 4),
        out_channels=read.whole("out_channels", 4),
        channels=channels,
        layers=read.whole("layers_per_block", 2),
        attention=attends,
        heads=read.whole(key, 8),
        cross_attention_dim=read.whole("cross_attention_dim", 1280),
        text_dim=0 if values.get("encoder_hid_dim") is None else read.whole("encoder_hid_dim", 0),
        groups=read.whole("norm_num_groups", 32),
        dropout=read.number("dropout", 0.0),
        **_dtypes(dtype),
    )


def write_unet(cfg: UNetConfig, where: str) -> dict[str, Any]:
    """The config.json of a UNet of ours."""
    del where
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": cfg.heads,
        "block_out_channels": list(cfg.channels),
        "cross_attention_dim": cfg.cross_attention_dim,
        "down_block_types": [_DOWN[int(a)] for a in cfg.attention],
        "downsample_padding": 1,
        "dropout": cfg.dropout,
        "encoder_hid_dim": cfg.text_dim or None,
        "encoder_hid_dim_type": "text_proj" if cfg.text_dim else None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": cfg.in_channels,
        "layers_per_block": cfg.layers,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "norm_num_groups": cfg.groups,
        "out_channels": cfg.out_channels,
        "up_block_types": [_UP[int(a)] for a in cfg.attention[::-1]],
    }


def autoencoder(path: Path, values: Mapping[str, Any], dtype: str) -> AutoencoderConfig:
    """The autoencoder of a config.json of AutoencoderKL."""
    read = Reader(path, values)
    _only(read, _VAE_ONLY)
    channels = read.wholes("block_out_channels", (64,), 1)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        wanted = [kind] * len(channels)
        read.only(key, (wanted, tuple(wanted)), wanted)
    groups = read.whole("norm_num_groups", 32)
    least = next((n for n in range(1, channels[0] + 1) if all(num_groups(c, n) == groups for c in channels)), None)
    if least is None:
        raise read.refuse("norm_num_groups", f"cannot be had at {list(channels)} channels; use the original config")
    return _build(
        path,
        AutoencoderConfig,
        in_channels=read.whole("in_channels", 3),
        out_channels=read.whole("out_channels", 3),
        channels=channels,
        layers=read.whole("layers_per_block", 1),
        latent_channels=read.whole("latent_channels", 4),
        patch=1,
        scale=read.number("scaling_factor", 0.18215),
        group_channels=least,
        **_dtypes(dtype),
    )


def write_autoencoder(cfg: AutoencoderConfig, where: str) -> dict[str, Any]:
    """The config.json of an autoencoder of ours. UserError names what Diffusers' format has no place for."""
    groups = {num_groups(c, cfg.group_channels) for c in cfg.channels}
    if cfg.patch != 1 or len(groups) != 1:
        what = f"patch={cfg.patch}" if cfg.patch != 1 else f"group_channels={cfg.group_channels}"
        raise UserError(f"{where}: an autoencoder with {what} has no place in Diffusers' format; train without")
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(cfg.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(cfg.channels),
        "in_channels": cfg.in_channels,
        "latent_channels": cfg.latent_channels,
        "layers_per_block": cfg.layers,
        "norm_num_groups": groups.pop(),
        "out_channels": cfg.out_channels,
        "scaling_factor": cfg.scale,
        "up_block_types": ["UpDecoderBlock2D"] * len(cfg.channels),
    }


def text_model(path: Path, values: Mapping[str, Any], dtype: str, length: int | None = None) -> TextEncoderConfig:
    """The text encoder of a config.json of BERT or CLIP; length: tokens a text is padded to, if it is known."""
    if values.get("model_type") == CLIP and isinstance(values.get("text_config"), dict):
        values = values["text_config"]
    read, kind = Reader(path, values), BERT if values.get("model_type") == BERT else CLIP
    full = text_encoder.pubmedbert() if kind == BERT else text_encoder.clip_l(hidden_size=512, num_heads=8)
    if kind == BERT:
        read.only("position_embedding_type", ("absolute",), "absolute")
        read.only("is_decoder", (False,), False)
    longest = read.whole("max_position_embeddings", full.max_length)
    activation = values.get("hidden_act", full.activation)
    read.only("hidden_act", ("gelu", "quick_gelu"), full.activation)
    return _build(
        path,
        TextEncoderConfig,
        kind=kind,
        vocab_size=read.whole("vocab_size", full.vocab_size),
        hidden_size=read.whole("hidden_size", full.hidden_size),
        num_layers=read.whole("num_hidden_layers", full.num_layers),
        num_heads=read.whole("num_attention_heads", full.num_heads),
        intermediate_size=read.whole("intermediate_size", 3072 if kind == BERT else 2048),
        max_length=longest,
        text_length=min(longest, length or full.text_length),
        type_vocab_size=read.whole("type_vocab_size", 2),
        activation=activation,
        eps=read.number("layer_norm_eps", full.eps),
        **_dtypes(dtype),
    )


def write_text_model(cfg: TextEncoderConfig, where: str) -> dict[str, Any]:
    """The config.json of a text encoder of ours."""
    del where
    values = {
        "architectures": ["BertModel" if cfg.kind == BERT else "CLIPTextModel"],
        "model_type": BERT if cfg.kind == BERT else "clip_text_model",
        "hidden_act": cfg.activation,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "layer_norm_eps": cfg.eps,
        "max_position_embeddings": cfg.max_length,
        "num_attention_heads": cfg.num_heads,
        "num_hidden_layers": cfg.num_layers,
        "vocab_size": cfg.vocab_size,
    }
    return values | ({"type_vocab_size": cfg.type_vocab_size} if cfg.kind == BERT else {})


def schedule(path: Path, values: Mapping[str, Any]) -> Schedule:
    """The noise schedule of a scheduler_config.json, whatever solver it names: solvers are ours."""
    read = Reader(path, values)
    read.only("prediction_type", ("epsilon",), "epsilon")
    read.only("trained_betas", (None,))
    read.only("thresholding", (False,), False)
    read.only("rescale_betas_zero_snr", (False,), False)
    one = values.get("set_alpha_to_one", values.get("_class_name") == "DDIMScheduler")
    if not isinstance(one, bool):
        raise read.refuse("set_alpha_to_one", "expected true or false; use the original config")
    offset = values.get("steps_offset", 0)
    kind = values.get("beta_schedule", "linear")
    return _build(
        path,
        Schedule,
        steps=read.whole("num_train_timesteps", 1000),
        beta_start=read.number("beta_start", 0.0001),
        beta_end=read.number("beta_end", 0.02),
        kind=kind,
        offset=offset,
        last_alpha_one=one,
    )


def write_schedule(schedule: Schedule) -> dict[str, Any]:
    """The scheduler_config.json of a schedule of ours."""
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.kind,
        "beta_start": schedule.beta_start,
        "clip_sample": False,
        "num_train_timesteps": schedule.steps,
        "prediction_type": "epsilon",
        "set_alpha_to_one": schedule.last_alpha_one,
        "steps_offset": schedule.offset,
        "timestep_spacing": "leading",
    }
