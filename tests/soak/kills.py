"""Kills of everything: PYTHONPATH=tests python -m soak.kills --work=runs/soak [--seed=N] [--only=progemu.train]

Every stage of both systems, conversion both ways, `eval` and `scorers` on toy runs: each is run undisturbed once, then
killed at random moments and in its last save, started again until it ends, and compared bit for bit; 100 kills in all.
A moment is a time since the start, or an operation on a file that the undisturbed command was seen to do.

Progress is in WORK/kills.jsonl: the same command goes on. A failure prints the command that reproduces it.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

if __name__ == "__main__":  # before jax is imported; every compiled program is kept, however small
    os.environ.update(JAX_PLATFORMS="cpu", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", MPLBACKEND="Agg")
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", TQDM_DISABLE="1")
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # a folder of our own, below

from soak import children, digests, targets

LOADED = [
    "progemu_jax.main", "progemu_jax.convert.__main__", "progemu_jax.eval.__main__", "progemu_jax.scorers.__main__",
    "tensorflow_datasets", "progemu_jax.data.icg_cxr.icg_cxr_dataset_builder", "grain", "SimpleITK", "tensorboardX",
    "matplotlib.pyplot",
]  # fmt: skip
PATIENCE = 900  # seconds after which a command counts as hung
NAMES = {signal.SIGKILL: "kill -9", signal.SIGTERM: "SIGTERM"}


class Failure(Exception):
    """Something was lost, differs, or does not go on."""


def main() -> int:
    """0: all kills done and nothing lost; 1: a failure, or out of time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, help="of the moments; default: as before in DIR, else a random one")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of targets, as progemu.train or 'convert.*'")
    parser.add_argument("--each", type=int, default=100, help="kills of a target at most; default: 100 of all")
    parser.add_argument("--minutes", type=float, default=60, help="time there is (default 60)")
    args = parser.parse_args()
    soak = Soak(Path(args.work).absolute(), args.seed, args.minutes)
    chosen = [
        dataclasses.replace(target, kills=min(target.kills, args.each))
        for target in soak.targets
        if fnmatch.fnmatch(target.name, args.only)
    ]
    if not chosen:
        print(f"--only={args.only}: choose among {', '.join(target.name for target in soak.targets)}")
        return 2
    try:
        return soak.run(chosen)
    except Failure as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1


