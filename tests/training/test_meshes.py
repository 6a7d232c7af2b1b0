"""One training, whatever the devices: meshes of 8 fake devices and two processes against one device."""

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import hosts_training as toy

from progemu_jax import run
from progemu_jax.checkpoints import arrays, resume
from progemu_jax.configs import demo
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.plan import hlo
from progemu_jax.training import loop

SCRIPT = Path(toy.__file__)
# What each parameter must be split over, by its name; with the stacked layer axis in front.
SPECS = {
    "embed_tokens": ("tensor", "fsdp"),
    "lm_head": ("tensor", "fsdp"),
    "prior_proj": ("fsdp", None),
    "q_proj": (None, "fsdp", "tensor", None),
    "k_proj": (None, "fsdp", "tensor", None),
    "v_proj": (None, "fsdp", "tensor", None),
    "o_proj": (None, "tensor", None, "fsdp"),
    "gate_proj": (None, "fsdp", "tensor"),
    "up_proj": (None, "fsdp", "tensor"),
    "down_proj": (None, "tensor", "fsdp"),
}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    toy.run(folder, None)
    return toy.losses(folder)


def assert_close(found, expected):
    assert set(found) == set(expected)
    assert len(expected) == 21  # 20 steps and an evaluation
    worst = max(abs(found[step] - expected[step]) for step in expected)
    assert worst <= 1e-5, worst
    return worst


@pytest.mark.parametrize("shape", ["1x8x1", "2x2x2", "8x1x1"])
def test_eight_devices_train_as_one(one, tmp_path, shape):
    mesh = toy.make_mesh(shape)
    state = toy.run(tmp_path, mesh)
    print(f"{shape}: largest difference of a loss {assert_close(toy.losses(tmp_path), one):.1e}")
    names = set()
    for tree in (state["params"], state["opt_state"]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            names |= set(keys[-1:])
            wanted = SPECS.get(keys[-1] if keys else "", ())
            where = jax.sharding.NamedSharding(mesh, PartitionSpec(*wanted))
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim), (path, leaf.sharding)
            parts = np.prod([mesh.shape[name] for name in wanted if name])
            assert leaf.addressable_shards[0].data.size == leaf.size / parts
    assert names == {*SPECS, "scale"}


class Stop(Exception):
    pass


def test_restore_on_fewer_devices_keeps_the_losses(one, tmp_path):
    def stop_at(step):
        def hook(done, state, metrics):
            if done == step:
                raise Stop

        return hook

    eight, four = toy.make_mesh("2x2x2"), toy.make_mesh("1x2x2", jax.devices()[:4])
    with pytest.raises(Stop):
        toy.run(tmp_path, eight, hooks=[stop_at(8)])
    with pytest.raises(Stop):
        toy.run(tmp_path, four, hooks=[stop_at(14)])
    toy.run(tmp_path, None)
    assert_close(toy.losses(tmp_path), one)


def test_padded_rows_of_the_vocabulary_do_not_count_and_do_not_learn():
    params, batch = jax.jit(toy.task().init)(jax.random.key(0))["params"], toy.rows(0, 0)
    cut = {**params, **{name: params[name][:61] for name in ("embed_tokens", "lm_head")}}
    plain = dataclasses.replace(toy.MODEL, padded_vocab_size=None)
    padded, grads = jax.jit(jax.value_and_grad(lambda p: toy.task().loss(p, batch, None)[0]))(params)
    without = jax.jit(lambda p: toy.task(model=plain).loss(p, batch, None)[0])(cut)
    np.testing.assert_allclose(padded, without, rtol=1e-6)
    assert float(abs(grads["lm_head"][61:]).max()) == 0
    assert float(abs(grads["lm_head"][:61]).max()) > 0


