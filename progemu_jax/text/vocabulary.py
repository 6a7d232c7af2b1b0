"""Text and visual token ids: byte-pair encoding of text, special tokens, image codes.

A vocabulary is a folder of two files, the ones that Emu3 is distributed with: `emu3.tiktoken` (a line
"<base64 of the bytes> <rank>" for each text token) and `emu3_vision_tokens.txt` (one token a line: image,
image start, image end, then the visual tokens in the order of the code-book). The ids are

    [0, n) text | n end of text = PAD, n+1, n+2 chat marks | n+3 .. n+207 `<|extra_0|>` .. `<|extra_204|>` |
    the lines of emu3_vision_tokens.txt

with n the number of ranks. EOL, EOF, BOS and EOS are extras 200, 201, 203 and 204; 100 to 126 say days (`timeline`).
With Emu3's files n is 151,643 and every id is Emu3's (arXiv:2409.18869). `vocabulary_files/` holds small vocabularies
of the same form: the default, trained on the phantom's reports (`python -m
progemu_jax.data.phantom.train_vocabulary`), and in a folder of its name `radiology`, for prompts in free language
(`python -m progemu_jax.data.phantom.train_radiology_vocabulary`); `english` has words of change behind these, with
vectors (`tasks.word_vectors`).
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import itertools
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import regex
import tiktoken

from progemu_jax.errors import UserError

TEXT_FILE, VISION_FILE = "emu3.tiktoken", "emu3_vision_tokens.txt"
BUILT_IN = Path(__file__).parent / "vocabulary_files"
MOST_CODES = 2**20
NAMES = ("radiology", "english")  # built-in vocabularies beside the default, each in its folder

# How text is cut before merging: contractions, words with at most one leading mark or space, single digits,
# runs of marks, line ends, spaces. Emu3's rule, which is GPT-4's with digits one by one.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
EXTRAS = 205
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(EXTRAS)))
_IMAGE = ("<|image token|>", "<|image start|>", "<|image end|>")


def visual_token(code: int) -> str:
    """The name of an image code in the vocabulary's files."""
    return f"<|visual token {code:06d}|>"


