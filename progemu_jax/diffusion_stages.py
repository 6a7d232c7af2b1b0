"""What the stages of a run do where the system is a diffusion model; the others are those of `workflow`.

data -> autoencoder -> text_encoder -> train -> scorer -> sample -> score -> evaluate
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax import checkpoint, hosts, records, text_tokens
from progemu_jax.config import Config, from_dict, to_dict
from progemu_jax.convert import diffusers
from progemu_jax.data import batches
from progemu_jax.data.progression import progression
from progemu_jax.diffusion import Codec, DiffusionModel, TextStates, load
from progemu_jax.errors import UserError
from progemu_jax.models import text_encoder, unet
from progemu_jax.models.text_encoder import BERT, TextEncoderConfig
from progemu_jax.predictions import Case, Prediction
from progemu_jax.radtext import NO_CHANGE
from progemu_jax.tasks.autoencoder import AutoencoderTask
from progemu_jax.tasks.diffusion import DiffusionTask, packer
from progemu_jax.text_tokens import WordPiece
from progemu_jax.train import fit
from progemu_jax.workflow import SHOWN, contradictions, others, share, training_mesh, write_shared

CONTROLS = ("shuffled-prompts", "contradicting-prompts", "null-prompt")


def check(config: Config) -> None:
    """Raises UserError for values that make no sense or do not go together, before any work is done."""
    c = config.diffusion
    if not c.stage1.steps and not c.stage2.steps:
        raise UserError("config.diffusion: neither stage1.steps nor stage2.steps is above 0; nothing would be trained")
    wanted = (c.name, *CONTROLS)
    for name in config.sample.systems:
        if name not in wanted:
            raise UserError(f"config.sample.systems: {name!r} is unknown; choose among {', '.join(wanted)}")
    if config.autoencoder.weights == "":
        step = c.model.factor * config.autoencoder.model.factor
        if config.data.image_size % step:
            raise UserError(f"config.data.image_size={config.data.image_size}: give a multiple of {step}")
    for name in ("autoencoder", "text_encoder", "diffusion"):
        weights = getattr(config, name).weights
        if weights and not diffusers.is_folder(Path(weights)):
            raise UserError(f"config.{name}.weights={weights}: is no Diffusers folder; name one, or leave it empty")


def stages(config: Config, part: Callable[..., dict], kept: dict[str, list], states: tuple[str, ...]) -> list[tuple]:
    """(name, outputs, inputs, slice of the config) of each stage, as `main.build_stages` has them.

    part: the slice of the config that named sections make up. kept: {name: (outputs, inputs, slice)} of the stages
    that are the same for every system. states: references that control prompts need.
    """
    shards = tuple(f"data/shards/icg_cxr/{name}" for name in ("pairs", "single"))
    models = ("autoencoder", "text_encoder")
    weights = {name: tuple(filter(None, [getattr(config, name).weights])) for name in (*models, "diffusion")}
    reports = ("data/tree",) if config.diffusion.task.prompt == "impression" else ()
    trained, asked = part("diffusion"), part("sample", "diffusion")
    # How it is sampled changes no training, and how it is trained is in the digest of what was trained.
    trained["diffusion"] = {k: v for k, v in trained["diffusion"].items() if k not in ("policy", "name")}
    asked["diffusion"] = {k: asked["diffusion"][k] for k in ("policy", "name")}
    return [
        ("data", *kept["data"]),
        *((name, (name,), (*shards, *weights[name]), part(name)) for name in models),
        ("train", ("train",), (*shards, *models, *reports, *weights["diffusion"]), trained),
        ("scorer", *kept["scorer"]),
        ("sample", ("predictions",), ("train", *models, shards[0], *states, *reports), asked),
        *((name, *kept[name]) for name in ("score", "evaluate")),
    ]


def _import(weights: str, kind: str, workdir: Path) -> None:
    """The export of one component of a Diffusers folder, in its place."""
    pipeline = diffusers.open_folder(Path(weights))
    if kind not in pipeline.parts:
        raise UserError(f"{weights}: holds no {kind.replace('_', ' ')}; name a folder that does")
    part = dataclasses.replace(pipeline, parts={kind: pipeline.parts[kind]})
    hosts.once(lambda: diffusers.to_run(part, workdir), f"import of {weights}")


def autoencoder(config: Config, workdir: Path) -> None:
    """Trains the KL autoencoder on the images of the training split, or takes the weights that the config names."""
    c, shards = config.autoencoder, workdir / "data/shards"
    if c.weights:
        return _import(c.weights, diffusers.AUTOENCODER, workdir)
    task = AutoencoderTask(c.model, c.loss, c.train)
    train = batches.examples(shards, "single", "train")
    held_out = batches.examples(shards, "pairs", "validation")
    state = fit(
        task,
        c.train,
        lambda seed: batches.image_batches(
            shards, "single", "train", c.train.batch_size, seed, source=train, **share()
        ),
        lambda: batches.image_batches(
            shards, "pairs", "validation", c.train.batch_size, 0, repeat=False, source=held_out
        ),
        workdir / "autoencoder",
        mesh=training_mesh(config),
        config=to_dict(c),
    )
    params = jax.device_get(checkpoint.whole(task.inference_params(state)))
    images = np.stack([train[i]["image"] for i in range(min(len(train), 256))])
    # Latents with a standard deviation of 1, which the noise schedule supposes (Rombach et al. 2022, appendix G).
    scale = 1 / max(Codec(params, c.model).latent_std(images), 1e-6)
    model = to_dict(dataclasses.replace(c.model, scale=scale))
    place = workdir / diffusers.IN_RUN[diffusers.AUTOENCODER]
    checkpoint.export(params, {"kind": diffusers.AUTOENCODER, "model": model}, place)


def texts(config: Config, workdir: Path) -> Callable[[dict], str]:
    """The prompt of an example of the shards `pairs` or `single`, as `config.diffusion.task.prompt` says."""
    if config.diffusion.task.prompt == "description":
        # A single's report as a change from nothing: the same short language as a pair's.
        of_report = functools.cache(lambda text: progression({}, {"findings": text}).prompt)
        return lambda e: e["prompt"] if "prompt" in e else of_report(e["text"])
    found = {}
    for path in (workdir / "data/tree").rglob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
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


def text(config: Config, workdir: Path) -> None:
    """The frozen text encoder: the weights that the config names, else a random one over the training texts' words."""
    c = config.text_encoder
    if c.weights:
        return _import(c.weights, diffusers.TEXT_ENCODER, workdir)
    if c.model.kind != BERT:
        raise UserError("config.text_encoder.model.kind='clip': needs text_encoder.weights; without, choose 'bert'")
    shards = workdir / "data/shards"
    singles, pairs = (batches.examples(shards, name, "train") for name in ("single", "pairs"))
    said = [singles[i]["text"] for i in range(len(singles))] + [pairs[i]["prompt"] for i in range(len(pairs))]
    tokenizer = WordPiece.of_texts(sorted(set(said)))
    model = dataclasses.replace(c.model, vocab_size=tokenizer.size)
    params = text_encoder.init_params(model, jax.random.key(config.seed))

    def write() -> None:
        with checkpoint.ExportWriter(workdir / diffusers.IN_RUN[diffusers.TEXT_ENCODER]) as writer:
            for name, leaf in checkpoint.flatten(params).items():
                writer.add(name, leaf)
            (writer.folder / diffusers.TOKENIZER).mkdir()
            tokenizer.save(writer.folder / diffusers.TOKENIZER)
            writer.finish({"kind": diffusers.TEXT_ENCODER, "model": to_dict(model)})

    hosts.once(write, "stage text_encoder")