class Soak:
    """One series of kills in a folder."""

    def __init__(self, work: Path, seed: int | None, minutes: float):
        self.work, self.base, self.begun, self.seconds = work, work / "undisturbed", time.monotonic(), 60 * minutes
        self.cpu = 0.0  # seconds that children took
        for folder in (self.base, work / "killed", work / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")  # compiled programs, some cut by a kill
        self.journal = work / "kills.jsonl"
        self.rows = [json.loads(line) for line in self.journal.read_text().splitlines()] if self._exists() else []
        kept = self.rows[0]["seed"] if self.rows else None
        self.seed = next(s for s in (seed, kept, random.randrange(2**32)) if s is not None)
        if kept is None:
            self._write({"seed": self.seed})
        elif kept != self.seed:
            raise SystemExit(f"{self.journal}: was begun with --seed={kept}; give that, or another --work")
        children.preload(LOADED)
        self.targets = targets.all_targets(work)
        assert threading.active_count() == 1, threading.enumerate()  # a fork copies no thread

    def run(self, chosen: list[targets.Target]) -> int:
        """As `main`."""
        self.chosen = chosen
        print(f"seed {self.seed}; {self._wanted()} kills of {len(chosen)} commands in {self.work}", flush=True)
        for target in chosen:
            self._kill(target)
        done = self._done()
        terms = sum(row["signal"] == signal.SIGTERM for row in done)
        print(
            f"{len(done)} kills, {terms} of them SIGTERM: nothing lost, every result as in the undisturbed run, "
            f"bit for bit; this call took {self._minutes():.1f} minutes, {self.cpu / 60:.1f} of CPU time"
        )
        return 0

    def _undisturbed(self, target: targets.Target) -> dict:
        """{"seconds", "events", "files"} of the target without a kill."""
        path = self.base / f"{target.name}.json"
        if path.exists():
            return json.loads(path.read_text())
        for needed in target.needs:
            self._undisturbed(next(t for t in self.targets if t.name == needed))
        folder = self.base / target.home
        for name, make in target.sources.items():
            if not (self.base / name).exists():
                children.ended(children.call(lambda make=make, name=name: make(self.base / name), self._log(target)))
        if target.absent:
            target.clear(folder)  # what a driver that was stopped left
        else:
            target.prepare(self.base, folder)
        begun, events = time.monotonic(), path.with_suffix(".events")
        status = self._run(target, folder, record=events)
        if status:
            raise self._failure(target, f"the undisturbed command ended with status {status}")
        seconds = time.monotonic() - begun
        print(f"{target.name}: undisturbed in {seconds:.1f} s", flush=True)
        found = {"seconds": seconds, "events": json.loads(events.read_text()), "files": self._digests(target, folder)}
        events.unlink()
        _write_json(path, found)
        return found

    def _kill(self, target: targets.Target) -> None:
        """All kills of a target that are not done yet, and the comparison."""
        own = [row for row in self.rows if row.get("target") == target.name]
        number = sum("signal" in row for row in own)
        if number >= target.kills and own[-1].get("ended"):
            return
        whole = self._undisturbed(target)
        plan = moments(target, whole["events"], random.Random(f"{self.seed}/{target.name}"))
        folder, longest = self.work / "killed" / target.name / target.home, whole["seconds"]
        if not own or own[-1].get("ended") or not folder.exists():
            target.prepare(self.base, folder)
        fruitless = 0
        while True:
            moment = plan[number] if number < target.kills else None
            if moment and "share" in moment:
                moment["seconds"] = round(moment["share"] * longest, 3)
            begun, status, complete = time.monotonic(), 0, target.is_complete(folder)
            if not complete:
                status = self._run(target, folder, moment)
            seconds = time.monotonic() - begun
            if status and moment and status in (-moment["signal"], 128 + moment["signal"]):
                number, fruitless = number + 1, 0
                self._check_stop(target, folder, moment, status)
                self._write(
                    {"target": target.name, "number": number, "status": status, "cpu": round(self.cpu, 1), **moment}
                )
                self._say(target, number, moment)
                continue
            if status:
                raise self._failure(target, f"started again, it ended with status {status}")
            if moment and "share" in moment and not complete:
                longest = min(longest, seconds)  # the first run compiled, this one did not
            lines = digests.differences(whole["files"], self._digests(target, folder))
            if lines:
                raise self._failure(target, "\n  ".join(lines[:20]))
            self._write({"target": target.name, "ended": True})
            if number >= target.kills:
                shutil.rmtree(folder.parent)
                return
            target.prepare(self.base, folder)
            fruitless += not complete
            if fruitless > 2 and "event" in plan[number]:  # what this event did has no part in a run that goes on
                plan[number] = {"share": 0.3, "signal": signal.SIGKILL}
            if fruitless > 8:
                raise self._failure(target, f"ended {fruitless} times before it could be killed")

    def _run(self, target, folder, moment=None, record=None) -> int:
        """Status of the target's command, killed at the moment."""
        if self._minutes() * 60 > self.seconds:
            raise Failure("out of time; the same command goes on")
        pid = children.start(target.called(self.work, folder), folder, self._log(target), moment, record)
        try:
            if moment and "seconds" in moment:
                if end := children.ended(pid, moment["seconds"]):
                    return self._counted(end)
                os.kill(pid, moment["signal"])
            end = children.ended(pid, PATIENCE)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        if end is None:
            os.kill(pid, signal.SIGKILL)
            raise self._failure(target, f"did not end within {PATIENCE} s")
        return self._counted(end)

    def _counted(self, end: tuple[int, float]) -> int:
        self.cpu += end[1]
        return end[0]

    def _check_stop(self, target, folder, moment, status) -> None:
        """SIGTERM within a training: status 143, after a save."""
        if moment["signal"] != signal.SIGTERM or not target.trains:
            return
        said = self._log(target).read_text().rsplit("\n--- ", 1)[-1]
        saved = re.findall(r"stopped by a signal; saved at step (\d+)", said)
        if status == 143 and not (saved and list(folder.rglob(f"checkpoints/{saved[-1]}/meta"))):
            raise self._failure(target, "stopped by SIGTERM with status 143, but saved no checkpoint")
        if status != 143 and "event" in moment:
            raise self._failure(target, f"SIGTERM within a training: status {status}, not 143")

    def _digests(self, target, folder) -> dict[str, str]:
        """In a child: reading arrays starts threads."""
        path = self.work / "digests.json"
        path.unlink(missing_ok=True)
        pid = children.call(lambda: _write_json(path, digests.digests(folder, target.outputs)), self._log(target))
        if self._counted(children.ended(pid)):
            raise self._failure(target, f"{folder}: results cannot be read")
        return json.loads(path.read_text())

    def _say(self, target, number, moment) -> None:
        done = len(self._done())
        if "event" in moment:
            where = f"{moment['event'][0]} {moment['event'][1]}"
            where += f" + {moment['after']} operations" if moment.get("after") else ""
            where += f" + {1000 * moment['delay']:.0f} ms" if moment.get("delay") else ""
        else:
            where = f"{moment['seconds']:.2f} s"
        left = self.seconds / 60 - self._minutes()
        print(
            f"[{done}/{self._wanted()}] {target.name} {number}/{target.kills}: {NAMES[moment['signal']]} at {where}; "
            f"{left:.0f} min left",
            flush=True,
        )

    def _done(self) -> list[dict]:
        names = {target.name for target in self.chosen}
        return [row for row in self.rows if "signal" in row and row["target"] in names]

    def _wanted(self) -> int:
        return sum(target.kills for target in self.chosen)

    def _failure(self, target, text) -> Failure:
        log = self._log(target)
        tail = "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""
        again = f"PYTHONPATH=tests {sys.executable} -m soak.kills --work=runs/soak-again --seed={self.seed}"
        return Failure(f"{target.name}: {text}\n{tail}\nlog: {log}\nagain: {again} --only={target.name}")

    def _log(self, target) -> Path:
        return self.work / "logs" / f"{target.name}.txt"

    def _exists(self) -> bool:
        return self.journal.exists() and bool(self.journal.read_text().strip())

    def _minutes(self) -> float:
        return (time.monotonic() - self.begun) / 60

    def _write(self, row: dict) -> None:
        self.rows.append(row)
        with open(self.journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def moments(target: targets.Target, events: list, rng: random.Random) -> list[dict]:
    """Where a target is killed, in the order in which a run that goes on comes by: random moments, then the last save.

    A moment: {"signal"}, and "share" of the run's time, or "event" with "after" (operations) or "delay" (seconds).
    """
    names = list(dict.fromkeys((name, path) for _, name, path in events))
    last = [i for i, event in enumerate(names) if re.search(target.last, " ".join(event))]
    assert last, f"{target.name}: nothing was written to {target.last}"

    def at(number: int, number_of: int = signal.SIGKILL) -> dict:
        delay = rng.choice([0, 0, round(rng.uniform(0, 0.05), 4)])  # behind an operation, much is half written
        return {"signal": number_of, "event": list(names[number]), "delay": delay}

    ends = [at(rng.choice(last))]
    if target.trains and target.kills > 3:
        # Between the export and the stage's record; then, when the export is made again, while the old one goes.
        record = next(i for i, (_, path) in enumerate(names) if i > last[-1] and path.endswith("stage.json*"))
        replaced = [
            i
            for i, (name, path) in enumerate(names)
            if name == "os.rename" and path.endswith(".tmp") and "orbax" not in path
        ]
        again = {"signal": signal.SIGKILL, "event": ["os.rename", names[replaced[-1]][1].removesuffix(".tmp")]}
        ends += [{**at(record), "delay": 0}, {**again, "after": rng.randrange(5)}]
    free = target.kills - len(ends)
    drawn = sorted(rng.sample(range(len(names)), min(free, len(names))))
    plan = [
        at(drawn[i]) if i % 2 and i < len(drawn) else {"signal": signal.SIGKILL, "share": round(rng.random(), 4)}
        for i in range(free)
    ]
    if target.trains:  # one within a training: it saves and says so
        saves = [i for i, (_, path) in enumerate(names) if re.search(r"checkpoints/\d+\b", path) and i < last[0]]
        place = next((i for i, one in enumerate(plan) if "event" in one), 0)
        near = drawn[place] if "event" in plan[place] else rng.choice(saves)  # in the order of the others
        plan[place] = {**at(min(saves, key=lambda i: abs(i - near)), signal.SIGTERM), "delay": 0}
    elif len(plan) > 1:
        plan[0] = {**plan[0], "signal": signal.SIGTERM}
    return plan + ends


def _write_json(path: Path, value) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.rename(path)


if __name__ == "__main__":
    sys.exit(main())