class Vocabulary:
    """Ids of text, special and visual tokens. Immutable.

    Attributes (ids are int):
      text_size: text ids are [0, text_size).
      pad, bos, eos: padding, begin and end of the sequence. eol, eof: end of an image row, of an image.
      img, boi, eoi: image token, begin and end of image.
      visual_start, codebook_size: image code k is visual_start + k, k < codebook_size.
      size: number of ids.
      hash: hex digest of both files' content as used; equal hashes mean equal ids.
    """

    def __init__(self, ranks: dict[bytes, int], vision_tokens: Iterable[str]):
        """ranks: bytes -> rank, ranks 0 .. n-1 each once, all 256 single bytes among them. vision_tokens: the
        three image marks, then the visual tokens in order. Raises UserError for anything else."""
        vision_tokens = list(vision_tokens)
        _check(ranks, vision_tokens)
        self.text_size = len(ranks)
        names = (*_CONTROL, *vision_tokens)
        special = {name: self.text_size + i for i, name in enumerate(names)}
        self.pad = special["<|endoftext|>"]
        self.eol, self.eof = special["<|extra_200|>"], special["<|extra_201|>"]
        self.bos, self.eos = special["<|extra_203|>"], special["<|extra_204|>"]
        self.img, self.boi, self.eoi = (special[name] for name in _IMAGE)
        self.visual_start = special[visual_token(0)]
        self.codebook_size = len(vision_tokens) - len(_IMAGE)
        self.size = self.text_size + len(names)
        self._ranks = ranks
        # Special names are found by `_specials`: tiktoken would put all 32,768 of them in one expression.
        self._special = special
        self._names = {i: name for name, i in special.items()}
        self._encoding = tiktoken.Encoding("emu3", pat_str=SPLIT, mergeable_ranks=ranks, special_tokens={})
        digest = hashlib.sha256()
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            digest.update(base64.b64encode(token) + b" %d\n" % rank)
        digest.update("\n".join(vision_tokens).encode())
        self.hash = digest.hexdigest()

    def encode(
        self, text: str, rng: np.random.Generator | None = None, dropout: float = 0.0, *, allow_special: bool = False
    ) -> list[int]:
        """Text -> ids, after NFC normalisation.

        Names of special tokens in the text are text unless allow_special (as Emu3's own tokenizer has it):
        a report must not be able to end the sequence or open an image.

        dropout: probability with which each merge is left out, drawn from `rng` (BPE-dropout, Provilkov et al. 2020,
        arXiv:1910.13267): a word is seen in other pieces than its usual ones. 0: nothing is drawn. Decoding gives the
        text all the same. Raises ValueError outside [0, 1), without `rng`, or with allow_special.
        """
        text = unicodedata.normalize("NFC", text)
        if dropout:
            if not 0 < dropout < 1 or rng is None or allow_special:
                raise ValueError(f"dropout={dropout}: expected [0, 1), a generator, and no special tokens")
            return [i for word in regex.findall(SPLIT, text) for i in self._dropped(word.encode(), rng, dropout)]
        if not allow_special:
            return self._encoding.encode_ordinary(text)
        out, at = [], 0
        for start, end, token in self._specials(text):
            out += self._encoding.encode_ordinary(text[at:start])
            out.append(token)
            at = end
        return out + self._encoding.encode_ordinary(text[at:])

    def _dropped(self, word: bytes, rng: np.random.Generator, dropout: float) -> list[int]:
        # tiktoken takes a whole word without its merges: that counts as one merge here.
        if word in self._ranks and (len(word) == 1 or rng.random() >= dropout):
            return [self._ranks[word]]
        pieces = [word[i : i + 1] for i in range(len(word))]
        while len(pieces) > 1:
            pairs = [a + b for a, b in itertools.pairwise(pieces)]
            kept = rng.random(len(pairs)) >= dropout
            ranks = [(self._ranks[p], i) for i, p in enumerate(pairs) if kept[i] and p in self._ranks]
            if not ranks:
                break
            at = min(ranks)[1]
            pieces[at : at + 2] = [pairs[at]]
        return [self._ranks[piece] for piece in pieces]

    def _specials(self, text: str):
        at = text.find("<|")
        while at >= 0:
            end = text.find("|>", at)
            token = self._special.get(text[at : end + 2]) if end >= 0 else None
            if token is not None:
                yield at, end + 2, token
            at = text.find("<|", end + 2 if token is not None else at + 1)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text. Bytes that are not UTF-8 come out as U+FFFD; special and visual ids by their names."""
        out, run = [], []
        for i in (int(i) for i in ids):
            if 0 <= i < self.text_size:
                run.append(i)
                continue
            if not 0 <= i < self.size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.size}")
            out.append(self._encoding.decode(run) + self._names[i])
            run = []
        return "".join(out) + self._encoding.decode(run)

    def save(self, folder: str | Path) -> None:
        """Writes the vocabulary's two files into a folder, which is made when absent."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_ranks(folder / TEXT_FILE, self._ranks)
        write_vision_tokens(folder / VISION_FILE, self.codebook_size)

    def extra(self, number: int) -> int:
        """Id of `<|extra_{number}|>`, 0 <= number < 205."""
        return self._special[f"<|extra_{number}|>"]

    def resolution(self, height: int, width: int) -> list[int]:
        """Ids of the mark "height*width" (in image codes) that stands before an image."""
        return self.encode(f"{height}*{width}")

    def visual(self, codes: np.ndarray) -> np.ndarray:
        """Image codes, int [...] in [0, codebook_size) -> ids, int32 [...]."""
        codes = np.asarray(codes)
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(f"image codes must lie in [0, {self.codebook_size})")
        return (codes + self.visual_start).astype(np.int32)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"Vocabulary(text={self.text_size}, codes={self.codebook_size}, hash={self.hash[:12]})"


