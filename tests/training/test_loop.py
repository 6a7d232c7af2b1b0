"""The training loop: exact resume, metrics, signals, and what must stop it."""

import dataclasses
import json
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import hosts_training as toy
from support.toy_training import CFG, LONG, Batches, Toy, eval_batches, run

from progemu_jax.checkpoints import resume
from progemu_jax.errors import UserError
from progemu_jax.training import loop, optim
from progemu_jax.training.optim import make_schedule

TOY = Path(__file__).parents[1] / "support/toy_training.py"


class Stop(Exception):
    pass


def stop_at(step):
    def hook(done, state, metrics):
        if done == step:
            raise Stop

    return hook


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(folder), (folder / "metrics.jsonl").read_bytes()


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_killed_run_ends_bit_for_bit_like_an_undisturbed_one(undisturbed, tmp_path):
    for _ in range(2):
        delay = random.uniform(0.2, 2.0)
        done = subprocess.run([sys.executable, TOY, tmp_path, str(delay)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    state = run(tmp_path)
    assert_same_bits(state, undisturbed[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == undisturbed[1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty starts of Python
def test_killed_twenty_times_it_ends_the_same_and_restores_nothing_half_written(tmp_path):
    """kill -9 at 20 random moments of 200 steps, a checkpoint every second one: many moments lie in a write."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    state = run(whole, dataclasses.replace(LONG, keep=1000))
    records = (whole / "checkpoints").glob("[0-9]*/meta/metadata")
    sums = {int(path.parts[-3]): json.loads(path.read_text())["checksums"] for path in records}
    assert len(sums) == 100
    cut, reached, seed = 0, [], random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for last in sorted(rng.sample(range(2, 180), 20)):
        delay = rng.uniform(0, 0.15)
        done = subprocess.run([sys.executable, TOY, killed, str(delay), str(last)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
        cut += any((killed / "checkpoints").glob("*tmp*"))
        with resume.Checkpoints(killed / "checkpoints", keep=2) as checkpoints:
            steps = checkpoints.steps()
        assert max(steps, default=0) < 200
        reached.append(max(steps, default=0))
        for step in steps:  # what has a final name is whole
            record = json.loads((killed / f"checkpoints/{step}/meta/metadata").read_text())
            assert record["checksums"] == sums[step]
    ended = run(killed, LONG)
    assert not list((killed / "checkpoints").glob("damaged-*"))
    print(f"killed {len(reached)} times, {cut} of them within a write; newest whole checkpoint after each: {reached}")
    assert cut  # some hit a save under way
    assert_same_bits(ended, state)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("step", [7, 63])
def test_stopped_in_process_run_resumes_exactly(undisturbed, tmp_path, step):
    with pytest.raises(Stop):
        run(tmp_path, hooks=[stop_at(step)])
    if step == 63:  # as after a kill while a row was written
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 64, "lo')
    assert_same_bits(run(tmp_path), undisturbed[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == undisturbed[1]


def test_iterator_without_state_is_replayed(undisturbed, tmp_path):
    def plain(seed):
        source = Batches(seed)
        return (next(source) for _ in iter(int, 1))

    with pytest.raises(Stop):
        run(tmp_path, batches=plain, hooks=[stop_at(70)])
    assert_same_bits(run(tmp_path, batches=plain), undisturbed[0])


def test_metrics_are_window_means_and_cover_the_end(tmp_path):
    seen = []

    class Counting(Toy):
        def train_step(self, state, batch, key):
            state, metrics = super().train_step(state, batch, key)
            return state, {**metrics, "count": state["count"].astype(jnp.float32)}

    cfg = dataclasses.replace(CFG, steps=10, log_every=4, eval_every=0)
    run(
        tmp_path,
        cfg,
        Counting(cfg),
        hooks=[lambda step, state, metrics: seen.append((step, metrics["count"]))],
    )
    assert seen == [(4, 2.5), (8, 6.5), (10, 9.5)]
    assert [(row["step"], row["count"]) for row in rows(tmp_path)] == seen
    assert list((tmp_path / "tensorboard").iterdir())


def test_speed_and_pictures_are_logged_beside_the_metrics(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    cfg = dataclasses.replace(CFG, steps=10, log_every=4, eval_every=0, show_every=5)
    task, shown = Toy(cfg), []
    task.tokens_per_step = 100

    def show(state):
        shown.append(int(state["count"]))
        return np.zeros((2, 6, 4), np.uint8)

    run(tmp_path, cfg, task, show=show)
    assert shown == [5, 10]
    speeds = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [row["step"] for row in speeds] == [4, 8, 10]
    for row in speeds:
        assert row["tokens_per_second"] == pytest.approx(100 * row["steps_per_second"])
        assert 0 <= row["data_wait"] <= 1
        assert row["memory_gib"] > 0
        assert "mfu" not in row  # a CPU's peak is not known
    rates = [row["learning_rate"] for row in rows(tmp_path)]
    assert rates == pytest.approx([float(make_schedule(cfg)(step - 1)) for step in (4, 8, 10)])
    tags = set()
    for path in (tmp_path / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:  # length u64, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            tags |= {value.tag for value in event.summary.value}
            data = data[16 + length :]
    assert {"train/loss", "train/learning_rate", "speed/tokens_per_second", "speed/data_wait", "validation"} <= tags


def test_arrays_of_an_evaluation_are_summed(tmp_path):
    class Counting(Toy):
        def eval_step(self, state, batch):
            return {**super().eval_step(state, batch), "rows": jnp.ones(3) * batch["x"].shape[0]}

        def summarize(self, sums):
            return {"rows": float(sums["rows"].mean())}

    cfg = dataclasses.replace(CFG, steps=5, eval_every=5)
    run(tmp_path, cfg, Counting(cfg))
    assert [row["eval/rows"] for row in rows(tmp_path) if "eval/rows" in row] == [11.0]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_run_with_a_moving_average_resumes_exactly(tmp_path, optimizer):
    cfg = dataclasses.replace(CFG, steps=40, eval_every=20, ema=0.9, optimizer=optimizer)
    expected = run(tmp_path / "a", cfg, Averaging(cfg))
    with pytest.raises(Stop):
        run(tmp_path / "b", cfg, Averaging(cfg), hooks=[stop_at(28)])
    assert_same_bits(run(tmp_path / "b", cfg, Averaging(cfg)), expected)
    assert set(expected) == {"params", "opt_state", "count", "ema"}


class Averaging(Toy):
    """As the tasks do it: `optim.start` and `optim.advance`."""

    def init(self, key):
        return {**optim.start(self.tx, self.cfg, super().init(key)["params"]), "count": jnp.zeros((), jnp.int32)}

    def train_step(self, state, batch, key):
        (loss, _), grads = jax.value_and_grad(self.loss, has_aux=True)(state["params"], batch, key)
        new = optim.advance(self.tx, self.cfg, state, grads)
        return {**new, "count": state["count"] + 1}, {"loss": loss}

    def eval_step(self, state, batch):
        return super().eval_step({"params": optim.averaged(state)}, batch)


def test_eval_means_count_by_weight(tmp_path):
    cfg = dataclasses.replace(CFG, steps=5, eval_every=5)
    state = run(tmp_path, cfg)
    parts = [Toy(cfg).eval_step(state, batch) for batch in eval_batches()]
    expected = np.average([float(p["loss"]) for p in parts], weights=[float(p["weight"]) for p in parts])
    found = [row["eval/loss"] for row in rows(tmp_path) if "eval/loss" in row]
    assert found == pytest.approx([expected], rel=1e-6)


def test_eval_loss_goes_down(undisturbed):
    losses = [row["eval/loss"] for row in map(json.loads, undisturbed[1].splitlines()) if "eval/loss" in row]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)


def test_complete_run_returns_at_once(undisturbed, tmp_path):
    run(tmp_path)

    def forbidden(seed):
        raise AssertionError("no batch is needed")

    assert_same_bits(run(tmp_path, batches=forbidden), undisturbed[0])


def test_zero_steps_give_the_initial_state(tmp_path):
    cfg = dataclasses.replace(CFG, steps=0)
    state = run(tmp_path, cfg)
    assert int(state["count"]) == 0


def test_signal_saves_and_exits(undisturbed, tmp_path):
    number = signal.SIGTERM
    before = signal.getsignal(number)

    def hook(step, state, metrics):
        if step == 14:
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, hooks=[hook])
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert steps == [15]  # the step after the signal is the last
    assert_same_bits(run(tmp_path), undisturbed[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == undisturbed[1]


def test_a_signal_in_the_last_evaluation_ends_the_process_too(undisturbed, tmp_path):
    """All is saved by then; but the run, which may have further stages, was to end."""
    evaluated = 0

    def batches():
        nonlocal evaluated
        evaluated += 1
        if evaluated == of_all:
            os.kill(os.getpid(), signal.SIGTERM)
        return eval_batches()

    of_all = sum(any(key.startswith("eval/") for key in row) for row in map(json.loads, undisturbed[1].splitlines()))
    with pytest.raises(SystemExit) as stopped:
        loop.fit(Toy(CFG), CFG, Batches, batches, tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert_same_bits(run(tmp_path), undisturbed[0])


@pytest.mark.parametrize("cfg", [CFG, dataclasses.replace(CFG, log_every=1000, save_every=13)])
def test_non_finite_loss_is_never_saved(tmp_path, cfg):
    with pytest.raises(UserError, match="not finite at step 13"):
        run(tmp_path, cfg, Toy(cfg, bad_at=13))
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert all(step < 13 for step in steps)
    assert all(row["loss"] is not None for row in rows(tmp_path))


def test_non_finite_parameter_is_never_saved(tmp_path):
    class Broken(Toy):
        def train_step(self, state, batch, key):
            state, metrics = super().train_step(state, batch, key)
            broken = jnp.where(state["count"] == 5, jnp.inf, state["params"]["dense"]["kernel"])
            return {**state, "params": {"dense": {"kernel": broken}}}, metrics

    with pytest.raises(UserError, match="parameter is not finite after step 5"):
        run(tmp_path, dataclasses.replace(CFG, save_every=5), Broken())
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]


def test_other_config_is_refused_by_name(tmp_path):
    cfg = dataclasses.replace(CFG, steps=10)
    run(tmp_path, cfg)
    with pytest.raises(UserError, match=r"train\.learning_rate=0\.01.*0\.02.*--workdir"):
        run(tmp_path, dataclasses.replace(cfg, learning_rate=0.02))
    with pytest.raises(UserError, match=r"config\.model='\(absent\)'.*'width': 8"):
        run(tmp_path, cfg, config={"model": {"width": 8}})
    run(tmp_path, dataclasses.replace(cfg, log_every=3, save_every=2, keep=5))


def test_data_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(UserError, match="ended after 9 of 120 steps"):
        run(tmp_path, batches=lambda seed: Batches(seed, count=9))


def test_readers_are_closed_however_it_ends(tmp_path):
    sources = []

    def start(seed):
        sources.append(Batches(seed))
        return sources[-1]

    with pytest.raises(Stop):
        run(tmp_path, batches=start, hooks=[stop_at(7)])
    run(tmp_path, batches=start)
    assert [source.closed for source in sources] == [True, True]


def test_init_state_is_used_once_and_survives(tmp_path):
    cfg = dataclasses.replace(CFG, steps=6)
    given = Toy(cfg).init(jax.random.key(77))
    calls = []

    def make():
        calls.append(1)
        return given

    first = run(tmp_path, cfg, init_state=make)
    assert np.isfinite(np.asarray(given["params"]["dense"]["kernel"])).all()  # not donated
    assert_same_bits(run(tmp_path, cfg, init_state=make), first)
    assert len(calls) == 1
    assert float(jnp.abs(first["params"]["dense"]["kernel"] - given["params"]["dense"]["kernel"]).max()) < 0.1
    with pytest.raises(ValueError, match="another structure"):
        run(tmp_path / "b", cfg, init_state={"params": given["params"]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", -1), ("batch_size", 0), ("accumulate", 3), ("learning_rate", 0.0), ("save_every", 0),
        ("keep", 0), ("dtype", "float16"), ("ema", 1.0), ("show_every", -1),
    ],
)  # fmt: skip
def test_senseless_values_are_named(key, value):
    with pytest.raises(UserError, match=rf"train\.{key}={value!r}"):
        loop.check(dataclasses.replace(CFG, **{key: value}))


def test_mesh_gives_the_same_parameters_and_resumes(undisturbed, tmp_path):
    types = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=types, devices=jax.devices()[:4])
    with pytest.raises(Stop):
        run(tmp_path, mesh=mesh, hooks=[stop_at(63)])
    state = run(tmp_path, mesh=mesh)
    assert len(state["params"]["dense"]["kernel"].sharding.device_set) == 4
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(undisturbed[0]), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=1e-5)


def test_resume_on_another_machine_warns(tmp_path, monkeypatch, caplog):
    with pytest.raises(Stop):
        run(tmp_path, hooks=[stop_at(28)])
    here = resume.environment()
    monkeypatch.setattr(resume, "environment", lambda: {**here, "cores": 999})
    with caplog.at_level(logging.WARNING):
        run(tmp_path)
    assert "cores" in caplog.text
    assert "not bit for bit" in caplog.text


@pytest.mark.parametrize(
    ("shape", "batch", "words"),
    [("8x1x1", 12, ["train.batch_size", "=12", "8 devices"]), ("2x4x1", 4, ["=4", "8 devices"])],
)
def test_a_batch_that_does_not_divide_is_one_line_before_any_work(tmp_path, shape, batch, words):
    cfg = dataclasses.replace(toy.CFG, batch_size=batch)
    with pytest.raises(UserError) as caught:
        loop.fit(toy.task(cfg), cfg, None, None, tmp_path / "run", mesh=toy.make_mesh(shape))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_before_the_first_step(tmp_path, monkeypatch):
    usage = loop.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"3 checkpoints of .* GB are to come and 1e-06 GB are free"):
        toy.run(tmp_path, None)
