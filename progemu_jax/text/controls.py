"""Baselines and control prompts that the honesty of a system is tested with. Pure Python and NumPy.

- the mean image: knows no patient at all, so it must fail retention;
- a prompt that contradicts what really happened: does the image follow the prompt or the usual course?
- a prompt of no change: what does a system change when nothing is asked?
"""

from collections.abc import Iterable

import numpy as np

from progemu_jax.text.findings import FINDINGS, PRESENT
from progemu_jax.text.rules import changes

DUMMY_PRIOR = 128  # gray level of stage 1's constant prior (MedJourney, section 3.3)


def mean_image(images: Iterable[np.ndarray]) -> np.ndarray:
    """Rounded mean of uint8 images [H, W] of one size; ValueError when there are none."""
    total, count = None, 0
    for image in images:
        total = image.astype(np.float64) if total is None else total + image
        count += 1
    if total is None:
        raise ValueError("no images to average")
    return np.round(total / count).astype(np.uint8)


def contradicting_prompt(before: dict | None, after: dict | None, prompt: str, key: str) -> str:
    """A possible course of the same prior that is the opposite of the real one, in a prompt of one sentence.

    Args:
      before, after: finding of FINDINGS -> severity, as in the references; a finding left out is unknown.
      prompt: the real prompt; used for findings whose states are unknown.
      key: case id; where several findings could be contradicted, it decides which one.

    A finding that got better or went away gets worse; one that got worse or stayed resolves; where the prior shows
    none, one appears that really stayed away.
    """
    before, after = before or {}, after or {}
    known = [f for f in FINDINGS if before.get(f) is not None and after.get(f) is not None]
    there = [f for f in known if before[f] >= PRESENT]
    better = [f for f in there if after[f] <= before[f] - PRESENT]
    absent = [f for f in known if before[f] < PRESENT and after[f] < PRESENT]
    if better:
        return f"Worsening {_pick(better, key)}."
    if there:
        return f"Resolved {_pick(there, key)}."
    if absent:
        return f"New {_pick(absent, key)}."
    said = changes(prompt)
    moved = [f for f in said if said[f]]
    if not moved:
        return f"New {_pick(FINDINGS, key)}."
    finding = _pick(moved, key)
    return f"Resolved {finding}." if said[finding] > 0 else f"Worsening {finding}."


def _pick(names, key):
    return names[sum(key.encode()) % len(names)]
