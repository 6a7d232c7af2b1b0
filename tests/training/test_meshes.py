"""One training, whatever the devices: meshes of 8 fake devices and two processes against one device."""

import dataclasses
import json
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
from support.initial import initial

SCRIPT = Path(toy.__file__)

# What each parameter must be split over, by its name; with the stacked layer axis in front.
SPECS = {
    "embed_tokens": ("tensor", "fsdp"),
    "lm_head": ("tensor", "fsdp"),
    "prior_proj": ("fsdp", None),
    "beside_proj": ("fsdp", None),
    "changed_embed": ("fsdp",),
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
    toy.run(folder, None, save_every=20)
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
    state = toy.run(tmp_path, mesh, save_every=20)
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
    params, batch = initial(toy.task().init)["params"], toy.rows(0, 0)
    cut = {**params, **{name: params[name][:61] for name in ("embed_tokens", "lm_head")}}
    plain = dataclasses.replace(toy.MODEL, padded_vocab_size=None)
    padded, grads = jax.jit(jax.value_and_grad(lambda p: toy.task().loss(p, batch, None)[0]))(params)
    without = jax.jit(lambda p: toy.task(model=plain).loss(p, batch, None)[0])(cut)
    np.testing.assert_allclose(padded, without, rtol=1e-6)
    assert float(abs(grads["lm_head"][61:]).max()) == 0
    assert float(abs(grads["lm_head"][:61]).max()) > 0


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
