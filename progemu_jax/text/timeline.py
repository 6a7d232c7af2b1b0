"""When films were taken: the films before the prior, and the days until the follow-up, as tokens and as words.

Days lie on a scale of half octaves, 1, 1.4, 2, 2.8, ... 8,192 days, a token for each step, of the vocabulary's extras
100 to 126, which nothing else uses. A model that reads plain language only gets the days as a sentence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from progemu_jax.text.vocabulary import Vocabulary

FIRST, STEPS = 100, 27  # number of the first extra, and how many
PER_OCTAVE = 2
MOST_DAYS = 2.0 ** ((STEPS - 1) / PER_OCTAVE)
TOKEN, TEXT = "token", "text"  # forms in which a sequence says the days
MOST_OLDER = 2


class Older(NamedTuple):
    """A film before the prior. codes: int [h, w], of the film registered onto the prior. days: from it to the prior,
    None where unknown."""

    codes: np.ndarray
    days: float | None = None


@dataclass(frozen=True)
class Timeline:
    """days: from the prior to the follow-up, None where unknown. older: films before the prior, the oldest first."""

    days: float | None = None
    older: tuple[Older, ...] = ()

    @property
    def twin(self) -> Timeline:
        """Of the row that guidance contrasts with: the films, and nothing of what is asked."""
        return Timeline(None, self.older)

    def summary(self) -> dict[str, Any]:
        """For provenance, what is known: "days" to the follow-up; "older": of each film before the prior the days to
        it."""
        days = {} if self.days is None else {"days": self.days}
        return days | ({"older": [film.days for film in self.older]} if self.older else {})

    def cut(self, older: int, days: bool) -> Timeline:
        """With so many of the films nearest to the prior, and with or without the days to the follow-up."""
        return Timeline(self.days if days else None, self.older[len(self.older) - older :])


def of_example(example: Mapping[str, Any], older: int, days: bool) -> Timeline | None:
    """What a model that takes so many older films, and days or none, is told of a token shard's example.

    The example has "days" f32 (nan: unknown), "older" int [K, h, w] and "older_days" f32 [K], the nearest film first;
    None for one without these, and for a model that takes neither.
    """
    if "days" not in example or not (older or days):
        return None
    films = zip(example["older"][:older], example["older_days"][:older], strict=True)
    found = [Older(codes, _known(apart) if days else None) for codes, apart in films]
    return Timeline(_known(example["days"]) if days else None, tuple(reversed(found)))


def _known(days: float) -> float | None:
    return None if math.isnan(days) else float(days)


def days_token(vocab: Vocabulary, days: float, rng: np.random.Generator | None = None) -> int:
    """The id of the step next to so many days (0 <= days; less than a day counts as one, more than the last step as
    the last). rng: drawn between the two neighbours, by how near they are, so that a model learns what lies between."""
    place = PER_OCTAVE * math.log2(min(max(days, 1.0), MOST_DAYS))
    step = math.floor(place + (0.5 if rng is None else rng.random()))
    return vocab.extra(FIRST + min(step, STEPS - 1))


def days_of(vocab: Vocabulary, token: int) -> float | None:
    """The days that a token stands for; None for any other token."""
    step = token - vocab.extra(FIRST)
    return 2.0 ** (step / PER_OCTAVE) if 0 <= step < STEPS else None


def days_sentence(days: float) -> str:
    """ "Follow-up after 60 days." """
    count = max(round(days), 1)
    return f"Follow-up after {count} day{'s' * (count != 1)}."
