"""Text tokenizers of the diffusion models' text encoders, in pure Python: WordPiece as BERT has it, BPE as CLIP has it.

Equal to `transformers`' BertTokenizer and CLIPTokenizer (`tests/text/test_text_tokenizers.py`), but that the name of a
special token in a text ("<|endoftext|>", "[SEP]") is text: a prompt or report must not be able to end the sequence.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from progemu_jax.errors import UserError

WORDPIECE_FILE, BPE_FILES = "vocab.txt", ("vocab.json", "merges.txt")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class TextTokenizer:
    """What the two share: `ids` of a text without ends, `__call__` for a batch.

    Attributes:
      size: number of ids; pad, first, last: ids of padding and of what begins and ends a text.
    """

    size: int
    pad: int
    first: int
    last: int

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without the tokens that begin and end it."""
        raise NotImplementedError

    def __call__(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Texts, cut or padded to `length` tokens -> (ids int32 [B, length], mask bool: True = no padding)."""
        tokens = np.full((len(texts), length), self.pad, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            ids = [self.first, *self.ids(text)[: length - 2], self.last]
            tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
        return tokens, mask

    def save(self, folder: Path) -> None:
        """Writes the vocabulary files."""
        raise NotImplementedError


class WordPiece(TextTokenizer):
    """BERT's: clean, lower-case, split off accents and punctuation, then the longest known pieces from the left."""

    def __init__(self, tokens: Sequence[str], lower: bool = True):
        self.tokens, self.lower = list(tokens), lower
        self.rank = {token: i for i, token in enumerate(self.tokens)}
        missing = [token for token in _SPECIAL[:4] if token not in self.rank]
        if missing:
            raise UserError(f"{WORDPIECE_FILE}: has no {missing[0]}; use the original file")
        self.size = len(self.tokens)
        self.pad, self.unknown, self.first, self.last = (self.rank[token] for token in _SPECIAL[:4])

    def ids(self, text: str) -> list[int]:
        return [piece for word in self._words(text) for piece in self._pieces(word)]

    def _words(self, text: str) -> list[str]:
        text = "".join(_cleaned(text))
        if self.lower:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
            text = "".join(c.lower() for c in text)
        return re.findall(r"\S+", "".join(f" {c} " if _punctuation(c) else c for c in text))

    def _pieces(self, word: str) -> list[int]:
        if len(word) > 100:
            return [self.unknown]
        out, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self.rank.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return [self.unknown]
            out.append(piece)
            start = end
        return out

    def save(self, folder: Path) -> None:
        (folder / WORDPIECE_FILE).write_text("".join(f"{token}\n" for token in self.tokens), encoding="utf-8")
        config = {"do_lower_case": self.lower, "tokenizer_class": "BertTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> WordPiece:
        """A small vocabulary: every lower-case word of `texts`, and single characters for all others."""
        plain = cls([*_SPECIAL[:4]])
        words = sorted({word for text in texts for word in plain._words(text)})
        characters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
        pieces = [*_SPECIAL, *characters, *(f"##{c}" for c in characters), *words]
        return cls(list(dict.fromkeys(pieces)))


def _cleaned(text: str) -> Iterable[str]:
    """Without control characters; all white space as a space; CJK characters as words of their own."""
    for c in text:
        code = ord(c)
        if c in "\t\n\r" or unicodedata.category(c)[0] == "Z":
            yield " "
        elif code in (0, 0xFFFD) or unicodedata.category(c)[0] == "C":
            continue
        elif _ideograph(code):
            yield f" {c} "
        else:
            yield c


_IDEOGRAPHS = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _ideograph(code: int) -> bool:
    return any(low <= code <= high for low, high in _IDEOGRAPHS)


def _punctuation(c: str) -> bool:
    ascii_symbol = "!" <= c <= "/" or ":" <= c <= "@" or "[" <= c <= "`" or "{" <= c <= "~"
    return ascii_symbol or unicodedata.category(c)[0] == "P"


@functools.cache
def byte_characters() -> dict[int, str]:
    """Printable characters that stand for the 256 bytes (GPT-2's alphabet, Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(other)}


class ClipBPE(TextTokenizer):
    """CLIP's: lower-case, split into words, then byte-pair merges inside each; a word's last piece has "</w>"."""

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], pad: str | None = None):
        self.vocabulary, self.merges = vocabulary, list(merges)
        self.ranks = {pair: i for i, pair in enumerate(self.merges)}
        for token in ("<|startoftext|>", "<|endoftext|>"):
            if token not in vocabulary:
                raise UserError(f"{BPE_FILES[0]}: has no {token}; use the original file")
        self.size = max(vocabulary.values()) + 1
        self.first, self.last = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
        self.pad = vocabulary.get(pad, self.last) if pad else self.last
        self._words = functools.lru_cache(maxsize=65_536)(self._word)

    def ids(self, text: str) -> list[int]:
        out: list[int] = []
        text = "".join(c.lower() for c in _SPACES.sub(" ", unicodedata.normalize("NFC", text)))
        for word in _clip_words(text):
            out += self._words("".join(byte_characters()[b] for b in word.encode("utf-8")))
        return out

    def _word(self, word: str) -> tuple[int, ...]:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            best = min(itertools.pairwise(pieces), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, i = [], 0
            while i < len(pieces):
                if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == best:
                    merged.append(pieces[i] + pieces[i + 1])
                    i += 2
                else:
                    merged.append(pieces[i])
                    i += 1
            pieces = merged
        return tuple(self.vocabulary.get(piece, self.last) for piece in pieces)

    def save(self, folder: Path) -> None:
        (folder / BPE_FILES[0]).write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / BPE_FILES[1]).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


_SPACES = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def _clip_words(text: str) -> list[str]:
    """CLIP's pattern: contractions, runs of letters, single numerals, runs of anything else without spaces."""
    out, i = [], 0
    while i < len(text):
        contraction = next((c for c in _CONTRACTIONS if text.startswith(c, i)), None)
        if contraction:
            out.append(contraction)
            i += len(contraction)
            continue
        kind = _kind(text[i])
        end = i + 1
        if kind in "Lo":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " ":
            out.append(text[i:end])
        i = end
    return out


def _kind(c: str) -> str:
    if _SPACES.match(c):
        return " "
    return "L" if unicodedata.category(c)[0] == "L" else "N" if unicodedata.category(c)[0] == "N" else "o"


def load(folder: Path) -> TextTokenizer | None:
    """The tokenizer of a folder with vocab.txt (WordPiece) or vocab.json and merges.txt (BPE); None: neither is there.

    Raises:
      UserError: a file that does not read.
    """
    try:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        config = {}
    config = config if isinstance(config, dict) else {}
    path = folder / WORDPIECE_FILE
    try:
        if path.is_file():
            tokens = path.read_text(encoding="utf-8").splitlines()
            return WordPiece(tokens, lower=bool(config.get("do_lower_case", True)))
        path = folder / BPE_FILES[0]
        if not path.is_file():
            return None
        vocabulary = {str(k): int(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
        path = folder / BPE_FILES[1]
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("is no file")
        lines = path.read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        if any(len(pair) != 2 for pair in merges):
            raise ValueError("a line that is not two words")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: does not read as a vocabulary ({text}); fetch the file again") from None
    pad = config.get("pad_token")
    return ClipBPE(vocabulary, merges, pad.get("content") if isinstance(pad, dict) else pad)
