"""Stage `decoder`: what paints a follow-up from its codes and the prior's pixels, behind the run's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.convert.components import IN_RUN, PRIOR_DECODER
from progemu_jax.data import batches
from progemu_jax.files.settings import to_dict
from progemu_jax.systems.fitting import fit_on_examples
from progemu_jax.systems.progemu.image_tokens import leaning
from progemu_jax.systems.progemu.model_config import load_tokenizer
from progemu_jax.tasks.prior_decoder import PriorDecoderTask


def train_prior_decoder(config: Config, workdir: Path, mesh: Mesh) -> None:
    """Trains on the registered pairs of the training split; exports the network behind the decoder."""
    c, shards, coder = config.decoder, workdir / "data/shards", load_tokenizer(workdir)
    slack = leaning(config, coder, shards)
    task = PriorDecoderTask(c.model, c.loss, c.train, coder.config, coder.variables, slack, config.data.image_size)

    def images(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {name: example[name] for name in ("prior", "followup")}

    state = fit_on_examples(
        task,
        c.train,
        tuple(batches.examples(shards, "pairs", split) for split in ("train", "validation")),
        (images, images),
        workdir / "decoder",
        mesh,
        config={"model": c.model, "loss": c.loss, "slack": slack},
    )
    export_config = {"kind": PRIOR_DECODER, "model": to_dict(c.model)}
    export.export(task.inference_params(state), export_config, workdir / IN_RUN[PRIOR_DECODER])
