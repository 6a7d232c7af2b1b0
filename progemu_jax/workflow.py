"""What each stage of a run does. `main` strings them together through `progemu_jax.stages`.

data -> tokenizer -> tokens -> train -> scorer -> sample -> score -> evaluate
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax import checkpoint, hosts, places, records, vocab
from progemu_jax.config import Config, to_dict
from progemu_jax.controls import DUMMY_PRIOR, contradicting_prompt
from progemu_jax.convert.names import LANGUAGE_MODEL, TOKENIZER
from progemu_jax.data import batches, build, icg_cxr, memorisation
from progemu_jax.data.augment import mirrored
from progemu_jax.data.progression import progression
from progemu_jax.data.sources import PLACES, SOURCES
from progemu_jax.errors import UserError
from progemu_jax.imported import open_folder
from progemu_jax.predictions import Case, Prediction, merge_predictions, write_predictions
from progemu_jax.radtext import NO_CHANGE
from progemu_jax.train import TrainConfig, fit
from progemu_jax.train import check as check_training

SHOWN = 4  # validation cases whose pictures go to TensorBoard


def _processes(config: Config) -> int:
    return config.data.processes or os.cpu_count() or 1


def _trained(config: Config) -> dict[str, TrainConfig]:
    """Everything that is trained, by its place in the config."""
    if config.system == "diffusion":
        return {
            "autoencoder.train": config.autoencoder.train,
            "diffusion.stage1": config.diffusion.stage1,
            "diffusion.stage2": config.diffusion.stage2,
            "scorer.train": config.scorer.train,
        }
    return {
        "tokenizer.train": config.tokenizer.train,
        "progemu.stage1": config.progemu.stage1,
        "progemu.stage2": config.progemu.stage2,
        "scorer.train": config.scorer.train,
    }


def _microbatches(config: Config) -> dict[str, int]:
    return {name: part.batch_size // part.accumulate for name, part in _trained(config).items() if part.steps}


def training_mesh(config: Config):
    """The mesh of training: all devices of all hosts."""
    import jax

    from progemu_jax.sharding import make_mesh

    devices = None
    if jax.default_backend() == "cpu" and jax.process_count() == 1 and config.mesh.data == -1:
        # These devices are cores, of our own making: as many of them as divide every batch.
        others = config.mesh.fsdp * config.mesh.tensor
        parts, rows = jax.device_count() // others, math.gcd(*_microbatches(config).values())
        parts = next((n for n in range(parts, 0, -1) if rows % (n * config.mesh.fsdp) == 0), parts)
        devices = jax.devices()[: parts * others] or None
    return make_mesh(**dataclasses.asdict(config.mesh), devices=devices)


def _local_mesh(config: Config):
    """The mesh of what needs no other host (sampling, tokenising, scoring): this host's devices, cases over them."""
    import jax

    from progemu_jax.sharding import make_mesh

    return make_mesh(tensor=config.mesh.tensor, devices=jax.local_devices())


def check_mesh(config: Config) -> None:
    """Raises UserError unless the mesh exists here, and batches and parameters divide over it."""
    import jax

    from progemu_jax import sharding
    from progemu_jax.models import transformer

    mesh = training_mesh(config)
    for name, rows in _microbatches(config).items():
        sharding.check_batch(mesh, rows, f"config.{name}: batch_size / accumulate")
    _local_mesh(config)
    if mesh.size > 1 and config.system == "progemu":
        model = model_parts(config)[2]
        abstract = jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))
        sharding.param_shardings(abstract, transformer.LOGICAL_AXES, mesh)


def share() -> dict[str, int]:
    """This process's part of a stream of batches."""
    import jax

    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def _by_one_host(stage: Callable[[Config, Path], None]) -> Callable[[Config, Path], None]:
    """A stage that needs no accelerator: process 0 does it, the others wait."""

    @functools.wraps(stage)
    def once(config: Config, workdir: Path) -> None:
        hosts.once(lambda: stage(config, workdir), f"stage {stage.__name__}")

    return once


