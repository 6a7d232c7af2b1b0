"""What is to be expected: many futures without a prompt, and how often a reader finds something on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.inference import request
from progemu_jax.inference.counterfactual import Counterfactual
from progemu_jax.inference.progemu import ProgEmu

FREE = {"guidance": 1.0, "text_guidance": 1.0, "temperature": 1.0, "top_k": 0}  # the model's own distribution


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a model expects of a patient after some days. Synthetic: for research only, and no prognosis.

    Attributes:
      days: after the newest film.
      futures: what was drawn, without texts.
      probability: {finding: mean over the futures of what the reader says}, 0..1.
      severity: {finding: f32 [S] of the futures}, 0..1; None of a reader that knows none.
    """

    days: float
    futures: Counterfactual
    probability: dict[str, float]
    severity: dict[str, np.ndarray] | None


def expected_course(
    model: ProgEmu,
    reader: Callable[[np.ndarray, str], dict[str, np.ndarray]],
    prior: Any = None,
    *,
    days: float,
    priors: Sequence[Any] | None = None,
    intervals: Sequence[float | None] | None = None,
    futures: int = 32,
    seed: int = 0,
    source: str = "phantom",
    **sampling: Any,
) -> Expected:
    """Draws what usually follows: no prompt, the interval alone.

    Args:
      model: trained with `config.progemu.task.interval` and `empty_prompt`.
      reader: a scorer (`scorers.phantom.PhantomScorer`, `scorers.labels.LabelScorer`): images uint8 [N, H, W] and
        source -> "findings" [F], "finding_prob" f32 [N, F] and perhaps "finding_severity".
      prior, priors, intervals, days, seed: as `ProgEmu.counterfactual` takes them.
      futures: how many are drawn.
      source: the cohort, for the reader.
      **sampling: fields of `sampling.policy.Sampling`; by default those of `FREE`, which change no probability.

    Raises:
      UserError: as `counterfactual`; also without days.
    """
    after = request.days(days)
    if after is None:
        raise UserError("days=None: an expected course is of a time; give days")
    made = model.counterfactual(
        prior, "", futures, seed, days=after, priors=priors, intervals=intervals, text=False, **{**FREE, **sampling}
    )
    read = reader(made.images, source)
    names, probability = [str(name) for name in read["findings"]], np.asarray(read["finding_prob"])
    severity = read.get("finding_severity")
    return Expected(
        after,
        made,
        dict(zip(names, probability.mean(0).tolist(), strict=True)),
        None if severity is None else dict(zip(names, np.asarray(severity).T, strict=True)),
    )
