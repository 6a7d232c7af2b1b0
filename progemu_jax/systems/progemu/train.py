"""Stage `train`: the two stages of the curriculum on token shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.convert import components, peft
from progemu_jax.data import batches
from progemu_jax.devices import hosts, sharding
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.progemu import Model
from progemu_jax.models import transformer
from progemu_jax.systems.interface import SHOWN
from progemu_jax.systems.meshes import share, training_mesh
from progemu_jax.systems.progemu.model_config import language_start, load_tokenizer, model_parts, resized
from progemu_jax.tasks import lora
from progemu_jax.tasks.progemu import ProgEmuTask, code_embeddings, packer
from progemu_jax.training.loop import fit


def train(config: Config, workdir: Path) -> None:
    """The two stages of the curriculum; exports the language model, and LoRA's parameters by themselves."""
    vocabulary, layout, model = model_parts(config)
    shards, c = workdir / "data/shards", config.progemu
    start, coder, mesh = language_start(config), load_tokenizer(workdir), training_mesh(config)
    identity = {"model": to_dict(model), "task": to_dict(c.task), "layout": to_dict(layout), "tune": to_dict(c.tune)}
    codebook = np.asarray(coder.variables["params"]["quantize"]["embedding"])
    # Of the model that is exported: LoRA merged, layers apart.
    plain = dataclasses.replace(model, lora_rank=0, scan_layers=False, padded_vocab_size=None)

    def first() -> Any:
        if start is not None:
            return resized(start.variables(), model.padded_vocab_size or model.vocab_size)
        params = transformer.init_params(model, jax.random.key(c.stage1.seed))
        return code_embeddings(params, codebook, vocabulary.visual_start, c.stage1.seed)

    def merged(params: Any) -> Any:
        params = resized(lora.merge(params, model)[0], model.vocab_size)
        return transformer.unstack_layers(params) if model.scan_layers else params

    def placed(task: Any, params: Any) -> Any:
        """The first state, made where it will lie: no device holds a whole copy of a large model."""
        params = jax.device_put(params, sharding.param_shardings(params, transformer.LOGICAL_AXES, mesh))
        shardings = task.state_shardings(mesh, jax.eval_shape(task.from_params, params))
        return jax.jit(task.from_params, out_shardings=shardings)(params)

    def fit_stage(name: str, split: str, train_config: Any, before: Any) -> Any:
        """The stage's final parameters."""
        task = ProgEmuTask(model, c.task, train_config, vocabulary.visual_start, codebook, c.tune)
        source = batches.examples(shards, "tokens", split)
        held_out = batches.examples(shards, "tokens", "validation")
        transform = packer(vocabulary, layout, c.task, codebook, train=True)
        born = start is None and before is None and not c.task.init_from_codebook  # made where it will lie
        state = fit(
            task,
            train_config,
            lambda seed: batches.example_batches(
                shards, "tokens", split, train_config.batch_size, seed, transform=transform, source=source, **share()
            ),
            lambda: batches.example_batches(
                shards,
                "tokens",
                "validation",
                train_config.batch_size,
                0,
                transform=packer(vocabulary, layout, c.task, codebook, train=False),
                repeat=False,
                source=held_out,
            ),
            workdir / "train" / name,
            mesh=mesh,
            init_state=None if born else lambda: placed(task, before if before is not None else first()),
            config=identity,
            show=lambda state: pictures(merged(task.params(state)), held_out),
        )
        return task.params(state)

    def pictures(params: Any, held_out: Any) -> np.ndarray:
        """uint8 [N, S, 3 S]: prior, counterfactual and real follow-up of the first validation cases."""
        cases = [held_out[i] for i in range(min(len(held_out), SHOWN))]
        coder.variables = jax.device_put(coder.variables, sharding.replicated(mesh))  # where the parameters lie
        current = Model(params, plain, layout, vocabulary, coder, config.sample.policy, "training")
        out = current.sample([Case(e["pair_id"], e["prior"], e["prompt"]) for e in cases])
        sides = [coder.detokenize(np.stack([e[name] for e in cases])) for name in ("prior", "followup")]
        return np.concatenate([sides[0], out.images, sides[1]], axis=2)

    params = fit_stage("stage1", "train_single", c.stage1, None) if c.stage1.steps else None
    params = fit_stage("stage2", "train", c.stage2, params)
    export_config = {
        "kind": components.LANGUAGE_MODEL,
        "model": to_dict(plain),
        "layout": to_dict(layout),
        "policy": to_dict(config.sample.policy),
        "vocabulary": config.vocabulary,
        "vocabulary_hash": vocabulary.hash,
        "hash": records.digest({**identity, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    folder = workdir / components.IN_RUN[components.LANGUAGE_MODEL]
    beside = {components.VOCABULARY: vocabulary.save} if start is not None else {}
    export.export(merged(params), export_config, folder, beside)
    if model.lora_rank:
        adapter, whole = workdir / "train/adapter", export.whole(params)
        hosts.on_first_host(lambda: peft.export_peft(whole, model, adapter, c.init or str(folder)), str(adapter))
