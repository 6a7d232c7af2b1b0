"""`config.json` of Emu3's checkpoints <-> our model configs.

A key that is absent has the value of Emu3-8B or Emu3-VisionTokenizer, as in the public code. What our models do not
compute (scaled rotary positions, another activation, biases, ...) is refused rather than ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progemu_jax.convert.config_reader import Reader
from progemu_jax.errors import UserError
from progemu_jax.models.transformer import ADDITIONS, TransformerConfig, emu3_8b
from progemu_jax.models.vqgan import VQGANConfig, emu3_vq

LANGUAGE_TYPES = ("Emu3", "emu3_text_model")
TOKENIZER_TYPES = ("Emu3VisionVQ", "emu3_vqgan")
# our field: key of the original dialect, key of transformers
_VQ_KEYS = {
    "in_channels": ("in_channels", "in_channels"),
    "out_channels": ("out_channels", "out_channels"),
    "ch": ("ch", "base_channels"),
    "ch_mult": ("ch_mult", "channel_multiplier"),
    "num_res_blocks": ("num_res_blocks", "num_res_blocks"),
    "attn_levels": ("attn_resolutions", "attn_resolutions"),
    "z_channels": ("z_channels", "latent_channels"),
    "embed_dim": ("embed_dim", "embed_dim"),
    "codebook_size": ("codebook_size", "codebook_size"),
    "temporal_factor": ("temporal_downsample_factor", "temporal_downsample_factor"),
}
_LM_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_length": "max_position_embeddings",
}
_PLAIN_ROPE = (None, "default")


def language_model(path: Path, values: Mapping[str, Any], dtype: str) -> TransformerConfig:
    """The transformer of a config (a `text_config`, in the transformers dialect); dtype: of its tensors."""
    full, read = emu3_8b(), Reader(path, values)
    read.only("hidden_act", ("silu",), "silu")
    for key in ("attention_bias", "mlp_bias"):
        read.only(key, (False,), False)
    theta = read.number("rope_theta", full.rope_theta)
    for key in ("rope_scaling", "rope_parameters"):
        rope = values.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in _PLAIN_ROPE:
            raise read.refuse(key, "only plain rotary positions (rope_type 'default') are supported")
        if not {"rope_type", "type", "rope_theta"} >= set(rope):
            raise read.refuse(key, "has keys that are not supported; only rope_type and rope_theta are")
        theta = Reader(path, rope).number("rope_theta", theta)
    sizes = {ours: read.whole(key, getattr(full, ours)) for ours, key in _LM_KEYS.items()}
    heads, hidden = sizes["num_heads"], sizes["hidden_size"]
    if values.get("head_dim") is None and hidden % heads:
        raise read.refuse("num_attention_heads", f"does not divide hidden_size={hidden}; use the original config")
    head_dim = hidden // heads if values.get("head_dim") is None else read.whole("head_dim", 0)
    if values.get("num_key_value_heads", 1) is None:
        kv_heads = heads
    else:
        kv_heads = read.whole("num_key_value_heads", full.num_kv_heads)
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise read.refuse("tie_word_embeddings", "expected true or false; use the original config")
    try:
        return TransformerConfig(
            **sizes,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rope_theta=theta,
            rms_norm_eps=read.number("rms_norm_eps", full.rms_norm_eps),
            dropout=read.number("attention_dropout", full.dropout),
            initializer_range=read.number("initializer_range", full.initializer_range),
            tie_embeddings=tied,
            dtype="bfloat16" if dtype == "bfloat16" else "float32",
            param_dtype=dtype,
            attention_block=full.attention_block,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}; use the original config") from None


def stops(path: Path, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end a text: EOS and PAD, since ProgEmu's training labels covered padding and never EOS."""
    out = []
    for key, default in (("eos_token_id", 151_850), ("pad_token_id", 151_643)):
        value = values.get(key, default)
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise UserError(f"{path}: {key}={value!r}: expected a token id; use the original config")
            out.append(token)
    return tuple(dict.fromkeys(out))


