"""A process that reads edited folders one after the other, and says of each whether what must hold did.

    python -m support.fuzz.worker FOLDER

A line of JSON in, {"reader", "edits"}; without edits it is the sound folder that is read, which is made first. A line
out: {"outcome": accepted, refused or failed, "why", "seconds", "memory" (MiB, greatest so far)}. FOLDER/sound/ holds
the sound folders, FOLDER/around/ the case in case/ and, beside it, what nobody may touch.

What must hold: status 0 or 2 (some commands know 1); at most one line of error, without control characters; no
traceback; no patient's word in what is printed or in lists of what was left out; nothing changed that the reader does
not write; at most SECONDS of the processor and LIMIT of memory, and nothing is waited for.
"""

import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import time
import traceback
from pathlib import Path

from progemu_jax.errors import UserError, say
from support.cohorts import SECRET
from support.fuzz import files, values
from support.fuzz.readers import READERS

SECONDS, IDLE = 20, 4  # of the processor; on the clock, three times in a row without any work
SAID = 1 << 20  # bytes that are looked at, of what a case prints
LIMIT = 4 << 30  # bytes of address space beyond what the process has at first
_LISTS = ("rejected.jsonl", "failures.jsonl", "calls.jsonl", "funnel.json")


class _Late(BaseException):
    pass


def main(folder: Path) -> None:
    faulthandler.enable(open(folder / "crash.txt", "w"))  # noqa: SIM115 (as long as the process)
    replies = os.fdopen(os.dup(1), "w")
    said = [os.open(folder / f"said{n}.txt", os.O_RDWR | os.O_CREAT | os.O_TRUNC) for n in (1, 2)]
    for n, file in enumerate(said, 1):
        os.dup2(file, n)
    alarms()
    limited = False
    for line in sys.stdin:
        job = json.loads(line)
        reader = READERS[job["reader"]]
        sound = folder / "sound" / reader.name
        if not sound.exists():
            new = sound.with_name(f"{sound.name}.{os.getpid()}")
            new.mkdir(parents=True)
            reader.build(new)
            with contextlib.suppress(OSError):  # another process was first
                new.rename(sound)
            shutil.rmtree(new, ignore_errors=True)
        if not limited:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))
            limited = True
        reply = attempt(reader, sound, folder / "around", job.get("edits", []), said)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(reply | {"memory": memory}), file=replies, flush=True)


def attempt(reader, sound: Path, around: Path, edits: list[dict], said) -> dict:
    """One case."""
    if not (around / values.VICTIM).exists():
        surroundings(around)
    case = around / "case"
    files.copy(sound, case)
    for edit in edits:
        files.make(case, edit)
    allowed = {case / name for name in reader.writes}
    before = listing(around, allowed)
    for file in said:
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
    os.chdir(case)
    start = time.process_time()
    status, trace = ended(reader, SECONDS if edits else 20 * SECONDS)  # what is sound is compiled the first time
    seconds = time.process_time() - start
    os.chdir(around.parent)
    out, err = (_decoded(os.pread(file, SAID, 0)) for file in said)
    faults = [trace] if trace else []
    faults += spoken(out, err, status)
    if status not in reader.ends and not trace:
        faults.append(f"status {status}")
    after = listing(around, allowed)
    touched = sorted({str(path) for path, _ in before ^ after})
    if touched:
        faults.append(f"touched {touched[:3]}")
        shutil.rmtree(around)
    for path in case.rglob("*.json*"):
        if path.name in _LISTS and path.is_file() and SECRET.encode() in path.read_bytes():
            faults.append(f"patients' words in {path.name}")
    lines = [line for line in err.split("\n") if "error: " in line]
    why = "; ".join(faults) or (lines[0] if lines else "")
    outcome = "failed" if faults else "refused" if status else "accepted"
    return {"outcome": outcome, "why": repr(why)[1:1200], "seconds": round(seconds, 3)}


def ended(reader, seconds) -> tuple[int | None, str]:
    """(status, traceback of what is no `UserError`)."""
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, IDLE, IDLE)
        try:
            return reader.read() or 0, ""
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.stdout.flush()
            sys.stderr.flush()
    except UserError as error:
        say(error)
        sys.stderr.flush()
        return 2, ""
    except SystemExit as stopped:
        return stopped.code or 0, ""
    except _Late:
        return None, f"too long: {_short(traceback.format_exc())}"
    except BaseException:
        return None, _short(traceback.format_exc())


def spoken(out: str, err: str, status) -> list[str]:
    """What is wrong with what was printed."""
    faults = []
    if SECRET in out or SECRET in err:
        faults.append("patients' words are printed")
    if "Traceback (most" in out + err:
        faults.append(f"a traceback is printed: {_short(err)}")
    err = re.sub(r"\r[^\r\n]*\|[^\r\n]*", "", err)  # bars of progress
    lines = [line for line in err.split("\n") if line.strip()]
    errors = [line for line in lines if "error: " in line]
    if len(errors) > 1 or (status == 2 and len(errors) != 1):
        faults.append(f"{len(errors)} lines of error: {errors[:3]}")
    if status == 2 and errors[-1:] != lines[-1:]:
        faults.append(f"words behind the error: {lines[-2:]}")
    if odd := re.findall(r"[^\n\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]|[\u2028\u2029\u202a-\u202e]", (out + err)):
        faults.append(f"control characters {sorted(set(odd))[:5]} in {errors[:1]}")
    if any(len(line) > 2000 for line in errors):
        faults.append("a line of error without end")
    return faults


def _decoded(said: bytes) -> str:
    """What was printed; without the character that the limit cut."""
    text = said.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]{1,3}$", "", text) if len(said) == SAID else text


def _short(text: str) -> str:
    """The last calls of ours and the exception."""
    rows = text.strip().splitlines()
    ours = [row.strip() for row in rows if row.lstrip().startswith("File") and "/site-packages/" not in row]
    return " | ".join([*(re.sub(r'File ".*/(.*?)"', r"\1", row) for row in ours[-3:]), *rows[-1:]])[:700]


def surroundings(around: Path) -> None:
    """What lies beside a case's folder, and must stay as it is."""
    shutil.rmtree(around, ignore_errors=True)
    (around / values.FOLDER).mkdir(parents=True)
    for name in (values.VICTIM, f"{values.FOLDER}/{values.VICTIM}", f"{values.FOLDER}/image.png", "case.tmp", "out"):
        (around / name).write_text("nobody may read or write this\n")


def listing(around: Path, allowed: set[Path]) -> set[tuple[Path, tuple]]:
    """(path, kind, size, time, where it leads) of everything under a folder but what may change."""
    found, left = set(), [around]
    while left:
        folder = left.pop()
        for entry in os.scandir(folder):
            path = Path(entry.path)
            if path in allowed:
                continue
            facts = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                left.append(path)
                found.add((path, ("folder",)))
            else:
                link = os.readlink(path) if entry.is_symlink() else ""
                found.add((path, (facts.st_mode, facts.st_size, facts.st_mtime_ns, link)))
    return found


def alarms() -> None:
    """Time that is over is a `_Late` in what runs."""

    used, idle = 0.0, 0

    def waits(number, frame):
        nonlocal used, idle
        now = time.process_time()
        used, idle = now, idle + 1 if now - used < 0.005 else 0
        if idle == 3:
            idle = 0
            raise _Late

    def late(number, frame):
        raise _Late

    signal.signal(signal.SIGALRM, waits)
    signal.signal(signal.SIGPROF, late)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
