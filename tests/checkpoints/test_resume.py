"""Checkpoints: what is written comes back, damage is noticed, another model is refused."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.states import assert_same, largest, make

from progemu_jax.checkpoints import resume
from progemu_jax.checkpoints.resume import Checkpoints
from progemu_jax.errors import UserError


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


def _truncate(folder):
    path = largest(folder / "state")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_byte(folder):
    path = largest(folder / "state")
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
