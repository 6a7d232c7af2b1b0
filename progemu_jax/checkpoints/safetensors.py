"""Folders of safetensors files, read and written tensor by tensor.

The format is a length, a JSON header and raw little-endian data. It is read here with plain file reads rather than
through a memory map, so that memory holds one block at a time, and every number of the header is checked before it is
used. Pickle files are never opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.files.records import can_be_inside, open_file, read_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DIFFUSERS = "diffusion_pytorch_model"  # the name of Diffusers' weights, where others say "model"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
BLOCK_BYTES = 2**27  # of a tensor that is read in blocks of rows
_HEADER_LIMIT = 100_000_000  # bytes, the format's own limit

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {str(dtype): name for name, dtype in DTYPES.items()}
FLOATS = ("BF16", "F16", "F32")  # what parameters may be


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `offset` is its first byte in `file`; dtype is the format's name ("BF16")."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def read(self) -> np.ndarray:
        """The whole tensor."""
        return self._rows(0, self.shape[0] if self.shape else 1).reshape(self.shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """The tensor in blocks of whole rows (first axis) of about BLOCK_BYTES."""
        rows = self.shape[0]
        step = max(1, BLOCK_BYTES * rows // max(1, self.nbytes))
        for start in range(0, rows, step):
            yield self._rows(start, min(start + step, rows))

    def _rows(self, start: int, stop: int) -> np.ndarray:
        dtype = DTYPES[self.dtype]
        shape = (stop - start, *self.shape[1:])
        out = np.empty(shape, dtype)
        row = math.prod(self.shape[1:]) * dtype.itemsize
        with open(self.file, "rb") as file:
            file.seek(self.offset + start * row)
            got = file.readinto(out.reshape(-1).view(np.uint8)) if out.size else 0
        if got != out.nbytes:
            raise UserError(f"{self.file}: tensor {self.name} is cut short; fetch the file again")
        return out


def open_folder(folder: str | os.PathLike, stem: str = "model") -> dict[str, Tensor]:
    """The tensors of a folder with `model.safetensors`, or with shards and their index; `stem` for "model".

    Raises:
      UserError: no weights, pickle files only, a damaged file or index, an index that leaves the folder.
    """
    folder, weights, index = Path(folder), f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (folder / index).exists():
        return _open_shards(folder / index)
    if (folder / weights).exists():
        return read_header(inside(folder / weights))
    refuse_pickles(folder)
    raise UserError(f"{folder}: neither {weights} nor {index} is there; fetch the whole checkpoint")


def inside(path: Path) -> Path:
    """`path`, unless it is a link that leaves its folder. Of a snapshot in the hub's cache, links to blobs are allowed:
    REPOSITORY/snapshots/COMMIT/... -> REPOSITORY/blobs/HASH, which may be a link to CACHE/blobs/XX/HASH."""
    home = path.parent.resolve()
    if path.is_symlink():
        target = path.resolve()
        repositories = [parent.parent for parent in home.parents if parent.name == "snapshots"]
        allowed = [home, *(repository / "blobs" for repository in repositories)]
        shared = [repository.parent / "blobs" for repository in repositories]
        if target.parent not in allowed and target.parent.parent not in shared:
            raise UserError(f"{path}: is a link out of the folder, to {target}; copy the file")
    return path


def plain(name: Any) -> bool:
    """Whether a file's name, which came from outside, is that of a file in the folder where it is said to be."""
    return can_be_inside(name) and name not in ("", ".") and not re.search(r"[/\\\x00-\x1f:]", name)