def _frozen(workdir: Path) -> tuple:
    """(frozen parameters, autoencoder's config, text encoder's config, tokenizer) of a run."""
    params, configs = {}, {}
    for kind in (diffusers.AUTOENCODER, diffusers.TEXT_ENCODER):
        params[kind], config = checkpoint.load_export(workdir / diffusers.IN_RUN[kind])
        params[kind].pop(diffusers.UNUSED, None)
        params[kind] = jax.device_get(params[kind])  # placed on the mesh with the rest of the state
        configs[kind] = config["model"]
    tokenizer = text_tokens.load(workdir / diffusers.IN_RUN[diffusers.TEXT_ENCODER] / diffusers.TOKENIZER)
    if tokenizer is None:
        raise UserError(f"{workdir}: the text encoder came without a tokenizer; put vocab.txt beside its weights")
    codec = from_dict(diffusers.AutoencoderConfig, configs[diffusers.AUTOENCODER], "autoencoder")
    return params, codec, from_dict(TextEncoderConfig, configs[diffusers.TEXT_ENCODER], "text_encoder"), tokenizer


def first_params(config: Config, model: unet.UNetConfig) -> Any:
    """The UNet that training starts from: a fresh one, or the weights that the config names.

    Weights of a UNet of Z input channels become one of 2 Z whose new channels are zero; a text projection that they
    lack starts as the identity where the widths agree, else at random.
    """
    fresh = unet.init_params(model, jax.random.key(config.diffusion.stage1.seed))
    if not config.diffusion.weights:
        return fresh
    part = diffusers.open_folder(Path(config.diffusion.weights)).parts.get(diffusers.UNET)
    if part is None:
        raise UserError(f"{config.diffusion.weights}: holds no UNet; name a folder that does")
    free = ("in_channels", "text_dim", "dropout", "dtype", "param_dtype", "remat")
    want = dataclasses.replace(model, **{name: getattr(part.model, name) for name in free})
    if difference := records.first_difference(to_dict(part.model), to_dict(want)):
        key, old, new = difference
        raise UserError(f"config.diffusion.model.{key}={new!r}: {config.diffusion.weights} has {old!r}")
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(jax.device_get(leaf), model.param_dtype), part.params())
    if model.conditioned and not part.model.conditioned:
        params = unet.widen(params)
    if model.text_dim and not part.model.text_dim:
        projection = fresh["encoder_hid_proj"]
        if model.text_dim == model.cross_attention_dim:
            projection = {**projection, "kernel": jax.numpy.eye(model.text_dim, dtype=model.param_dtype)}
        params["encoder_hid_proj"] = projection
    if checkpoint.flatten(jax.tree.map(np.shape, params)) != checkpoint.flatten(jax.tree.map(np.shape, fresh)):
        raise UserError(f"{config.diffusion.weights}: its UNet is not the one of config.diffusion.model; change one")
    return params


