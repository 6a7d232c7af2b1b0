"""The one training loop: every task (tokenizer, ProgEmu, scorers) goes through `fit`.

A run's folder:
  checkpoints/<step>/   Orbax: state, data-iterator state, what the run depends on
  metrics.jsonl         one row a log or eval point; no clock in it: a resumed run writes the same file
  speed.jsonl           one row a log point: steps and tokens a second, MFU, memory, share of the time spent on data
  tensorboard/          the same numbers, and pictures of fixed validation cases

Killed at any moment and started again with the same config, a run ends in the same parameters; on CPU bit
for bit, given the same cores, devices and versions.
"""

import contextlib
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.checkpoints.resume import Checkpoints
from progemu_jax.devices import accelerators, hosts, sharding
from progemu_jax.errors import UserError
from progemu_jax.training.log import Bar, Metrics
from progemu_jax.training.optim import make_schedule
from progemu_jax.training.signals import Agreed, signals

_log = logging.getLogger(__name__)
HOUSEKEEPING = ("log_every", "eval_every", "save_every", "show_every", "keep")  # may change between start and resume


@dataclass(frozen=True)
class TrainConfig:
    """What one training run does. Lengths are in optimizer updates ("steps")."""

    steps: int = 1000
    batch_size: int = 16  # examples per update, over all devices and microbatches
    learning_rate: float = 3e-4
    final_learning_rate: float = 3e-5
    warmup_steps: int = 50
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-6
    clip: float = 1.0  # global gradient norm; 0: no clip
    accumulate: int = 1  # microbatches per update
    dtype: str = "float32"  # of the computation; parameters stay float32
    log_every: int = 50
    eval_every: int = 0  # 0: never
    save_every: int = 500
    show_every: int = 0  # pictures of fixed validation cases; 0: never
    keep: int = 2  # newest checkpoints kept
    seed: int = 0
    optimizer: str = "adamw"  # one of optim.OPTIMIZERS
    moment_dtype: str = "float32"  # of Adam's moments; "bfloat16": half the memory
    ema: float = 0.0  # decay of the moving average of the parameters that is evaluated and exported; 0: none


class Task(Protocol):
    """One thing that trains. States are plain dict pytrees of arrays; "params" and "opt_state" are in them.

    A task may also have `state_shardings(mesh, abstract_state)`, a matching pytree of `NamedSharding`s;
    without it a mesh holds the state replicated. `eval_step` may return arrays too: they are summed over the split, and
    `summarize(sums)` makes scalars of them. `tokens_per_step` and `flops_per_step` are for the speed that is logged.
    """

    name: str

    def init(self, key: jax.Array) -> dict:
        """The state before the first step."""

    def train_step(self, state: dict, batch: dict, key: jax.Array) -> tuple[dict, dict]:
        """(next state, scalar metrics, among them "loss")."""

    def eval_step(self, state: dict, batch: dict) -> dict:
        """Scalar metrics of a batch; means count by an optional "weight" among them."""


