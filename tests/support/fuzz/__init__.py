"""A fuzzer of values: every file that we read, with values that nobody meant, through the public entry points.

    PYTHONPATH=tests python -m support.fuzz --cases=300 --work=runs/fuzz

A case is a *reader* (`readers.READERS`: a small sound folder, and a function that reads it), a seed and a number. The
seed settles what hypothesis draws (`edits`): a list of edits in JSON, so that a case can be kept as a test without
seed or hypothesis. `files` makes the edits in a copy of the folder, `worker` reads it in a process that lives on and
checks what must hold, `driver` counts and keeps the log.
"""
