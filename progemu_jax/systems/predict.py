"""Stage `sample`: predictions folders of a run, for its system, for controls, and for what codes alone allow."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from progemu_jax.config import Config, SampleConfig
from progemu_jax.data import batches
from progemu_jax.data.answers import Answers
from progemu_jax.devices import hosts
from progemu_jax.errors import UserError
from progemu_jax.files import findings as findings_file
from progemu_jax.files import records, stages
from progemu_jax.files.predictions import Case, Predict, Prediction, merge_predictions, write_predictions
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.counterfactual import CounterfactualModel
from progemu_jax.text.controls import contradicting_change, contradicting_prompt, contradicting_sentence
from progemu_jax.text.findings import NO_CHANGE
from progemu_jax.text.prompt_changes import changes_of
from progemu_jax.text.restate import Change

CONTROLS = ("shuffled-prompts", "contradicting-prompts", "null-prompt")  # of every system
ANSWERS = "{}-answers"  # predictions folder of the rendered true answers to a control's prompts
OWN_ANSWERS = "answers"  # of those to the references' prompts


def check_systems(config: Config, known: Sequence[str]) -> None:
    """Raises UserError for a name in `config.sample.systems` that the run's system cannot predict."""
    for name in config.sample.systems:
        if name not in known:
            raise UserError(f"config.sample.systems: {name!r} is unknown; choose among {', '.join(known)}")


def needed_references(config: Config) -> tuple[str, ...]:
    """Inputs of the stage `sample`: a prompt that contradicts the real course needs the states before and after."""
    return ("data/references",) if "contradicting-prompts" in config.sample.systems else ()


def recorded(config: Config) -> dict[str, type]:
    """`Stage.kind` of the stage `sample`: a record that lacks the key `queue` agrees with either value (`queued`)."""
    key = ("queue", bool, config.sample.queue)
    return {"sample": make_dataclass("Recorded", [key], bases=(SampleConfig,), frozen=True)}


def queued(config: Config, workdir: Path) -> bool:
    """Whether the stage `sample` draws through a queue: as the record says that its predictions began with.

    A record without the key is of a version that knew batches alone, and so these predictions end.
    """
    found = stages.at_work(workdir, "sample")
    queue = config.sample.queue if found is None else found["config"]["sample"].get("queue", False)
    return bool(hosts.broadcast(int(queue)))


def held_out(config: Config, workdir: Path, kind: str) -> list[dict]:
    """The examples to predict, of the shards `kind`; UserError when there is none."""
    c = config.sample
    source = batches.examples(workdir / "data/shards", kind, c.split)
    examples = [source[i] for i in range(len(source))][: c.max_cases or None]
    if not examples:
        raise UserError(f"{workdir / 'data/shards'}: the {c.split} split holds no pair to sample")
    return examples


def predict_systems(
    config: Config,
    workdir: Path,
    model: CounterfactualModel,
    examples: Sequence[dict],
    own: str,
    prompts: Sequence[str],
    policy: Any,
    reconstruct: Mapping[str, Callable[[list[dict]], np.ndarray]],
    priors: Mapping[str, np.ndarray] | None = None,
    predict: Predict | None = None,
) -> None:
    """Writes a predictions folder for each of `config.sample.systems`, and for each reconstruction; on the phantom also
    for the true answers to what a control asks (`ANSWERS`) and to what the references' prompts do (`OWN_ANSWERS`).

    Args:
      model: what predicts; a case that it cannot take goes to `rejected.jsonl`.
      examples: pairs with "pair_id", "prior" and "followup", both as the model takes a prior.
      own: the name of the run's system, which has `config.sample.num_samples` futures a case.
      prompts: one an example.
      policy: how to sample, a dataclass.
      reconstruct: {folder: examples -> images uint8 [N, S, S]}: what the model's coding alone makes of the truth.
      priors: {system: the one prior of all its cases}, where that is not the example's; such cases have no pixels.
      predict: batches to predictions; None: batch by batch, by the model's `sample`.

    Where examples have "pixels", the prior's image, a tokenizer that paints with it gets them; where they have a
    "timeline", the model gets that.
    """
    c = config.sample
    findings = findings_file.read(workdir / "data/references")
    common = {
        "batch_size": c.batch_size, "seed": c.seed, "checkpoint": model.name, "model": model.hash, "findings": findings,
    }  # fmt: skip
    answers = Answers.of_run(workdir, config.data.image_size) if set(c.systems) & {own, *CONTROLS} else None

    def by_batch(cases: list[Case]) -> list[Prediction]:
        # A short last batch is filled up, so that every case is computed at one batch shape.
        made = model.sample(cases + cases[:1] * (c.batch_size - len(cases)), c.seed, policy)
        texts = made.texts or [None] * len(made.images)
        return [Prediction(image, text) for image, text in zip(made.images, texts, strict=True)][: len(cases)]

    for name in c.systems:
        asked, changes = prompts, None
        if name in CONTROLS:
            asked, changes = control_prompts(name, config, workdir, examples, prompts, model.check)
        elif name == own:
            changes = [changes_of(prompt, findings=findings) for prompt in prompts]
            changes = None if None in changes else changes
        prior = (priors or {}).get(name)
        cases = [
            Case(e["pair_id"], prior, prompt, sample)
            if prior is not None
            else Case(e["pair_id"], e["prior"], prompt, sample, e.get("pixels"), e.get("timeline"))
            for e, prompt in zip(examples, asked, strict=True)
            for sample in range(c.num_samples if name == own else 1)
        ]
        folder = workdir / "predictions" / name
        write_shared(
            folder,
            cases,
            predict or partial(map, by_batch),
            sampling=to_dict(policy),
            check=model.check,
            name=f"sample {name}",
            **common,
        )
        if changes is not None and answers and all(e["pair_id"] in answers for e in examples):
            wanted = {e["pair_id"]: some for e, some in zip(examples, changes, strict=True)}
            rendered = OWN_ANSWERS if name == own else ANSWERS.format(name)
            write_shared(
                workdir / "predictions" / rendered,
                [Case(e["pair_id"], None, prompt) for e, prompt in zip(examples, asked, strict=True)],
                lambda groups, wanted=wanted: (
                    [Prediction(answers.image(k.pair_id, wanted[k.pair_id]), None) for k in cases] for cases in groups
                ),
                sampling={},
                name=f"render {rendered}",
                **{**common, "checkpoint": "phantom", "model": ""},
            )
    by_id = {e["pair_id"]: e for e in examples}
    for name, rebuild in reconstruct.items():
        write_shared(
            workdir / "predictions" / name,
            [Case(e["pair_id"], None, e["prompt"]) for e in examples],
            lambda groups, rebuild=rebuild: (
                [Prediction(x, None) for x in rebuild([by_id[k.pair_id] for k in cases])] for cases in groups
            ),
            sampling={},
            name=name,
            **common,
        )