def fit(
    task: Task,
    cfg: TrainConfig,
    batches: Callable[[int], Iterator[dict]],
    eval_batches: Callable[[], Iterable[dict]] | None,
    workdir: str | os.PathLike,
    *,
    mesh: jax.sharding.Mesh | None = None,
    init_state: Any = None,
    hooks: Sequence[Callable[[int, dict, dict], None]] = (),
    config: Any = None,
    show: Callable[[dict], np.ndarray] | None = None,
) -> dict:
    """Trains `task` for `cfg.steps` steps in `workdir`, from its newest checkpoint when there is one.

    Args:
      batches: seed -> iterator of dicts of NumPy arrays [B, ...] (on several hosts: this host's rows). With
        `get_state()`/`set_state()` it is put back where the checkpoint left it; without, the batches already
        used are drawn again and dropped. Its state must be the same on every host.
      eval_batches: () -> finite iterable of such dicts, the same ones at every call, whole on every host; None: no
        evaluation.
      mesh: batches are split along its axes named "data" and "fsdp"; None: the default device.
      init_state: the state to start from instead of `task.init(key)`, or a function that makes it (called
        only when there is no checkpoint); copied, so the caller may keep it.
      hooks: called with (step, state, metrics) at every log point; must not keep or change the state.
      config: what beside `cfg` (model, data) must be unchanged for a run to be continued: a dataclass, or a dict of
        them. A key that a checkpoint lacks, of these or of `cfg`, counts as its default. Other values: JSON-able.
      show: state -> uint8 [N, H, W], pictures for TensorBoard every `cfg.show_every` steps and at the end; None: none.

    Returns:
      The final state; at once, when the run was already complete.

    Raises:
      UserError: a value of `cfg` makes no sense; the checkpoint is of another config; the loss or a
        parameter is not finite (nothing of that kind is ever saved); the data ended early; the batch does not
        divide over the mesh; the disk holds no checkpoint more.
      SystemExit: on SIGTERM or SIGINT of any host (128 + signal number), after saving.
    """
    check(cfg)
    if mesh is not None:
        sharding.check_batch(mesh, cfg.batch_size // cfg.accumulate, "train.batch_size / train.accumulate")
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    init_key, step_key = jax.random.split(jax.random.key(cfg.seed))
    abstract = jax.eval_shape(task.init, init_key)
    shardings = _state_shardings(task, mesh, abstract)
    template = _with_shardings(abstract, shardings)
    kept = {name: value for name, value in asdict(cfg).items() if name not in HOUSEKEEPING}
    identity = {"task": task.name, "train": kept, "config": config or {}}
    kinds = {"train": cfg, "config": config}
    with Checkpoints(workdir / "checkpoints", keep=cfg.keep, config=identity, kinds=kinds) as checkpoints:
        restored = checkpoints.restore(template)
        start, state, extra = restored or (0, None, {})
        if start < cfg.steps:
            _check_space(workdir, template, len(checkpoints.steps()), cfg.keep)
        if state is None:
            state = _first_state(task, init_key, init_state, template)
        if start >= cfg.steps:
            return state
        run = _Run(task, cfg, mesh, shardings, step_key, workdir, checkpoints, hooks, eval_batches, show)
        with _closing(batches(cfg.seed)) as source, sharding.on(mesh):
            return run(state, start, extra, source)


def check(cfg: TrainConfig) -> None:
    """Raises UserError naming the first value of `cfg` that makes no sense."""
    rules = [
        ("steps", cfg.steps >= 0, "at least 0"),
        ("batch_size", cfg.batch_size >= 1, "at least 1"),
        ("accumulate", cfg.accumulate >= 1, "at least 1"),
        ("accumulate", cfg.batch_size % max(cfg.accumulate, 1) == 0, f"a divisor of {cfg.batch_size=}"),
        ("learning_rate", cfg.learning_rate > 0, "above 0"),
        ("final_learning_rate", cfg.final_learning_rate >= 0, "at least 0"),
        ("warmup_steps", cfg.warmup_steps >= 0, "at least 0"),
        ("clip", cfg.clip >= 0, "at least 0"),
        ("ema", 0 <= cfg.ema < 1, "at least 0 and below 1"),
        ("log_every", cfg.log_every >= 1, "at least 1"),
        ("eval_every", cfg.eval_every >= 0, "at least 0"),
        ("save_every", cfg.save_every >= 1, "at least 1"),
        ("show_every", cfg.show_every >= 0, "at least 0"),
        ("keep", cfg.keep >= 1, "at least 1"),
        ("dtype", cfg.dtype in ("float32", "bfloat16"), "'float32' or 'bfloat16'"),
    ]
    for name, good, wanted in rules:
        if not good:
            raise UserError(f"train.{name}={getattr(cfg, name)!r} must be {wanted}: change it in the config")


class _Run:
    """One call of `fit` after its state is known."""

    def __init__(
        self,
        task: Task,
        cfg: TrainConfig,
        mesh: jax.sharding.Mesh | None,
        shardings: Any,
        step_key: jax.Array,
        workdir: Path,
        checkpoints: Checkpoints,
        hooks: Sequence[Callable[[int, dict, dict], None]],
        eval_batches: Callable[[], Iterable[dict]] | None,
        show: Callable[[dict], np.ndarray] | None,
    ):
        self.task, self.cfg, self.workdir = task, cfg, workdir
        self.checkpoints, self.hooks, self.eval_batches = checkpoints, hooks, eval_batches
        self.show = show if jax.process_count() == 1 else None  # no host of several has all parameters
        self.schedule, self.waited = make_schedule(cfg), 0.0
        self.mesh = mesh
        self.put = jax.device_put if mesh is None else lambda batch: sharding.shard_batch(batch, mesh)
        self.place = jax.device_put if mesh is None else lambda tree: sharding.place(tree, mesh)  # whole on every host
        self.train_step = jax.jit(task.train_step)  # also traced alone, to learn the metrics' names
        self.step = jax.jit(self._step, donate_argnums=0)
        self.eval_step = jax.jit(task.eval_step)
        self.step_key = step_key
        self.shardings = shardings

    def _step(self, carry: dict, batch: dict) -> dict:
        """One update. Sums of metrics and the first bad step stay on the device until a log point."""
        key = jax.random.fold_in(self.step_key, carry["step"])
        state, metrics = self.train_step(carry["state"], batch, key)
        good = jnp.array([jnp.all(jnp.isfinite(v)) for k, v in metrics.items() if _must_be_finite(k)]).all()
        first_bad = jnp.where((carry["first_bad"] < 0) & ~good, carry["step"] + 1, carry["first_bad"])
        sums = {k: carry["sums"][k] + v.astype(jnp.float32) for k, v in metrics.items()}
        if self.mesh is not None:
            state = jax.lax.with_sharding_constraint(state, self.shardings)
        return {"state": state, "step": carry["step"] + 1, "first_bad": first_bad, "sums": sums}

    def __call__(self, state: dict, start: int, extra: dict, source: Iterator[dict]) -> dict:
        """Trains from step `start` on; returns the final state."""
        cfg = self.cfg
        _rewind(source, start, extra)
        first = self.put(self._next(source, start))
        shapes = self.train_step.eval_shape(state, first, self.step_key)[1]
        if "loss" not in shapes:
            raise ValueError(f"{self.task.name}.train_step returns no 'loss' among {sorted(shapes)}")
        sums = extra.get("sums", {})
        counters = {
            "step": np.int32(start),
            "first_bad": np.int32(-1),
            "sums": {name: np.float32(sums.get(name, 0.0)) for name in shapes},
        }
        carry = {"state": state, **self.place(counters)}
        step = accelerators.compiled(self.step, carry, first)
        writing = hosts.is_first()
        with (
            Metrics(self.workdir, start, writing) as log,
            Bar(self.task.name, cfg.steps, start, writing) as bar,
            signals() as caught,
        ):
            signalled = Agreed(caught, self.mesh)
            for done in range(start + 1, cfg.steps + 1):
                batch = first if done == start + 1 else self.put(self._next(source, done - 1))
                carry = step(carry, batch)
                last, stop = done == cfg.steps, signalled()
                if last or done % cfg.log_every == 0:
                    carry = self._log(carry, done, log, bar)
                if self.eval_batches and cfg.eval_every and (last or done % cfg.eval_every == 0):
                    log.write(done, self._evaluate(carry["state"], done))
                if self.show and cfg.show_every and (last or done % cfg.show_every == 0):
                    log.pictures(done, self.show(carry["state"]))
                if last or stop or done % cfg.save_every == 0:
                    self._save(carry, done, source, log)
                if stop:
                    break
            self.checkpoints.wait()
            stop = stop or signalled() or signalled()  # what came in the last save; of several hosts, a step later
            if stop:
                bar.write(f"{self.task.name}: stopped by a signal; saved at step {done}", sys.stderr)
                raise SystemExit(128 + stop)
        return carry["state"]

    def _next(self, source: Iterator[dict], used: int) -> dict:
        start = time.monotonic()
        try:
            return next(source)
        except StopIteration:
            raise UserError(
                f"{self.task.name}: the data ended after {used} of {self.cfg.steps} steps: "
                f"lower train.steps or let the batches repeat"
            ) from None
        finally:
            self.waited += time.monotonic() - start

    def _log(self, carry: dict, done: int, log: Metrics, bar: Bar) -> dict:
        sums, first_bad = jax.device_get((carry["sums"], carry["first_bad"]))
        self._stop_if_bad(first_bad)
        count = done % self.cfg.log_every or self.cfg.log_every
        metrics = {name: float(value) / count for name, value in sums.items()}
        metrics["learning_rate"] = float(self.schedule(done - 1))
        log.write(done, metrics)
        log.write_speed(done, self._speed(*bar.advance(done, metrics["loss"])))
        for hook in self.hooks:
            hook(done, carry["state"], metrics)
        return {**carry, "sums": self.place({name: np.float32(0) for name in sums})}

    def _speed(self, steps: int, seconds: float) -> dict[str, float]:
        rate = steps / max(seconds, 1e-9)
        out = {"steps_per_second": rate, "data_wait": min(self.waited / max(seconds, 1e-9), 1.0)}
        out["memory_gib"] = accelerators.memory_gib()
        self.waited = 0.0
        if tokens := getattr(self.task, "tokens_per_step", None):
            out["tokens_per_second"] = rate * tokens
        flops, peak = getattr(self.task, "flops_per_step", None), accelerators.peak_flops()
        if flops and peak:
            out["mfu"] = rate * flops / (peak * jax.device_count())
        return out

    def _evaluate(self, state: dict, done: int) -> dict[str, float]:
        totals, weight, arrays = {}, 0.0, {}
        with _closing(self.eval_batches()) as source:
            for batch in source:
                found = jax.device_get(self.eval_step(state, self.place(batch)))
                metrics = {name: float(value) for name, value in found.items() if not np.ndim(value)}
                for name, value in found.items():
                    if np.ndim(value):
                        arrays[name] = arrays.get(name, 0) + np.asarray(value, np.float64)
                share = metrics.pop("weight", 1.0)
                weight += share
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + share * value
        if not weight:
            raise UserError(f"{self.task.name}: no batch to evaluate at step {done}: check the eval split")
        means = {name: value / weight for name, value in totals.items()}
        means |= self.task.summarize(arrays) if arrays else {}
        return {f"eval/{name}": value for name, value in means.items()}

    def _save(self, carry: dict, done: int, source: Iterator[dict], log: Metrics) -> None:
        finite = _all_finite(carry["state"].get("params", carry["state"]))
        sums, first_bad, finite = jax.device_get((carry["sums"], carry["first_bad"], finite))
        self._stop_if_bad(first_bad)
        if not finite:
            raise UserError(f"{self.task.name}: a parameter is not finite after step {done}; {_REMEDY}")
        log.flush()
        extra = {"sums": {name: float(value) for name, value in sums.items()}}
        if hasattr(source, "get_state"):
            extra["data"] = source.get_state()
        self.checkpoints.save(done, carry["state"], extra)

    def _stop_if_bad(self, first_bad: np.ndarray) -> None:
        if first_bad >= 0:
            raise UserError(f"{self.task.name}: the loss is not finite at step {int(first_bad)}; {_REMEDY}")


_REMEDY = "the last checkpoint is sound: lower train.learning_rate or train.clip and use another --workdir"


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(leaf).all() for leaf in floats]).all()


