"""Errors of Orbax that are ours to tell in one line: without its logs, and without objects that print when they go."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from progemu_jax.errors import UserError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing within prints or logs but by the exception that leaves it, which the caller turns into a line.

    Of a damaged array Orbax's tasks each log a traceback, and those that are left waiting print theirs when they are
    deleted: most here, as the frames that hold them are cleared, some at any later time, which `_Later` passes over. So
    it does what TensorStore's threads print whose answer comes when nobody waits any more: their event loop is closed.
    """
    disabled, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable()
    sys.unraisablehook = lambda _: None
    try:
        yield
    except Exception as error:
        left: list[BaseException | None] = [error]
        while left:
            if (one := left.pop()) is not None:
                traceback.clear_frames(one.__traceback__)
                left += [one.__cause__, one.__context__]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # tasks that nobody will await
            gc.collect()
        if not isinstance(hook, _Later):
            hook = _Later(hook)
            logging.getLogger("asyncio").addFilter(hook)
        raise
    finally:
        logging.disable(disabled)
        sys.unraisablehook = hook


class _Later:
    """Passes on what is not of Orbax's tasks: `sys.unraisablehook`, and a filter of asyncio's log."""

    def __init__(self, hook: Any):
        self.hook = hook

    def __call__(self, unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in code.co_filename
        # From C++ without an object: its first frame is the call into the loop.
        trace = unraisable.exc_traceback if unraisable.object is None else None
        into_loop = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
        if not (of_orbax or (into_loop and str(unraisable.exc_value) == "Event loop is closed")):
            self.hook(unraisable)

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.getMessage()


def storable(directory: str | os.PathLike) -> Path:
    """The absolute path. Raises UserError where TensorStore could not write under it."""
    path = Path(directory).absolute()
    if "\\" in str(path):
        raise UserError(f"{path}: holds a backslash, which arrays cannot be stored under; choose another name")
    return path


def reason(error: Exception) -> str:
    """What an exception says, for a line of ours: its first line without what follows in TensorStore's own terms."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text.split(" See full TensorStore details")[0].rstrip(". ")[:200]