def tokenizer(path: Path, values: Mapping[str, Any], dialect: str, dtype: str) -> VQGANConfig:
    """The VQGAN of a config (a `vq_config`, in the transformers dialect)."""
    full, read = emu3_vq(), Reader(path, values)
    at = ("original", "transformers").index(dialect)
    read.only(("double_z", "double_latent")[at], (False,), False)
    fields: dict[str, Any] = {}
    for ours, keys in _VQ_KEYS.items():
        default = getattr(full, ours)
        if isinstance(default, tuple):
            fields[ours] = read.wholes(keys[at], default, least=int(ours == "ch_mult"))
        else:
            fields[ours] = read.whole(keys[at], default)
    if not fields["ch_mult"]:
        raise read.refuse(_VQ_KEYS["ch_mult"][at], "is empty; use the original config")
    frames, widest = fields["temporal_factor"], fields["ch"] * fields["ch_mult"][-1]
    if frames & (frames - 1):
        raise read.refuse("temporal_downsample_factor", "is not a power of two; use the original config")
    if any(fields["ch"] * m % 32 for m in fields["ch_mult"]):
        raise read.refuse(_VQ_KEYS["ch"][at], "widths do not divide into the 32 groups of a norm")
    if fields["embed_dim"] != fields["z_channels"]:
        raise read.refuse("embed_dim", f"differs from the latent's {fields['z_channels']} channels")
    if dialect == "transformers":
        read.only("num_attention_heads", (1,), 1)
        read.only("hidden_size", (widest,), 1024)
    return VQGANConfig(
        **fields,
        dropout=read.number("dropout", 0.0),
        temporal=True,
        group_channels=1,
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        param_dtype=dtype,
    )


def write_language_model(cfg: TransformerConfig, where: str, dialect: str, ids: Mapping[str, int]) -> dict:
    """The config of a transformer of ours. UserError names what Emu3's format has no place for.

    ids: pad, bos, eos and, for the original dialect, img, boi, eoi, eol, eof.
    """
    for name in ADDITIONS:
        if getattr(cfg, name) and name != "diagonal":  # which has a file of its own, and no word in the config
            raise UserError(f"{where}: {name} has no place in Emu3's format; train without it")
    if cfg.padded_vocab_size not in (None, cfg.vocab_size):
        raise UserError(f"{where}: padded_vocab_size={cfg.padded_vocab_size} has no place in Emu3's format")
    if cfg.head_dim * cfg.num_heads != cfg.hidden_size:
        raise UserError(f"{where}: head_dim * num_heads is not hidden_size, which Emu3's format supposes")
    values = {key: getattr(cfg, ours) for ours, key in _LM_KEYS.items()}
    values |= {
        "num_key_value_heads": cfg.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.rms_norm_eps,
        "initializer_range": cfg.initializer_range,
        "attention_dropout": cfg.dropout,
        "tie_word_embeddings": cfg.tie_embeddings,
    }
    if dialect == "original":
        kind = {"model_type": "Emu3", "rope_theta": cfg.rope_theta}
    else:
        rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
        kind = {"model_type": "emu3_text_model", "rope_parameters": rope}
    ids = {f"{name}_token_id": token for name, token in ids.items()}
    return {"architectures": ["Emu3ForCausalLM"]} | kind | values | ids


def write_tokenizer(cfg: VQGANConfig, where: str, dialect: str) -> dict:
    """The config of a VQGAN of ours. UserError names what Emu3's format has no place for."""
    fixed = {"patch": 1, "temporal": True, "spatial_norm": True, "normalize_codes": False, "group_channels": 1}
    for name, value in fixed.items():
        if getattr(cfg, name) != value:
            raise UserError(
                f"{where}: {name}={getattr(cfg, name)!r} has no place in Emu3's format, which has {value!r}; "
                "train with models.vqgan.emu3_vq(...)"
            )
    at = ("original", "transformers").index(dialect)
    values = {keys[at]: getattr(cfg, ours) for ours, keys in _VQ_KEYS.items()}
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    if dialect == "original":
        kind = {"architectures": ["Emu3VisionVQModel"], "model_type": "Emu3VisionVQ"}
        return kind | {"double_z": False, "dropout": cfg.dropout} | values
    kind = {"architectures": ["Emu3VQVAE"], "model_type": "emu3_vqgan", "double_latent": False}
    return kind | {"hidden_size": cfg.ch * cfg.ch_mult[-1], "num_attention_heads": 1} | values
