"""ProgEmu as a run sees it:

data -> tokenizer -> tokens (-> decoder) -> train -> scorer -> sample -> score -> evaluate
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from progemu_jax.config import Config
from progemu_jax.convert import folders
from progemu_jax.convert.components import IN_RUN, LANGUAGE_MODEL, PRIOR_DECODER, TOKENIZER
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.files.stages import Stage
from progemu_jax.models import transformer
from progemu_jax.systems import shared_stages
from progemu_jax.systems.interface import Slices
from progemu_jax.systems.meshes import training_mesh
from progemu_jax.systems.predict import check_systems, needed_references, recorded
from progemu_jax.systems.progemu.image_tokens import TOKENS, make_tokens, train_tokenizer
from progemu_jax.systems.progemu.model_config import model_parts, perceptual, tokenizer_model
from progemu_jax.systems.progemu.prior_decoder import train_prior_decoder
from progemu_jax.systems.progemu.refine import REWARD
from progemu_jax.systems.progemu.sample import SYSTEMS, sample
from progemu_jax.systems.progemu.train import train
from progemu_jax.tasks import lora
from progemu_jax.tasks.tokenizer import TokenizerTask
from progemu_jax.training.loop import TrainConfig


class ProgEmu:
    """See `interface.System`."""

    name = "progemu"

    def trained(self, config: Config) -> dict[str, TrainConfig]:
        painter = {"decoder.train": config.decoder.train} if config.decoder.train.steps else {}
        r, reading, d = config.progemu.refine, config.progemu.reading.train, config.progemu.diagonal
        refined = {"progemu.refine.train": r.train, "progemu.refine.scorer.train": r.scorer.train} if r.rounds else {}
        return {
            "tokenizer.train": config.tokenizer.train,
            **painter,
            **({"progemu.words": config.progemu.words} if config.progemu.words.steps else {}),
            "progemu.stage1": config.progemu.stage1,
            "progemu.stage2": config.progemu.stage2,
            **({"progemu.reading.train": reading} if reading.steps else {}),
            **refined,
            **{f"progemu.diagonal.{name}": x for name, x in (("head", d.head), ("whole", d.whole)) if x.steps},
            "scorer.train": config.scorer.train,
            **({"identity.train": config.identity.train} if config.identity.train.steps else {}),
        }

    def check(self, config: Config) -> None:
        check_systems(config, SYSTEMS)
        task, refine = config.progemu.task, config.progemu.refine
        if config.progemu.words.steps and not task.prompt_budget:
            raise UserError(
                "config.progemu.words: answers lie behind a prompt's budget; give config.progemu.task.prompt_budget"
            )
        if refine.rounds and config.data.source != "phantom":
            raise UserError(
                f"config.progemu.refine.rounds={refine.rounds}: there is no training scorer but the phantom's"
            )
        if refine.rounds and not refine.scorer.net.severity:
            raise UserError("config.progemu.refine.scorer.net.severity=False: the reward is of severities; set it")
        if refine.rounds and refine.scorer.seed == config.scorer.seed:
            raise UserError(
                f"config.progemu.refine.scorer.seed={refine.scorer.seed}: those are the evaluating scorer's patients; "
                "give another"
            )
        coder = tokenizer_model(config)
        size, factor = config.data.image_size, coder.factor
        if size < 32 or size % factor:
            raise UserError(
                f"config.data.image_size={size}: give 32 or more, a multiple of {factor} (the tokenizer's factor)"
            )
        c = config.tokenizer
        TokenizerTask(coder, c.loss, c.train, size, c.freeze, perceptual=perceptual(config))
        _, layout, model = model_parts(config)
        if config.sample.policy.diagonal and not (model.diagonal or config.progemu.diagonal.head.steps):
            raise UserError(
                "config.sample.policy.mode='diagonal': no head is trained; give config.progemu.diagonal.head.steps"
            )
        try:
            jax.eval_shape(
                lambda: lora.split(transformer.init_params(model, jax.random.key(0)), model, config.progemu.tune)
            )
        except UserError as error:
            raise UserError(f"config.progemu.{error}") from None
        least = (2 + layout.older) * layout.image_tokens + layout.prompt_budget
        if layout.length <= least:
            images = f"{2 + layout.older} images" if layout.older else "two images"
            raise UserError(
                f"config.progemu.task.length={layout.length}: {images} and the prompt alone take {least} tokens; raise "
                "it"
            )
        if (layout.older or layout.interval) and not config.tokens.time:
            raise UserError(
                "config.tokens.time=False: config.progemu.task.interval and .older need days and films in the token "
                "shards; set it"
            )
        if layout.older > config.data.journeys.history:
            raise UserError(
                f"config.progemu.task.older={layout.older}: the cohort keeps {config.data.journeys.history} films "
                f"before a prior; set config.data.journeys.history={layout.older}"
            )
        block = 9 + layout.image_tokens  # more than any mark takes
        places = layout.length + layout.prompt_budget + layout.older * block
        if layout.older and layout.prompt_budget and 0 < model.learned_positions < places:
            raise UserError(
                f"config.progemu.model.learned_positions={model.learned_positions}: rows with older films have ids up "
                f"to {places}; give that"
            )

    def check_mesh(self, config: Config, mesh: Mesh) -> None:
        if mesh.size > 1:
            model = model_parts(config)[2]
            abstract = jax.eval_shape(lambda: lora.based(transformer.init_params(model, jax.random.key(0)), model))
            sharding.param_shardings(abstract, transformer.LOGICAL_AXES, mesh)

    def stages(self, config: Config, slices: Slices) -> list[Stage]:
        trained, loss = self.trained(config), config.tokenizer.loss

        def start(kind: str, init: str) -> str:
            """Weights to start from are inputs: their content counts, not where they lie."""
            return str(folders.weights(Path(init), kind)) if init else ""

        perceptual_weights = (loss.perceptual_weights,) if loss.perceptual else ()
        painter = []
        if config.decoder.train.steps:
            painter = [
                Stage(
                    name="decoder",
                    outputs=("decoder",),
                    holds=(IN_RUN[PRIOR_DECODER],),
                    inputs=(shared_stages.PAIRS, shared_stages.SINGLE, "tokenizer"),
                    config_slice=slices.of("decoder", "tokens"),
                    run=lambda workdir: train_prior_decoder(config, workdir, training_mesh(config, trained)),
                )
            ]
        reward = []
        if config.progemu.refine.rounds:
            scorer = config.progemu.refine.scorer
            reward = [shared_stages.scorer_stage(config, slices, trained, name=REWARD, scorer=scorer)]
        return [
            shared_stages.data_stage(config, slices),
            Stage(
                name="tokenizer",
                outputs=("tokenizer",),
                holds=(IN_RUN[TOKENIZER],),
                inputs=(shared_stages.SINGLE, start(TOKENIZER, config.tokenizer.init), *perceptual_weights),
                config_slice=slices.of("tokenizer"),
                run=lambda workdir: train_tokenizer(config, workdir, training_mesh(config, trained)),
            ),
            Stage(
                name="tokens",
                outputs=(TOKENS,),
                inputs=(shared_stages.PAIRS, "tokenizer"),
                config_slice=slices.of("tokens"),
                run=partial(make_tokens, config),
            ),
            *painter,
            *reward,
            Stage(
                name="train",
                outputs=("train",),
                holds=(IN_RUN[LANGUAGE_MODEL],),
                # Refining samples and scores: it takes pixels, the decoder and the training scorer.
                inputs=(
                    TOKENS,
                    start(LANGUAGE_MODEL, config.progemu.init),
                    *((REWARD, shared_stages.PAIRS) if reward else ()),
                    *(("decoder",) if reward and painter else ()),
                ),
                config_slice=slices.of("progemu", "vocabulary"),
                run=lambda workdir: train(config, workdir, training_mesh(config, trained)),
            ),
            shared_stages.scorer_stage(config, slices, trained),
            *shared_stages.identity_stages(config, slices, trained),
            Stage(
                name="sample",
                outputs=("predictions",),
                # Painting with the prior takes its pixels.
                inputs=(
                    "train",
                    "tokenizer",
                    *needed_references(config),
                    *(("decoder", shared_stages.PAIRS) if painter else ()),
                ),
                config_slice=slices.of("sample"),
                kind=recorded(config),
                run=partial(sample, config),
            ),
            shared_stages.score_stage(config, slices),
            shared_stages.evaluate_stage(config, slices),
        ]