def check(config: Config) -> None:
    """Raises UserError for values that make no sense or do not go together, before any work is done."""
    import jax

    from progemu_jax import lora
    from progemu_jax.models import transformer
    from progemu_jax.optim import make_optimizer
    from progemu_jax.tasks.tokenizer import TokenizerTask

    if config.data.source not in SOURCES:
        raise UserError(f"config.data.source={config.data.source!r}: choose among {', '.join(SOURCES)}")
    if config.system not in ("progemu", "diffusion"):
        raise UserError(f"config.system={config.system!r}: choose 'progemu' or 'diffusion'")
    for name, part in _trained(config).items():
        try:
            check_training(part)
            make_optimizer(part)
        except UserError as error:
            raise UserError(f"config.{name}: {error}") from None
    if config.system == "diffusion":
        from progemu_jax import diffusion_stages

        diffusion_stages.check(config)
        return
    size, factor = config.data.image_size, tokenizer_model(config).factor
    if size < 32 or size % factor:
        raise UserError(
            f"config.data.image_size={size}: give 32 or more, a multiple of {factor} (the tokenizer's factor)"
        )
    c = config.tokenizer
    TokenizerTask(tokenizer_model(config), c.loss, c.train, size, c.freeze)
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


def tokenizer_model(config: Config) -> Any:
    """The VQGAN's config: the run's own, or that of `config.tokenizer.init`."""
    c = config.tokenizer
    return open_folder(c.init, TOKENIZER, c.model).model if c.init else c.model


@_by_one_host
def data(config: Config, workdir: Path) -> None:
    """Source layout -> ICG-CXR tree, references of the test split, shards."""
    source, root, truth = config.data.source, config.data.root, None
    if source == "phantom":
        from progemu_jax.data.sources.phantom import write_cohort

        root = write_cohort(
            workdir / "data/source",
            patients=config.data.phantom.patients,
            studies_per_patient=config.data.phantom.studies_per_patient,
            size=config.data.phantom.size,
            seed=config.seed,
            processes=_processes(config),
        )
        source, truth = "mimic_cxr", root / "truth"
    elif not root:
        raise UserError(f"config.data.root is empty; give the folder of {source}, --config.data.root=DIR")
    result = build.build(
        source,
        root,
        workdir / "data",
        size=config.data.tree_size,
        image_size=config.data.image_size,
        options=config.data.journeys,
        unchanged=config.data.no_change_share,
        text_options=config.data.texts,
        exclude=config.data.exclude or None,
        truth=truth,
        processes=_processes(config),
        source_options={k: v for k in PLACES if (v := getattr(config.data, k))} or None,
        beam=config.data.beam,
    )
    for split in ("train", "validation"):
        if not result["funnel"][f"pairs kept, {split}"]:
            raise UserError(
                f"{workdir / 'data/tree'}: no pair of the {split} split; give more patients or other shares "
                f"(config.data.journeys.validation, .test)"
            )


def tokenizer(config: Config, workdir: Path) -> None:
    """Trains the VQGAN on the images of the training split; exports it."""
    import jax

    from progemu_jax.tasks.tokenizer import TokenizerTask

    c, shards = config.tokenizer, workdir / "data/shards"
    start = open_folder(c.init, TOKENIZER, c.model) if c.init else None
    model = start.model if start else c.model
    task = TokenizerTask(model, c.loss, c.train, config.data.image_size, c.freeze, fresh=start is None)
    first = start and (lambda: task.from_variables(start.variables(), jax.random.key(c.train.seed)))
    held_out = batches.examples(shards, "pairs", "validation")
    shown = np.stack([held_out[i]["followup"] for i in range(min(len(held_out), SHOWN))])
    train = batches.examples(shards, "single", "train")
    state = fit(
        task,
        c.train,
        lambda seed: batches.image_batches(
            shards, "single", "train", c.train.batch_size, seed, source=train, **share()
        ),
        lambda: batches.image_batches(
            shards, "pairs", "validation", c.train.batch_size, 0, repeat=False, source=held_out
        ),
        workdir / "tokenizer",
        mesh=training_mesh(config),
        init_state=first,
        config=to_dict(dataclasses.replace(c, init="", model=model)),  # where the start lies does not count
        show=lambda state: task.pictures(state, {"image": shown}),
    )
    checkpoint.export(task.inference_variables(state), {"model": to_dict(model)}, workdir / "tokenizer/export")