def _check(ranks: dict[bytes, int], vision_tokens: list[str]) -> None:
    missing = sum(bytes([b]) not in ranks for b in range(256))
    if missing:
        raise UserError(f"{TEXT_FILE}: {missing} of the 256 single bytes have no rank; use the original file")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"{TEXT_FILE}: the ranks are not 0..{len(ranks) - 1} each once; use the original file")
    if tuple(vision_tokens[:3]) != _IMAGE:
        raise UserError(f"{VISION_FILE}: the first lines are {vision_tokens[:3]}, expected {list(_IMAGE)}")
    if len(vision_tokens) < 4:
        raise UserError(f"{VISION_FILE}: no visual tokens after the three image marks; use the original file")
    for code, name in enumerate(vision_tokens[3:]):
        if name != visual_token(code):
            raise UserError(f"{VISION_FILE}: line {code + 4} is {name!r}, expected {visual_token(code)!r}")


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """Reads a `.tiktoken` file: {bytes: rank}. Raises UserError with the line that does not parse."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(Path(path)).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{path}: line {number} is not '<base64> <rank>'; use the original file") from None
    return ranks


def write_ranks(path: str | Path, ranks: dict[bytes, int]) -> None:
    """Writes a `.tiktoken` file, in the order of the ranks."""
    rows = sorted(ranks.items(), key=lambda item: item[1])
    Path(path).write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in rows))


def read_vision_tokens(path: str | Path) -> list[str]:
    """Reads `emu3_vision_tokens.txt`: the names in it, in order."""
    try:
        lines = _read(Path(path)).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; use the original file") from None
    return [line.strip() for line in lines if line.strip()]


def write_vision_tokens(path: str | Path, codebook_size: int) -> None:
    """Writes `emu3_vision_tokens.txt` for a code-book of a size."""
    names = (*_IMAGE, *(visual_token(code) for code in range(codebook_size)))
    Path(path).write_text("\n".join(names) + "\n", encoding="utf-8")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); the folder must hold {TEXT_FILE} and {VISION_FILE}"
        ) from None


@functools.cache
def _load(folder: Path, codebook_size: int | None) -> Vocabulary:
    ranks, names = read_ranks(folder / TEXT_FILE), read_vision_tokens(folder / VISION_FILE)
    if codebook_size is not None:
        if not is_built_in(folder) and codebook_size != len(names) - 3:
            raise UserError(
                f"{folder / VISION_FILE}: {len(names) - 3} visual tokens, but the image tokenizer has "
                f"{codebook_size} codes; use the vocabulary that belongs to it"
            )
        names = [*names[:3], *(visual_token(code) for code in range(codebook_size))]
    return Vocabulary(ranks, names)


def is_built_in(path: str | Path | None) -> bool:
    """Whether `load` gives this a vocabulary of the package: None, "", a name of NAMES, or such a folder itself.

    A name is always the package's vocabulary.
    """
    if not path or Path(path) == BUILT_IN or Path(path).parent == BUILT_IN:
        return True
    return str(path) in NAMES


def load(path: str | Path | None = None, codebook_size: int | None = None) -> Vocabulary:
    """Loads a vocabulary.

    Args:
      path: a folder with Emu3's two files; None or "": the small default; "radiology" or "english": those for free
        language (a folder of that name is "./radiology").
      codebook_size: number of image codes. Only a built-in vocabulary can be given another number than its
        file has; for a folder it is checked.

    Returns:
      Vocabulary. Raises UserError for missing, damaged or unfitting files.
    """
    if codebook_size is not None and not 1 <= codebook_size <= MOST_CODES:
        raise UserError(f"codebook_size: {codebook_size} is not from 1 to {MOST_CODES}")
    if path and is_built_in(path):
        return _load(BUILT_IN / Path(path).name if str(path) in NAMES else Path(path), codebook_size)
    return _load(Path(path) if path else BUILT_IN, codebook_size)