def train(config: Config, workdir: Path) -> None:
    """The two stages of the curriculum; exports the UNet."""
    shards, c = workdir / "data/shards", config.diffusion
    frozen, codec, text_model, tokenizer = _frozen(workdir)
    text_of, length = texts(config, workdir), text_model.text_length
    null = tuple(x[0] for x in tokenizer([""], length))
    identity = {
        "model": to_dict(c.model),
        "task": to_dict(c.task),
        "codec": to_dict(codec),
        "text_encoder": to_dict(text_model),
    }

    def fit_stage(name: str, kind: str, train_config: Any, before: Any) -> Any:
        task = DiffusionTask(c.model, codec, text_model, c.task, train_config, frozen, null)
        source = batches.examples(shards, kind, "train")
        held_out = batches.examples(shards, "pairs", "validation")
        pack = [packer(c.task, tokenizer, length, text_of, on) for on in (True, False)]
        size = train_config.batch_size
        state = fit(
            task,
            train_config,
            lambda seed: batches.example_batches(
                shards, kind, "train", size, seed, transform=pack[0], source=source, **share()
            ),
            lambda: batches.example_batches(
                shards, "pairs", "validation", size, 0, transform=pack[1], repeat=False, source=held_out
            ),
            workdir / "train" / name,
            mesh=training_mesh(config),
            init_state=lambda: task.from_params(first_params(config, c.model) if before is None else before),
            config=identity,
            show=lambda state: pictures(task.inference_params(state), held_out),
        )
        return task.inference_params(state)

    def pictures(params: Any, held_out: Any) -> np.ndarray:
        """uint8 [N, S, 3 S]: prior, counterfactual and real follow-up of the first validation cases."""
        cases = [held_out[i] for i in range(min(len(held_out), SHOWN))]
        coder = Codec(frozen[diffusers.AUTOENCODER], codec)
        reader = TextStates(frozen[diffusers.TEXT_ENCODER], text_model, tokenizer)
        current = DiffusionModel(
            jax.device_get(params),
            c.model,
            coder,
            reader,
            c.task.schedule,
            c.policy,
            config.data.image_size,
            "training",
        )
        out = current.sample([Case(e["pair_id"], e["prior"], text_of(e)) for e in cases])
        sides = [np.stack([e[name] for e in cases]) for name in ("prior", "followup")]
        return np.concatenate([sides[0], out.images, sides[1]], axis=2)

    params = fit_stage("stage1", "single", c.stage1, None) if c.stage1.steps else None
    if c.stage2.steps:
        params = fit_stage("stage2", "pairs", c.stage2, params)
    export_config = {
        "kind": diffusers.UNET,
        "model": to_dict(c.model),
        "schedule": to_dict(c.task.schedule),
        "policy": to_dict(c.policy),
        "image_size": config.data.image_size,
        "prompt": c.task.prompt,
        "hash": records.digest({**identity, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    checkpoint.export(params, export_config, workdir / diffusers.IN_RUN[diffusers.UNET])


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


MAKERS = {"autoencoder": autoencoder, "text_encoder": text, "train": train, "sample": sample}
