"""What each stage of a run does. `main` strings them together through `progemu_jax.stages`.

data -> tokenizer -> tokens -> train -> scorer -> sample -> score -> evaluate
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax import checkpoint, records, vocab
from progemu_jax.config import Config, to_dict
from progemu_jax.controls import contradicting_prompt
from progemu_jax.data import batches, build, icg_cxr
from progemu_jax.data.progression import progression
from progemu_jax.data.tree import read_lines
from progemu_jax.errors import UserError
from progemu_jax.predictions import Case, Prediction, write_predictions
from progemu_jax.radtext import NO_CHANGE
from progemu_jax.train import check as check_training
from progemu_jax.train import fit

DUMMY_PRIOR = 128  # gray level of stage 1's constant prior (MedJourney, section 3.3)


def _processes(config: Config) -> int:
    return config.data.processes or os.cpu_count() or 1


def _mesh(config: Config):
    from progemu_jax.sharding import make_mesh

    return make_mesh(**dataclasses.asdict(config.mesh))


def check(config: Config) -> None:
    """Raises UserError for values that make no sense or do not go together, before any work is done."""
    sources = ("phantom", "mimic_cxr", "open_cxr")
    if config.data.source not in sources:
        raise UserError(f"config.data.source={config.data.source!r}: choose among {', '.join(sources)}")
    if config.system not in ("progemu", "diffusion"):
        raise UserError(f"config.system={config.system!r}: choose 'progemu' or 'diffusion'")
    if config.system == "diffusion":
        from progemu_jax import diffusion_stages

        diffusion_stages.check(config)
        return
    trained = {
        "tokenizer": config.tokenizer.train,
        "progemu.stage1": config.progemu.stage1,
        "progemu.stage2": config.progemu.stage2,
        "scorer": config.scorer.train,
    }
    for name, part in trained.items():
        try:
            check_training(part)
        except UserError as error:
            raise UserError(f"config.{name}: {error}") from None
    size, factor = config.data.image_size, config.tokenizer.model.factor
    if size < 32 or size % factor:
        raise UserError(
            f"config.data.image_size={size}: give 32 or more, a multiple of {factor} (the tokenizer's factor)"
        )
    _, layout, _ = model_parts(config)
    least = 2 * layout.image_tokens + layout.prompt_budget
    if layout.length <= least:
        raise UserError(
            f"config.progemu.task.length={layout.length}: two images and the prompt alone take {least} tokens; raise it"
        )


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
        truth=truth,
        processes=_processes(config),
        source_options={k: v for k in ("reports", "mimic_iv") if (v := getattr(config.data, k))} or None,
    )
    for split in ("train", "validation"):
        if not result["funnel"][f"pairs kept, {split}"]:
            raise UserError(
                f"{workdir / 'data/tree'}: no pair of the {split} split; give more patients or other shares "
                f"(config.data.journeys.validation, .test)"
            )


def tokenizer(config: Config, workdir: Path) -> None:
    """Trains the VQGAN on the images of the training split; exports it."""
    from progemu_jax.tasks.tokenizer import TokenizerTask

    c, shards = config.tokenizer, workdir / "data/shards"
    task = TokenizerTask(c.model, c.loss, c.train, config.data.image_size)
    train = batches.examples(shards, "single", "train")
    held_out = batches.examples(shards, "pairs", "validation")
    state = fit(
        task,
        c.train,
        lambda seed: batches.image_batches(shards, "single", "train", c.train.batch_size, seed, source=train),
        lambda: batches.image_batches(
            shards, "pairs", "validation", c.train.batch_size, 0, repeat=False, source=held_out
        ),
        workdir / "tokenizer",
        mesh=_mesh(config),
        config=to_dict(c),
    )
    checkpoint.export(task.inference_variables(state), {"model": to_dict(c.model)}, workdir / "tokenizer/export")


def _load_tokenizer(workdir: Path):
    from progemu_jax.model import Tokenizer

    return Tokenizer.load(workdir / "tokenizer/export")


def tokens(config: Config, workdir: Path) -> None:
    """Images -> codes: token shards of all pairs, and of the training split's single images for stage 1."""
    coder = _load_tokenizer(workdir)
    shards, size = workdir / "data/shards", config.data.image_size
    dummy = coder.tokenize(np.full((size, size), DUMMY_PRIOR, np.uint8))

    def chunks(source: Any, n: int = 256) -> Iterator[list[dict]]:
        for start in range(0, len(source), n):
            yield [source[i] for i in range(start, min(start + n, len(source)))]

    def pairs(split: str, slack: float) -> Iterator[dict]:
        for crop in range(config.tokens.crops if split == "train" else 1):
            rng = np.random.default_rng((config.seed, crop))
            for chunk in chunks(batches.examples(shards, "pairs", split)):
                # A pair moves as one: its images stay registered.
                views = [_crop(np.stack([e["prior"], e["followup"]]), rng, crop > 0) for e in chunk]
                priors, followups = (np.stack(side) for side in zip(*views, strict=True))
                prior = coder.tokenize(priors)
                followup = coder.tokenize(followups, near=prior, slack=slack)
                for e, p, f in zip(chunk, prior, followup, strict=True):
                    row = {k: e[k] for k in ("patient_id", "prompt", "interpretation")}
                    name = f"{e['pair_id']}#{crop}" if crop else e["pair_id"]
                    yield {**row, "pair_id": name, "kind": "pair", "prior": p, "followup": f}

    def singles(split: str) -> Iterator[dict]:
        for chunk in chunks(batches.examples(shards, "single", split)):
            codes = coder.tokenize(np.stack([e["image"] for e in chunk]))
            for e, f in zip(chunk, codes, strict=True):
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
    icg_cxr.write_tokens(shards, splits, height=height, width=width)


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
    """(vocabulary, layout, transformer config) of a run."""
    from progemu_jax.sequence import Layout

    vocabulary = vocab.load(config.vocabulary or None, config.tokenizer.model.codebook_size)
    side = config.data.image_size // config.tokenizer.model.factor
    task = config.progemu.task
    layout = Layout(side, side, task.length, task.prompt_budget)
    model = config.progemu.model
    if model.vocab_size not in (0, vocabulary.size):
        raise UserError(
            f"config.progemu.model.vocab_size={model.vocab_size}: the vocabulary has {vocabulary.size}; leave it 0"
        )
    return vocabulary, layout, dataclasses.replace(model, vocab_size=vocabulary.size, max_length=task.length)