def control_prompts(
    name: str,
    config: Config,
    workdir: Path,
    examples: Sequence[dict],
    prompts: Sequence[str],
    check: Callable[[Case], None],
) -> tuple[list[str], list[list[Change]] | None]:
    """The prompts of a control (one of CONTROLS), one an example; the changes that each asks for, None: unknown.

    check: raises UserError for a case that the model cannot take; free prompts are chosen so that it does not.
    """
    if name == "null-prompt":
        return [NO_CHANGE] * len(examples), [[] for _ in examples]
    if name == "shuffled-prompts":
        other = derangement(len(examples), config.sample.seed)
        return [prompts[other[i]] for i in range(len(examples))], None
    contradicting = contradictions(workdir, examples, check if config.sample.free_prompts else None)
    asked = [contradicting[e["pair_id"]] for e in examples]
    return [prompt for prompt, _ in asked], [[change] for _, change in asked]


def derangement(count: int, seed: int) -> dict[int, int]:
    """For each case another one, so that none keeps its own prompt by chance of a permutation."""
    order = np.random.default_rng(seed).permutation(count)
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


def contradictions(
    workdir: Path, examples: Sequence[dict], check: Callable[[Case], None] | None = None
) -> dict[str, tuple[str, Change]]:
    """pair_id -> prompt that contradicts the real course, and the change that it says; with `check` (as above) in free
    language.

    Raises UserError for a pair that has no reference.
    """
    asked, priors = {}, {e["pair_id"]: e["prior"] for e in examples}
    findings = findings_file.read(workdir / "data/references")

    def fits(pair_id: str, text: str) -> bool:
        try:
            check(Case(pair_id, priors.get(pair_id), text))
        except UserError:
            return False
        return True

    for _, row in records.read_lines(workdir / "data/references/references.jsonl"):
        if row["pair_id"] not in priors:  # its states are not needed
            continue
        course = (row.get("states_before"), row.get("states_after"), row["prompt"], row["pair_id"])
        if check:
            asked[row["pair_id"]] = contradicting_sentence(
                *course, fits=partial(fits, row["pair_id"]), findings=findings
            )
        else:  # such a prompt names no grade
            change = replace(contradicting_change(*course, findings), grade=None)
            asked[row["pair_id"]] = contradicting_prompt(*course, findings), change
    lost = [e["pair_id"] for e in examples if e["pair_id"] not in asked]
    if lost:
        raise UserError(
            f"{workdir / 'data/references'}: does not hold {lost[0]} and {len(lost) - 1} more; "
            "contradicting-prompts needs config.sample.split=test"
        )
    return asked


def write_shared(folder: Path, cases: list[Case], predict: Predict, *, batch_size: int, **options: Any) -> None:
    """`write_predictions`; with several hosts each writes a shard of whole batches, and process 0 merges them."""
    count = jax.process_count()
    if count == 1:
        write_predictions(folder, cases, predict, batch_size=batch_size, **options)
        return
    if hosts.broadcast(int((folder / "predictions.jsonl").exists())):
        return
    parts = folder.parent / ".parts" / folder.name
    own = hosts.own_share([cases[i : i + batch_size] for i in range(0, len(cases), batch_size)])
    own = list(itertools.chain(*own))
    write_predictions(parts / f"{jax.process_index()}-of-{count}", own, predict, batch_size=batch_size, **options)
    hosts.barrier()
    hosts.on_first_host(lambda: merge_predictions(sorted(parts.glob(f"*-of-{count}")), folder, cases), "stage sample")