def refuse_pickles(folder: Path) -> None:
    """Raises UserError when the folder's weights are a pickle."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
        if path.suffix in PICKLES:
            remedy = (
                "import torch, safetensors.torch as s; "
                f"d = torch.load('{path.name}', weights_only=True); d = d.get('state_dict', d); "
                f"s.save_file({{k: v.clone() for k, v in d.items()}}, '{WEIGHTS}')"
            )
            raise UserError(
                f"{path}: a pickle file, which can run any code when it is opened, is not read; save it as "
                f'safetensors: python -c "{remedy}"'
            )


def _open_shards(index: Path) -> dict[str, Tensor]:
    folder = index.parent
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map; fetch the file again")
    headers: dict[str, dict[str, Tensor]] = {}
    found = {}
    for name, file in weight_map.items():
        if not plain(file):
            raise UserError(f"{index}: tensor {name} is in {file!r}, outside the folder; use the original index")
        if Path(file).suffix in PICKLES:
            refuse_pickles(folder / file)
        if file not in headers:
            if not (folder / file).is_file():
                raise UserError(f"{index}: tensor {name} is in {file}, which is not there; fetch the missing file")
            headers[file] = read_header(inside(folder / file))
        if name not in headers[file]:
            raise UserError(f"{folder / file}: tensor {name} is missing, which the index says is here; fetch it again")
        found[name] = headers[file][name]
    for file, tensors in headers.items():
        for name in tensors:
            if weight_map.get(name) != file:
                raise UserError(f"{folder / file}: tensor {name} is not in {index.name}; fetch both again")
    return found


def read_json(path: Path) -> dict:
    """A JSON object; UserError when it is absent or something else, or names a key twice."""
    try:
        value = json.loads(read_text(inside(path)), object_pairs_hook=_unique)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch the whole checkpoint") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: does not parse as JSON ({_line(error)}); fetch the file again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; fetch the file again")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key is there twice")
    return out


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises UserError for anything that is not a whole safetensors file."""
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise UserError(f"{path}: is not a safetensors file, or is truncated; fetch it again")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fetch it again") from None
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the header does not parse ({_line(error)}); fetch the file again") from None
    tensors, ends = {}, []
    for name, entry in header.items():
        tensors[name], end = _tensor(path, name, entry, 8 + length)
        ends.append((tensors[name].offset, end, name))
    at = 8 + length
    for start, end, name in sorted(ends):
        if start != at:
            raise UserError(f"{path}: tensor {name} does not begin where the one before it ends; fetch the file again")
        if end > size:
            raise UserError(f"{path}: tensor {name} is truncated: the file has {size} bytes, not {end}; fetch it again")
        at = end
    if at != size:
        raise UserError(f"{path}: {size - at} bytes follow the last tensor; fetch the file again")
    return tensors


def _tensor(path: Path, name: str, entry: Any, base: int) -> tuple[Tensor, int]:
    """(Tensor, end) of a header's entry, checked."""
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, end]
        good = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good or not isinstance(dtype, str):
        raise UserError(f"{path}: the header's entry of tensor {name} is damaged; fetch the file again")
    if dtype not in DTYPES:
        raise UserError(f"{path}: tensor {name} is {dtype}, which is not supported; save it as BF16, F16 or F32")
    tensor = Tensor(name, path, dtype, tuple(shape), base + start)
    if end - start != tensor.nbytes:
        raise UserError(
            f"{path}: tensor {name} {dtype}{list(shape)} needs {tensor.nbytes} bytes, the header gives {end - start}; "
            "fetch the file again"
        )
    return tensor, base + end


class Writer:
    """Writes safetensors files whose tensors come one by one, in any order, in blocks.

    Args:
      folder: exists.
      shards: {file name: {tensor name: (dtype name, shape)}}.
      stem: what the index of several files is named after.
      apart: further files, as `shards`, that the index does not name.
    """

    def __init__(
        self,
        folder: Path,
        shards: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]],
        stem: str = "model",
        apart: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]] | None = None,
    ):
        self._places, self._left = {}, {}
        files = {}
        if both := set(shards) & set(apart or {}):
            raise UserError(
                f"{min(both)!r}: the index names some of its tensors and not others; convert its source again"
            )
        every = {**shards, **(apart or {})}
        for file in (*every, f"{stem}.safetensors"):
            if not plain(file) or not file.endswith(".safetensors"):
                raise UserError(f"{file!r}: is no name of a safetensors file in the folder to be written")
        for file, entries in every.items():
            header, at = {"__metadata__": {"format": "pt"}}, 0
            for name, (dtype, shape) in entries.items():
                end = at + math.prod(shape) * DTYPES[dtype].itemsize
                header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
                at = end
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            with open(folder / file, "wb") as out:
                out.write(len(text).to_bytes(8, "little") + text)
                out.truncate(8 + len(text) + at)
            for name in entries:
                start, end = header[name]["data_offsets"]
                self._places[name], self._left[name] = (folder / file, 8 + len(text) + start), end - start
                if file in shards:
                    files[name] = file
        if set(shards) != {f"{stem}.safetensors"}:
            size = sum(self._left[name] for name in files)
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def write(self, name: str, block: np.ndarray, row: int = 0) -> None:
        """A tensor, or a block of its rows from `row` on."""
        path, start = self._places[name]
        data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
        with open(path, "r+b") as file:
            file.seek(start + (row * data.nbytes // len(block) if row else 0))
            file.write(data)
        self._left[name] -= data.nbytes

    def close(self) -> None:
        """Flushes to the disk."""
        wrong = [name for name, left in self._left.items() if left]
        if wrong:
            raise ValueError(f"tensors without all of their data: {wrong[:3]}")
        for path in {path for path, _ in self._places.values()}:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def shard(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], limit: int = 5 * 10**9, stem: str = "model"
) -> dict[str, dict]:
    """Tensors in files of at most `limit` bytes (a larger tensor has its own), named as the field names them."""
    groups: list[dict] = [{}]
    held = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if groups[-1] and held + size > limit:
            groups.append({})
            held = 0
        groups[-1][name] = dtype, shape
        held += size
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def files_of(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], files: Mapping[str, str], stem: str = "model"
) -> dict[str, dict]:
    """Tensors by the file that each is in, wide dtypes first, for alignment; without `files`, as `shard` has them."""
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name][0]].itemsize, name))
    if not files:
        return shard({name: tensors[name] for name in order}, stem=stem)
    out: dict[str, dict] = {}
    for name in order:
        out.setdefault(files[name], {})[name] = tensors[name]
    return out