def train(config: Config, workdir: Path) -> None:
    """The two stages of the curriculum; exports the language model."""
    import jax

    from progemu_jax.models import transformer
    from progemu_jax.tasks.progemu import ProgEmuTask, code_embeddings, packer

    vocabulary, layout, model = model_parts(config)
    shards, c = workdir / "data/shards", config.progemu
    identity = {"model": to_dict(model), "task": to_dict(c.task), "layout": to_dict(layout)}
    codebook = np.asarray(_load_tokenizer(workdir).variables["params"]["quantize"]["embedding"])

    def first() -> Any:
        params = transformer.init_params(model, jax.random.key(c.stage1.seed))
        if not c.task.init_from_codebook:
            return params
        return code_embeddings(params, codebook, vocabulary.visual_start, c.stage1.seed)

    def fit_stage(name: str, split: str, train_config: Any, init: Any) -> dict:
        task = ProgEmuTask(model, c.task, train_config, vocabulary.visual_start, codebook)
        source = batches.examples(shards, "tokens", split)
        held_out = batches.examples(shards, "tokens", "validation")
        transform = packer(vocabulary, layout, c.task, codebook, train=True)
        return fit(
            task,
            train_config,
            lambda seed: batches.example_batches(
                shards, "tokens", split, train_config.batch_size, seed, transform=transform, source=source
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
            mesh=_mesh(config),
            init_state=lambda: task.from_params(init["params"] if init else first()),
            config=identity,
        )

    state = fit_stage("stage1", "train_single", c.stage1, None) if c.stage1.steps else None
    state = fit_stage("stage2", "train", c.stage2, state)
    export_config = {
        "model": to_dict(model),
        "layout": to_dict(layout),
        "policy": to_dict(config.sample.policy),
        "vocabulary": config.vocabulary,
        "vocabulary_hash": vocabulary.hash,
        "hash": records.digest({**identity, "stage1": to_dict(c.stage1), "stage2": to_dict(c.stage2)}),
    }
    checkpoint.export(state["params"], export_config, workdir / "train/export")


def scorer(config: Config, workdir: Path) -> None:
    """Trains the phantom scorer on its own patients; nothing to do for real cohorts."""
    if config.data.source != "phantom":
        print(f"scorer: phantom scorers do not judge {config.data.source}; pathology metrics will be undefined")
        (workdir / "scorer").mkdir(parents=True, exist_ok=True)
        return
    from progemu_jax.tasks.scorer import ArrayBatches, ScorerTask, labelled_arrays

    c, folder = config.scorer, workdir / "scorer"
    arrays = {
        name: labelled_arrays(
            folder / f"{name}.npz",
            c.seed,
            start,
            n,
            config.data.phantom.size,
            config.data.image_size,
            _processes(config),
        )
        for name, start, n in (("train", 0, c.images), ("valid", c.images, c.valid_images))
    }
    task = ScorerTask(c.net, c.train, config.data.image_size)

    def valid() -> Iterator[dict]:
        for start in range(0, c.valid_images, c.train.batch_size):
            yield {k: v[start : start + c.train.batch_size] for k, v in arrays["valid"].items()}

    state = fit(
        task,
        c.train,
        lambda seed: ArrayBatches(arrays["train"], c.train.batch_size, seed),
        valid,
        folder,
        mesh=_mesh(config),
        config=to_dict(c.net),
    )
    checkpoint.export(state["params"], {"net": to_dict(c.net), "image_size": config.data.image_size}, folder / "export")


def sample(config: Config, workdir: Path) -> None:
    """Counterfactuals of held-out pairs, for our system and those it is compared with."""
    from progemu_jax.model import load

    c, model = config.sample, load(workdir)
    source = batches.examples(workdir / "data/shards", "tokens", c.split)
    examples = [source[i] for i in range(len(source))]
    if c.max_cases:
        examples = examples[: c.max_cases]
    if not examples:
        raise UserError(f"{workdir / 'data/shards'}: the {c.split} split holds no pair to sample")
    policy = to_dict(c.policy)
    # A derangement, so that no case keeps its own prompt by chance of the permutation.
    order = np.random.default_rng(c.seed).permutation(len(examples))
    other = {int(a): int(b) for a, b in zip(order, np.roll(order, 1), strict=True)}
    dummy = model.tokenize(np.full((config.data.image_size,) * 2, DUMMY_PRIOR, np.uint8))
    variants = {
        "progemu": lambda i, e: (e["prior"], e["prompt"]),
        "shuffled-prompts": lambda i, e: (e["prior"], examples[other[i]]["prompt"]),
        "text-only": lambda i, e: (dummy, e["prompt"]),
        "contradicting-prompts": lambda i, e: (e["prior"], contradicting[e["pair_id"]]),
        "null-prompt": lambda i, e: (e["prior"], NO_CHANGE),
    }
    contradicting = {}
    if "contradicting-prompts" in c.systems:
        for _, row in read_lines(workdir / "data/references/references.jsonl"):
            states = (row.get("states_before"), row.get("states_after"))
            contradicting[row["pair_id"]] = contradicting_prompt(*states, row["prompt"], row["pair_id"])
        lost = [e["pair_id"] for e in examples if e["pair_id"] not in contradicting]
        if lost:
            raise UserError(
                f"{workdir / 'data/references'}: does not hold {lost[0]} and {len(lost) - 1} more; "
                "contradicting-prompts needs config.sample.split=test"
            )

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
        write_predictions(
            workdir / "predictions" / name,
            cases,
            predict,
            batch_size=c.batch_size,
            seed=c.seed,
            checkpoint=model.name,
            sampling=policy,
            name=f"sample {name}",
        )
    rebuilt = {e["pair_id"]: e["followup"] for e in examples}
    write_predictions(
        workdir / "predictions/reconstruction",
        [Case(e["pair_id"], None, e["prompt"]) for e in examples],
        lambda cases: [Prediction(x, None) for x in model.detokenize(np.stack([rebuilt[k.pair_id] for k in cases]))],
        batch_size=c.batch_size,
        seed=c.seed,
        checkpoint=model.name,
        sampling={},
        name="reconstruct",
    )


def score(config: Config, workdir: Path) -> None:
    """Scores of every predictions folder and of the references' images."""
    out, source = workdir / "scores", config.data.source
    out.mkdir(parents=True, exist_ok=True)
    if source != "phantom":
        return
    from progemu_jax.scorers.cache import Cached
    from progemu_jax.scorers.files import write_prediction_scores, write_reference_scores
    from progemu_jax.scorers.phantom import PhantomScorer

    judge = Cached(PhantomScorer.load(workdir / "scorer/export"), workdir / ".cache/scores")
    for folder in sorted(p.parent for p in (workdir / "predictions").glob("*/predictions.jsonl")):
        write_prediction_scores(judge, folder, out / f"{folder.name}.npz", source)
    write_reference_scores(judge, workdir / "data/references", out, source)


def evaluate(config: Config, workdir: Path) -> None:
    """metrics.json and report/index.html."""
    from progemu_jax import eval as evaluation

    scores = workdir / "scores"

    def score_file(name: str) -> Path | None:
        path = scores / f"{name}.npz"
        return path if path.exists() else None

    names = [*config.sample.systems, "reconstruction"]
    systems = {
        name.replace("-", "_"): evaluation.System(workdir / "predictions" / name, score_file(name)) for name in names
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
