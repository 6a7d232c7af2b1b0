"""Are generated images copies of training images? Each is compared with every image that was trained on.

    python -m progemu_jax.data.memorisation --shards=runs/x/data/shards --predictions=runs/x/predictions/progemu
        --references=runs/x/data/references

Compared are 32 x 32 thumbnails, by correlation (`duplicates.thumbnail`): one film saved twice has .9999, two of one
patient reach .93. The real follow-ups of the same cases, whose patients were not trained on, say what is usual.
Writes `memorisation.json` into the predictions folder and prints it: for generated and real images the median and the
greatest correlation with the nearest training image, how many reach SAME, and which. The stage `score` of a run does
the same for the system under test and writes `scores/<system>.memorisation.json`; the report shows it.
"""

import functools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from progemu_jax.data import images, radiograph
from progemu_jax.data.batches import Examples
from progemu_jax.data.duplicates import SAME, thumbnail
from progemu_jax.data.pool import ordered_map
from progemu_jax.data.sources import inside
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files import records
from progemu_jax.files.command_line import Parser

IMAGES = {"pairs": ("pair_id", ("prior", "followup")), "single": ("image_id", ("image",))}  # config -> name, images


def nearest(queries: np.ndarray, trained: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(index, correlation) of the nearest of the `trained` thumbnails for each query.

    queries: float32 [N, D]; trained: blocks [n, D], of mean 0 and length 1.
    """
    index, best, start = np.full(len(queries), -1), np.full(len(queries), -np.inf, np.float32), 0
    for block in trained:
        found = queries @ block.T
        place = found.argmax(1)
        value = found[np.arange(len(queries)), place]
        index, best = np.where(value > best, start + place, index), np.maximum(best, value)
        start += len(block)
    return index, best


def audit(
    shards: Path, predictions: Path, references: Path, *, processes: int | None = None, progress: bool = False
) -> dict:
    """What memorisation.json holds; see the module and docs/formats.md.

    Raises UserError where a folder or an image does not read, and where there is nothing to compare.
    """
    cases = {row["pair_id"]: row for row in _rows(references / "references.jsonl")}
    rows = [row for row in _rows(predictions / "predictions.jsonl") if row.get("image") and row["pair_id"] in cases]
    if not rows:
        raise UserError(f"{predictions}: no image of a case in {references}")
    asked = {
        "generated": [(f"{r['pair_id']}#{r.get('sample', 0)}", predictions, r["image"]) for r in rows],
        "real": [(name, references, cases[name].get("followup")) for name in sorted({r["pair_id"] for r in rows})],
    }
    queries = {k: np.stack([thumbnail(_read(root, name)) for _, root, name in items]) for k, items in asked.items()}
    names, table = [], []
    for name, thumbnails in _trained(shards, processes, progress):
        names.append(name)
        table.append(thumbnails)
    if not names:
        raise UserError(f"{shards}: no training image in it; build the data first (--stages=data)")
    table, out = np.stack(table), {"training_images": len(names), "same": SAME}
    for kind, items in asked.items():
        index, value = nearest(queries[kind], (table[i : i + 4096] for i in range(0, len(table), 4096)))
        copies = [{"image": items[i][0], "of": names[index[i]], "correlation": round(float(value[i]), 4)}
                  for i in np.flatnonzero(value >= SAME)]  # fmt: skip
        out[kind] = {"images": len(items), "median": round(float(np.median(value)), 4),
                     "greatest": round(float(value.max()), 4), "copies": copies}  # fmt: skip
    return out


def _trained(shards: Path, processes, progress) -> Iterator[tuple[str, np.ndarray]]:
    """(name, thumbnail float32 [D]) of every training image."""
    items = [(config, i) for config in IMAGES for i in range(len(_examples(shards, config)))]
    made = ordered_map(functools.partial(_thumbnails, shards), items, processes, chunk=64, least=2000)
    for found in tqdm(made, desc="training images", total=len(items), unit="example", disable=not progress):
        yield from found


def _thumbnails(shards: Path, item: tuple[str, int]) -> list[tuple[str, np.ndarray]]:
    config, index = item
    example, (name, keys) = _examples(shards, config)[index], IMAGES[config]
    return [(f"{example[name]}/{key}", thumbnail(example[key])) for key in keys]


@functools.cache
def _examples(shards: Path, config: str):
    return Examples(shards, config, "train", cache=False)


def _rows(path: Path) -> list[dict]:
    return records.read_rows(path, "pair_id", remedy="give the folder that a complete stage wrote")


def _read(root: Path, name: str) -> np.ndarray:
    path = inside(root, name) if isinstance(name, str) else None
    try:
        if path is None:
            raise images.BrokenImage("is no path in the folder")
        return radiograph.read_gray(path)
    except images.BrokenImage as error:
        raise UserError(f"{root / str(name)}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(__doc__)
    for flag in ("--shards", "--predictions", "--references"):
        parser.add_argument(flag, type=Path, required=True)
    args = parser.parse_args(argv)

    def work():
        found = audit(args.shards, args.predictions, args.references, progress=True)
        records.write_json(args.predictions / "memorisation.json", found)
        return json.dumps(found, indent=1)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
