"""Stage `train`: the two stages of the curriculum on token shards."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.convert import components, peft
from progemu_jax.data import batches
from progemu_jax.devices import hosts, sharding
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.models import transformer
from progemu_jax.systems.fitting import fit_curriculum, fit_on_examples, side_by_side
from progemu_jax.systems.meshes import local_mesh
from progemu_jax.systems.progemu import diagonal, refine
from progemu_jax.systems.progemu.image_tokens import leaning
from progemu_jax.systems.progemu.model_config import language_start, load_tokenizer, model_parts, resized
from progemu_jax.tasks import lora, word_vectors, words
from progemu_jax.tasks import refine as preference
from progemu_jax.tasks.embeddings import PROJECTION, code_embeddings, known_projection
from progemu_jax.tasks.progemu import ProgEmuTask, packer
from progemu_jax.tasks.refine import PreferenceTask
from progemu_jax.training.loop import TrainConfig


def train(config: Config, workdir: Path, mesh: Mesh) -> None:
    """The two stages of the curriculum; exports the language model, and LoRA's parameters by themselves."""
    vocabulary, layout, model = model_parts(config)
    shards, c = workdir / "data/shards", config.progemu
    start, coder = language_start(config), load_tokenizer(workdir)
    findings = findings_file.read(shards)
    slack = leaning(config, coder, shards)  # first: later the tokenizer may lie on a mesh, which rounds otherwise
    identity = {"model": model, "task": c.task, "layout": layout, "tune": c.tune}
    reading = c.reading if c.reading.train.steps else None
    read = {"reading": dataclasses.replace(reading, train=TrainConfig())} if reading else {}  # of what is trained later
    codebook = np.asarray(coder.variables["params"]["quantize"]["embedding"])
    known = word_vectors.load(config.vocabulary, vocabulary.text_size) if c.task.word_vectors else None
    # Of the model that is exported: LoRA merged, layers apart.
    plain = dataclasses.replace(lora.plain(model), scan_layers=False, padded_vocab_size=None)

    def first() -> Any:
        if start is not None:
            params = resized(start.variables(), model.padded_vocab_size or model.vocab_size)
            return {**params, PROJECTION: known_projection(params, known, model.initializer_range)} if known else params
        params = transformer.init_params(model, jax.random.key(c.stage1.seed))
        if not c.task.init_from_codebook:
            return params
        return code_embeddings(params, codebook, vocabulary.visual_start, c.stage1.seed)

    def merged(params: Any) -> Any:
        params = resized(lora.merge(params, model)[0], model.vocab_size)
        params.pop(PROJECTION, None)
        return transformer.unstack_layers(params) if model.scan_layers else params

    def placed(task: Any, params: Any) -> Any:
        """The first state, made where it will lie: no device holds a whole copy of a large model."""
        params = lora.based(params, model)
        params = jax.device_put(params, sharding.param_shardings(params, task.logical_axes, mesh))
        shardings = task.state_shardings(mesh, jax.eval_shape(task.from_params, params))
        return jax.jit(task.from_params, out_shardings=shardings)(params)

    def packers(how: Any, reads: Any) -> tuple:
        """Of pairs, for training and for evaluation."""
        pack = functools.partial(packer, vocabulary, layout, how, codebook, reading=reads, findings=findings)
        return pack(train=True), pack(train=False)

    def fit_words(train_config: TrainConfig) -> Any:
        length = words.row_length(c.task)
        task = dataclasses.replace(c.task, length=length, weight_prompt=0.0, weight_structure=0.0, soften=0.0)
        task = ProgEmuTask(model, task, train_config, vocabulary.visual_start, codebook, c.tune, known)
        pack = words.packer(vocabulary, layout, c.task, findings)
        learnt, held_out = words.Draws(1 << 20), words.Draws(words.HELD_OUT, held_out=True)
        state = fit_on_examples(
            task,
            train_config,
            (learnt, held_out),
            (pack, pack),
            workdir / "train/words",
            mesh,
            init_state=lambda: placed(task, first()),
            config=identity,
        )
        return task.params(state)

    def fit_stage(name: str, train_config: TrainConfig, before: Any) -> Any:
        """The stage's final parameters."""
        if name == "words":
            return fit_words(train_config)
        reads = reading if name == "reading" else None
        how = dataclasses.replace(c.task, read=reads.share, empty_prompt=0.0) if reads else c.task
        task = ProgEmuTask(model, how, train_config, vocabulary.visual_start, codebook, c.tune, known)
        pack, check = packers(how, reads)
        born = start is None and before is None and not c.task.init_from_codebook  # made where it will lie
        state = fit_on_examples(
            task,
            train_config,
            tuple(
                batches.examples(shards, "tokens", split)
                for split in ("train_single" if name == "stage1" else "train", "validation")
            ),
            (words.rehearsing(pack, vocabulary, layout, how, findings), check),
            workdir / "train" / name,
            mesh,
            show=lambda state, cases: pictures(merged(task.params(state)), cases),
            init_state=None if born else lambda: placed(task, before if before is not None else first()),
            config={**identity, **(read if reads else {})},
        )
        return task.params(state)

    def fit_refined(number: int, lists: list[dict], before: Any) -> Any:
        """The parameters after training on a round's futures, beside pairs."""
        cfg = c.refine.train
        task = PreferenceTask(
            c.refine, vocabulary, layout, model, c.task, cfg, vocabulary.visual_start, codebook, c.tune, known
        )
        pack, check = packers(c.task, reading)
        pairs, held_out = (batches.examples(shards, "tokens", split) for split in ("train", "validation"))
        state = fit_on_examples(
            task,
            cfg,
            (preference.Ranked(lists, pairs, c.refine.pairs, number), held_out),
            (preference.packer(pack, vocabulary, layout, c.refine.sharpness), check),
            workdir / f"train/refine{number}",
            mesh,
            show=lambda state, cases: pictures(merged(task.params(state)), cases),
            init_state=lambda: placed(task, before),
            # One round more goes on from these.
            config={**identity, **read, "refine": dataclasses.replace(c.refine, rounds=0)},
        )
        return task.params(state)

    def fit_diagonal(task: Any, train_config: TrainConfig, both: Any, name: str, before: Any) -> Any:
        """The parameters after a training for the diagonal order."""
        state = fit_on_examples(
            task,
            train_config,
            tuple(batches.examples(shards, "tokens", split) for split in ("train", "validation")),
            tuple(both(pack) for pack in packers(c.task, reading)),
            workdir / "train" / name,
            mesh,
            init_state=lambda: placed(task, before),
            config={**identity, **read, "text": c.diagonal.text},
        )
        return task.params(state)

    def pictures(params: Any, cases: list[dict]) -> np.ndarray:
        coder.variables = jax.device_put(coder.variables, sharding.replicated(mesh))  # where the parameters lie
        made = sampler(params).sample([Case(e["pair_id"], e["prior"], e["prompt"]) for e in cases]).images
        prior, followup = (coder.detokenize(np.stack([e[side] for e in cases])) for side in ("prior", "followup"))
        return side_by_side(prior, made, followup)

    def sampler(params: Any) -> ProgEmu:
        policy = dataclasses.replace(config.sample.policy, mode="rows")  # the head of the other is trained last
        return ProgEmu(params, plain, layout, vocabulary, coder, policy, "training")

    stages = {"words": c.words, "stage1": c.stage1, "stage2": c.stage2}
    params = fit_curriculum(stages | ({"reading": reading.train} if reading else {}), fit_stage)
    if c.refine.rounds:
        local = local_mesh(config)
        coder = load_tokenizer(workdir, painter=bool(config.decoder.train.steps))
        params = refine.rounds(config, workdir, lambda params: sampler(merged(params)).on(local), fit_refined, params)
    if c.diagonal.head.steps:
        params = {name: leaf for name, leaf in lora.merge(params, model)[0].items() if name != PROJECTION}
        params = diagonal.fit(c.diagonal, vocabulary, layout, model, c.task, fit_diagonal, params)
        plain = dataclasses.replace(plain, diagonal=True)
    before = {"words": to_dict(c.words)} if c.words.steps else {}
    before |= {"reading": to_dict(reading)} if reading else {}
    before |= {"refine": to_dict(c.refine)} if c.refine.rounds else {}
    before |= {"diagonal": to_dict(c.diagonal)} if c.diagonal.head.steps else {}
    export_config = {
        "kind": components.LANGUAGE_MODEL,
        "model": to_dict(plain),
        "layout": to_dict(layout),
        "policy": to_dict(config.sample.policy),
        "slack": slack,
        "vocabulary": config.vocabulary,
        "vocabulary_hash": vocabulary.hash,
        "hash": records.digest({**identity, **before, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    folder = workdir / components.IN_RUN[components.LANGUAGE_MODEL]
    # Always: what a later version of the package has built in may have other ids.
    beside = {components.VOCABULARY: vocabulary.save, **findings_file.beside(findings)}
    export.export(merged(params), export_config, folder, beside)
    if model.lora_rank:
        adapter, learnt = workdir / "train/adapter", export.whole(lora.split(params, model, c.tune)[0])
        hosts.on_first_host(lambda: peft.export_peft(learnt, model, adapter, c.init or str(folder)), str(adapter))
