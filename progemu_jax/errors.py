"""Errors that a user can act on: one line that names the file, the value and the remedy."""


class UserError(Exception):
    """Bad input. `main` prints the message as one line and exits with status 2, without a traceback."""
