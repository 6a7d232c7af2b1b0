"""Weights that a run starts from: `config.progemu.init`, `config.tokenizer.init`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.checkpoints import arrays, export
from progemu_jax.convert import folders, taming
from progemu_jax.convert.components import LANGUAGE_MODEL, TOKENIZER
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.models import transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.text.vocabulary import Vocabulary

# Fields of the run's own model config that count beside an imported one: how to compute, and what to add.
OURS = {
    LANGUAGE_MODEL: (
        "dropout", "dtype", "param_dtype", "remat", "remat_policy", "scan_layers", "attention", "attention_block",
        "lora_rank", "lora_alpha", "lora_targets", "lora_base",
    ),
    TOKENIZER: ("dropout", "dtype", "param_dtype"),
}  # fmt: skip
_ADDED = {name for names in transformer.ADDITIONS.values() for name in names}
_CONFIGS = {LANGUAGE_MODEL: TransformerConfig, TOKENIZER: VQGANConfig}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A part of a folder, opened; the weights are read by `variables`.

    Attributes:
      model: its config, with the run's own values of the fields OURS.
      vocabulary: of a language model, or None where the folder has none.
    """

    kind: str
    path: Path
    model: TransformerConfig | VQGANConfig
    vocabulary: Vocabulary | None
    part: Any = dataclasses.field(repr=False)  # a part of a foreign folder, or an export's folder

    def variables(self) -> Any:
        """All of it, NumPy arrays in `model.param_dtype` (a tokenizer's statistics in float32).

        With fresh LoRA and stacked layers where the config asks for them, and additions to Emu3 of zeros: the function
        is the imported one.
        """
        read = export.load_export(self.part)[0] if isinstance(self.part, Path) else self.part.params()
        read = jax.tree.map(np.asarray, read)
        dtype = jnp.dtype(self.model.param_dtype)
        if self.kind == TOKENIZER:
            cast = {"params": jax.tree.map(lambda x: x.astype(dtype), read["params"])}
            if read.get("batch_stats"):
                cast["batch_stats"] = jax.tree.map(lambda x: x.astype(jnp.float32), read["batch_stats"])
            return cast
        stacked = transformer.STACKED in read
        if self.model.scan_layers and not stacked:
            read = transformer.stack_layers(read)
        elif stacked and not self.model.scan_layers:
            read = transformer.unstack_layers(read)
        shapes = jax.eval_shape(lambda: transformer.init_params(self.model, jax.random.key(0)))
        flat, names = arrays.flatten(read), arrays.flatten(shapes)
        missing = {n: s for n, s in names.items() if n not in flat}
        if missing:  # LoRA's A is random, and what it would be for a fresh model
            fresh = arrays.flatten(_fresh(self.model, missing))
            flat |= {n: jnp.zeros_like(x) if n in _ADDED else x for n, x in fresh.items()}
        return arrays.unflatten({n: np.asarray(flat[n]).astype(s.dtype) for n, s in names.items()})


def _fresh(model, wanted):
    """The wanted parameters of a fresh model; XLA makes no others."""

    def init(key):
        flat = arrays.flatten(transformer.init_params(model, key))
        return {name: flat[name] for name in wanted}

    return jax.jit(init)(jax.random.key(0))


def open_folder(path: str, kind: str, own: Any) -> Imported:
    """Opens what `init` names, reading configs and headers only.

    Args:
      kind: LANGUAGE_MODEL or TOKENIZER. own: the run's config of that model.

    Raises:
      UserError: nothing of that kind there, damaged files, LoRA that was not merged.
    """
    key = {LANGUAGE_MODEL: "config.progemu.init", TOKENIZER: "config.tokenizer.init"}[kind]
    folder = Path(path)
    try:
        found = folders.detect(folder)
        if found == folders.HUGGING_FACE:
            opened = emu3_folder.open_folder(folder)
            part = opened.parts.get(kind)
            model = part and part.model
            words = opened.vocabulary() if kind == LANGUAGE_MODEL and part else None
        elif found == folders.VQGAN:
            part = taming.open_model(folder) if kind == TOKENIZER else None
            model, words = part and part.model, None
        else:
            part = folders.exports(folder).get(kind)
            config = export.read_export_config(part) if part else {}
            model = from_dict(_CONFIGS[kind], config["model"], f"{folder}: model") if part else None
            words = folders.vocabulary(part, config) if kind == LANGUAGE_MODEL and part else None
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if part is None:
        raise UserError(f"{key}={path}: holds no {kind.replace('_', ' ')}; give the folder of one")
    model = dataclasses.replace(model, **{name: getattr(own, name) for name in OURS[kind]})
    if kind == LANGUAGE_MODEL:
        added = {name: getattr(model, name) or getattr(own, name) for name in transformer.ADDITIONS}
        model = dataclasses.replace(model, **added)
    return Imported(kind, folder, model, words, part)