def _must_be_finite(name: str) -> bool:
    return name.endswith("loss") or name == "grad_norm"


@contextlib.contextmanager
def _closing(source: Any) -> Iterator[Any]:
    """Ends the reading threads that an iterator may have."""
    try:
        yield source
    finally:
        if hasattr(source, "close"):
            source.close()


def _rewind(source: Iterator[dict], start: int, extra: dict) -> None:
    """Puts the data where the checkpoint left it."""
    if not start:
        return
    if hasattr(source, "set_state") and "data" in extra:
        source.set_state(extra["data"])
        return
    for _ in range(start):
        next(source)


def _first_state(task: Task, key: jax.Array, init_state: Any, template: Any) -> dict:
    """`fit`'s init_state, or the task's own first state, with the shapes and shardings of `template`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    if init_state is None:  # every leaf is made in its place: no device ever holds a whole copy
        return jax.jit(lambda: task.init(key), out_shardings=shardings)()
    given = init_state() if callable(init_state) else init_state
    if jax.tree.structure(given) != jax.tree.structure(template):
        raise ValueError(f"{task.name}: init_state has another structure than the task's own state")
    for (path, have), want in zip(
        jax.tree_util.tree_flatten_with_path(given)[0], jax.tree.leaves(template), strict=True
    ):
        if have.shape != want.shape or have.dtype != want.dtype:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{task.name}: init_state{name} is {have.dtype}{have.shape}, not {want}")
    if jax.process_count() > 1:  # arrays of one device: every host has made the same ones
        given = jax.tree.map(lambda x: x if len(x.sharding.device_set) > 1 else np.asarray(x), given)
    # A jitted copy owns its buffers: the first step donates them, and the caller may hold the originals.
    return jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)(given)


def _state_shardings(task: Task, mesh: jax.sharding.Mesh | None, abstract: Any) -> Any:
    """Where each array of the state lies: the task's choice, else on every device."""
    if mesh is None:
        single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda _: single, abstract)
    if hasattr(task, "state_shardings"):
        return task.state_shardings(mesh, abstract)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda _: replicated, abstract)


def _with_shardings(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract, shardings
    )


def _check_space(workdir: Path, template: Any, kept: int, keep: int) -> None:
    """Raises UserError when the disk cannot hold the checkpoints: the one being written beside those that are kept."""
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(template))
    count = 1 + max(keep - kept, 0)
    free = shutil.disk_usage(workdir).free
    if free < count * size:
        raise UserError(
            f"{workdir}: {count} checkpoints of {size / 1e9:.3g} GB are to come and {free / 1e9:.3g} GB are free: "
            "free some, lower train.keep, or use another --workdir"
        )
