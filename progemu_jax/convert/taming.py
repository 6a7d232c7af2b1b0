"""VQGANs in the names of taming-transformers' `VQModel` (Esser et al. 2021), which TorchXRayVision's has too.

A folder of safetensors files, or one such file. Sizes follow from names and shapes, so no config is needed: one beside
the weights counts only where its `model_type` says that they are another model's. The weights of training losses
(`loss.*`) are left out. Images are scaled as there: pixels to [-1, 1], a radiograph repeated over the input's channels.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import jax

from progemu_jax.checkpoints import arrays, safetensors
from progemu_jax.checkpoints.export import ExportWriter
from progemu_jax.checkpoints.safetensors import Tensor
from progemu_jax.convert import transfer
from progemu_jax.convert.components import IN_RUN, TOKENIZER, Entry
from progemu_jax.convert.parts import CONFIG, Part, checked_tensors
from progemu_jax.errors import UserError
from progemu_jax.files.settings import to_dict
from progemu_jax.models import vqgan
from progemu_jax.models.vqgan import VQGANConfig

_SUFFIX = ".safetensors"
_LOSS = "loss."
_LEVEL = "encoder.down."
_GUMBEL = ("quantize.embed.weight", "quantize.proj.weight")
_CHANNELS = (1, 3)
_GROUPS = 32  # of every norm
_LEVELS, _BLOCKS, _NUMBERS = 12, 16, 2**31  # no VQGAN has more: refused before anything is traced or read
_REMEDY = "save the whole state dict of one VQGAN"


def is_model(path: Path) -> bool:
    """Whether a file or folder holds a VQGAN in these names, whole or not. UserError for damaged headers."""
    if path.is_dir():
        if not any((path / name).exists() for name in (safetensors.WEIGHTS, safetensors.INDEX)):
            return False
        if (path / CONFIG).exists() and "model_type" in safetensors.read_json(path / CONFIG):
            return False
    elif path.suffix != _SUFFIX:
        return False
    names = _tensors(path)
    return any(n.startswith(f"{_LEVEL}0.block.") for n in names) and not any(".norm_layer." in n for n in names)


def open_model(path: Path) -> Part:
    """Opens and checks a file or folder; the headers are read. UserError that names the tensor or file at fault."""
    found = {name: tensor for name, tensor in _tensors(path).items() if not name.startswith(_LOSS)}
    index = path / safetensors.INDEX if path.is_dir() else path
    if (numbers := sum(math.prod(tensor.shape) for tensor in found.values())) >= _NUMBERS:
        raise UserError(f"{path}: holds {numbers:,} numbers; VQGANs of fewer than {_NUMBERS:,} are read")
    model = _model(path, found)
    checked = checked_tensors(
        entries_of(model), found, index, is_buffer=lambda name: False, config="the rest of the model", remedy=_REMEDY
    )
    return Part(TOKENIZER, path, model, *checked)


def to_run(part: Part, target: Path) -> str:
    """Writes the tokenizer's export of a run directory; returns a sentence saying what."""
    with ExportWriter(target / IN_RUN[TOKENIZER]) as writer:
        content_hash = transfer.write_export(part, writer)
        writer.finish({"kind": TOKENIZER, "model": to_dict(part.model), "hash": content_hash})
    model = part.model
    return (
        f"{transfer.said_of([part])}; {model.codebook_size} codes of {model.factor} x {model.factor} pixels; "
        "from taming-transformers' names"
    )


@functools.lru_cache(maxsize=16)  # tracing a model takes a second
def entries_of(model: VQGANConfig) -> tuple[Entry, ...]:
    """Every parameter of a VQGAN and its tensor."""
    tree = jax.eval_shape(lambda: vqgan.init_variables(model, jax.random.key(0)))
    return tuple(_entry(leaf, array.shape) for leaf, array in arrays.flatten(tree).items())


_LAST = {"kernel": "weight", "scale": "weight", "bias": "bias", "embedding": "embedding.weight"}
_LISTS = re.compile(r"\b(?<!mid\.)(down|up|block|attn)_(\d+)")


def _entry(leaf: str, shape: tuple[int, ...]) -> Entry:
    *parts, last = leaf.removeprefix("params.").split(".")
    name = _LISTS.sub(r"\1.\2", ".".join((*parts, _LAST[last])))
    layout = {4: "conv", 5: "frame"}[len(shape)] if last == "kernel" else "same"
    return Entry(leaf, shape, name, layout)


def _tensors(path: Path) -> dict[str, Tensor]:
    return safetensors.open_folder(path) if path.is_dir() else safetensors.read_header(path)


def _model(path: Path, found: Mapping[str, Tensor]) -> VQGANConfig:
    """The config that names and shapes imply."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in found:
            raise UserError(f"{path}: tensor {name} is missing, which a VQGAN has; {_REMEDY}")
        if len(found[name].shape) != rank or min(found[name].shape) < 1:
            raise UserError(
                f"{found[name].file}: tensor {name} is {list(found[name].shape)}; expected {rank} sizes from 1; "
                f"{_REMEDY}"
            )
        return found[name].shape

    if any(name in found for name in _GUMBEL):
        raise UserError(f"{path}: is a GumbelVQ, whose codes a softmax draws; only a VQModel is read, of nearest codes")
    ch, in_channels, *_ = shape("encoder.conv_in.weight", 4)
    levels, blocks = _count(found, _LEVEL), _count(found, f"{_LEVEL}0.block.")
    for what, number, most in (("levels", levels, _LEVELS), ("blocks in a level", blocks, _BLOCKS)):
        if number > most:
            raise UserError(f"{path}: has {number} {what}; VQGANs of at most {most} are read")
    widths = [shape(f"{_LEVEL}{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    codebook_size, embed_dim = shape("quantize.embedding.weight", 2)
    z_channels = shape("quant_conv.weight", 4)[1]
    out_channels = shape("decoder.conv_out.weight", 4)[0]
    for name, channels in (("encoder.conv_in", in_channels), ("decoder.conv_out", out_channels)):
        if channels not in _CHANNELS:
            raise UserError(f"{path}: {name} has {channels} channels of an image; only gray (1) and RGB (3) are read")
    for width in (ch, *widths):
        if width % ch or width % _GROUPS:
            raise UserError(
                f"{path}: a width of {width}: expected multiples of {ch}, the first, that divide into {_GROUPS} "
                f"groups; {_REMEDY}"
            )
    dtype = safetensors.main_dtype(path, found)
    return VQGANConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        ch=ch,
        ch_mult=tuple(width // ch for width in widths),
        num_res_blocks=blocks,
        attn_levels=tuple(level for level in range(levels) if f"{_LEVEL}{level}.attn.0.q.weight" in found),
        z_channels=z_channels,
        embed_dim=embed_dim,
        codebook_size=codebook_size,
        spatial_norm=False,
        group_channels=1,
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        param_dtype=dtype,
    )


def _count(names: Collection[str], prefix: str) -> int:
    """How many of prefix0., prefix1., ... there are without a gap."""
    heads = {name.removeprefix(prefix).split(".", 1)[0] for name in names if name.startswith(prefix)}
    return next(number for number in itertools.count() if str(number) not in heads)
