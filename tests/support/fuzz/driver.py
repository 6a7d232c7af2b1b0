"""Hands cases to workers, keeps a log, and says what came of them.

The log, `cases.jsonl` in the work folder, has a line a case: reader, seed, number, edits, outcome, why, seconds. Cases
that it holds are not run again, so a run that was cut goes on.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from progemu_jax.devices.compilation import OWN_FOLDER
from support.fuzz import edits
from support.fuzz.readers import READERS
from support.fuzz.readers.reader import names

BATCH = 10  # cases of one seed
SILENCE = 900  # seconds without an answer, after which a worker counts as hung
MANY = 1500  # cases, after which a worker is replaced: what was compiled for odd shapes is never freed
FULL = 1500  # MiB, after which it is, too


class Worker:
    """A process of `support.fuzz.worker` and its folder; started when it is needed."""

    def __init__(self, work: Path, number: int):
        self.folder, self.process, self.done = work / f"worker{number}", None, 0
        self.folder.mkdir(parents=True, exist_ok=True)
        sound = self.folder / "sound"
        if not sound.exists():
            (work / "sound").mkdir(exist_ok=True)
            sound.symlink_to(work.absolute() / "sound")

    def ask(self, job: dict) -> dict:
        """The worker's reply; {"outcome": "failed"} where it died or hung."""
        if self.process is None:
            command = [sys.executable, "-m", "support.fuzz.worker", str(self.folder)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            with open(self.folder / "said2.txt", "w") as errors:
                self.process = subprocess.Popen(
                    command, env=environment(self.folder.parent), stderr=errors, text=True, **pipes
                )
        watch = threading.Timer(SILENCE, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        self.done += 1
        if line:
            reply = json.loads(line)
        else:
            status = self.process.wait()
            words = "".join(_end(self.folder / name) for name in ("crash.txt", "said2.txt"))
            reply = {"outcome": "failed", "why": f"the process ended with status {status}: {words}"}
            reply |= {"seconds": 0.0, "memory": 0}
        if not line or self.done >= MANY or reply.get("memory", 0) > FULL:
            self.close()
        return reply

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.stdout.close()
        self.process, self.done = None, 0


def environment(work: Path) -> dict[str, str]:
    """Of a worker: one device, one thread, and what was compiled kept for the next."""
    tests = Path(__file__).resolve().parents[2]
    ours = {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "TQDM_DISABLE": "1",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false",
    }
    kept = os.environ.get(OWN_FOLDER) or str(work.absolute() / "compiled")
    ours |= {OWN_FOLDER: kept, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    return {**os.environ, **ours, "PYTHONPATH": str(tests), "PYTHONWARNINGS": "ignore"}


def batches(cases: int, seed: int, chosen: list[str]) -> list[tuple[str, int]]:
    """(reader, seed) of as many batches as hold `cases` cases; every reader in turn."""
    count = -(-cases // BATCH)
    return [(chosen[n % len(chosen)], seed + n // len(chosen)) for n in range(count)]


def run(work: Path, cases: int, seed: int = 0, chosen: list[str] | None = None, jobs: int = 1, say=print) -> dict:
    """Runs what the log lacks; returns `summary` of all cases that were asked for."""
    work.mkdir(parents=True, exist_ok=True)
    log, lock = work / "cases.jsonl", threading.Lock()
    rows = {(row["reader"], row["seed"], row["number"]): row for row in _rows(log)}
    asked = batches(cases, seed, chosen or list(READERS))
    workers = [Worker(work, number) for number in range(jobs)]
    free = list(workers)

    def one(batch):
        name, number = batch
        if all((name, number, n) in rows for n in range(BATCH)):
            return
        with lock:
            worker = free.pop()
        try:
            reply = worker.ask({"reader": name})
            if reply["outcome"] == "failed" or (reply["outcome"] == "refused" and 1 not in READERS[name].ends):
                raise RuntimeError(f"{name}: the sound folder is {reply['outcome']}: {reply['why']}")
            with lock:  # hypothesis draws for one at a time
                drawn = _drawn(work, name, number)
            for n, case in enumerate(drawn):
                if (name, number, n) in rows:
                    continue
                row = {"reader": name, "seed": number, "number": n, "edits": case}
                row |= worker.ask({"reader": name, "edits": case})
                with lock, open(log, "a") as file:
                    file.write(json.dumps(row) + "\n")
                    rows[name, number, n] = row
                if row["outcome"] == "failed":
                    say(f"FAILED {name} seed {number} number {n}: {row['why']}\n  {command(row)}")
        finally:
            with lock:
                free.append(worker)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, asked))
    finally:
        for worker in workers:
            worker.close()
    return summary([rows[name, number, n] for name, number in asked for n in range(BATCH)])


def _end(path):
    return path.read_text(errors="replace")[-600:] if path.exists() else ""


def command(row: dict) -> str:
    """What runs one case again."""
    return f"make fuzz CASE={row['reader']}:{row['seed']}:{row['number']}"


def again(work: Path, name: str, number: int, n: int) -> dict:
    """One case, drawn and run anew; its row."""
    worker = Worker(work, 0)
    try:
        worker.ask({"reader": name})
        case = _drawn(work, name, number)[n]
        return {
            "reader": name,
            "seed": number,
            "number": n,
            "edits": case,
            **worker.ask({"reader": name, "edits": case}),
        }
    finally:
        worker.close()


def _drawn(work, name, number):
    """The cases of a batch; every reader has seeds of its own."""
    sound = work / "sound" / name
    return edits.batch(sound, names(READERS[name], sound), zlib.crc32(f"{name} {number}".encode()), BATCH)


def summary(rows: list[dict]) -> dict:
    """Counts by reader and outcome, seconds of the processor by case, and how much memory a worker took at most."""
    counts = {name: Counter() for name in READERS}
    for row in rows:
        counts[row["reader"]][row["outcome"]] += 1
    seconds = [row["seconds"] for row in rows]
    memory = [row["memory"] for row in rows if row["memory"]]
    return {
        "cases": len(rows),
        "failed": [command(row) for row in rows if row["outcome"] == "failed"],
        "readers": {name: dict(count) for name, count in counts.items() if count},
        "median_s": round(median(seconds), 3),
        "greatest_s": max(seconds),
        "memory_mib": [min(memory), max(memory)],
    }


def _rows(log: Path) -> list[dict]:
    """What a log holds, but the half line that a kill has left, which goes."""
    content = log.read_bytes() if log.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        log.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]
