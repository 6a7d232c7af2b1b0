"""The processes of a run on several hosts: start-up, who writes, and what they must agree on.

Every process runs the same program over one mesh. Process 0 writes the files that are not checkpoints; the others wait
for it. Whatever decides the course of a run (a signal, a checkpoint that does not read) is agreed upon first: processes
that go different ways wait for each other for ever.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src.distributed import global_state

from progemu_jax.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def start() -> None:
    """Joins the processes of the job; call it before anything asks for devices.

    On SLURM, Open MPI and Cloud TPU (GKE too) JAX finds the others by itself. Elsewhere the environment names them:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0).

    Raises:
      UserError: the others are not found, or do not come.
    """
    named: dict[str, int] = {}
    for name, argument in ((COUNT, "num_processes"), (INDEX, "process_id")):
        value = os.environ.get(name)
        if value is not None:
            if not value.isdecimal():
                raise UserError(f"{name}={value!r}: expected a number")
            named[argument] = int(value)
    if named and len(named) < 2:
        raise UserError(f"--multihost: {COUNT} and {INDEX} go together; set both")
    try:
        jax.distributed.initialize(**named)
    except Exception as error:  # the runtime raises what it likes
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"--multihost: the processes of the job do not meet ({reason}): start all at once, under srun or on "
            f"every worker of a TPU slice, or set {ADDRESS}, {COUNT} and {INDEX}"
        ) from None


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def any_host(flag: bool) -> bool:
    """Whether it holds in any process. Every process asks."""
    if jax.process_count() == 1:
        return bool(flag)
    client, number, me = _client(), next(_CALLS), jax.process_index()
    client.key_value_set(f"progemu/{number}/{me}", str(int(flag)))
    answers = [client.blocking_key_value_get(f"progemu/{number}/{i}", _A_DAY) for i in range(jax.process_count())]
    return "1" in answers


def broadcast(value: int = 0) -> int:
    """The value of process 0. Every process asks."""
    if jax.process_count() == 1:
        return value
    client, key = _client(), f"progemu/{next(_CALLS)}"
    if is_first():
        client.key_value_set(key, str(value))
        return value
    return int(client.blocking_key_value_get(key, _A_DAY))


def barrier() -> None:
    """Returns when every process has come here."""
    any_host(False)


def on_first_host(work: Callable[[], object], name: str) -> None:
    """Process 0 does it, the others wait. Where it fails all of them end, the others with one line."""
    error = None
    if is_first():
        try:
            work()
        except BaseException as caught:  # the others must hear of it, whatever it is
            error = caught
    failed = broadcast(int(error is not None))
    if error is not None:
        raise error
    if failed:
        raise UserError(f"{name}: failed in process 0, which says why")


def own_share(items: Sequence[Any]) -> Sequence[Any]:
    """This process's share of what is independent."""
    return items[jax.process_index() :: jax.process_count()]


_A_DAY = 24 * 3600 * 1000  # ms; a process that dies is noticed by its missing heartbeat, long before
_CALLS = itertools.count()  # all processes make the same calls in the same order


def _client() -> Any:
    """The job's key-value store. Unlike a collective on the devices, it may be waited on for hours."""
    return global_state.client
