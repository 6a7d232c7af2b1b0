"""Reward-ranked fine-tuning (RAFT, Dong et al. 2023, arXiv:2304.06767): a model learns from its own best futures.

A round draws requests for training patients, samples several futures of each, ranks them by a *training* scorer, which
is another network on other patients than the evaluating one, and trains on the best. What is asked is drawn evenly
over findings and directions, so that courses that are rare in a cohort, or never happen, are learnt as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from progemu_jax.data.answers import asked_severity
from progemu_jax.tasks.scorer import ScorerConfig
from progemu_jax.text import restate
from progemu_jax.text.findings import FINDINGS, GRADES, PRESENT
from progemu_jax.text.restate import Change
from progemu_jax.training.loop import TrainConfig

DIRECTIONS = ("new", "worse", "better", "resolved")
ROOM = 1 - PRESENT  # a severity above it cannot get worse


@dataclass(frozen=True)
class RefineConfig:
    """What a run does after its pairs are learnt.

    Attributes:
      rounds: 0 switches it off. requests: of a round. futures: sampled for each request, at `temperature` and the
        run's guidance.
      keep: share of the requests whose best future is learnt from, those with the best rewards.
      share: of the rows in training that are refined ones; the others are pairs, as before.
      others: weight, in the reward, of what changes although it was not asked for.
      scorer: the training scorer; its seed, and so its patients, must not be the evaluating one's.
      train: the training of a round.
    """

    rounds: int = 0
    requests: int = 1024
    futures: int = 8
    temperature: float = 1.0
    keep: float = 0.8
    share: float = 0.5
    others: float = 1.0
    scorer: ScorerConfig = field(default_factory=lambda: ScorerConfig(seed=1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=300))

    def __post_init__(self):
        for name in ("keep", "share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a share, above 0 to 1")
        if self.rounds < 0 or self.requests < 1 or self.futures < 2:
            raise ValueError(
                f"rounds={self.rounds}, requests={self.requests}, futures={self.futures}: expected 0, 1 and 2 or more"
            )


def drawn_request(severity: np.ndarray, rng: np.random.Generator) -> list[Change]:
    """One or two changes that can happen to a patient: each direction, then each finding, as often as another.

    None where nothing can happen: that nothing changes is asked then.

    severity: f32 [8] of the prior, in the order of FINDINGS.
    """
    out: list[Change] = []
    for _ in range(1 + int(rng.random() < 0.3)):
        fitting = {d: [f for f in fits(severity, d) if f not in {c.finding for c in out}] for d in DIRECTIONS}
        possible = [d for d in DIRECTIONS if fitting[d]]
        if not possible:  # of findings between absent and present, say
            break
        direction = possible[rng.integers(len(possible))]
        finding = fitting[direction][rng.integers(len(fitting[direction]))]
        before, grades = float(severity[FINDINGS.index(finding)]), [None] * 3
        if direction != "resolved":
            aims = {g: asked_severity(before, Change(finding, direction, g)) for g in GRADES}
            grades += [g for g, aim in aims.items() if _sensible(before, aim, direction)]
        out.append(Change(finding, direction, grades[rng.integers(len(grades))]))
    return out


def fits(severity: np.ndarray, direction: str) -> list[str]:
    """The findings to which a direction can happen."""
    there = {
        "new": severity < PRESENT / 2,
        "worse": (severity >= PRESENT) & (severity < ROOM),
        "better": severity >= 2 * PRESENT,
        "resolved": severity >= PRESENT,
    }[direction]
    return [finding for finding, yes in zip(FINDINGS, there, strict=True) if yes]


def _sensible(before: float, aim: float, direction: str) -> bool:
    return aim > 0 if direction == "new" else abs(aim - before) < 0.5


def rewards(
    before: dict[str, np.ndarray], after: dict[str, np.ndarray], request: Sequence[Change], others: float
) -> np.ndarray:
    """How well futures of one prior obey, f32 [S], at most 1.

    Args:
      before, after: a scorer's results for the prior [1, ...] and the S futures: finding_severity [., 8],
        finding_prob [., 8], group_prob [., G], age [.] in years.
      request: what was asked. others: weight of everything that was not.

    The named findings' share of the way to the severity that the request asks for, and that their probability moves;
    less how far all other findings, the group and the age are from the prior's.
    """
    moved = after["finding_severity"] - before["finding_severity"]
    leant = after["finding_prob"] - before["finding_prob"]
    named, gains = np.zeros(len(FINDINGS), bool), []
    for change in request:
        j = FINDINGS.index(change.finding)
        aim = asked_severity(float(before["finding_severity"][0, j]), change) - before["finding_severity"][0, j]
        missed = np.abs(moved[:, j] - aim) / max(abs(aim), PRESENT)
        turned = np.clip(np.sign(aim) * leant[:, j] / 0.2, -1, 1)
        gains.append(0.7 * (1 - np.minimum(missed, 2)) + 0.3 * turned)
        named[j] = True
    gain = np.mean(gains, axis=0) if gains else np.zeros(len(moved))
    strayed = (np.abs(moved) + 0.5 * np.abs(leant))[:, ~named].sum(1)
    patient = np.abs(after["group_prob"] - before["group_prob"]).sum(1) / 2 + np.abs(after["age"] - before["age"]) / 20
    return (gain - others * (strayed + 0.5 * patient)).astype(np.float32)


class Chosen(Sequence):
    """Refined rows among pairs: items of `rows` and, evenly spread, of `pairs`, so that `share` of them are refined."""

    def __init__(self, rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], share: float):
        self.rows, self.pairs = rows, pairs
        self.others = round(len(rows) * (1 - share) / share)

    def __len__(self) -> int:
        return len(self.rows) + self.others

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        if index < len(self.rows):
            return self.rows[index]
        return self.pairs[(index - len(self.rows)) * len(self.pairs) // self.others]

    def __repr__(self) -> str:
        return f"Chosen({len(self.rows)} and {self.others} of {self.pairs!r})"


def packer(pack: Callable, fits_budget: Callable[[str], bool]) -> Callable:
    """`pack`, `tasks.progemu.packer`'s transform, for items of `Chosen`.

    A refined row's request is told in other words each time; it has no text, which nobody wrote.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        if "request" not in example:
            return pack(example, rng)
        told = (restate.restate(example["request"], rng, noise=0.05) for _ in range(8))
        prompt = next((t for t in told if fits_budget(t)), example["prompt"])
        return pack({**example, "prompt": prompt, "interpretation": None}, rng)

    return transform
