"""Stages: what has been made in a run directory, from which config and inputs, and what is left to do.

A complete output carries a record: `stage.json` in a folder, `<file>.stage.json` beside a file. It holds the
slice of the config that the stage depends on and the digests of its inputs, and it is written last. While a
stage runs, the same record lies in `.stages/<name>.json`, so that a killed stage is never finished under
another config.

A config key that a record lacks counts as its default, and an input that is off is not listed: a run from before the
key or the input goes on. No record is ever rewritten, and an output that is made again under the same config gets the
record that it had (`.made/<name>.json` outlives it): the digest that later stages hold of it does not move.

Imports nothing heavy: `--stages=list` answers at once.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from progemu_jax.errors import UserError, shown
from progemu_jax.files.records import delete, digest, first_difference, normal, read_json, write_json
from progemu_jax.files.settings import filled

_WHOLE_FILE = 64 * 2**20  # bytes; larger external files are known by name and size only


@dataclass(frozen=True)
class Stage:
    """One step from files to files.

    Attributes:
      name: as on the command line.
      outputs: files or folders, relative to the run directory; no other stage writes them.
      inputs: outputs of earlier stages or what lies in them (relative to the run directory), or external
        files and folders (absolute, or relative to the current directory). External ones must exist; their
        content counts (a folder's: names and sizes of the files directly in it), their place does not. An empty
        name is an input that is off: it is left out.
      config_slice: JSON-able; everything that the outputs depend on beside the inputs.
      run: (workdir) -> None; makes the outputs, going on from what a killed run left there.
      kind: the dataclass that `config_slice` is a part of, or a dict of such, by key: it knows the defaults of the
        keys that an old record lacks (`settings.filled`). None: a record that lacks a key differs.
      holds: what lies in the outputs and must: without it, deleted by hand, the stage is not complete.
    """

    name: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    config_slice: dict = field(hash=False)
    run: Callable[[Path], Any] = field(hash=False)
    kind: Any = field(default=None, hash=False)
    holds: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "inputs", tuple(filter(None, self.inputs)))


def run_stages(
    stages: Sequence[Stage],
    workdir: str | os.PathLike,
    selected: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Runs `stages` in their order, skipping the complete ones.

    Args:
      selected: names to run; None: all. The inputs of a selected stage must be complete by then.
    Raises:
      UserError: an unknown name; a missing input; an output made from another config or other inputs (which
        is never overwritten); another process at work in `workdir`.
    """
    workdir = Path(workdir)
    names = [stage.name for stage in stages]
    for name in selected or ():
        if name not in names:
            raise UserError(f"--stages: no stage is called {name!r}: choose among {', '.join(names)}")
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        for stage in stages:
            if selected is None or stage.name in selected:
                _run_one(stage, stages, workdir, say)


def _run_one(stage, stages, workdir, say):
    try:
        record, lacking = _record(stage, stages, workdir), None
    except UserError as error:  # no matter, when the stage is complete: inputs may be deleted to save space
        record, lacking = None, error
    status, found = _status(stage, workdir, record)
    if lacking and status != "complete":
        raise lacking
    made = workdir / ".made" / f"{stage.name}.json"
    if status == "complete":
        _keep(stage_record(workdir / stage.outputs[0]), made)
        say(f"{stage.name}: complete ({', '.join(stage.outputs)})")
        return
    if status == "differs":
        raise UserError(_difference_text(stage, workdir, *found))
    say(f"{stage.name}: {'goes on' if status == 'partial' else 'starts'}")
    begun = time.monotonic()
    started = _started_path(stage.name, workdir)
    record = _earlier(stage, workdir, record, started, made)
    write_json(started, record)
    for output in stage.outputs:  # one output was deleted: what is left of the others is not complete either
        delete(_record_path(workdir / output))
    stage.run(workdir)
    for output in (*stage.outputs, *stage.holds):
        if not (workdir / output).exists():
            raise RuntimeError(f"stage {stage.name} ended without its output {output}")
    for output in stage.outputs:
        write_json(_record_path(workdir / output), record)
    _keep(record, made)
    delete(started)
    say(f"{stage.name}: done in {_duration(time.monotonic() - begun)} ({', '.join(stage.outputs)})")


def list_stages(stages: Sequence[Stage], workdir: str | os.PathLike) -> str:
    """A table of the stages: state, files needed (marked when missing) and files written.

    States: "complete"; "partial" (begun, not ended); "missing" (not begun); "config differs" (made from
    another config or inputs; the key follows).
    """
    workdir = Path(workdir)
    lines = []
    for stage in stages:
        try:
            record = _record(stage, stages, workdir)
        except UserError:
            record = None  # an input is not there yet
        status, found = _status(stage, workdir, record)
        text = f"config differs: {shown(found[1][0])}" if status == "differs" else status
        lines.append(f"{stage.name}: {text}")
        for name in stage.inputs:
            path, maker, _ = _input(name, stages, workdir)
            note = f" (from {maker.name})" if maker else ""
            lines.append(f"  needs  {path}{note}{'' if path.exists() else ' [missing]'}")
        lines += [f"  writes {workdir / output}" for output in stage.outputs]
    return "\n".join(lines)


def stage_record(path: str | os.PathLike) -> dict | None:
    """The record of a complete output ({"stage", "config", "inputs"}), or None."""
    return _read_record(_record_path(Path(path)))


def at_work(workdir: str | os.PathLike, name: str) -> dict | None:
    """The record of a stage that is running: the one that its outputs began with, were it in an older version."""
    return _read_record(_started_path(name, Path(workdir)))


def _read_record(path):
    """A record as we write it, or None: what is damaged counts as not there."""
    found = read_json(path)
    whole = isinstance(found, dict) and all(isinstance(found.get(part), dict) for part in ("config", "inputs"))
    return found if whole else None


def _record(stage, stages, workdir):
    """What the outputs depend on. Raises UserError when an input is missing."""
    inputs = {}
    for number, name in enumerate(stage.inputs):
        path, maker, output = _input(name, stages, workdir)
        if maker:
            made = stage_record(output)
            if made is None or not path.exists():
                raise UserError(
                    f"{path}: stage {stage.name} needs it and it is not complete: run --stages={maker.name} first"
                )
            inputs[name] = digest(made)
        else:
            if not path.exists():
                raise UserError(f"{path}: stage {stage.name} needs it and it does not exist: check the path")
            inputs[f"external input {number + 1}"] = _fingerprint(path)
    return {"stage": stage.name, "config": normal(stage.config_slice), "inputs": inputs}


def _earlier(stage, workdir, record, *others):
    """The record that the outputs had or began with, where it says the same as `record`; else `record`."""
    for path in (*(_record_path(workdir / output) for output in stage.outputs), *others):
        old = _read_record(path)
        if old is not None and not any(_difference(stage, old, record, part) for part in ("config", "inputs")):
            return old
    return record


def _keep(record, path):
    if read_json(path) != record:
        write_json(path, record)


def _difference(stage, old, new, part):
    """The first difference in one part of two records; a key of the config that the old one lacks is at its default."""
    before = old.get(part, {})
    return first_difference(filled(stage.kind, before, new[part]) if part == "config" else before, new[part])


def _status(stage, workdir, record):
    """(status, (path, first difference) or None). `record` None: the inputs are not there to compare."""
    paths = [workdir / output for output in stage.outputs]
    records = [stage_record(path) if path.exists() else None for path in paths]
    started = _read_record(_started_path(stage.name, workdir))
    exist = [path for path in paths if path.exists()]
    for path in paths:  # a killed stage may have left nothing but a temporary
        exist += sorted(path.parent.glob(f"{path.name}.tmp*"))
    for path, old in [*zip(paths, records, strict=True), *((path, started) for path in exist)]:
        if old is None:
            continue
        parts = ("config", "inputs") if record else ("config",)
        new = record or {"config": normal(stage.config_slice)}
        for part in parts:
            found = _difference(stage, old, new, part)
            if found:
                return "differs", (path, found, part)
    if all(records) and all((workdir / name).exists() for name in stage.holds):
        return "complete", None
    return ("partial" if exist or started else "missing"), None


def _difference_text(stage, workdir, path, difference, part):
    key, old, new = difference
    if part == "inputs":
        return (
            f"{path}: stage {stage.name} made it from another {key}: "
            f"use another --workdir or delete {path} to make it again"
        )
    return (
        f"{path}: stage {stage.name} made it with {key}={old!r}, the config now says {new!r}: "
        f"use another --workdir or delete {path}"
    )


def _input(name, stages, workdir):
    """(path, the stage that makes it or None, the output of that stage that it is or lies in)."""
    makers = {output: stage for stage in stages for output in stage.outputs}
    for part in (Path(name), *Path(name).parents):
        if str(part) in makers:
            return workdir / name, makers[str(part)], workdir / part
    return Path(name), None, None


def _record_path(output):
    return output / "stage.json" if output.is_dir() else output.with_name(f"{output.name}.stage.json")


def _started_path(name, workdir):
    return workdir / ".stages" / f"{name}.json"


def _fingerprint(path):
    """Tells content that changed without reading a whole cohort."""
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        return digest([[p.name, p.stat().st_size] for p in files])
    size = path.stat().st_size
    if size > _WHOLE_FILE:
        return digest([path.name, size])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _duration(seconds):
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """One process a run directory; the lock goes with the process, however it ends."""
    try:
        file = open(workdir / ".lock", "w")  # noqa: SIM115
        (workdir / ".stages").mkdir(exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(f"{error.filename}: is none of ours ({error.strerror}); delete it") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{workdir}: another process is at work in it: wait for it or use another --workdir"
            ) from None
        yield
