"""Stage `sample`: counterfactuals of held-out pairs, for a diffusion model and its controls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from progemu_jax.config import Config
from progemu_jax.data import batches
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case, Prediction
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.diffusion import load
from progemu_jax.systems.diffusion.conditioning import texts
from progemu_jax.systems.predict import contradictions, others, write_shared
from progemu_jax.text.findings import NO_CHANGE


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for the system and its controls, and what the autoencoder alone does."""
    c, model, name = config.sample, load(workdir), config.diffusion.name
    source = batches.examples(workdir / "data/shards", "pairs", c.split)
    examples = [source[i] for i in range(len(source))][: c.max_cases or None]
    if not examples:
        raise UserError(f"{workdir / 'data/shards'}: the {c.split} split holds no pair to sample")
    text_of = texts(config, workdir)
    prompts = {name: [text_of(e) for e in examples]}
    other = others(len(examples), c.seed)
    prompts["shuffled-prompts"] = [prompts[name][other[i]] for i in range(len(examples))]
    prompts["null-prompt"] = [NO_CHANGE] * len(examples)
    if "contradicting-prompts" in c.systems:
        contradicting = contradictions(workdir, examples)
        prompts["contradicting-prompts"] = [contradicting[e["pair_id"]] for e in examples]

    def predict(cases: list[Case]) -> list[Prediction]:
        # A short last batch is filled up, so that every case is computed at one batch shape.
        filled = cases + cases[:1] * (c.batch_size - len(cases))
        out = model.sample(filled, c.seed, config.diffusion.policy)
        return [Prediction(image, None) for image in out.images[: len(cases)]]

    common = {"batch_size": c.batch_size, "seed": c.seed, "checkpoint": model.name, "model": model.hash}
    for system in c.systems:
        cases = [
            Case(e["pair_id"], e["prior"], prompt, s)
            for e, prompt in zip(examples, prompts[system], strict=True)
            for s in range(c.num_samples if system == name else 1)
        ]
        folder, policy = workdir / "predictions" / system, to_dict(config.diffusion.policy)
        write_shared(folder, cases, predict, sampling=policy, name=f"sample {system}", **common)

    def rebuild(cases: list[Case]) -> Iterator[Prediction]:
        latents = model.codec.encode(np.stack([k.prior for k in cases]))
        return [Prediction(x, None) for x in model.codec.decode(latents * model.codec.config.scale)]

    followups = [Case(e["pair_id"], e["followup"], e["prompt"]) for e in examples]
    write_shared(workdir / "predictions/reconstruction", followups, rebuild, sampling={}, name="rebuild", **common)
