"""A run: what is refused in one line before anything is made."""

import pytest
from support.errors import fails

from progemu_jax import run as run_
from progemu_jax.configs import demo
from progemu_jax.errors import UserError


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
        run_.run(config, tmp_path / "run", None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("sample.batch_size", 0, "at least 1"),
        ("sample.num_samples", 0, "at least 1"),
        ("sample.max_cases", -3, "at least 0"),
        ("sample.seed", -1, "0 to 2147483647"),
        ("sample.systems", (), "is empty"),
        ("sample.split", "tset", "train, validation, test"),
        ("evaluate.bootstrap", -1, "0 to 100000"),
        ("evaluate.seed", -1, "at least 0"),
        ("scorer.images", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("data.tree_size", 0, "32 to 4096"),
        ("data.processes", -3, "at least 0"),
        ("data.phantom.patients", 0, "at least 1"),
        ("data.phantom.dynamics", "walk", "choose among steps, course"),
        ("data.no_change_share", float("nan"), "0 to 1"),
        ("tokens.slack", -1.0, "at least 0"),
    ],
)
def test_a_value_without_sense_is_one_line_before_anything_is_made(tmp_path, key, value, words):
    config = demo.get_config()
    section, _, name = key.rpartition(".")
    at = config
    for part in filter(None, section.split(".")):
        at[part] = at.get(part, {})
        at = at[part]
    at[name] = value
    for stages in (None, ["list"]):
        fails(f"config.{key}.*{words}", run_.run, config, tmp_path / "run", stages)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir=.*cannot be made \(Not a directory\)"):
        run_.run(demo.get_config(), tmp_path / "file/run", None)
    # Not even root writes there.
    with pytest.raises(UserError, match=r"--workdir=/proc/self: cannot be written \(.*\); choose another"):
        run_.run(demo.get_config(), "/proc/self", None)