def _load_tokenizer(workdir: Path):
    from progemu_jax.image_tokenizer import Tokenizer

    return Tokenizer.load(workdir / "tokenizer/export")


def tokens(config: Config, workdir: Path) -> None:
    """Images -> codes: token shards of all pairs, and of the training split's single images for stage 1."""
    coder = _load_tokenizer(workdir).on(_local_mesh(config))
    shards, size = workdir / "data/shards", config.data.image_size
    shared = _SharedCodes(workdir / ".cache/tokens")
    dummy = coder.tokenize(np.full((size, size), DUMMY_PRIOR, np.uint8))

    def chunks(source: Any, n: int = 256) -> Iterator[list[dict]]:
        for start in range(0, len(source), n):
            yield [source[i] for i in range(start, min(start + n, len(source)))]

    def pairs(split: str, slack: float) -> Iterator[dict]:
        crops = config.tokens.crops if split == "train" else 1
        for crop, flip in ((c, f) for f in range(1 + (config.tokens.flip and split == "train")) for c in range(crops)):
            rng = np.random.default_rng((config.seed, crop))
            for number, chunk in enumerate(chunks(batches.examples(shards, "pairs", split))):
                chunk = [mirrored(e) for e in chunk] if flip else chunk
                # A pair moves as one: its images stay registered.
                views = [_crop(np.stack([e["prior"], e["followup"]]), rng, crop > 0) for e in chunk]
                priors, followups = (np.stack(side) for side in zip(*views, strict=True))

                def codes(priors: np.ndarray = priors, followups: np.ndarray = followups) -> tuple:
                    prior = coder.tokenize(priors)
                    return prior, coder.tokenize(followups, near=prior, slack=slack)

                found = shared(f"{split}-{crop}-{flip:d}-{number}", codes)
                if found is None:
                    continue
                prior, followup = found
                for e, p, f in zip(chunk, prior, followup, strict=True):
                    row = {k: e[k] for k in ("patient_id", "prompt", "interpretation")}
                    name = f"{e['pair_id']}#{crop}" if crop else e["pair_id"]
                    name = f"{name}#mirrored" if flip else name
                    yield {**row, "pair_id": name, "kind": "pair", "prior": p, "followup": f}

    def singles(split: str) -> Iterator[dict]:
        for number, chunk in enumerate(chunks(batches.examples(shards, "single", split))):
            images = np.stack([e["image"] for e in chunk])
            found = shared(f"{split}-single-{number}", lambda images=images: (coder.tokenize(images),))
            if found is None:
                continue
            for e, f in zip(chunk, found[0], strict=True):
                # The report as a change from nothing: the same short language as a pair's.
                text = progression({}, {"findings": e["text"]})
                row = {"pair_id": e["image_id"], "patient_id": e["patient_id"], "kind": "single"}
                yield {
                    **row,
                    "prompt": text.prompt,
                    "interpretation": text.interpretation,
                    "prior": dummy,
                    "followup": f,
                }

    slack = config.tokens.slack
    if slack:
        sample = batches.examples(shards, "single", "train")
        slack *= coder.error(np.stack([sample[i]["image"] for i in range(min(len(sample), 512))]))
    # The test split's follow-ups are what the tokenizer alone makes of them: the ceiling of every system.
    splits = {s: (lambda s=s: pairs(s, 0.0 if s == "test" else slack)) for s in ("train", "validation", "test")}
    splits["train_single"] = lambda: singles("train")
    height, width = dummy.shape
    shared.fill(splits.values())
    hosts.once(lambda: icg_cxr.write_tokens(shards, splits, height=height, width=width), "stage tokens")
    shared.close()


