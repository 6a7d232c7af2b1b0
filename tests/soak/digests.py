"""What files hold, for comparison bit for bit.

Arrays are compared by dtype, shape and every bit, wherever the bytes around them depend on the time: `.npz` (a zip has
its time) and what Orbax writes (names and order of its chunks). Of a training's checkpoints the newest counts: which
others are kept depends on when it was stopped. Not reproducible, and left out: TensorBoard's events and `speed.jsonl`
(both tell the time), locks, and the temporaries that a killed `files.records.write_bytes` leaves (nothing reads them).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from progemu_jax.checkpoints import export

IGNORED = ("events.out.tfevents*", "speed.jsonl", ".lock", ".*.tmp")


def digests(root: Path, outputs: tuple[str, ...]) -> dict[str, str]:
    """{path, or path:array: SHA-256} of all that is under `outputs` of `root`."""
    found: dict[str, str] = {}
    for output in outputs:
        for path in _files(root / output):
            name = path.relative_to(root).as_posix()
            if path.name == "export.json":
                found |= _of_arrays(name, {n + str(rows or ""): x for n, rows, x in export.iterate_export(path.parent)})
                found[name] = _sha(path.read_bytes())
            elif path.suffix == ".npz":
                with np.load(path) as file:
                    found |= _of_arrays(name, dict(file))
            elif path.name == "checkpoints":
                found |= _of_checkpoints(name, path)
            else:  # warnings of an evaluation name files by their whole path
                found[name] = _sha(path.read_bytes().replace(str(root).encode(), b"ROOT"))
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """One line each."""
    lines = [f"lost: {name}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"left behind: {name}" for name in sorted(found.keys() - expected.keys())]
    return lines + [f"differs: {n}" for n in sorted(expected.keys() & found.keys()) if expected[n] != found[n]]


def _files(path: Path):
    """Files under `path`; a folder of checkpoints as a whole, an export without its arrays' files."""
    if path.is_file():
        if not any(path.match(pattern) for pattern in IGNORED):
            yield path
    elif path.name == "checkpoints":
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if not (child.name == "params" and (path / "export.json").exists()):
                yield from _files(child)


def _of_checkpoints(name: str, folder: Path) -> dict[str, str]:
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    found = {f"{name}/{p.name}": "" for p in folder.iterdir() if not p.name.isdigit()}
    if steps:
        newest = folder / str(max(steps))
        meta = json.loads((newest / "meta/metadata").read_text())
        found[f"{name}/{newest.name}/meta"] = _sha(json.dumps(meta, sort_keys=True).encode())
        state = (newest / "state").absolute()
        with ocp.PyTreeCheckpointer() as reader:  # as plain arrays: the run may have had other devices than we do
            names = reader.metadata(state).item_metadata.tree
            as_numpy = {n: ocp.RestoreArgs(restore_type=np.ndarray) for n in names}
            arrays = reader.restore(state, restore_args=as_numpy)
        found |= _of_arrays(f"{name}/{newest.name}", arrays)
    return found


def _of_arrays(name: str, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {
        f"{name}:{key}": _sha(f"{x.dtype}{x.shape}".encode() + np.ascontiguousarray(x).tobytes())
        for key, x in arrays.items()
    }


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
