"""Commands in forked children that die at a given moment.

The parent has imported what commands need and computes nothing itself: a child starts in milliseconds, not in the
seconds that Python's imports take, and makes its own backend.
"""

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# What a child does to files is known from Python's audit events; each comes before the operation.
OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_VARYING = re.compile(r"\d{5,}(\.\d+)*|\.\d+\.tmp|(?<=incomplete\.)\w+|tmp\w{8}\b")  # process ids, times, random names


def preload(modules: list[str]) -> None:
    """Imports what children need, once. No thread may run afterwards: a fork copies none."""
    for name in modules:
        importlib.import_module(name)


def start(
    command: tuple[str, ...], folder: Path, log: Path, moment: dict | None = None, record: Path | None = None
) -> int:
    """Process id of a child that runs `python -m command`; `ended` waits for it.

    folder: operations in it count. moment: {"event": [operation, path], "signal", "after", "delay"}: the child sends
    itself the signal `after` operations behind the event, `delay` seconds later; None, or without "event": nothing.
    record: a file to which the child writes its operations, [[seconds, operation, path], ...].
    """

    def work() -> int:
        print(f"--- {' '.join(command)} {json.dumps(moment)}", flush=True)
        seen: list = []
        sys.addaudithook(_hook(str(folder), moment or {}, seen))
        status = _run(command)
        if record:
            record.write_text(json.dumps(seen))
        return status

    return call(work, log)


def call(work: Callable[[], int | None], log: Path) -> int:
    """Process id of a child that ends with what `work()` returns; what it prints is added to `log`."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = work() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def ended(pid: int, seconds: float | None = None) -> tuple[int, float] | None:
    """(exit status, negative: the signal it died of; seconds of CPU time), or None after `seconds`."""
    end = time.monotonic() + (seconds if seconds is not None else float("inf"))
    while True:
        found, status, used = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        if time.monotonic() >= end:
            return None
        time.sleep(0.005)


def _run(command: tuple[str, ...]) -> int:
    """The exit status of a command whose module is loaded; threads and exit handlers end as at the end of Python."""
    module, *arguments = command
    sys.argv = [module, *arguments]
    try:
        if module == "progemu_jax.main":
            importlib.import_module(module).entry()
            status = 0
        else:
            status = importlib.import_module(f"{module}.__main__").main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    return status or 0


def _hook(folder: str, moment: dict, seen: list):
    begun, event = time.monotonic(), moment.get("event")
    left = None  # operations to go once the event has come

    def hook(name: str, arguments: tuple) -> None:
        nonlocal left
        if name not in OPERATIONS or (name == "open" and not (arguments[2] or 0) & WRITING):
            return
        if left is None:
            path = name_of(folder, arguments[0])
            if path is None:
                return
            seen.append([round(time.monotonic() - begun, 3), name, path])
            if event != [name, path]:
                return
            left = moment.get("after", 0)
        else:
            left -= 1
        if left == 0:
            if moment.get("delay"):
                threading.Timer(moment["delay"], os.kill, (os.getpid(), moment["signal"])).start()
            else:
                os.kill(os.getpid(), moment["signal"])

    return hook


def name_of(folder: str, path) -> str | None:
    """`path` relative to `folder`, without what differs from process to process; None when it lies elsewhere."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    path = os.path.abspath(os.fsdecode(path))
    if not path.startswith(folder + os.sep):
        return None
    return _VARYING.sub("*", path[len(folder) + 1 :])
