"""Which tensor of a Diffusers checkpoint is which of our parameters."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

import jax

from progemu_jax.checkpoints import arrays
from progemu_jax.checkpoints.safetensors import Tensor
from progemu_jax.convert.components import Entry
from progemu_jax.models import autoencoder, text_encoder, unet
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.text_encoder import BERT, TextEncoderConfig
from progemu_jax.models.unet import UNetConfig


@dataclass(frozen=True)
class Dialect:
    """How a checkpoint's names differ from the first choice: a prefix, and older names of some layers."""

    prefix: str = ""
    old: bool = False


def dialect_of(model: Any, found: dict[str, Tensor] | None = None) -> Dialect:
    """The dialect of the tensors that were found; None: the one that is written."""
    if found is None:
        return Dialect()
    if isinstance(model, AutoencoderConfig):
        return Dialect(old=any(name.endswith("attentions.0.query.weight") for name in found))
    if isinstance(model, TextEncoderConfig):
        prefixes = ("bert.", "text.transformer.") if model.kind == BERT else ("text_model.",)
        prefix = next((p for p in prefixes if any(name.startswith(f"{p}embeddings.") for name in found)), "")
        return Dialect(prefix, old=any(name.endswith("LayerNorm.gamma") for name in found))
    return Dialect()


_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_LISTS = re.compile(
    r"\b(down_blocks|up_blocks|attentions|resnets|transformer_blocks|downsamplers|upsamplers|to_out|net|layer|layers)_(\d+)"
)


@functools.lru_cache(maxsize=16)  # tracing a model takes a second
def entries_of(model: UNetConfig | AutoencoderConfig | TextEncoderConfig, dialect: Dialect) -> tuple[Entry, ...]:
    """Every parameter of a model of ours and its tensor."""
    kinds = {UNetConfig: unet, AutoencoderConfig: autoencoder, TextEncoderConfig: text_encoder}
    tree = jax.eval_shape(lambda: kinds[type(model)].init_params(model, jax.random.key(0)))
    entries = []
    for leaf, array in arrays.flatten(tree).items():
        *parts, last = leaf.split(".")
        name = ".".join((*parts, _LAST.get(last, last)))
        layout = {2: "linear", 4: "conv"}[len(array.shape)] if last == "kernel" else "same"
        if isinstance(model, AutoencoderConfig):
            name, point = _autoencoder_name(name, len(model.channels), dialect.old)
            layout = "point" if point and last == "kernel" else layout
        else:
            name = dialect.prefix + _LISTS.sub(r"\1.\2", name)
        if dialect.old and parts[-1] == "LayerNorm":
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        entries.append(Entry(leaf, array.shape, name, layout))
    return tuple(entries)


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OLD_ATTENTION = {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}


def _autoencoder_name(name: str, levels: int, old: bool) -> tuple[str, bool]:
    """(Diffusers' name of a VQGAN name, whether it is a map of the attention block)."""
    name = name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")
    name = re.sub(r"\bdown_(\d+)\.block_(\d+)", r"down_blocks.\1.resnets.\2", name)
    name = re.sub(r"\bdown_(\d+)\.downsample\b", r"down_blocks.\1.downsamplers.0", name)
    name = re.sub(r"\bup_(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"(\bup_blocks\.\d+)\.block_(\d+)", r"\1.resnets.\2", name)
    name = re.sub(r"(\bup_blocks\.\d+)\.upsample\b", r"\1.upsamplers.0", name)
    name = re.sub(r"\bmid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}", name)
    maps = _OLD_ATTENTION if old else _VAE_ATTENTION
    renamed = re.sub(r"\bmid\.attn_1\.(\w+)\.", lambda m: f"mid_block.attentions.0.{maps[m[1]]}.", name)
    return renamed, renamed != name and "group_norm" not in renamed
