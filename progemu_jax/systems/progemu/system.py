"""ProgEmu as a run sees it."""

from __future__ import annotations

import jax

from progemu_jax.config import Config
from progemu_jax.data.sources import SOURCES
from progemu_jax.errors import UserError
from progemu_jax.models import transformer
from progemu_jax.systems.diffusion import system
from progemu_jax.systems.interface import trained
from progemu_jax.systems.progemu.model_config import model_parts, perceptual, tokenizer_model
from progemu_jax.tasks import lora
from progemu_jax.tasks.tokenizer import TokenizerTask
from progemu_jax.training.loop import check as check_training
from progemu_jax.training.optim import make_optimizer


def check(config: Config) -> None:
    """Raises UserError for values that make no sense or do not go together, before any work is done."""
    if config.data.source not in SOURCES:
        raise UserError(f"config.data.source={config.data.source!r}: choose among {', '.join(SOURCES)}")
    if config.system not in ("progemu", "diffusion"):
        raise UserError(f"config.system={config.system!r}: choose 'progemu' or 'diffusion'")
    for name, part in trained(config).items():
        try:
            check_training(part)
            make_optimizer(part)
        except UserError as error:
            raise UserError(f"config.{name}: {error}") from None
    if config.system == "diffusion":
        system.check(config)
        return
    size, factor = config.data.image_size, tokenizer_model(config).factor
    if size < 32 or size % factor:
        raise UserError(
            f"config.data.image_size={size}: give 32 or more, a multiple of {factor} (the tokenizer's factor)"
        )
    c = config.tokenizer
    TokenizerTask(tokenizer_model(config), c.loss, c.train, size, c.freeze, perceptual=perceptual(config))
    _, layout, model = model_parts(config)
    try:
        jax.eval_shape(
            lambda: lora.split(transformer.init_params(model, jax.random.key(0)), model, config.progemu.tune)
        )
    except UserError as error:
        raise UserError(f"config.progemu.{error}") from None
    least = 2 * layout.image_tokens + layout.prompt_budget
    if layout.length <= least:
        raise UserError(
            f"config.progemu.task.length={layout.length}: two images and the prompt alone take {least} tokens; raise it"
        )
