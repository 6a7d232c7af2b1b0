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
    """The text with slips, each kind drawn with probability `rate` (British spelling: at least 0.15 where rate > 0)."""
    if rng.random() < max(rate, 0.15 if rate else 0.0):
        text = british(text)
    if rng.random() < rate:
        words = [m for m in re.finditer(r"[a-z]{5,}", text) if not _FIRM.fullmatch(m.group())]
        words = [m for m in words if text[m.start() - 1 : m.start()] in (" ", "")]
        if words:
            word = words[int(rng.integers(len(words)))]
            text = text[: word.start()] + typo(word.group(), rng) + text[word.end() :]
    if rng.random() < rate:
        text = text[:1].lower() + text[1:] if text[1:2].islower() else text
    if rng.random() < rate / 2:
        text = text.lower()
    if rng.random() < rate:
        text = text.rstrip(".")
    if rng.random() < rate / 2:
        text = text.replace(",", "", 1)
    return text
