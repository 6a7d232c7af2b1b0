"""The ProgEmu sequence: pack, unpack, loss masks and grammar tables (NumPy).

    BOS | BOI "h*w" IMG (w visual tokens EOL) x h EOF EOI | prompt | BOI "h*w" IMG (...) EOF EOI | text | EOS | PAD

Every row of an image ends with EOL, the last one too. The null prompt, which classifier-free guidance
contrasts with, drops the prior image and the prompt together: `BOS BOI "h*w" IMG ...`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.text.vocabulary import Vocabulary

MOST_TOKENS = 2**20  # of a row; Emu3's has 9,216


class Kind(enum.IntEnum):
    """What a token is, for losses and metrics."""

    PAD = 0
    BOS = 1
    PRIOR = 2  # the prior image, its structure tokens too
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
    """

    height: int
    width: int
    length: int
    prompt_budget: int = 0

    def check(self) -> None:
        """Raises ValueError for a layout, of a file, that holds no two images and a prompt."""
        least = {"height": 1, "width": 1, "prompt_budget": 0}
        for key, value in least.items():
            if not value <= getattr(self, key) <= self.length:
                raise ValueError(f"layout.{key}={getattr(self, key)}: expected {value} to length={self.length}")
        if not 2 * self.image_tokens + self.prompt_budget < self.length <= MOST_TOKENS:
            needed = 2 * self.image_tokens + self.prompt_budget + 1
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
    vocab: Vocabulary, layout: Layout, prior: np.ndarray | None, prompt: str | None, words: Seq[int] | None = None
) -> dict[str, np.ndarray]:
    """Everything before the first visual token of the target: what sampling prefills.

    Args:
      prior: int [h, w] codes, or None for the null prompt (the prompt is dropped with it).
      prompt: progression prompt. words: its tokens, where they are not the usual ones.

    Returns:
      tokens int32 [n], positions int32 [n], kinds int8 [n].

    Raises:
      UserError: the prompt does not fit in `layout.length` beside the target image.
    """
    tokens, kinds = [vocab.bos], [Kind.BOS]
    if prior is not None:
        block = image_block(vocab, prior)
        text = vocab.encode(prompt or "") if words is None else list(words)
        tokens += block + text
        kinds += [Kind.PRIOR] * len(block) + [Kind.PROMPT] * len(text)
    positions = list(range(len(tokens)))
    if prior is not None and layout.prompt_budget:
        if len(text) > layout.prompt_budget:
            raise UserError(f"prompt: {len(text)} tokens exceed the model's {layout.prompt_budget}; shorten the prompt")
        start = 1 + len(block) + layout.prompt_budget
    else:
        start = len(tokens)
    head = header(vocab, layout.height, layout.width)
    tokens += head
    kinds += [Kind.STRUCTURE] * len(head)
    positions += range(start, start + len(head))
    if len(tokens) + layout.image_tokens + 1 > layout.length:
        raise UserError(
            f"prompt: {len(tokens)} tokens and the image's {layout.image_tokens} exceed the model's context of "
            f"{layout.length}; shorten the prompt"
        )
    return {
        "tokens": np.asarray(tokens, np.int32),
        "positions": np.asarray(positions, np.int32),
        "kinds": np.asarray(kinds, np.int8),
    }


def pack(
    vocab: Vocabulary,
    layout: Layout,
    prior: np.ndarray | None,
    prompt: str | None,
    target: np.ndarray,
    text: str,
    words: Seq[int] | None = None,
) -> dict[str, np.ndarray]:
    """One training row.

    Args:
      prior: int [h, w] codes of the prior, or None (null prompt: the prompt is dropped too).
      prompt: progression prompt.
      target: int [h, w] codes of the subsequent image.
      text: interpretation; EOS follows it.
      words: see `prompt_tokens`.

    Returns:
      tokens int32 [length], positions int32 [length], kinds int8 [length] (`Kind`), aligned int32 [length]
      (at t, the prior's token at the place that token t+1 fills in the target, else -1).

    Raises:
      UserError: the sample is longer than the layout.
    """
    start = prompt_tokens(vocab, layout, prior, prompt, words)
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
    for key in ("tokens", "positions", "kinds"):
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
    """What a row of tokens says: codes int32 [h, w] or None, texts as strings."""

    prior: np.ndarray | None
    prompt: str
    target: np.ndarray
    text: str


def unpack(vocab: Vocabulary, layout: Layout, tokens: Seq[int]) -> Unpacked:
    """Inverse of `pack`; a row that does not follow the grammar is a ValueError naming the place."""
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

    starts = [i for i, t in enumerate(tokens) if t == vocab.boi]
    if len(starts) == 2:
        prior, at = read_image(starts[0])
        prompt = vocab.decode(tokens[at : starts[1]])
    elif len(starts) == 1:
        prior, prompt = None, ""
    else:
        raise ValueError(f"{len(starts)} images in the row: expected 1 or 2")
    target, at = read_image(starts[-1])
    text = tokens[at:]
    if vocab.eos in text:
        text = text[: text.index(vocab.eos)]
    return Unpacked(prior, prompt, target, vocab.decode([t for t in text if t < vocab.text_size]))
