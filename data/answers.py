"""The true answer to a prompt, rendered: the prior's patient and acquisition in the state that the prompt asks for.

A scorer can be fooled; the error to what the image should have been cannot. Only the phantom has a renderer.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from progemu_jax.data import phantom, radiograph, references, tree
from progemu_jax.data.phantom.patient import LEFT, RIGHT
from progemu_jax.data.sources import Rejected
from progemu_jax.text.findings import GRADES, PRESENT
from progemu_jax.text.restate import Change
from progemu_jax.text.rules import LARGE, MODERATE

_BOUNDS = (PRESENT, MODERATE, LARGE)
LEVELS = tuple((low + high) / 2 for low, high in pairwise((0.0, *_BOUNDS, 1.0)))
"""Severity that stands for each level: a trace, then GRADES; the middle of its range."""
_SIDES = {"left": LEFT, "right": RIGHT, "both": 0}
_ZONES = {"upper": 1 / 6, "mid": 1 / 2, "lower": 5 / 6}


class Answers:
    """Renders answers for the pairs of a phantom's tree.

    tree_root, truth: `data/tree` and `data/source/truth` of a run. size: pixels of the images.
    Raises UserError when either is missing or broken.
    """

    def __init__(self, tree_root: str | Path, truth: str | Path, size: int):
        truths, self.size = references.read_truth(truth), size
        pairs = (p for p in tree.read_pairs(tree_root) if not isinstance(p, Rejected))
        found = ((p, truths.get(str(p.meta.get("reference-study-id")))) for p in pairs)
        self._priors = {pair.pair_id: (pair, row) for pair, row in found if row}

    @classmethod
    def of_run(cls, workdir: str | Path, size: int) -> Answers | None:
        """Of a run directory; None where the truth is not there: a real cohort, or one that was deleted."""
        places = Path(workdir) / "data/tree", Path(workdir) / "data/source/truth"
        return cls(*places, size) if all(place.is_dir() for place in places) else None

    def __contains__(self, pair_id: str) -> bool:
        return pair_id in self._priors

    def image(self, pair_id: str, changes: Sequence[Change]) -> np.ndarray:
        """uint8 [size, size]: the pair's prior after the changes, carried as the true counterfactuals are."""
        pair, row = self._priors[pair_id]
        state = asked_state(phantom.State.from_dict(row["disease"]), changes)
        drawn = phantom.counterfactual(row, {"disease": state.to_dict()}, pair.ours["prior_shape"][0])
        corners, shape = pair.ours["registration"]["crop_prior"], radiograph.read_gray(pair.prior_path).shape
        return references.carried(drawn, shape, self.size, corners)


def asked_state(state: phantom.State, changes: Sequence[Change]) -> phantom.State:
    """The state after the changes; what they do not name stays. A new finding's place is theirs where they name it."""
    severities, sites = state.severities.copy(), {}
    for change in changes:
        column = phantom.FINDINGS.index(change.finding)
        severities[column] = asked_severity(float(severities[column]), change)
        if change.direction == "new":
            sites |= _site(change)
    return dataclasses.replace(state, severities=severities, **sites)


def asked_severity(before: float, change: Change) -> float:
    """Severity after a change: the grade that it names, else moderate when new, else one grade up or down.

    It moves by at least PRESENT, within [0, 1]: worse than severe is more severe, better than mild is a trace.
    """
    if change.direction in ("same", "resolved"):
        return before if change.direction == "same" else 0.0
    level = bisect_right(_BOUNDS, before)
    step = {"new": GRADES.index("moderate") + 1, "worse": level + 1, "better": level - 1}[change.direction]
    aim = LEVELS[1 + GRADES.index(change.grade) if change.grade else min(max(step, 0), len(GRADES))]
    if change.direction == "better":
        return max(min(aim, before - PRESENT), 0.0)
    return min(max(aim, before + PRESENT), 1.0)


def _site(change: Change) -> dict[str, float]:
    site = {}
    if change.finding == "atelectasis" and change.side:
        site["atelectasis_side"] = _SIDES[change.side]
    if change.finding == "consolidation" and change.side in ("left", "right"):  # one patch has one side
        site["consolidation_side"] = _SIDES[change.side]
    if change.finding == "consolidation" and change.zone:
        site["consolidation_zone"] = _ZONES[change.zone]
    return site
