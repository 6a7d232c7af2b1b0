"""WordNet of a few synsets, in its own files."""

import itertools

from progemu_jax.data.phantom import make_dictionary

LICENCE = ["This software is licensed.", "", "WordNet Copyright."]
HEAD = "".join(f"  {number} {line}  \n" for number, line in enumerate(LICENCE, 1))
# name -> (kind, words, pointers: symbol and name). "increase" and "large" are seeds.
SYNSETS = {
    "increase": ("v", "increase enlarge", []),
    "swell": ("v", "swell tumefy", [("@", "increase")]),
    "bloat": ("v", "bloat", [("@", "swell")]),
    "growth": ("n", "growth", [("+", "increase")]),
    "larger": ("a", "large larger(a)", [("&", "massive"), ("+", "growth")]),
    "massive": ("s", "massive", [("&", "larger")]),
}
RARE = {"tumefy"}


def write(folder):
    """Files as WordNet has them: a head of numbered lines, data by offset, index with senses and their use."""
    folder = folder / "dict"
    folder.mkdir(parents=True)
    offsets = {name: f"{number:08d}" for number, name in enumerate(SYNSETS, 1)}
    for file, kind in make_dictionary.KINDS.items():
        data, index = HEAD, HEAD
        for name, (own, words, pointers) in SYNSETS.items():
            if own.replace("s", "a") != kind:
                continue
            words = words.split()
            told = "".join(f" {s} {offsets[to]} {SYNSETS[to][0].replace('s', 'a')} 0000" for s, to in pointers)
            listed = " ".join(itertools.chain(*((w, "0") for w in words)))
            data += f"{offsets[name]} 30 {own} {len(words):02x} {listed} {len(pointers):03d}{told} | a definition  \n"
            for word in (w.partition("(")[0] for w in words):
                index += f"{word} {kind} 1 0 1 {int(word not in RARE)} {offsets[name]}  \n"
        (folder / f"data.{file}").write_text(data)
        (folder / f"index.{file}").write_text(index)
    return folder.parent
