"""Slips that people make when they type a prompt: typos, case, punctuation; and British spelling.

No slip changes what a sentence means: words of side, denial, direction and grade keep their letters.
"""

from __future__ import annotations

import re

import numpy as np

BRITISH = {
    "edema": "oedema",
    "normalized": "normalised",
    "materialize": "materialise",
    "materialized": "materialised",
    "visualized": "visualised",
    "sizable": "sizeable",
    "dilatation": "dilation",  # American against British use is mixed: both are read
}
"""American -> British spelling; `dilation` beside `dilatation` is a second form of one word."""

# Words that a typo could turn into others, or that carry the meaning alone.
_FIRM = re.compile(
    r"left|right|both|bilateral(?:ly)?|bilat|upper|lower|no|not|nor|without|more|less|new|now|same|larger|smaller|"
    r"better|worse|mild(?:ly)?|moderate(?:ly)?|severe(?:ly)?|small|large|tiny|increas\w*|decreas\w*|resolv\w*|"
    r"improv\w*|worsen\w*|chang\w*|unchanged|stable|remov\w*|clear\w*",
    re.IGNORECASE,
)
_NEAR = {
    "a": "s", "b": "v", "c": "x", "d": "f", "e": "r", "f": "g", "g": "h", "h": "j", "i": "o", "j": "k", "k": "l",
    "l": "k", "m": "n", "n": "b", "o": "p", "p": "o", "q": "w", "r": "t", "s": "d", "t": "y", "u": "i", "v": "c",
    "w": "e", "x": "z", "y": "u", "z": "x",
}  # fmt: skip


OPENINGS = (
    "Task", "Request", "Question", "Case", "Indication", "Note", "Comment", "Scenario", "Wanted", "Goal", "Instruction",
    "Target image", "Chest radiograph", "Portable film", "Frontal view", "CXR", "Desired picture", "Simulation",
    "In this patient", "As requested", "On review", "In short", "Overall", "By report", "Clinically", "At this time",
    "For teaching", "Suppose this", "Imagine this", "Technically limited study", "As discussed", "In this case",
    "Of note", "Here is what I need", "What I would like", "Picture the same patient later", "Some days later",
    "Next visit",
)  # fmt: skip
ENDINGS = (
    "as expected", "as discussed", "in this patient", "by report", "on this view", "of note", "I think", "if you can",
    "on the film", "as described", "from what I see", "for the teaching file", "on my read", "per the team", "in brief",
)  # fmt: skip
"""What people put before and behind a statement without saying anything about the chest."""


def british(text: str) -> str:
    """The text in British spelling, capitals kept."""

    def other(found: re.Match) -> str:
        word = BRITISH[found.group().lower()]
        return word.capitalize() if found.group()[0].isupper() else word

    return re.sub(rf"\b(?:{'|'.join(BRITISH)})\b", other, text, flags=re.IGNORECASE)


def typo(word: str, rng: np.random.Generator) -> str:
    """A word of five letters or more with two letters exchanged, one lost, doubled or its neighbour on the keyboard.
    The first letter stays."""
    at = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(4))
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + _NEAR.get(word[at], word[at]) + word[at + 1 :]


def slipped(text: str, rng: np.random.Generator, rate: float) -> str:
    """The text with slips, each kind drawn with probability `rate` (British spelling, openings and endings: at least
    0.15 where rate > 0)."""
    if rng.random() < max(rate, 0.15 if rate else 0.0):
        text = british(text)
    if rng.random() < rate:
        words = [m for m in re.finditer(r"[a-z]{5,}", text) if not _FIRM.fullmatch(m.group())]
        words = [m for m in words if text[m.start() - 1 : m.start()] in (" ", "")]
        if words:
            word = words[int(rng.integers(len(words)))]
            text = text[: word.start()] + typo(word.group(), rng) + text[word.end() :]
    text = _framed(text, rng, 0.15 if rate else 0.0)
    if rng.random() < rate:
        text = text[:1].lower() + text[1:] if text[1:2].islower() else text
    if rng.random() < rate / 2:
        text = text.lower()
    if rng.random() < rate:
        text = text.rstrip(".")
    if rng.random() < rate / 2:
        text = text.replace(",", "", 1)
    return text


def _framed(text: str, rng: np.random.Generator, rate: float) -> str:
    if rng.random() < rate:
        opening = OPENINGS[int(rng.integers(len(OPENINGS)))]
        start = text[0].lower() if text[1:2].islower() else text[0]
        text = f"{opening}{(': ', ', ')[int(rng.integers(2))]}{start}{text[1:]}"
    if rng.random() < rate:
        ending = ENDINGS[int(rng.integers(len(ENDINGS)))]
        text = f"{text.rstrip('.')}{(' ', ', ')[int(rng.integers(2))]}{ending}."
    return text