def main_dtype(path: Path, found: Mapping[str, Tensor]) -> str:
    """The dtype of most elements, as JAX names it. Raises UserError, naming the folder, where none is a parameter's."""
    count: Counter = Counter()
    for tensor in found.values():
        if tensor.dtype in FLOATS:
            count[tensor.dtype] += tensor.nbytes
    if not count:
        raise UserError(f"{path}: has no tensors in BF16, F16 or F32; fetch the whole checkpoint")
    return str(DTYPES[count.most_common(1)[0][0]])


def check(
    found: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    index: Path,
    config: str,
    remedy: str = "use the config and weights of one model",
) -> None:
    """Raises UserError for the first of `shapes` that is missing, of another shape, or of no parameter's dtype.

    index: the file to name for a missing tensor of several files; config: what implies the shapes.
    """
    files = sorted({tensor.file for tensor in found.values()})
    for name, shape in shapes.items():
        if name not in found:
            where = files[0] if len(files) == 1 else index
            raise UserError(f"{where}: tensor {name} is missing, which {config} implies; {remedy}")
        tensor = found[name]
        if tensor.shape != shape:
            raise UserError(
                f"{tensor.file}: tensor {name} is {list(tensor.shape)}, {config} implies {list(shape)}; {remedy}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}; expected BF16, F16 or F32")


def packed_buffers(buffers: dict[str, Tensor]) -> dict[str, list]:
    """{name: [dtype, shape, base64]} of buffers, for a JSON record."""
    out = {}
    for name, tensor in buffers.items():
        data = base64.b64encode(tensor.read().tobytes()).decode()
        out[name] = [tensor.dtype, list(tensor.shape), data]
    return out


def unpacked_buffers(packed: Mapping[str, list]) -> dict[str, np.ndarray]:
    """{name: array} of what `packed_buffers` gave."""
    arrays = {n: np.frombuffer(base64.b64decode(data), DTYPES[dtype]) for n, (dtype, _, data) in packed.items()}
    return {name: array.reshape(packed[name][1]) for name, array in arrays.items()}


class ContentHash:
    """SHA-256 of a set of tensors by name, dtype, shape and data, whatever their order and files."""

    def __init__(self):
        self._heads: dict[str, str] = {}
        self._data: dict[str, Any] = {}

    def add(self, name: str, dtype: str, shape: tuple[int, ...], block: np.ndarray) -> None:
        """A tensor as it is in the file, or its next block of rows."""
        self._heads[name] = f"{name} {dtype} {list(shape)}"
        digest = self._data.setdefault(name, hashlib.sha256())
        digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8))

    def hexdigest(self) -> str:
        rows = (f"{self._heads[name]} {self._data[name].hexdigest()}\n" for name in sorted(self._heads))
        return hashlib.sha256("".join(rows).encode()).hexdigest()
