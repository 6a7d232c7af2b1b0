"""LoRA parameters as an adapter folder of the `peft` library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.convert.emu3 import names as emu3_names
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.models import transformer
from progemu_jax.models.linear import LORA_A, LORA_B
from progemu_jax.models.transformer import TransformerConfig


def export_peft(params: Mapping[str, Any], model: TransformerConfig, directory: str | os.PathLike, base: str) -> None:
    """Writes LoRA's parameters as PEFT does: `adapter_config.json`, `adapter_model.safetensors`.

    For a base model of the original dialect (`Emu3ForCausalLM`, `model.layers.N...`), and of any Llama of these names.

    Args:
      params: of the whole model, or LoRA's alone. directory: made; an adapter in it is replaced.
      base: what `base_model_name_or_path` says.
    """
    if not model.lora_rank:
        raise UserError(f"{directory}: the model has no LoRA to export; train with model.lora_rank")
    if added := [name for name in transformer.ADDITIONS if getattr(model, name)]:
        base = f"{base} (with {', '.join(added)}, which no other library computes)"
    if model.scan_layers:
        params = transformer.unstack_layers(params)
    arrays = {}
    for leaf, array in flatten(params).items():
        if not leaf.endswith((LORA_A, LORA_B)):
            continue
        plain, letter = leaf[: -len(LORA_A)], leaf[-1].upper()
        array = np.asarray(array, np.float32)
        (entry,) = emu3_names.language_entries({plain: array.shape}, *emu3_names.LANGUAGE_PREFIXES["original"][0])
        name = entry.name.removesuffix(".weight")
        rank = model.lora_rank  # PEFT: A is [rank, inputs], B [outputs, rank]
        array = array.reshape(-1, rank).T if letter == "A" else array.reshape(rank, -1).T
        arrays[f"base_model.model.{name}.lora_{letter}.weight"] = np.ascontiguousarray(array)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    records.write_bytes(directory / "adapter_model.safetensors", save(arrays, {"format": "pt"}))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.lora_rank,
        "lora_alpha": model.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": list(model.lora_targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    records.write_json(directory / "adapter_config.json", config)
