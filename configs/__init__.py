"""One short file per run; each docstring is the command that runs it."""
