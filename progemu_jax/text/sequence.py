"""The ProgEmu sequence: pack, unpack, loss masks and grammar tables (NumPy).

    BOS | BOI "h*w" IMG (w visual tokens EOL) x h EOF EOI | prompt | BOI "h*w" IMG (...) EOF EOI | text | EOS | PAD

Every row of an image ends with EOL, the last one too. The null prompt, which classifier-free guidance
contrasts with, drops the prior image and the prompt together: `BOS BOI "h*w" IMG ...`.

With a `timeline.Timeline`, films before the prior stand in front of it, the oldest first, and the days are told:

    BOS | (older image, days to the prior)* | prior | prompt, days to the follow-up | follow-up | text | EOS | PAD

What is unknown has no token: a row of one prior without days is as above.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.text.timeline import TEXT, TOKEN, Older, Timeline, days_of, days_sentence, days_token
from progemu_jax.text.vocabulary import Vocabulary

MOST_TOKENS = 2**20  # of a row; Emu3's has 9,216


class Kind(enum.IntEnum):
    """What a token is, for losses and metrics."""

    PAD = 0
    BOS = 1
    PRIOR = 2  # the prior image, its structure tokens too, and those before it
    PROMPT = 3
    STRUCTURE = 4  # BOI, resolution, IMG, EOL, EOF, EOI of the target image
    VISUAL = 5  # visual tokens of the target image
    TEXT = 6  # interpretation
    EOS = 7


@dataclass(frozen=True)
class Layout:
    """Shape of the sequences of one run.

    Attributes:
      height, width: latent grid of an image, in codes.
      length: tokens a packed row holds; longer samples are an error, never cut.
      prompt_budget: when positive, position ids of the target image start at the same offset from the
        prior whatever the prompt's length, as if the prompt always had this many tokens; 0 gives
        consecutive position ids, as Emu3 has them.
      older: films before the prior that a row may hold. interval: how days are told, "token" or "text"; "": a model
        that knows none.
    """

    height: int
    width: int
    length: int
    prompt_budget: int = 0
    older: int = 0
    interval: str = ""

    def check(self) -> None:
        """Raises ValueError for a layout, of a file, that holds no two images and a prompt."""
        least = {"height": 1, "width": 1, "prompt_budget": 0, "older": 0}
        for key, value in least.items():
            if not value <= getattr(self, key) <= self.length:
                raise ValueError(f"layout.{key}={getattr(self, key)}: expected {value} to length={self.length}")
        if self.interval not in ("", TOKEN, TEXT):
            raise ValueError(f"layout.interval={self.interval!r}: expected {TOKEN!r}, {TEXT!r} or ''")
        needed = (2 + self.older) * self.image_tokens + self.prompt_budget + 1
        if not needed <= self.length <= MOST_TOKENS:
            raise ValueError(f"layout.length={self.length}: expected {needed} to {MOST_TOKENS}")

    @property
    def image_tokens(self) -> int:
        """Tokens between IMG and the end of EOI."""
        return self.height * (self.width + 1) + 2


def image_block(vocab: Vocabulary, codes: np.ndarray) -> list[int]:
    """`BOI "h*w" IMG` + rows + `EOF EOI` of int codes [h, w], as token ids."""
    return header(vocab, *codes.shape) + image_body(vocab, codes)


def header(vocab: Vocabulary, height: int, width: int) -> list[int]:
    """`BOI "h*w" IMG`."""
    return [vocab.boi, *vocab.resolution(height, width), vocab.img]


def image_body(vocab: Vocabulary, codes: np.ndarray) -> list[int]:
    """Rows of visual tokens, each closed by EOL, then EOF EOI; codes int [h, w]."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.size == 0:
        raise UserError(f"image codes: expected a non-empty [h, w] array, got shape {codes.shape}")
    if codes.min() < 0 or codes.max() >= vocab.codebook_size:
        raise UserError(f"image codes: values must lie in [0, {vocab.codebook_size}), got {codes.min()}..{codes.max()}")
    rows = np.concatenate([codes + vocab.visual_start, np.full((len(codes), 1), vocab.eol, codes.dtype)], axis=1)
    return [*rows.reshape(-1).tolist(), vocab.eof, vocab.eoi]


