"""Preference among own futures: a model learns which of its counterfactuals do what was asked.

A round draws requests for training patients, samples several futures of each, and ranks them by a *training* scorer,
which is another network on other patients than the evaluating one. What is asked is drawn by findings and directions,
not as it happens in the cohort, so that courses that are rare there, or never happen, are learnt as well. With r_s the
reward of future s among the S of its request, l_s its log-likelihood and l0_s that of the model which drew it,

    p_s = softmax_s(sharpness (r_s - mean r) / std r)     q_s = softmax_s(strength (l_s - l0_s))
    loss = KL(p | q) - anchor sum_s p_s l_s / codes

This is direct preference optimisation (DPO, Rafailov et al. 2023, arXiv:2305.18290) over a list instead of a pair
(LiPO's softmax loss, Liu et al. 2024, arXiv:2402.01878). All futures of a list have one prior and one prompt, so that
what films differ by anyway cancels: what is left is whether the edit obeys and the patient stays. Without the anchor
all of a list lose likelihood, the best ones less, and images get noisier. Beside it, the model goes on learning pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.data.answers import asked_severity
from progemu_jax.models import transformer
from progemu_jax.tasks.progemu import ProgEmuTask
from progemu_jax.tasks.scorer import ScorerConfig
from progemu_jax.text import sequence
from progemu_jax.text.findings import FINDINGS, GRADES, PRESENT
from progemu_jax.text.restate import Change
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.vocabulary import Vocabulary
from progemu_jax.training.loop import TrainConfig

# How often each direction is asked: steps up and down a grade are small, and learnt last.
DIRECTIONS = {"new": 1, "worse": 2, "better": 2, "resolved": 1}
UNGRADED = 0.4  # share of the changes, but of resolved ones, that are asked without a grade
ROOM = 1 - PRESENT  # a severity above it cannot get worse
LEAST_SPREAD = 0.05  # of rewards: below it, how they differ is the scorer's noise
ROW = ("tokens", "positions", "kinds", "aligned")


@dataclass(frozen=True)
class RefineConfig:
    """What a run does after its pairs are learnt.

    Attributes:
      rounds: 0 switches it off. requests: of a round. futures: sampled for each request, at `temperature` and
        `guidance`, at least 2.
      nothing: share of the requests which ask that nothing changes.
      others: weight, in the reward, of what changes although it was not asked for.
      sharpness: how much better rewards are preferred. strength: how far the model moves for it; less moves further.
      weight, anchor: of the preference, and of the likelihood of what is preferred, in the loss beside the pairs' own.
      pairs: learnt beside each request.
      scorer: the training scorer; its seed, and so its patients, must not be the evaluating one's.
      train: the training of a round; its `batch_size` counts requests.
    """

    rounds: int = 0
    requests: int = 512
    futures: int = 8
    temperature: float = 1.0
    guidance: float = 2.0
    nothing: float = 0.08
    others: float = 1.0
    sharpness: float = 2.0
    strength: float = 0.1
    weight: float = 0.5
    anchor: float = 0.5
    pairs: int = 4
    scorer: ScorerConfig = field(default_factory=lambda: ScorerConfig(seed=1))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=128, batch_size=4))

    def __post_init__(self):
        if self.rounds < 0 or self.requests < 1 or self.futures < 2 or self.pairs < 1:
            raise ValueError(
                f"rounds={self.rounds}, requests={self.requests}, futures={self.futures}, pairs={self.pairs}: "
                "expected 0, 1, 2, 1 or more"
            )
        if not 0 <= self.nothing <= 1:
            raise ValueError(f"nothing={self.nothing}: expected a share, 0 to 1")
        for name in ("temperature", "sharpness", "strength", "weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        if not self.anchor >= 0:
            raise ValueError(f"anchor={self.anchor}: expected a number of at least 0")


def drawn_request(severity: np.ndarray, rng: np.random.Generator, nothing: float = 0.0) -> list[Change]:
    """One or two changes that can happen to a patient: a direction, then each finding as often as another.

    None, in the share `nothing` and where nothing can happen: that nothing changes is asked then.

    severity: f32 [8] of the prior, in the order of FINDINGS.
    """
    out: list[Change] = []
    if nothing and rng.random() < nothing:
        return out
    for _ in range(1 + int(rng.random() < 0.3)):
        fitting = {d: [f for f in fits(severity, d) if f not in {c.finding for c in out}] for d in DIRECTIONS}
        possible = [d for d in DIRECTIONS if fitting[d]]
        if not possible:  # of findings between absent and present, say
            break
        weights = np.asarray([DIRECTIONS[d] for d in possible], float)
        direction = possible[rng.choice(len(possible), p=weights / weights.sum())]
        finding = fitting[direction][rng.integers(len(fitting[direction]))]
        before, grades = float(severity[FINDINGS.index(finding)]), []
        if direction != "resolved":
            aims = {g: asked_severity(before, Change(finding, direction, g)) for g in GRADES}
            grades = [g for g, aim in aims.items() if _sensible(before, aim, direction)]
        plain = not grades or rng.random() < UNGRADED
        out.append(Change(finding, direction, None if plain else grades[rng.integers(len(grades))]))
    return out


def fits(severity: np.ndarray, direction: str) -> list[str]:
    """The findings to which a direction can happen."""
    there = {
        "new": severity < PRESENT / 2,
        "worse": (severity >= PRESENT) & (severity < ROOM),
        "better": severity >= PRESENT,
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


def preferred(reward: np.ndarray, sharpness: float) -> np.ndarray:
    """p of the module, f32 [..., S], of rewards [..., S]; what is as good as another is preferred as much."""
    spread = np.maximum(reward.std(-1, keepdims=True), LEAST_SPREAD)
    scores = sharpness * (reward - reward.mean(-1, keepdims=True)) / spread
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return (shares / shares.sum(-1, keepdims=True)).astype(np.float32)


class Ranked(Sequence):
    """A round's lists of futures, each with pairs that are learnt beside it, drawn by the round's `seed`."""

    def __init__(self, lists: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]], each: int, seed: int):
        self.lists, self.pairs, self.each, self.seed = lists, pairs, each, seed

    def __len__(self) -> int:
        return len(self.lists)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        drawn = np.random.default_rng((self.seed, index)).integers(len(self.pairs), size=self.each)
        return {**self.lists[index], "pairs": [self.pairs[int(i)] for i in drawn]}

    def __repr__(self) -> str:
        return f"Ranked({len(self.lists)} beside {self.each} each of {self.pairs!r})"


def packer(pack: Callable, vocab: Vocabulary, layout: Layout, sharpness: float) -> Callable:
    """Item of `Ranked` -> rows [P + S, length], of its pairs (by `pack`, `tasks.progemu.packer`'s transform) and of its
    futures, which have no `weights`; `preferred` and `reference` f32 [S]."""

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows = [pack(pair, rng) for pair in example["pairs"]]
        futures = future_rows(vocab, layout, example["prior"], example["prompt"], example["futures"])
        out = {name: np.stack([*(row[name] for row in rows), *futures[name]]) for name in ROW}
        none = np.zeros(futures["tokens"].shape, np.float32)
        out["weights"] = np.stack([*(row["weights"] for row in rows), *none])
        wanted = preferred(np.asarray(example["reward"]), sharpness)
        return {**out, "preferred": wanted, "reference": np.asarray(example["reference"], np.float32)}

    return transform


def future_rows(
    vocab: Vocabulary, layout: Layout, prior: np.ndarray, prompt: str, futures: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows [S, length] of futures, int [S, h, w], without a text."""
    rows = [sequence.pack(vocab, layout, prior, prompt, codes, "") for codes in futures]
    return {name: np.stack([row[name] for row in rows]) for name in ROW}


class PreferenceTask(ProgEmuTask):
    """Next tokens of pairs, and preference among futures; batches come from `packer`."""

    name = "refine"

    def __init__(self, refine: RefineConfig, vocab: Vocabulary, layout: Layout, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.refine, self.vocab, self.codes = refine, vocab, layout.height * layout.width
        self.tokens_per_step *= refine.pairs + refine.futures
        self.flops_per_step *= refine.pairs + refine.futures

    def log_likelihoods(self, params: Any, batch: dict[str, jax.Array], hidden: jax.Array | None = None) -> jax.Array:
        """Of the target images' codes, f32 [B], of rows [B, length]: their sum of log p."""
        hidden = self._hidden(params, batch, None) if hidden is None else hidden
        visual = batch["kinds"][:, 1:] == Kind.VISUAL
        places = jnp.argsort(~visual, axis=1, stable=True)[:, : self.codes]
        hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
        codes = jnp.take_along_axis(batch["tokens"][:, 1:], places, axis=1) - self.vocab.visual_start
        table = jax.lax.dynamic_slice_in_dim(
            transformer.head(params), self.vocab.visual_start, self.vocab.codebook_size
        )
        scores = jax.nn.log_softmax(jnp.einsum("BTM,VM->BTV", hidden, table.astype(hidden.dtype)).astype(jnp.float32))
        return jnp.take_along_axis(scores, codes[..., None], axis=-1).sum((1, 2))

    def _loss(
        self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None, every: bool, embedded: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if "preferred" not in batch:  # evaluation: pairs alone
            return super()._loss(params, batch, key, every, embedded)
        rows = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in (*ROW, "weights")}
        hidden = self._hidden(params, rows, key)
        loss, metrics = self._cross_entropy(params, hidden, rows, every)

        def of_futures(x: jax.Array) -> jax.Array:
            return x.reshape(-1, self.refine.pairs + self.refine.futures, *x.shape[1:])[:, self.refine.pairs :]

        futures = {name: of_futures(rows[name]).reshape(-1, rows[name].shape[-1]) for name in ROW}
        found = self.log_likelihoods(params, futures, of_futures(hidden).reshape(-1, *hidden.shape[1:]))
        gained = found.reshape(batch["reference"].shape) - batch["reference"]
        wanted, got = batch["preferred"], jax.nn.log_softmax(self.refine.strength * gained)
        preference = (wanted * (jnp.log(jnp.maximum(wanted, 1e-9)) - got)).sum(-1).mean()
        kept = -(wanted * found.reshape(wanted.shape)).sum(-1).mean() / self.codes
        agreed = (jnp.argmax(wanted, -1) == jnp.argmax(gained, -1)).mean()
        own = {"loss_preference": preference, "agreed": agreed, "gained": (wanted * gained).sum(-1).mean()}
        return loss + self.refine.weight * preference + self.refine.anchor * kept, {**metrics, **own}
