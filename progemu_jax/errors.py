"""Errors and warnings that a user can act on: one line that names the file, the value and the remedy."""

import errno
import os
import sys
from collections.abc import Callable

INTERRUPTED = 130  # status after ctrl-C, as shells have it: 128 and the number of SIGINT
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

LONGEST = 1500  # characters of an error


class UserError(Exception):
    """Bad input. `main` prints the message as one line and exits with status 2, without a traceback."""


class PromptWarning(UserWarning):
    """A prompt that a model takes, but of which its image may say nothing: only the words were looked at."""


class FilmWarning(UserWarning):
    """A film that a model takes, but that may be of another patient."""


def disk_trouble(error: Exception) -> str | None:
    """What is wrong with the disk, when that is what `error` says; C++ libraries have it in their text only."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    full = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    return next((text for text in full if text in str(error)), None)


def shown(text: object) -> str:
    """Text of a stranger for a terminal: what is no printable character is escaped, so it is one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(error: object) -> None:
    """The one line of an error, on stderr; what is longer than any of ours is cut."""
    text = shown(error)
    sys.stdout.flush()
    print(f"error: {text if len(text) <= LONGEST else f'{text[:LONGEST]}...'}", file=sys.stderr)


def exit_status(work: Callable[[], object], goes_on: str = "nothing is left half written") -> int:
    """Runs a command and gives its status, with one line on stderr where it fails.

    0, with the result printed; or the result, where it is a number. 2: bad input (UserError), or a path that cannot be
    read or written. `INTERRUPTED`: ctrl-C; goes_on says what of the work is left.
    """
    try:
        result = work()
    except UserError as error:
        return _failed(error)
    except OSError as error:
        if error.filename is None and not disk_trouble(error):
            raise
        return _failed(f"{error.filename}: {error.strerror}; mend that or choose another path")
    except KeyboardInterrupt:
        return _failed(f"interrupted; {goes_on}", INTERRUPTED)
    if isinstance(result, int):
        return result
    print(str(result).encode("utf-8", "backslashreplace").decode())  # a path need not be text
    return 0


def _failed(why: object, status: int = 2) -> int:
    say(why)
    return status
