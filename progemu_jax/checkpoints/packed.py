"""Exports whose arrays lie in one safetensors file, in 16 bits: for weights that travel with the package.

A folder holds `params.safetensors` and `export.json`: the config, shape and dtype of the arrays as the model gets them,
and the SHA-256 of config and tensors. `export.load_export` reads it like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """Writes arrays by name, and the config that builds their model, into a new folder.

    Not atomic: the caller gives the folder its name once everything is there.
    """
    folder.mkdir(parents=True)
    short = {name: stored(np.asarray(array)) for name, array in arrays.items()}
    entries = {name: (safetensors.NAMES[str(array.dtype)], array.shape) for name, array in short.items()}
    writer = safetensors.Writer(folder, safetensors.files_of(entries, {}, STEM), STEM)
    content = safetensors.ContentHash()
    for name, array in short.items():
        writer.write(name, array)
        content.add(name, *entries[name], array)
    writer.close()
    record = {"format": FORMAT, "config": config, "tree": {n: shape_and_dtype(a) for n, a in arrays.items()}}
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
