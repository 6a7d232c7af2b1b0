"""A map over worker processes that keeps the order, bounds what waits in memory and leaves no orphan."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from progemu_jax.errors import UserError


def ordered_map(
    function: Callable, items: Sequence, processes: int | None = None, *, chunk: int = 4, least: int = 8
) -> Iterator:
    """function(item) for every item, in order, computed by `processes` workers (None: all cores).

    Under `least` items, or with one process, it runs here. Workers are spawned, for the caller may hold
    threads (jax, SimpleITK); function and items are pickled. An exception of `function` is raised here.
    Raises UserError when a worker is killed.
    """
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or len(items) < least:
        yield from map(function, items)
        return

    chunks = (items[i : i + chunk] for i in range(0, len(items), chunk))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(items)), context, initializer=_watch_parent) as pool:
        try:
            waiting = deque()
            for part in chunks:
                waiting.append(pool.submit(_map, function, part))
                if len(waiting) > 8 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError("a worker process died, perhaps for lack of memory; run again, it goes on") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Died(Exception):
    """What was run apart killed its process."""


class Apart:
    """Runs a function in a spawned process, which is kept for the next call: what kills it does not kill the caller.

    Nothing that it prints is seen. An exception of the function is raised here; `Died` where the process ended on it.
    """

    def __init__(self):
        self._pool = None

    def __call__(self, function: Callable, *args: Any) -> Any:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, initializer=_watch_parent_silently)
        try:
            return self._pool.submit(function, *args).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=True)
            self._pool = None
            raise Died from None


def _watch_parent_silently():
    _watch_parent()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


def _map(function, part):
    return [function(item) for item in part]


def _watch_parent():
    """A worker ends with its parent, also when that is killed."""

    def end():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
