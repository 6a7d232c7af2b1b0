"""Errors and warnings that a user can act on: one line that names the file, the value and the remedy."""

import errno
import os
import sys
from collections.abc import Callable

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class UserError(Exception):
    """Bad input. `main` prints the message as one line and exits with status 2, without a traceback."""


class PromptWarning(UserWarning):
    """A prompt that a model takes, but of which its image may say nothing: only the words were looked at."""


def disk_trouble(error: Exception) -> str | None:
    """What is wrong with the disk, when that is what `error` says; C++ libraries have it in their text only."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    full = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((text for text in full if text in str(error)), None)


def exit_status(work: Callable[[], object]) -> int:
    """Runs a command and prints its result: 0. A `UserError` becomes one line on stderr: 2."""
    try:
        result = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(result)
    return 0
