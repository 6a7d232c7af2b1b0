"""What a diffusion model is conditioned on: the prompt of an example, and the frozen parts of a run."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.convert import components
from progemu_jax.data.progression import progression
from progemu_jax.errors import UserError
from progemu_jax.files.records import read_text
from progemu_jax.files.settings import from_dict
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.text_encoder import TextEncoderConfig
from progemu_jax.text import text_tokenizers


def prompt_reader(config: Config, workdir: Path) -> Callable[[dict], str]:
    """The prompt of an example of the shards `pairs` or `single`, as `config.diffusion.task.prompt` says."""
    if config.diffusion.task.prompt == "description":
        # A single's report as a change from nothing: the same short language as a pair's.
        of_report = functools.cache(lambda text: progression({}, {"findings": text}).prompt)
        return lambda e: e["prompt"] if "prompt" in e else of_report(e["text"])
    found = {}
    for path in (workdir / "data/tree").rglob("*.json"):
        values = json.loads(read_text(path))
        if isinstance(values, dict) and "progression-description" in values:
            report = values.get("followup-report") or {}
            pair = (values.get("progemu") or {}).get("pair_id", path.stem)
            found[pair] = report.get("impression") or report.get("findings") or ""

    def impression(example: dict) -> str:
        if "pair_id" not in example:
            return example["text"]
        if example["pair_id"] not in found:
            raise UserError(f"{workdir / 'data/tree'}: has no report of {example['pair_id']}; build the data again")
        return found[example["pair_id"]]

    return impression


def frozen_parts(workdir: Path) -> tuple:
    """(frozen parameters, autoencoder's config, text encoder's config, tokenizer) of a run."""
    params, configs = {}, {}
    for kind in (components.AUTOENCODER, components.TEXT_ENCODER):
        params[kind], config = export.load_export(workdir / components.IN_RUN[kind])
        params[kind].pop(components.UNUSED, None)
        params[kind] = jax.device_get(params[kind])  # placed on the mesh with the rest of the state
        configs[kind] = config["model"]
    tokenizer = text_tokenizers.load(workdir / components.IN_RUN[components.TEXT_ENCODER] / components.TEXT_TOKENIZER)
    if tokenizer is None:
        raise UserError(f"{workdir}: the text encoder came without a tokenizer; put vocab.txt beside its weights")
    codec = from_dict(AutoencoderConfig, configs[components.AUTOENCODER], "autoencoder")
    return params, codec, from_dict(TextEncoderConfig, configs[components.TEXT_ENCODER], "text_encoder"), tokenizer