class _SharedCodes:
    """Codes that several hosts compute: each its share of the chunks, into a folder that all of them see.

    shared(name, compute) -> tuple of arrays; with one process it is compute(). While `fill` runs it is None.
    """

    def __init__(self, folder: Path):
        import jax

        self.folder, self.turns, self.filling = folder, itertools.count(), False
        self.count, self.index = jax.process_count(), jax.process_index()

    def __call__(self, name: str, compute: Callable[[], tuple]) -> tuple | None:
        if self.count == 1:
            return compute()
        path = self.folder / f"{name}.npz"
        if self.filling:
            if next(self.turns) % self.count == self.index and not path.exists():
                records.write_npz(path, {str(i): array for i, array in enumerate(compute())})
            return None
        with np.load(path) as file:
            return tuple(file[key] for key in sorted(file))

    def fill(self, generators: Any) -> None:
        """Runs through all of them, so that every chunk has been computed by one of the hosts."""
        if self.count > 1:
            self.filling = True
            for generator in generators:
                for _ in generator():
                    pass
            self.filling = False
            hosts.barrier()

    def close(self) -> None:
        """Removes the folder."""
        hosts.once(lambda: shutil.rmtree(self.folder, ignore_errors=True), str(self.folder))


def _crop(images: np.ndarray, rng: np.random.Generator, on: bool) -> np.ndarray:
    """uint8 [N, S, S] moved together by up to a sixteenth of the side, edges repeated; as they are when not `on`."""
    if not on:
        return images
    size = images.shape[-1]
    reach = max(1, size // 16)
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    y, x = rng.integers(0, 2 * reach + 1, 2)
    return padded[:, y : y + size, x : x + size]


def model_parts(config: Config) -> tuple:
    """(vocabulary, layout, transformer config) of a run; those of `config.progemu.init` where it is set."""
    from progemu_jax.sequence import Layout

    coder, task, model = tokenizer_model(config), config.progemu.task, config.progemu.model
    start = language_start(config)
    side = config.data.image_size // coder.factor
    layout = Layout(side, side, task.length, task.prompt_budget)
    if start is None:
        vocabulary = vocab.load(config.vocabulary or None, coder.codebook_size)
        if model.vocab_size not in (0, vocabulary.size):
            raise UserError(
                f"config.progemu.model.vocab_size={model.vocab_size}: the vocabulary has {vocabulary.size}; leave it 0"
            )
        model = dataclasses.replace(model, vocab_size=vocabulary.size, max_length=task.length)
        return vocabulary, layout, _padded(model, config.mesh.tensor)
    where, model = f"config.progemu.init={config.progemu.init}", start.model
    vocabulary = vocab.load(config.vocabulary) if config.vocabulary else start.vocabulary
    if vocabulary is None:
        raise UserError(f"{where}: has no text tokenizer; put {vocab.TEXT_FILE} and {vocab.VISION_FILE} beside it")
    if vocabulary.size > model.vocab_size:
        raise UserError(f"{where}: the model has {model.vocab_size} ids, the vocabulary {vocabulary.size}; use its own")
    if vocabulary.codebook_size != coder.codebook_size:
        raise UserError(
            f"{where}: its vocabulary has {vocabulary.codebook_size} visual tokens, the image tokenizer "
            f"{coder.codebook_size} codes; set config.tokenizer.init to the tokenizer that belongs to it"
        )
    if task.length > model.max_length:
        raise UserError(
            f"config.progemu.task.length={task.length}: the model of {where} was made for {model.max_length}; lower it"
        )
    if task.init_from_codebook:
        raise UserError(f"{where}: its embeddings are trained; set config.progemu.task.init_from_codebook=False")
    return vocabulary, layout, _padded(model, config.mesh.tensor)


def _padded(model: Any, parts: int) -> Any:
    """The model with vocabulary tables that divide over the tensor axis; the padding is in no export."""
    if model.padded_vocab_size is None and model.vocab_size % parts:
        return dataclasses.replace(model, padded_vocab_size=-(-model.vocab_size // parts) * parts)
    return model


def _resized(params: Any, rows: int) -> Any:
    """Both vocabulary tables with so many rows: cut, or filled up with zeros."""

    def fit_rows(table: Any) -> Any:
        import jax.numpy as jnp

        return jnp.pad(table[:rows], ((0, max(rows - len(table), 0)), (0, 0)))

    return {k: fit_rows(v) if k in ("embed_tokens", "lm_head") else v for k, v in params.items()}


def language_start(config: Config) -> Any:
    """`imported.Imported` of `config.progemu.init`, or None."""
    c = config.progemu
    return open_folder(c.init, LANGUAGE_MODEL, c.model) if c.init else None


def train(config: Config, workdir: Path) -> None:
    """The two stages of the curriculum; exports the language model, and LoRA's parameters by themselves."""
    import jax

    from progemu_jax import lora, sharding
    from progemu_jax.models import transformer
    from progemu_jax.tasks.progemu import ProgEmuTask, code_embeddings, packer

    vocabulary, layout, model = model_parts(config)
    shards, c = workdir / "data/shards", config.progemu
    start, coder, mesh = language_start(config), _load_tokenizer(workdir), training_mesh(config)
    identity = {"model": to_dict(model), "task": to_dict(c.task), "layout": to_dict(layout), "tune": to_dict(c.tune)}
    codebook = np.asarray(coder.variables["params"]["quantize"]["embedding"])
    # Of the model that is exported: LoRA merged, layers apart.
    plain = dataclasses.replace(model, lora_rank=0, scan_layers=False, padded_vocab_size=None)

    def first() -> Any:
        if start is not None:
            return _resized(start.variables(), model.padded_vocab_size or model.vocab_size)
        params = transformer.init_params(model, jax.random.key(c.stage1.seed))
        return code_embeddings(params, codebook, vocabulary.visual_start, c.stage1.seed)

    def merged(params: Any) -> Any:
        params = _resized(lora.merge(params, model)[0], model.vocab_size)
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
        from progemu_jax.model import Model

        cases = [held_out[i] for i in range(min(len(held_out), SHOWN))]
        coder.variables = jax.device_put(coder.variables, sharding.replicated(mesh))  # where the parameters lie
        current = Model(params, plain, layout, vocabulary, coder, config.sample.policy, "training")
        out = current.sample([Case(e["pair_id"], e["prior"], e["prompt"]) for e in cases])
        sides = [coder.detokenize(np.stack([e[name] for e in cases])) for name in ("prior", "followup")]
        return np.concatenate([sides[0], out.images, sides[1]], axis=2)

    params = fit_stage("stage1", "train_single", c.stage1, None) if c.stage1.steps else None
    params = fit_stage("stage2", "train", c.stage2, params)
    export_config = {
        "model": to_dict(plain),
        "layout": to_dict(layout),
        "policy": to_dict(config.sample.policy),
        "vocabulary": config.vocabulary,
        "vocabulary_hash": vocabulary.hash,
        "hash": records.digest({**identity, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    folder = workdir / "train/export"
    beside = {places.VOCABULARY: vocabulary.save} if start is not None else {}
    checkpoint.export(merged(params), export_config, folder, beside)
    if model.lora_rank:
        adapter, whole = workdir / "train/adapter", checkpoint.whole(params)
        hosts.once(lambda: lora.export_peft(whole, model, adapter, c.init or str(folder)), str(adapter))


def scorer(config: Config, workdir: Path) -> None:
    """Trains the phantom scorer on its own patients; nothing to do for real cohorts."""
    if config.data.source != "phantom":
        print(f"scorer: phantom scorers do not judge {config.data.source}; pathology metrics will be undefined")
        (workdir / "scorer").mkdir(parents=True, exist_ok=True)
        return
    from progemu_jax.tasks.scorer import ArrayBatches, ScorerTask, labelled_arrays

    c, folder = config.scorer, workdir / "scorer"

    def labelled() -> dict[str, dict]:
        sizes = (config.data.phantom.size, config.data.image_size, _processes(config))
        parts = (("train", 0, c.images), ("valid", c.images, c.valid_images))
        return {name: labelled_arrays(folder / f"{name}.npz", c.seed, start, n, *sizes) for name, start, n in parts}

    hosts.once(labelled, "stage scorer")  # they lie in files then
    arrays = labelled()
    task = ScorerTask(c.net, c.train, config.data.image_size)

    def valid() -> Iterator[dict]:
        for start in range(0, c.valid_images, c.train.batch_size):
            yield {k: v[start : start + c.train.batch_size] for k, v in arrays["valid"].items()}

    state = fit(
        task,
        c.train,
        lambda seed: ArrayBatches(arrays["train"], c.train.batch_size, seed, **share()),
        valid,
        folder,
        mesh=training_mesh(config),
        config=to_dict(c.net),
    )
    checkpoint.export(state["params"], {"net": to_dict(c.net), "image_size": config.data.image_size}, folder / "export")


def others(count: int, seed: int) -> dict[int, int]:
    """For each case another one: a derangement, so that none keeps its own prompt by chance of the permutation."""
    order = np.random.default_rng(seed).permutation(count)
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


def contradictions(workdir: Path, examples: list[dict]) -> dict[str, str]:
    """pair_id -> prompt that contradicts the real course. Raises UserError for a pair that has no reference."""
    prompts = {}
    for _, row in records.read_lines(workdir / "data/references/references.jsonl"):
        states = (row.get("states_before"), row.get("states_after"))
        prompts[row["pair_id"]] = contradicting_prompt(*states, row["prompt"], row["pair_id"])
    lost = [e["pair_id"] for e in examples if e["pair_id"] not in prompts]
    if lost:
        raise UserError(
            f"{workdir / 'data/references'}: does not hold {lost[0]} and {len(lost) - 1} more; "
            "contradicting-prompts needs config.sample.split=test"
        )
    return prompts


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for our system and those it is compared with."""
    from progemu_jax.model import load

    c, model = config.sample, load(workdir).on(_local_mesh(config))
    source = batches.examples(workdir / "data/shards", "tokens", c.split)
    examples = [source[i] for i in range(len(source))]
    if c.max_cases:
        examples = examples[: c.max_cases]
    if not examples:
        raise UserError(f"{workdir / 'data/shards'}: the {c.split} split holds no pair to sample")
    policy = to_dict(c.policy)
    other = others(len(examples), c.seed)
    dummy = model.tokenize(np.full((config.data.image_size,) * 2, DUMMY_PRIOR, np.uint8))
    variants = {
        "progemu": lambda i, e: (e["prior"], e["prompt"]),
        "shuffled-prompts": lambda i, e: (e["prior"], examples[other[i]]["prompt"]),
        "text-only": lambda i, e: (dummy, e["prompt"]),
        "contradicting-prompts": lambda i, e: (e["prior"], contradicting[e["pair_id"]]),
        "null-prompt": lambda i, e: (e["prior"], NO_CHANGE),
    }
    contradicting = contradictions(workdir, examples) if "contradicting-prompts" in c.systems else {}

    def predict(cases: list[Case]) -> list[Prediction]:
        # A short last batch is filled up, so that every case is computed at one batch shape.
        filled = cases + cases[:1] * (c.batch_size - len(cases))
        out = model.sample(filled, c.seed, c.policy)
        return [Prediction(image, text) for image, text in zip(out.images, out.texts, strict=True)][: len(cases)]

    for name in c.systems:
        if name not in variants:
            raise UserError(f"config.sample.systems: {name!r} is unknown; choose among {', '.join(variants)}")
        chosen = [variants[name](i, e) for i, e in enumerate(examples)]
        samples = c.num_samples if name == "progemu" else 1
        cases = [
            Case(e["pair_id"], prior, prompt, s)
            for e, (prior, prompt) in zip(examples, chosen, strict=True)
            for s in range(samples)
        ]
        write_shared(
            workdir / "predictions" / name,
            cases,
            predict,
            batch_size=c.batch_size,
            seed=c.seed,
            checkpoint=model.name,
            model=model.hash,
            sampling=policy,
            check=model.check,
            name=f"sample {name}",
        )
    rebuilt = {e["pair_id"]: e["followup"] for e in examples}
    write_shared(
        workdir / "predictions/reconstruction",
        [Case(e["pair_id"], None, e["prompt"]) for e in examples],
        lambda cases: [Prediction(x, None) for x in model.detokenize(np.stack([rebuilt[k.pair_id] for k in cases]))],
        batch_size=c.batch_size,
        seed=c.seed,
        checkpoint=model.name,
        model=model.hash,
        sampling={},
        name="reconstruct",
    )


def write_shared(folder: Path, cases: list[Case], predict: Callable, *, batch_size: int, **options: Any) -> None:
    """`write_predictions`; with several hosts each writes a shard of whole batches, and process 0 merges them."""
    import jax

    count = jax.process_count()
    if count == 1:
        write_predictions(folder, cases, predict, batch_size=batch_size, **options)
        return
    if hosts.told(int((folder / "predictions.jsonl").exists())):
        return
    parts = folder.parent / ".parts" / folder.name
    own = hosts.mine([cases[i : i + batch_size] for i in range(0, len(cases), batch_size)])
    own = list(itertools.chain(*own))
    write_predictions(parts / f"{jax.process_index()}-of-{count}", own, predict, batch_size=batch_size, **options)
    hosts.barrier()
    hosts.once(lambda: merge_predictions(sorted(parts.glob(f"*-of-{count}")), folder, cases), "stage sample")


def score(config: Config, workdir: Path) -> None:
    """Scores of every predictions folder and of the references' images; the audit for copies of training images."""
    out, source = workdir / "scores", config.data.source
    out.mkdir(parents=True, exist_ok=True)
    name = config.sample.systems[0]

    def audit() -> None:
        folders = (workdir / "data/shards", workdir / "predictions" / name, workdir / "data/references")
        found = memorisation.audit(*folders, processes=_processes(config), progress=True)
        records.write_json(out / f"{name}.memorisation.json", found)

    hosts.once(audit, "stage score")
    if source != "phantom":
        return
    from progemu_jax.scorers.cache import Cached
    from progemu_jax.scorers.files import write_prediction_scores, write_reference_scores
    from progemu_jax.scorers.phantom import PhantomScorer

    judge = Cached(PhantomScorer.load(workdir / "scorer/export"), workdir / ".cache/scores")
    folders = sorted(p.parent for p in (workdir / "predictions").glob("*/predictions.jsonl"))
    for folder in hosts.mine(folders):  # each host fills the cache, process 0 writes the files from it
        write_prediction_scores(judge, folder, out / f".{folder.name}.npz.tmp", source)
    hosts.barrier()

    def write() -> None:
        for folder in folders:
            write_prediction_scores(judge, folder, out / f"{folder.name}.npz", source)
        write_reference_scores(judge, workdir / "data/references", out, source)

    hosts.once(write, "stage score")


@_by_one_host
def evaluate(config: Config, workdir: Path) -> None:
    """metrics.json and report/index.html."""
    from progemu_jax import eval as evaluation

    scores = workdir / "scores"

    def score_file(name: str, kind: str = "npz") -> Path | None:
        path = scores / f"{name}.{kind}"
        return path if path.exists() else None

    names = [*config.sample.systems, "reconstruction"]
    systems = {
        name.replace("-", "_"): evaluation.System(
            workdir / "predictions" / name, score_file(name), memorisation=score_file(name, "memorisation.json")
        )
        for name in names
    }
    kinds = ("prior", "followup", "counterfactual", "mean", "reconstruction")
    reference_scores = {n: p for n in kinds if (p := score_file(n))}
    result = evaluation.evaluate(
        systems,
        workdir / "data/references",
        reference_scores,
        workdir,
        bootstrap=config.evaluate.bootstrap,
        seed=config.evaluate.seed,
        title=config.name,
        caveats=config.evaluate.caveats,
        cases_shown=config.evaluate.cases,
    )
    del result
    print(f"report: {workdir / 'report/index.html'}")