def prompt_tokens(
    vocab: Vocabulary,
    layout: Layout,
    prior: np.ndarray | None,
    prompt: str | None,
    words: Seq[int] | None = None,
    timeline: Timeline | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """Everything before the first visual token of the target: what sampling prefills.

    Args:
      prior: int [h, w] codes, or None for the null prompt (the prompt is dropped with it, and the timeline).
      prompt: progression prompt. words: its tokens, where they are not the usual ones.
      timeline: films before the prior, and days. rng: of `timeline.days_token`.

    Returns:
      tokens int32 [n], positions int32 [n], kinds int8 [n], aligned int32 [n] (where an image follows another film, the
      earlier film's token at the place that the next token fills, else -1).

    Raises:
      UserError: the prompt does not fit in `layout.length` beside the target image; the model knows no days, or not so
        many films.
    """
    timeline = timeline or Timeline()
    _check_timeline(layout, timeline)
    tokens, kinds, positions, aligned = [vocab.bos], [Kind.BOS], [0], [-1]
    start = 1

    def add(new: list[int], kind: Kind, at: int, before: list[int] | None = None) -> None:
        tokens.extend(new)
        kinds.extend([kind] * len(new))
        positions.extend(range(at, at + len(new)))
        aligned.extend([-1] * len(new) if before is None else before)

    if prior is not None:
        earlier, mark = None, header(vocab, layout.height, layout.width)
        block = len(mark) + layout.image_tokens
        for number, film in enumerate(timeline.older):
            # Behind all other position ids, so that what stands there has the same ones with and without older films.
            apart = layout.length + layout.prompt_budget + (len(timeline.older) - 1 - number) * (block + 1)
            at = apart if layout.prompt_budget else len(tokens)
            days = _days(vocab, layout, film.days, rng)
            add(image_block(vocab, film.codes) + days, Kind.PRIOR, at, _before(vocab, layout, earlier, len(days)))
            earlier = film.codes
        text = vocab.encode(_with_sentence(layout, prompt or "", timeline.days)) if words is None else list(words)
        days = _days(vocab, layout, timeline.days, rng)
        at = 1 if layout.prompt_budget else len(tokens)
        add(image_block(vocab, prior), Kind.PRIOR, at, _before(vocab, layout, earlier, 0))
        add(text, Kind.PROMPT, at + block)
        if layout.prompt_budget and len(text) + len(days) > layout.prompt_budget:
            most = layout.prompt_budget - len(days)
            raise UserError(f"prompt: {len(text)} tokens exceed the model's {most}; shorten the prompt")
        start = at + block + (layout.prompt_budget or len(text) + len(days))
        add(days, Kind.PROMPT, start - 1)  # the last place of the budget: words have theirs whether days are known
    head = header(vocab, layout.height, layout.width)
    add(head, Kind.STRUCTURE, start)
    if len(tokens) + layout.image_tokens + 1 > layout.length:
        raise UserError(
            f"prompt: {len(tokens)} tokens and the image's {layout.image_tokens} exceed the model's context of "
            f"{layout.length}; shorten the prompt"
        )
    return {
        "tokens": np.asarray(tokens, np.int32),
        "positions": np.asarray(positions, np.int32),
        "kinds": np.asarray(kinds, np.int8),
        "aligned": np.asarray(aligned, np.int32),
    }


def _check_timeline(layout: Layout, timeline: Timeline) -> None:
    """UserError for what the model has not learnt."""
    if len(timeline.older) > layout.older:
        most = f"at most {layout.older + 1} films" if layout.older else "one film"
        raise UserError(f"priors: {len(timeline.older) + 1} films, the model takes {most}; leave the oldest out")
    days = [timeline.days, *(film.days for film in timeline.older)]
    if not layout.interval and any(day is not None for day in days):
        raise UserError("days: the model was trained without intervals; leave them out")


def _days(vocab: Vocabulary, layout: Layout, days: float | None, rng: np.random.Generator | None) -> list[int]:
    return [] if days is None or layout.interval != TOKEN else [days_token(vocab, days, rng)]


def _with_sentence(layout: Layout, prompt: str, days: float | None) -> str:
    """The prompt, and the days where the layout tells them as text."""
    if days is None or layout.interval != TEXT:
        return prompt
    return f"{prompt} {days_sentence(days)}".strip()


def _before(vocab: Vocabulary, layout: Layout, earlier: np.ndarray | None, behind: int) -> list[int] | None:
    """`aligned` of an image block that follows a film of codes `earlier`, and of so many tokens behind it."""
    if earlier is None:
        return None
    mark, rows = len(header(vocab, layout.height, layout.width)), aligned_rows(vocab, layout, earlier)
    return [*[-1] * (mark - 1), *rows.reshape(-1).tolist(), *[-1] * (3 + behind)]


def pack(
    vocab: Vocabulary,
    layout: Layout,
    prior: np.ndarray | None,
    prompt: str | None,
    target: np.ndarray,
    text: str,
    words: Seq[int] | None = None,
    timeline: Timeline | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """One training row.

    Args:
      prior: int [h, w] codes of the prior, or None (null prompt: the prompt is dropped too).
      prompt: progression prompt.
      target: int [h, w] codes of the subsequent image.
      text: interpretation; EOS follows it.
      words, timeline, rng: see `prompt_tokens`.

    Returns:
      tokens int32 [length], positions int32 [length], kinds int8 [length] (`Kind`), aligned int32 [length]
      (at t, the prior's token at the place that token t+1 fills in the target, else -1; in a film that follows another,
      the earlier one's).

    Raises:
      UserError: the sample is longer than the layout.
    """
    start = prompt_tokens(vocab, layout, prior, prompt, words, timeline, rng)
    body, words = image_body(vocab, target), vocab.encode(text)
    rest = [*body, *words, vocab.eos]
    n, m = len(start["tokens"]), len(rest)
    if n + m > layout.length:
        raise UserError(
            f"sample: {n + m} tokens exceed the sequence length of {layout.length}; raise it or shorten the text"
        )
    out = {
        "tokens": np.full(layout.length, vocab.pad, np.int32),
        "positions": np.zeros(layout.length, np.int32),
        "kinds": np.zeros(layout.length, np.int8),
        "aligned": np.full(layout.length, -1, np.int32),
    }
    for key in out:
        out[key][:n] = start[key]
    out["tokens"][n : n + m] = rest
    out["positions"][n : n + m] = start["positions"][-1] + 1 + np.arange(m)
    grid = np.full((layout.height, layout.width + 1), Kind.VISUAL, np.int8)
    grid[:, -1] = Kind.STRUCTURE
    kinds = [grid.reshape(-1), [Kind.STRUCTURE] * 2, [Kind.TEXT] * len(words), [Kind.EOS]]
    out["kinds"][n : n + m] = np.concatenate(kinds)
    out["aligned"][n - 1 : n - 1 + grid.size] = aligned_rows(vocab, layout, prior).reshape(-1)
    return out


def aligned_rows(vocab: Vocabulary, layout: Layout, prior: np.ndarray | None) -> np.ndarray:
    """int32 [h, w + 1]: the prior's token at each place of the target image; -1 at EOL places and without a prior."""
    rows = np.full((layout.height, layout.width + 1), -1, np.int32)
    if prior is not None:
        rows[:, :-1] = np.asarray(prior) + vocab.visual_start
    return rows


@dataclass(frozen=True)
class Unpacked:
    """What a row of tokens says: codes int32 [h, w] or None, texts as strings, days as their token has them."""

    prior: np.ndarray | None
    prompt: str
    target: np.ndarray
    text: str
    timeline: Timeline = field(default_factory=Timeline)


def unpack(vocab: Vocabulary, layout: Layout, tokens: Seq[int]) -> Unpacked:
    """Inverse of `pack`; a row that does not follow the grammar is a ValueError naming the place.

    Days that were told as a sentence stay in the prompt.
    """
    tokens = [int(t) for t in tokens]
    head = header(vocab, layout.height, layout.width)
    if tokens[:1] != [vocab.bos]:
        raise ValueError("token 0: expected BOS")

    def read_image(at: int) -> tuple[np.ndarray, int]:
        if tokens[at : at + len(head)] != head:
            raise ValueError(f"token {at}: expected an image header")
        at += len(head)
        body = tokens[at : at + layout.image_tokens]
        grid = np.asarray(body[:-2], np.int32)
        if grid.size != layout.height * (layout.width + 1):
            raise ValueError(f"token {at}: the image is cut short")
        grid = grid.reshape(layout.height, layout.width + 1)
        codes = grid[:, :-1] - vocab.visual_start
        good = (codes >= 0).all() and (codes < vocab.codebook_size).all() and (grid[:, -1] == vocab.eol).all()
        if not good or body[-2:] != [vocab.eof, vocab.eoi]:
            raise ValueError(f"token {at}: the image does not follow the grammar")
        return codes, at + layout.image_tokens

    starts, films = [i for i, t in enumerate(tokens) if t == vocab.boi], []
    if not 1 <= len(starts) <= 2 + layout.older:
        expected = "1 or 2" if not layout.older else f"1 to {2 + layout.older}"
        raise ValueError(f"{len(starts)} images in the row: expected {expected}")
    for start, end in itertools.pairwise(starts):
        codes, at = read_image(start)
        words = tokens[at:end]
        days = days_of(vocab, words[-1]) if words else None
        films.append((codes, days, words if days is None else words[:-1]))
    target, at = read_image(starts[-1])
    text = tokens[at:]
    if vocab.eos in text:
        text = text[: text.index(vocab.eos)]
    said = vocab.decode([t for t in text if t < vocab.text_size])
    if not films:
        return Unpacked(None, "", target, said)
    if any(words for _, _, words in films[:-1]):
        raise ValueError("words stand behind a film before the prior")
    older = tuple(Older(codes, days) for codes, days, _ in films[:-1])
    prior, days, words = films[-1]
    return Unpacked(prior, vocab.decode(words), target, said, Timeline(days, older))
