"""Tensors of a foreign folder into an export, and of exports into such a folder: block by block, with their hash.

The hash of their content goes into the export with the names, dtypes and files that they had, so that the way back can
give the same names, dtypes and files, and can say whether every tensor is still the source's, bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from progemu_jax.checkpoints import safetensors
from progemu_jax.checkpoints.export import PART_BYTES, ExportWriter, iterate_export, reading
from progemu_jax.checkpoints.safetensors import ContentHash, Tensor
from progemu_jax.convert.components import Entry
from progemu_jax.convert.parts import Part
from progemu_jax.files.records import normal

# --- foreign folder -> export ---


def write_export(part: Part, writer: ExportWriter) -> str:
    """Writes the tensors of a part, large tables in blocks of rows; returns their content hash."""
    digest = ContentHash()
    for entry in tqdm(part.entries, f"{part.kind} in", unit="tensor"):
        tensor = part.tensors[entry.name]
        if entry.layout == "same" and tensor.nbytes > PART_BYTES:
            dtype = safetensors.DTYPES[tensor.dtype]
            writer.add_rows(entry.leaf, entry.shape, dtype, _hashed_blocks(digest, tensor))
        else:
            array = tensor.read()
            digest.add(tensor.name, tensor.dtype, tensor.shape, array)
            writer.add(entry.leaf, entry.ours(array))
    for tensor in part.buffers.values():
        digest.add(tensor.name, tensor.dtype, tensor.shape, tensor.read())
    return digest.hexdigest()


def _hashed_blocks(digest: ContentHash, tensor: Tensor) -> Iterator[np.ndarray]:
    for block in tensor.blocks():
        digest.add(tensor.name, tensor.dtype, tensor.shape, block)
        yield block


def source_record(part: Part, config: Mapping[str, Any], content_hash: str, **more: Any) -> dict:
    """What an export keeps of its source: see `outgoing`. config: the folder's; more: further keys."""
    every = {**part.tensors, **part.buffers}
    return normal(
        {
            **more,
            "config": config,
            "content_hash": content_hash,
            "names": {entry.leaf: entry.name for entry in part.entries},
            "dtypes": {entry.leaf: part.tensors[entry.name].dtype for entry in part.entries},
            "files": {name: tensor.file.name for name, tensor in every.items()},
            "buffers": safetensors.packed_buffers(part.buffers),
        }
    )


def said_of(parts: Iterable[Part]) -> str:
    """Kinds, numbers of tensors and sizes, for a person."""
    return "; ".join(f"{p.kind.replace('_', ' ')}, {len(p.tensors)} tensors, {p.size / 1e9:.2f} GB" for p in parts)


def copy_if_there(source: Path, target: Path) -> None:
    """Copies a file, and makes its folder; nothing where it is none. UserError for a link that leaves its folder."""
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(safetensors.inside(source), target)


# --- export -> foreign folder ---


@dataclass(frozen=True)
class Outgoing:
    """An export on its way out: all that can be said of its tensors before any data are read.

    Attributes:
      kind, export: of the part, and its folder.
      entries: {our leaf: Entry}.
      dtypes: {tensor: (dtype, shape)}, buffers included.
      files: {tensor: file} of the source; {}: they are shared out anew.
      apart: {tensor: file} of those in files that no index names.
      buffers: {tensor: array} of what is no parameter.
      content_hash: of the source's tensors; None where there is none, or it is of another dialect.
    """

    kind: str
    export: Path
    entries: dict[str, Entry]
    dtypes: dict[str, tuple[str, tuple[int, ...]]]
    files: dict[str, str]
    apart: dict[str, str]
    buffers: dict[str, np.ndarray]
    content_hash: str | None


def outgoing(
    kind: str,
    export: Path,
    tree: Mapping[str, Sequence],
    entries: Iterable[Entry],
    source: Mapping[str, Any] | None,
    buffers: Mapping[str, np.ndarray] | None = None,
    apart: Mapping[str, str] | None = None,
) -> Outgoing:
    """An export with the names, dtypes, files and buffers of its source, where there is one.

    Args:
      tree: {leaf: [shape, dtype]} of the export.
      entries: in the names of the dialect that is written, which the source's replace.
      source: the export's `source_record`, or None.
      buffers: what a folder without a source is to have.
      apart: {leaf: file} of parameters in files that no index names, whether the source had them or not.
    """
    entries = {entry.leaf: entry for entry in entries}
    files, buffers, apart = {}, dict(buffers or {}), apart or {}
    dtypes = {}
    with reading(export):
        if source:
            kept = {leaf: source["names"][leaf] for leaf in entries if leaf not in apart}
            entries = {leaf: replace(entry, name=kept.get(leaf, entry.name)) for leaf, entry in entries.items()}
            files, buffers = source["files"], safetensors.unpacked_buffers(source["buffers"])
        for leaf, entry in entries.items():
            as_it_was = source and (leaf not in apart or leaf in source["dtypes"])
            dtype = source["dtypes"][leaf] if as_it_was else safetensors.NAMES[tree[leaf][1]]
            dtypes[entry.name] = dtype, entry.tensor_shape
        for name, array in buffers.items():
            dtypes[name] = safetensors.NAMES[str(array.dtype)], array.shape
        out = Outgoing(
            kind,
            export,
            entries,
            dtypes,
            dict(files),
            {entries[leaf].name: file for leaf, file in apart.items()},
            buffers,
            source and source["content_hash"],
        )
        _files([out])  # knows every dtype, and has a file for each
        return out


def write_folder(parts: Sequence[Outgoing], folder: Path, stem: str = "model") -> bool:
    """Writes the tensors of exports into one folder; whether all are those of their sources, bit for bit.

    stem: what the files are called, where the sources do not say.
    """
    indexed, apart = _files(parts, stem)
    writer = safetensors.Writer(folder, indexed, stem, apart)
    unchanged = [_write_part(part, writer) == part.content_hash for part in parts]
    writer.close()
    return all(unchanged)


def _files(parts: Sequence[Outgoing], stem: str = "model") -> tuple[dict, dict]:
    """({file: {tensor: (dtype, shape)}} of what is indexed, the same of what is not)."""
    apart = {name: file for part in parts for name, file in part.apart.items()}
    files = {name: file for part in parts for name, file in part.files.items()}
    dtypes = {name: entry for part in parts for name, entry in part.dtypes.items()}
    indexed = safetensors.files_of({name: dtypes[name] for name in dtypes if name not in apart}, files, stem)
    return indexed, safetensors.files_of({name: dtypes[name] for name in apart}, apart) if apart else {}


def _write_part(part: Outgoing, writer: safetensors.Writer) -> str:
    """The content hash of what was written."""
    digest = ContentHash()
    with tqdm(total=len(part.entries), desc=f"{part.kind} out", unit="tensor") as bar:
        for leaf, rows, array in iterate_export(part.export):
            entry = part.entries[leaf]
            dtype, shape = part.dtypes[entry.name]
            array = np.asarray(array).astype(safetensors.DTYPES[dtype], copy=False)
            array = entry.theirs(array) if rows is None else array  # blocks are of tables, which lie there as here
            writer.write(entry.name, array, rows[0] if rows else 0)
            digest.add(entry.name, dtype, shape, array)
            bar.update(rows is None or rows[1] == shape[0])
    for name, array in part.buffers.items():
        writer.write(name, array)
        digest.add(name, *part.dtypes[name], array)
    return digest.hexdigest()
