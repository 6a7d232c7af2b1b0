"""Exports whose arrays lie in safetensors files: for weights that travel, with the package or by the Hub.

A folder holds `params.safetensors` (from 5 GB on several files, and their index) and `export.json`: the config, shape
and dtype of the arrays as the model gets them, and the SHA-256 of config and tensors. `export.load_export` reads it
like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax.checkpoints import safetensors
from progemu_jax.checkpoints.arrays import shape_and_dtype
from progemu_jax.files.records import digest, write_json

FORMAT = "progemu-jax-export-packed-1"
STEM = "params"  # of the file's name
SMALL = 2**12  # elements: norms and biases are few bytes and stay as they are


def stored(array: np.ndarray) -> np.ndarray:
    """The array as the file holds it: in float16, unless it is small, no float32, or beyond what float16 can hold.

    Weights are near each other in size, so three more bits of precision count and bfloat16's range does not.
    """
    if array.dtype != np.float32 or array.size <= SMALL:
        return array
    with np.errstate(over="ignore"):
        short = array.astype(np.float16)
    return short if np.isfinite(short).all() else array


def write(arrays: Mapping[str, np.ndarray], config: dict[str, Any], folder: Path) -> None:
    """Writes arrays by name, in 16 bits where `stored` says so, and the config that builds their model.

    Not atomic: the caller gives the folder, a new one, its name once everything is there.
    """
    short = {name: stored(np.asarray(array)) for name, array in arrays.items()}
    entries = {name: (safetensors.NAMES[str(array.dtype)], array.shape) for name, array in short.items()}
    tree = {name: shape_and_dtype(array) for name, array in arrays.items()}
    _write(entries, ((name, None, array) for name, array in short.items()), config, tree, folder)


def write_blocks(
    blocks: Iterable[tuple[str, list[int] | None, np.ndarray]],
    tree: Mapping[str, list],
    config: dict[str, Any],
    folder: Path,
) -> None:
    """As `write`, but every number as it is, and in the blocks of `export.iterate_export`: memory holds one of them.

    tree: {name: [shape, dtype]} of the arrays.
    """
    entries = {name: (safetensors.NAMES[dtype], tuple(shape)) for name, (shape, dtype) in tree.items()}
    _write(entries, blocks, config, tree, folder)


def _write(
    entries: Mapping[str, tuple[str, tuple[int, ...]]],
    blocks: Iterable[tuple[str, list[int] | None, np.ndarray]],
    config: dict[str, Any],
    tree: Mapping[str, list],
    folder: Path,
) -> None:
    folder.mkdir(parents=True)
    writer = safetensors.Writer(folder, safetensors.files_of(entries, {}, STEM), STEM)
    content = safetensors.ContentHash()
    for name, rows, array in blocks:
        writer.write(name, array, rows[0] if rows else 0)
        content.add(name, *entries[name], array)
    writer.close()
    record = {"format": FORMAT, "config": config, "tree": tree}
    write_json(folder / "export.json", {**record, "sha256": _identity(record, content)})


def read(folder: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) in the dtypes of the record's tree, once the whole file has been checked against its SHA-256.

    Raises:
      UserError: a file that is missing or cut short.
      ValueError: other contents than the record says.
    """
    content, found = safetensors.ContentHash(), {}
    for name, tensor in safetensors.open_folder(folder, STEM).items():
        found[name] = tensor.read()
        content.add(name, tensor.dtype, tensor.shape, found[name])
    if _identity(record, content) != record["sha256"]:
        raise ValueError("config and weights do not have the SHA-256 of the record")
    for name, (_, dtype) in record["tree"].items():
        yield name, found[name].astype(safetensors.DTYPES[safetensors.NAMES[dtype]])


def _identity(record: Mapping[str, Any], content: safetensors.ContentHash) -> str:
    return digest({"config": record["config"], "tree": record["tree"], "tensors": content.hexdigest()})
