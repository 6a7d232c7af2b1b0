"""Errors that a user can act on: one line that names the file, the value and the remedy."""

import errno
import os

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class UserError(Exception):
    """Bad input. `main` prints the message as one line and exits with status 2, without a traceback."""


def disk_trouble(error: Exception) -> str | None:
    """What is wrong with the disk, when that is what `error` says; C++ libraries have it in their text only."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    full = os.strerror(errno.ENOSPC)
    return full if full in str(error) else None
