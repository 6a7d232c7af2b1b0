"""Trains the built-in vocabulary: python -m progemu_jax.data.phantom.train_vocabulary

Writes `emu3.tiktoken` and `emu3_vision_tokens.txt` in `text/vocabulary_files/` from phantom reports, their
progression texts and the radiology words of `vocabulary_words.txt`; the same call gives the same files. Rank order:
the 256 bytes, then pieces by byte-pair encoding for words never seen, then every whole word of the corpus by frequency.
tiktoken takes a piece that is in the vocabulary as one token without merging, so a word needs no intermediate
merges and the table stays small.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import regex

from progemu_jax.data.phantom import patient as phantom
from progemu_jax.data.phantom.reports import report
from progemu_jax.data.progression import progression
from progemu_jax.text import vocabulary

TEXT_SIZE = 813  # with 208 control tokens and 3 image marks the visual tokens start at 1,024
CODEBOOK_SIZE = 1024

# General words of chest radiology that prompts may use although no phantom report does.
WORDS = Path(__file__).with_name("vocabulary_words.txt")


def corpus(patients: int, seed: int) -> tuple[Counter, Counter]:
    """Pieces of progression texts and of reports with their counts, over pairs of phantom studies."""
    rng = np.random.default_rng(seed)
    short, long = Counter(), Counter()
    for _ in range(patients):
        who = phantom.sample_patient(rng)
        before, after = phantom.sample_trajectory(rng, who, 2)
        first, second = report(rng, who, before, None), report(rng, who, after, before)
        made = progression(first, second)
        for text in (made.prompt, made.interpretation):
            short.update(regex.findall(vocabulary.SPLIT, text))
        for text in (*first.values(), *second.values()):
            long.update(regex.findall(vocabulary.SPLIT, text))
    return short, long


def merges(counts: Counter, number: int) -> list[bytes]:
    """Byte-pair encoding: the tokens that the first `number` merges make, most frequent pair first."""
    words = {tuple(bytes([b]) for b in word.encode()): n for word, n in counts.items()}
    made: list[bytes] = []
    while len(made) < number:
        pairs = Counter()
        for word, n in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        joined = best[0] + best[1]
        if joined not in made:
            made.append(joined)
        words = {_merge(word, best, joined): n for word, n in words.items()}
    return made


def _merge(word: tuple, pair: tuple, joined: bytes) -> tuple:
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(joined)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def train(patients: int, seed: int) -> dict[bytes, int]:
    short, long = corpus(patients, seed)
    general = Counter(f" {word}" for word in WORDS.read_text(encoding="utf-8").split())
    whole = [word.encode() for word, _ in sorted(short.items(), key=lambda item: (-item[1], item[0]))]
    rest = long + general
    whole += [word.encode() for word, _ in sorted(rest.items(), key=lambda item: (-item[1], item[0]))]
    single = [bytes([b]) for b in range(256)]
    whole = [word for word in dict.fromkeys(whole) if len(word) > 1]
    # Each distinct word counts once for the pieces: they serve words that the corpus does not have.
    taken, room, pieces = set(whole), TEXT_SIZE - len(single) - len(whole), []
    for piece in merges(Counter(dict.fromkeys([*short, *long, *general], 1)), TEXT_SIZE):
        if len(pieces) < room and piece not in taken:
            pieces.append(piece)
    if len(pieces) < max(room, 1):
        raise SystemExit(f"{len(whole)} words and {len(pieces)} pieces do not make {TEXT_SIZE} tokens")
    return {token: rank for rank, token in enumerate([*single, *pieces, *whole])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=vocabulary.BUILT_IN)
    parser.add_argument("--patients", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    vocabulary.write_ranks(args.out / vocabulary.TEXT_FILE, train(args.patients, args.seed))
    vocabulary.write_vision_tokens(args.out / vocabulary.VISION_FILE, CODEBOOK_SIZE)


if __name__ == "__main__":
    main()
