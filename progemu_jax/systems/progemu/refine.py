"""Rounds of preference among own futures, after the curriculum; see `tasks.refine`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from progemu_jax.config import Config
from progemu_jax.data import batches
from progemu_jax.devices import hosts, sharding
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.tasks import refine as preference
from progemu_jax.text import restate
from progemu_jax.text.restate import Change

REWARD = "reward"  # folder of the training scorer
BATCH = 128  # futures sampled at a time
PATIENT = ("finding_severity", "finding_prob", "group_prob", "age")  # what the reward is of
ARRAYS = ("prior", "futures", "reward", "reference")


def rounds(
    config: Config,
    workdir: Path,
    model: Callable[[Any], ProgEmu],
    fit: Callable[[int, list[dict], Any], Any],
    params: Any,
) -> Any:
    """The parameters after all rounds.

    Args:
      model: parameters -> the model that samples. fit: (round, ranked lists, parameters) -> parameters after training.
      params: of the curriculum's end.
    """
    c = config.progemu.refine
    for number in range(c.rounds):
        path = workdir / f"train/refine{number}" / "futures.npz"
        if not path.exists():
            made = ranked_futures(config, workdir, model(params), number)
            hosts.on_first_host(lambda made=made, path=path: _write(path, made), str(path))
        params = fit(number, _read(path), params)
    return params


def ranked_futures(config: Config, workdir: Path, model: ProgEmu, number: int) -> list[dict]:
    """A round's requests, each with its futures: {"prior" int32 [h, w], "prompt", "request", "futures" int32 [S, h, w],
    "reward" f32 [S], "reference" f32 [S]: the model's own log-likelihood of the futures}.

    Priors are of the training split, their states what the training scorer sees in them.
    """
    c, rng = config.progemu.refine, np.random.default_rng((config.seed, number))
    scorer = PhantomScorer.load(workdir / REWARD / "export")
    source = batches.examples(workdir / "data/shards", "pairs", "train")
    pixels = np.stack([source[int(i)]["prior"] for i in rng.permutation(len(source))[: c.requests]])
    pixels = pixels.reshape(len(pixels), *pixels.shape[1:3])
    priors, before = model.tokenize(pixels), _scores(scorer, pixels)
    requests = [preference.drawn_request(severity, rng, c.nothing) for severity in before["finding_severity"]]
    prompts = [_fitting(model, request, rng) for request in requests]
    policy = dataclasses.replace(model.policy, temperature=c.temperature, guidance=c.guidance)
    plain = dataclasses.replace(config.progemu.task, soften=0.0)  # likelihoods are of the exact codes
    task = preference.PreferenceTask(c, model.vocabulary, model.layout, model.config, plain, c.train)
    likelihoods = jax.jit(task.log_likelihoods)
    each, lists = max(1, BATCH // c.futures), []
    bar = tqdm(total=len(pixels), desc=f"refine {number}: futures", unit="request", dynamic_ncols=True)
    for start in range(0, len(pixels), each):
        part = range(start, min(start + each, len(pixels)))
        cases = [
            Case(f"refine{number}/{i}", priors[i], prompts[i], sample, pixels[i])
            for i in part
            for sample in range(c.futures)
        ]
        filled = cases + cases[:1] * (each * c.futures - len(cases))
        made = model.sample(filled, config.seed, policy, text=False)
        after = _scores(scorer, made.images)
        rows = [
            preference.future_rows(model.vocabulary, model.layout, case.prior, case.prompt, codes[None])
            for case, codes in zip(filled, made.codes, strict=True)
        ]
        batch = {name: np.concatenate([row[name] for row in rows]) for name in preference.ROW}
        found = np.asarray(likelihoods(model.params, sharding.place(batch, model.mesh)))
        for n, i in enumerate(part):
            own = slice(n * c.futures, (n + 1) * c.futures)
            was, now = {k: v[i : i + 1] for k, v in before.items()}, {k: v[own] for k, v in after.items()}
            reward = preference.rewards(was, now, requests[i], c.others)
            lists.append(
                {
                    "prior": priors[i],
                    "prompt": prompts[i],
                    "request": requests[i],
                    "futures": made.codes[own],
                    "reward": reward,
                    "reference": found[own],
                }
            )
        bar.update(len(part))
    bar.close()
    reward = np.stack([row["reward"] for row in lists])
    print(f"refine {number}: mean reward {reward.mean():.3f}, of the best {reward.max(1).mean():.3f}")
    return lists


def _fitting(model: ProgEmu, request: list[Change], rng: np.random.Generator) -> str:
    """A wording of the request that fits the prompt's budget."""
    while True:
        prompt = restate.restate(request, rng, noise=0.05)
        if len(model.vocabulary.encode(prompt)) < (model.layout.prompt_budget or model.layout.length // 4):
            return prompt


def _scores(scorer: PhantomScorer, images: np.ndarray) -> dict[str, np.ndarray]:
    found = scorer(images, "phantom")
    return {name: found[name] for name in PATIENT}


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    told = [{"prompt": r["prompt"], "request": [dataclasses.asdict(c) for c in r["request"]]} for r in rows]
    records.write_json(path.with_suffix(".json"), told)
    records.write_npz(path, {name: np.stack([row[name] for row in rows]) for name in ARRAYS})


def _read(path: Path) -> list[dict]:
    told = records.read_json(path.with_suffix(".json"))
    with records.open_npz(path) as found:
        arrays = {name: found[name] for name in ARRAYS}
    return [
        {
            **{name: arrays[name][i] for name in ARRAYS},
            "prompt": row["prompt"],
            "request": [Change(**change) for change in row["request"]],
        }
        for i, row in enumerate(told)
    ]
