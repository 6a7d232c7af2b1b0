"""Checkpoints: what is written comes back, damage is noticed, another model is refused."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from progemu_jax.checkpoints import export
from progemu_jax.checkpoints.resume import Checkpoints
from progemu_jax.errors import UserError


def make(seed=0):
    key = jax.random.key(seed)
    params = {"dense": {"kernel": jax.random.normal(key, (64, 33)), "half": jnp.full((3,), 1 / 3, jnp.bfloat16)}}
    return {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "empty": jnp.zeros((0, 4), jnp.int32),
        "count": jnp.asarray(seed, jnp.int32),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_round_trip_of_state_and_extra(tmp_path):
    state, extra = make(), {"data": {"raw": b"\x00\xff", "n": 3}, "sums": {"loss": 0.1}, "list": [1, b"a"]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state, extra)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4]
        step, back, extra_back = checkpoints.restore(jax.eval_shape(make))
    assert step == 4
    assert extra_back == extra
    assert_same(back, state)


def test_empty_folder_restores_nothing_and_old_ones_go(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore(make()) is None
        for step in (1, 2, 3):
            checkpoints.save(step, make(step))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]


def test_the_caller_may_donate_at_once(tmp_path):
    """The background write must not see what the next, donating, step puts in the same memory."""
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    state = {"x": jnp.arange(2_000_000, dtype=jnp.float32)}
    expected = np.array(state["x"], copy=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = overwrite(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path) as checkpoints:
        _, back, _ = checkpoints.restore(state)
    np.testing.assert_array_equal(np.asarray(back["x"]), expected)


def _largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _truncate(folder):
    path = _largest(folder / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_byte(folder):
    path = _largest(folder / "state")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def _lose_the_arrays(folder):
    shutil.rmtree(folder / "state")


def _break_the_record(folder):
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text()[:40])


@pytest.mark.parametrize("damage", [_truncate, _flip_a_byte, _lose_the_arrays, _break_the_record])
def test_damaged_newest_falls_back_with_a_warning(tmp_path, damage, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.save(2, make(2))
    damage(tmp_path / "2")
    with caplog.at_level(logging.WARNING), Checkpoints(tmp_path) as checkpoints:
        step, state, _ = checkpoints.restore(make())
        assert step == 1
        assert_same(state, make(1))
        assert "damaged" in caplog.text
        checkpoints.save(2, make(2))  # the number is free again
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        assert_same(checkpoints.restore(make())[1], make(2))


def test_wrong_numbers_are_noticed_though_the_file_is_sound(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
        checkpoints.save(2, make(2))
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "1" / "state", tmp_path / "2" / "state")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make())[0] == 1


def test_unfinished_write_is_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make(1))
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make())[0] == 1
        checkpoints.save(2, make(2))
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]


def test_another_config_is_refused_naming_the_key(tmp_path):
    with Checkpoints(tmp_path, config={"model": {"width": 8, "depth": 2}}) as checkpoints:
        checkpoints.save(1, make())
    with (
        Checkpoints(tmp_path, config={"model": {"width": 16, "depth": 2}}) as checkpoints,
        pytest.raises(UserError, match=r"model\.width=8.*16.*--workdir"),
    ):
        checkpoints.restore(make())
    assert (tmp_path / "1").is_dir()


def test_other_arrays_are_refused_naming_them(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make())
    other = {**make(), "count": jnp.zeros(2, jnp.int32)}
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"count is int32\[\].*int32\[2\]"),
    ):
        checkpoints.restore(other)


def test_restores_onto_a_mesh_and_back(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    kernel = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"kernel": jax.device_put(kernel, rows)})
    for sharding in (rows, None):
        template = {"kernel": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=sharding)}
        with Checkpoints(tmp_path) as checkpoints:
            _, state, _ = checkpoints.restore(template)
        np.testing.assert_array_equal(np.asarray(state["kernel"]), kernel)
        assert len(state["kernel"].sharding.device_set) == (4 if sharding else 1)


def test_export_round_trip_and_replacement(tmp_path):
    folder = tmp_path / "model"
    for seed in (0, 1):
        params = make(seed)["params"]
        export.export(params, {"width": 33, "seed": seed}, folder)
        assert export.read_export_config(folder) == {"width": 33, "seed": seed}
        back, config = export.load_export(folder)
        assert config["seed"] == seed
        assert_same(back, params)
        assert_same(export.load_export(folder, jax.eval_shape(lambda: make()["params"]))[0], params)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_exports_that_cannot_be_read_are_user_errors(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(UserError, match="is missing"):
        export.load_export(folder)
    export.export(make()["params"], {}, folder)
    other = {"dense": {"kernel": jnp.zeros((64, 32)), "half": jnp.zeros(3, jnp.bfloat16)}}
    with pytest.raises(UserError, match=r"dense\.kernel is float32\[64, 33\].*float32\[64, 32\]"):
        export.load_export(folder, other)
    path = _largest(folder / "params")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        export.load_export(folder)
    (folder / "export.json").write_text("{")
    with pytest.raises(UserError, match="does not parse"):
        export.load_export(folder)
    (folder / "export.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match="other"):
        export.load_export(folder)
    precious = tmp_path / "precious"
    precious.mkdir()
    with pytest.raises(UserError, match="not an export"):
        export.export(make()["params"], {}, precious)
    assert precious.is_dir()
