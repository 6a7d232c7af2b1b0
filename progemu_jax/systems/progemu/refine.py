"""Rounds of reward-ranked fine-tuning, after the curriculum; see `tasks.refine`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax.config import Config
from progemu_jax.data import batches
from progemu_jax.devices import hosts
from progemu_jax.files import records
from progemu_jax.files.predictions import Case
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.tasks import refine as raft
from progemu_jax.text import restate
from progemu_jax.text.restate import Change
from progemu_jax.text.sequence import Layout
from progemu_jax.text.vocabulary import Vocabulary

REWARD = "reward"  # folder of the training scorer
BATCH = 64  # futures sampled at a time


def rounds(
    config: Config,
    workdir: Path,
    model: Callable[[Any], ProgEmu],
    fit: Callable[[int, list[dict], Any], Any],
    params: Any,
) -> Any:
    """The parameters after all rounds.

    Args:
      model: parameters -> the model that samples. fit: (round, chosen rows, parameters) -> parameters after training.
      params: of the curriculum's end.
    """
    c = config.progemu.refine
    for number in range(c.rounds):
        path = workdir / f"train/refine{number}" / "chosen.npz"
        if not path.exists():
            made = chosen_rows(config, workdir, model(params), number)
            hosts.on_first_host(lambda made=made, path=path: _write(path, made), str(path))
        params = fit(number, _read(path), params)
    return params


def chosen_rows(config: Config, workdir: Path, model: ProgEmu, number: int) -> list[dict]:
    """The best futures of a round's requests: {"prior", "followup", "prompt", "request"}, codes int32 [h, w].

    Priors are of the training split, their states what the training scorer sees in them.
    """
    c, rng = config.progemu.refine, np.random.default_rng((config.seed, number))
    scorer = PhantomScorer.load(workdir / REWARD / "export")
    source = batches.examples(workdir / "data/shards", "pairs", "train")
    pixels = np.stack([source[int(i)]["prior"] for i in rng.permutation(len(source))[: c.requests]])
    pixels = pixels.reshape(len(pixels), *pixels.shape[1:3])
    priors, before = model.tokenize(pixels), _scores(scorer, pixels)
    requests, prompts = [], []
    for severity in before["finding_severity"]:
        requests.append(raft.drawn_request(severity, rng))
        prompts.append(_fitting(model, requests[-1], rng))
    policy = dataclasses.replace(config.sample.policy, temperature=c.temperature)
    each, rows, gained = max(1, BATCH // c.futures), [], []
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
        for n, i in enumerate(part):
            own = slice(n * c.futures, (n + 1) * c.futures)
            was, now = {k: v[i : i + 1] for k, v in before.items()}, {k: v[own] for k, v in after.items()}
            reward = raft.rewards(was, now, requests[i], c.others)
            best = int(reward.argmax())
            rows.append(
                {"prior": priors[i], "followup": made.codes[own][best], "prompt": prompts[i], "request": requests[i]}
            )
            gained.append((float(reward[best]), float(reward.mean())))
        bar.update(len(part))
    bar.close()
    best, mean = np.asarray(gained).T
    kept = np.argsort(-best, kind="stable")[: max(1, round(c.keep * len(rows)))]
    print(
        f"refine {number}: mean reward {mean.mean():.3f}, of the best {best.mean():.3f}, of those kept "
        f"{best[kept].mean():.3f}"
    )
    return [rows[i] for i in sorted(kept)]


def _fitting(model: ProgEmu, request: list[Change], rng: np.random.Generator) -> str:
    """A wording of the request that fits the prompt's budget."""
    while True:
        prompt = restate.restate(request, rng, noise=0.05)
        if fits_budget(model.vocabulary, model.layout, prompt):
            return prompt


def fits_budget(vocabulary: Vocabulary, layout: Layout, prompt: str) -> bool:
    """Whether a prompt is short enough for a refined row."""
    return len(vocabulary.encode(prompt)) < (layout.prompt_budget or layout.length // 4)


def _scores(scorer: PhantomScorer, images: np.ndarray) -> dict[str, np.ndarray]:
    found = scorer(images, "phantom")
    return {name: found[name] for name in ("finding_severity", "finding_prob", "group_prob", "age")}


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.stack([row[name] for row in rows]) for name in ("prior", "followup")}
    told = [{"prompt": r["prompt"], "request": [dataclasses.asdict(c) for c in r["request"]]} for r in rows]
    records.write_json(path.with_suffix(".json"), told)
    records.write_npz(path, arrays)


def _read(path: Path) -> list[dict]:
    told = records.read_json(path.with_suffix(".json"))
    with np.load(path) as arrays:
        priors, followups = arrays["prior"], arrays["followup"]
    return [
        {"prior": p, "followup": f, "prompt": t["prompt"], "request": [Change(**c) for c in t["request"]]}
        for p, f, t in zip(priors, followups, told, strict=True)
    ]