def test_checksums_do_not_depend_on_the_sharding_and_see_a_flipped_bit():
    array = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    mesh = toy.make_mesh("2x2x2")
    split = jax.device_put(array, jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp", ("data", "tensor"))))
    one = arrays.checksums({"x": array})
    assert arrays.checksums({"x": split}) == one
    array.view(np.uint32)[3, 4] ^= 1
    assert arrays.checksums({"x": array}) != one
    array.view(np.uint32)[3, 4] ^= 1
    assert arrays.checksums({"x": array[::-1].copy()}) != one


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


def test_placing_and_sharding_a_batch():
    mesh = toy.make_mesh("2x2x2")
    x = np.arange(16).reshape(8, 2)
    assert sharding.shard_batch(x, mesh).addressable_shards[0].data.shape == (2, 2)
    assert sharding.place(x[:3], mesh).is_fully_replicated  # the last batch of an evaluation
    with pytest.raises(UserError, match="batch=6 does not divide over the 4 devices"):
        sharding.shard_batch(x[:6], mesh)


# --- two processes of 4 devices each, on this machine ---


def job(*arguments, count=2):
    """Runs the script in `count` processes that meet on a free port; (status, stdout, stderr) of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false"
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, arguments)],
            env={
                **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TQDM_DISABLE": "1",
                "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(i),
            },
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=280) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


# On the second mesh every parameter is split over both processes: what one of them wrote, only that one reads again.
@pytest.mark.parametrize(
    ("shape", "damaged"), [("2x2x2", "**/*"), pytest.param("1x8x1", "**/ocdbt.process_1/**/*", marks=pytest.mark.slow)]
)
def test_two_processes_train_as_one_stop_together_and_survive_damage(one, tmp_path, shape, damaged):
    stopped = job(tmp_path, 20, shape, "--stop-at", 12)
    assert [code for code, *_ in stopped] == [143, 143], stopped[0][2][-2000:] + stopped[1][2][-2000:]
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert 12 < steps[-1] <= 15, steps  # both at the same step, or there would be no complete checkpoint
    newest = tmp_path / "checkpoints" / str(steps[-1])
    largest = max((p for p in newest.glob(damaged) if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    ended = job(tmp_path, 20, shape)
    assert [code for code, *_ in ended] == [0, 0], ended[0][2][-2000:] + ended[1][2][-2000:]
    assert all("damaged" in stderr for _, _, stderr in ended)
    assert (tmp_path / "checkpoints" / f"damaged-{steps[-1]}").is_dir()
    print(f"two processes: largest difference of a loss {assert_close(toy.losses(tmp_path), one):.1e}")
    results = [json.loads(stdout.splitlines()[-1]) for _, stdout, _ in ended]
    for result in results:
        assert (result["devices"], result["processes"]) == (8, 2)
        assert result["split"] == result["moment"] == ["None", "fsdp", "tensor"]
        _, fsdp, tensor = map(int, shape.split("x"))
        assert result["local"] == [2, 32 // fsdp, 48 // tensor]
    if damaged != "**/*":
        assert sum("another host cannot read it" in stderr for _, _, stderr in ended) == 1
    for mine, theirs in zip(results[0]["seen"], results[1]["seen"], strict=True):
        assert not {tuple(row) for row in mine} & {tuple(row) for row in theirs}


def test_processes_that_do_not_meet_end_in_one_line(tmp_path):
    code = "from progemu_jax.devices import hosts\ntry: hosts.start()\nexcept hosts.UserError as e: print('line:', e)"
    for extra, words in (
        ({"JAX_NUM_PROCESSES": "2"}, "go together"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "expected a number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "5", "JAX_COORDINATOR_ADDRESS": "localhost:1"}, "do not meet"),
    ):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **extra}, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("line:")]
        assert len(lines) == 1, done.stderr
        assert words in lines[0]


def test_resume_elsewhere_names_everything_that_changed(tmp_path, caplog):
    with resume.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": np.ones(3)})
        real = resume.environment()
    try:
        resume.environment, old = (lambda: {**real, "cores": 999, "jax": "0.0"}), resume.environment
        with caplog.at_level(logging.WARNING), resume.Checkpoints(tmp_path) as checkpoints:
            checkpoints.restore({"x": np.ones(3)})
    finally:
        resume.environment = old
    assert "cores" in caplog.text
    assert "(now 0.0)" in caplog.text
    assert "not bit for bit" in caplog.text


@pytest.mark.parametrize(
    ("mesh", "batch", "words"),
    [
        ({"data": 3}, 16, "data=3 fsdp=1 tensor=1 does not make 8 devices"),
        ({"data": 8}, 4, "config.progemu.stage2: batch_size / accumulate=4 does not divide over the 8 devices"),
        ({"data": 1, "tensor": 8}, 16, "heads axis of size 4 does not divide by mesh tensor=8"),
        ({"data": 0}, 16, "sizes are 1 or more"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_line_before_anything_is_made(tmp_path, mesh, batch, words):
    config = demo.get_config()
    config.mesh = mesh
    config.progemu.stage2.batch_size = batch
    with pytest.raises(UserError) as caught:
        run.run(config, tmp_path / "run", None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*cannot be made \(Not a directory\)"):
        run.run(demo.get_config(), tmp_path / "file/run", None)
    # Not even root writes there.
    with pytest.raises(UserError, match=r"--workdir=/proc/self: cannot be written \(.*\); choose another"):
        run.run(demo.get_config(), "/proc/self", None)


KERNEL = """\
%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %kernel = f32[64]{0} custom-call(%x), frontend_attributes={kernel_metadata={
"block": "512"
}}, backend_config={}
  %gathered = f32[64]{0} all-gather(%y), replica_groups={{0,1,2,3}}, dimensions={0}
}

%condition (p: (s32[], f32[64])) -> pred[] {
  %last = s32[]{:T(128)} constant(5)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %loop = (s32[], f32[64]) while(%start), condition=%condition, body=%body
}
"""


def test_what_a_program_sends_is_found_behind_a_kernel():
    assert hlo.collectives(KERNEL, 8) == {"all-gather": 5 * 3 / 4 * 256}


def test_what_a_program_sends_counts_loops():
    """One all-reduce of 4 KB in a loop of 7 over 8 devices: 7 x 2 x 7/8 of it."""
    mesh = toy.make_mesh("8x1x1")
    where = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))

    def program(x):
        def body(total, _):
            return total + jax.lax.with_sharding_constraint(x * total[0], where).sum(0), None

        return jax.lax.scan(body, jax.numpy.zeros(1024), None, length=7)[0]

    x = jax.ShapeDtypeStruct((64, 1024), jax.numpy.float32, sharding=where)
    text = jax.jit(program, out_shardings=sharding.replicated(mesh)).lower(x).compile().as_text()
    assert hlo.collectives(text, 8) == {"all-reduce": pytest.approx(7 * 2 * 7 / 8 * 4096)}
