"""Signals that end a training run after a step, the same step on every host."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.devices import sharding


class Agreed:
    """Number of the signal that stops the run, or 0: the same on every host at the same step.

    On several hosts the answer is that of the step before: its all-reduce is done by now, so that asking does not
    wait for the step that has just been sent off.
    """

    def __init__(self, caught: list[int], mesh: jax.sharding.Mesh | None):
        self.caught, self.mesh, self.pending = caught, mesh, None
        if jax.process_count() > 1:
            self.where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
            self.most = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    def __call__(self) -> int:
        number = self.caught[0] if self.caught else 0
        if jax.process_count() == 1:
            return number
        before = 0 if self.pending is None else int(self.pending)
        mine = np.full(jax.local_device_count(), number, np.int32)
        self.pending = self.most(jax.make_array_from_process_local_data(self.where, mine))
        return before


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT; a second one ends the process as usual. Main thread only."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    # None: a handler that is not Python's (on several hosts JAX's runtime has one for SIGTERM); ours takes its place.
    old = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        signal.signal(number, old[number])

    try:
        for number in old:
            signal.signal(number, note)
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
