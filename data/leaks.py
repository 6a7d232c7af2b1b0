"""Does anything cross the splits? No patient, no image, no near-duplicate of one may.

    python -m progemu_jax.data.leaks --tree=DIR [--tree=DIR ...] [--subjects=FILE] [--write=FILE]

Reads `images.jsonl` of one or more trees (several: the cohorts that one model learns from), and prints what crosses.
--subjects: patients, one a line, of whom nothing may be in training or validation: those of a benchmark. --write: the
patients of training and validation who leak, to be given to `config.data.exclude`. Status 1 where something crosses.

Near-duplicates are told by a perceptual hash: which of the 143 lowest frequencies of the cropped 32 x 32 image are
above their median. On the open collection, two films differ in 22 bits and more, one film saved again (smaller,
brighter, as JPEG, in a frame) in 7 and less, mostly; NEAR lies between. A film that is cropped otherwise can differ
in more: the check finds copies, it does not prove that there is none.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from progemu_jax.data.journeys import read_list
from progemu_jax.errors import UserError, exit_status, shown
from progemu_jax.files import records
from progemu_jax.files.command_line import Parser

TRAINED = ("train", "validation")
NEAR = 12  # bits


def crossing(rows: Iterable[dict]) -> Iterator[dict]:
    """What crosses: {"what": patient, image or near-duplicate, "a", "b": rows' names, "bits"}, a of the later split."""
    rows = list(rows)
    patients, pixels = defaultdict(dict), defaultdict(dict)
    for row in rows:
        patients[row["source"], row["patient_id"]].setdefault(row["split"], row)
        pixels[row["pixels"]].setdefault(row["split"], row)
    for what, groups in (("patient", patients), ("image", pixels)):
        for found in groups.values():
            if len(found) > 1:
                a, b = sorted(found.values(), key=lambda r: r["split"])[:2]
                yield {"what": what, "a": _name(a), "b": _name(b), "bits": 0}
    for i, j, bits in near_pairs([row["hash"] for row in rows], [row["split"] for row in rows]):
        if rows[i]["pixels"] != rows[j]["pixels"]:
            yield {"what": "near-duplicate", "a": _name(rows[i]), "b": _name(rows[j]), "bits": bits}


def near_pairs(hashes: list[str], groups: list[str], near: int = NEAR) -> list[tuple[int, int, int]]:
    """(i, j, differing bits) of hashes of two groups that differ in at most `near` bits; i < j, sorted.

    Cut into near + 1 bands, two such hashes agree in one of them whole: only equal bands are compared.
    """
    if not hashes:
        return []
    table = np.array([np.frombuffer(bytes.fromhex(h), np.uint8) for h in hashes])
    bits, group = np.unpackbits(table, axis=1), np.unique(groups, return_inverse=True)[1]
    found = {}
    for band in np.array_split(np.arange(bits.shape[1]), near + 1):
        _, key = np.unique(np.packbits(bits[:, band], axis=1), axis=0, return_inverse=True)
        order = np.argsort(key, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(members) < 2 or (group[members] == group[members[0]]).all():
                continue
            for start in range(0, len(members), 256):  # a bucket of all images must not take their square in memory
                some = members[start : start + 256]
                differ = np.bitwise_count(table[some][:, None] ^ table[members][None]).sum(-1, dtype=np.int16)
                for a, b in zip(*np.nonzero((differ <= near) & (group[some][:, None] != group[members])), strict=True):
                    i, j = sorted((int(some[a]), int(members[b])))
                    found[i, j] = int(differ[a, b])
    return [(i, j, bits) for (i, j), bits in sorted(found.items())]


def check(trees: list[Path], subjects: frozenset[str] = frozenset()) -> dict:
    """{"images", "patients": counts, "crossing": rows of `crossing`, "listed": patients who are on the list}."""
    rows = [row for root in trees for row in read_rows(root)]
    people = {(row["source"], row["patient_id"]): row["split"] for row in rows}
    listed = sorted({f"{s}/{p}" for (s, p), split in people.items() if p in subjects and split in TRAINED})
    return {
        "images": dict(_count(row["split"] for row in rows)),
        "patients": dict(_count(people.values())),
        "crossing": list(crossing(rows)),
        "listed": listed,
    }


def read_rows(root: Path) -> list[dict]:
    """Rows of a tree's images.jsonl; UserError where it is missing or a row is broken."""
    keys = ("source", "patient_id", "study_id", "image_id", "split", "pixels", "hash")
    remedy = "give a tree that --stages=data has completed"
    rows = records.read_rows(Path(root) / "images.jsonl", *keys, remedy=remedy)
    for number, row in enumerate(rows, 1):
        if not re.fullmatch(f"[0-9a-f]{{{len(rows[0]['hash'])}}}", row["hash"]) or len(row["hash"]) % 2:
            raise UserError(f"{Path(root) / 'images.jsonl'}: row {number}: 'hash' is no hash; {remedy}")
    return rows


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(__doc__)
    parser.add_argument("--tree", type=Path, action="append", required=True)
    parser.add_argument("--subjects", type=Path)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args(argv)
    return exit_status(lambda: _report(args.tree, args.subjects, args.write))


def _report(trees: list[Path], subjects: Path | None, write: Path | None) -> int:
    """Prints what crosses, and writes the patients; the status."""
    if write and write.is_dir():
        raise UserError(f"--write={write}: is a folder; name a file")
    found = check(trees, read_list(subjects) if subjects else frozenset())
    for split, count in found["images"].items():
        print(f"{shown(split)}: {count} images of {found['patients'].get(split, 0)} patients")
    for row in found["crossing"]:
        print(shown(f"{row['what']}: {row['a']} and {row['b']} ({row['bits']} bits)"))
    for name in found["listed"]:
        print(f"on the list: {shown(name)}")
    leaks = len(found["crossing"]) + len(found["listed"])
    print(f"{leaks} leaks" if leaks else "nothing crosses the splits")
    if write:
        sides = [row[side] for row in found["crossing"] for side in "ab"]
        names = {s.split("/")[2] for s in sides if s.startswith(TRAINED)} | {n.split("/")[1] for n in found["listed"]}
        records.write_text(write, "".join(f"{name}\n" for name in sorted(names)))
    return 1 if leaks else 0


def _name(row: dict) -> str:
    return "/".join(row[key] for key in ("split", "source", "patient_id", "study_id", "image_id"))


def _count(names: Iterable[str]) -> list[tuple[str, int]]:
    counts = defaultdict(int)
    for name in names:
        counts[name] += 1
    return sorted(counts.items())


if __name__ == "__main__":
    sys.exit(main())
