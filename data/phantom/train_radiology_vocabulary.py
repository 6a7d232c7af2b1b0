"""Trains the vocabulary `radiology`: python -m progemu_jax.data.phantom.train_radiology_vocabulary

Writes `text/vocabulary_files/radiology/` from what training may see: the training part of the grammar (`text.restate`),
phantom reports with their progression texts, and the words of `radiology_words.txt`; the same call gives the same
files. Rank order as in `train_vocabulary`: bytes, pieces by byte-pair encoding, then the most frequent whole words.
Pieces are learnt of every distinct word as it stands in a sentence, at its start and in brackets, so that a word that
is new falls into stems and endings; words that the grammar holds out are taken from the word list first.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import regex

from progemu_jax.data.phantom.train_vocabulary import WORDS as FIRST_WORDS
from progemu_jax.data.phantom.train_vocabulary import corpus
from progemu_jax.text import vocabulary, wording_nouns, wordings
from progemu_jax.text.findings import FINDINGS, GRADES
from progemu_jax.text.restate import SIDES, ZONES, Change, restate

NAME = "radiology"
TEXT_SIZE = 2861  # with 208 control tokens and 3 image marks the visual tokens start at 3,072
CODEBOOK_SIZE = 1024  # `vocabulary.load` gives it any other number
PIECES = 1500  # pieces; the rest of the table is whole words
BONUS = 3  # of a pair with a single letter in it: a word that is new shall not fall into letters
WORDS = Path(__file__).with_name("radiology_words.txt")


def random_change(rng: np.random.Generator) -> Change:
    """Any change: finding, direction, grade, side and zone drawn evenly."""

    def pick(*options):
        return options[int(rng.integers(len(options)))]

    finding, direction = pick(*FINDINGS), pick(*wordings.DIRECTIONS)
    grade = None if direction == "resolved" else pick(None, *GRADES)
    placed = finding in ("atelectasis", "consolidation")
    return Change(finding, direction, grade, *((pick(None, *SIDES), pick(None, *ZONES)) if placed else (None, None)))


def sentences(number: int, seed: int) -> Counter:
    """Pieces (`vocabulary.SPLIT`) of sentences of the grammar's training part, without slips, with their counts."""
    rng, out = np.random.default_rng(seed), Counter()
    for _ in range(number):
        changes = [random_change(rng) for _ in range(1 + int(rng.random() < 0.2))]
        if len({c.finding for c in changes}) == len(changes):
            text = restate(changes, rng, asides=0.1, others=[f for f in FINDINGS if f != changes[0].finding])
            out.update(regex.findall(vocabulary.SPLIT, text))
    return out


def held_out_words() -> set[str]:
    """Words, lower case, that stand in held-out forms and in no form of the training part."""

    def words(forms):
        return {word for form in forms for word in re.findall(r"[a-z]+", form.lower())}

    families = [f for table in wordings.FAMILIES.values() for f in table]
    nouns = [n for table in wording_nouns.NOUNS.values() for n in table]
    sets = []
    for held in (True, False):
        forms = {form for f in families if f.held == held for form in wordings.surface_forms(f)}
        sets.append(words(forms | {n.text for n in nouns if n.held == held}))
    return sets[0] - sets[1]


def merges(words: list[str], number: int) -> list[bytes]:
    """Byte-pair encoding of distinct words: the tokens that the first merges make, most frequent pair first; pairs
    with a single letter in them count `BONUS` times."""
    parts = [tuple(bytes([b]) for b in word.encode()) for word in words]
    made = onsets(words)
    for i, word in enumerate(parts):
        while len(word) > 1 and word[0] + word[1] in made:
            word = (word[0] + word[1], *word[2:])
        parts[i] = word
    counts: Counter = Counter()
    where: defaultdict = defaultdict(set)
    for i, word in enumerate(parts):
        for pair in itertools.pairwise(word):
            counts[pair] += 1
            where[pair].add(i)
    while len(made) < number and counts:
        best = max(counts, key=lambda pair: (counts[pair] * (BONUS if _letter(pair) else 1), pair))
        if counts[best] < 2:
            break
        joined = best[0] + best[1]
        if joined not in made:
            made.append(joined)
        for i in list(where.pop(best)):
            old = parts[i]
            new, at = [], 0
            while at < len(old):
                step = 2 if old[at : at + 2] == best else 1
                new.append(joined if step == 2 else old[at])
                at += step
            parts[i] = tuple(new)
            counts.subtract(itertools.pairwise(old))
            counts.update(itertools.pairwise(new))
            for pair in itertools.pairwise(new):
                where[pair].add(i)
        del counts[best]
    return made


def onsets(words: list[str]) -> list[bytes]:
    """The first merges: a space and one letter, then the first two letters of words. So none begins with a letter."""
    first = Counter(word[: 3 if word[0] == " " else 2] for word in words if len(word) > 3)
    spaced = [o for o, _ in sorted(first.items(), key=lambda item: (-item[1], item[0])) if o[0] == " "]
    capital = [o for o, n in sorted(first.items(), key=lambda item: (-item[1], item[0])) if o[0].isupper() and n > 1]
    return [o.encode() for o in dict.fromkeys([*(o[:2] for o in spaced), *spaced, *capital])]


def _letter(pair: tuple[bytes, bytes]) -> bool:
    return any(len(piece.strip()) < 2 for piece in pair)


def train(number: int = 20_000, patients: int = 400, seed: int = 0) -> dict[bytes, int]:
    """{bytes: rank} of the vocabulary."""
    short, long = corpus(patients, seed)
    seen = sentences(number, seed) + short + long
    held = held_out_words()
    listed = [*WORDS.read_text(encoding="utf-8").split("\n"), *FIRST_WORDS.read_text(encoding="utf-8").split("\n")]
    general = dict.fromkeys(w for line in listed if not line.startswith("#") for w in line.split() if w not in held)
    whole = [word for word, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    whole += [f" {word}" for word in general]
    whole = list(dict.fromkeys(whole))
    plain = dict.fromkeys(word.strip() for word in whole if regex.fullmatch(r" ?\p{L}+", word))
    forms = [form for word in plain for form in dict.fromkeys((f" {word}", word, word[0].upper() + word[1:]))]
    single = [bytes([b]) for b in range(256)]
    # A word that merges make anyway needs no place among the whole ones.
    pieces = merges(forms, PIECES)
    tokens = list(dict.fromkeys([*single, *pieces, *(word.encode() for word in whole)]))[:TEXT_SIZE]
    if len(tokens) < TEXT_SIZE:
        raise SystemExit(f"{len(tokens)} tokens do not fill {TEXT_SIZE}")
    return {token: rank for rank, token in enumerate(tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=vocabulary.BUILT_IN / NAME)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    vocabulary.write_ranks(args.out / vocabulary.TEXT_FILE, train(seed=args.seed))
    vocabulary.write_vision_tokens(args.out / vocabulary.VISION_FILE, CODEBOOK_SIZE)


if __name__ == "__main__":
    main()
