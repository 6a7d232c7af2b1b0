"""Rows that teach a language model to read: two images without a prompt, and one statement on each finding.

    BOS | prior | BOI | follow-up | EOS
      "No left pleural effusion. New right pleural effusion. ... Persistent mild consolidation."

A report says few things in many ways and any order, so that most of what its words teach is wording. A structured
report, one statement a finding, always in the order of FINDINGS, has the same content, and each statement's first word
answers one question on the images. What a report does not mention counts as absent, as an empty CheXpert label does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from progemu_jax.text.vocabulary import Vocabulary
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class ReadingConfig:
    """The training after stage 2 that teaches to read; steps=0 skips it.

    Attributes:
      share: of its rows that read, with loss on the text alone; the others are pairs as in stage 2.
      changed_weight: extra weight of the statements that tell a change: most findings are absent or as they were.
      train: its training. What is trained afterwards reads structured reports wherever it has no prompt.
    """

    share: float = 0.8
    changed_weight: float = 1.0
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: expected a share above 0, at most 1")
        if not self.changed_weight >= 0:
            raise ValueError(f"changed_weight={self.changed_weight}: expected a number of at least 0")


def changed_tokens(vocab: Vocabulary, said: tuple[tuple[str, bool], ...]) -> np.ndarray:
    """Which tokens of the statements, joined by a space, tell a change: f32 of 0 and 1."""
    return np.concatenate(
        [
            np.full(len(vocab.encode(f" {text}" if number else text)), changed, np.float32)
            for number, (text, changed) in enumerate(said)
        ]
    )
