"""Compiled programs on disk: whose, of which processor, how much of it; and that they compute the same."""

import errno
import os
import subprocess
import sys
import time
import zlib

import jax
import pytest

from progemu_jax.devices import compilation

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A home for caches of its own; JAX's settings as they were, afterwards."""
    for name in (compilation.SETTING, compilation.OWN_FOLDER, *map(str.upper, SETTINGS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)  # the tests' own
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_there_is_a_folder_for_each_jaxlib_and_kind_of_processor(cache, monkeypatch):
    here = compilation.folder()
    assert here.parent == cache / "progemu_jax"
    assert here == compilation.folder()
    monkeypatch.setattr(compilation.metadata, "version", lambda name: "9.9")
    other = compilation.folder()
    assert "9.9" in other.name
    monkeypatch.setattr(compilation, "_cpu_info", lambda: ("Some CPU @ 3 GHz/(R)", "avx2"))
    lesser = compilation.folder()
    assert lesser.name.startswith("jaxlib-9.9-Some-CPU-3-GHz-R-")
    monkeypatch.setattr(compilation, "_cpu_info", lambda: ("Some CPU @ 3 GHz/(R)", "avx2 avx512f"))
    assert len({here, other, lesser, compilation.folder()}) == 4


def test_processors_are_told_apart_by_what_they_can_do(tmp_path):
    text = "processor\t: {}\nmodel name\t: CPU A\nflags\t\t: {}\nbogomips : {}\n\nprocessor : 1\n"
    found = {}
    for name, values in {
        "a": (0, "fpu avx2", 1),
        "as a": (1, "avx2 fpu", 2),
        "b": (0, "fpu avx2 avx512f", 1),
    }.items():
        (tmp_path / "cpuinfo").write_text(text.format(*values))
        found[name] = compilation._cpu_info(str(tmp_path / "cpuinfo"))
    assert found["a"] == found["as a"] != found["b"]
    assert found["a"][0] == "CPU A"
    assert compilation._cpu_info(str(tmp_path / "absent"))[0]


def test_programs_are_kept_in_the_users_cache(cache):
    where = compilation.keep_programs()
    assert where == compilation.folder()
    assert where.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(where)


@pytest.mark.parametrize("name", [compilation.SETTING, compilation.OWN_FOLDER])
def test_the_environment_has_the_last_word(cache, monkeypatch, name):
    monkeypatch.setenv(name, "off")
    assert compilation.keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(cache.iterdir())


def test_the_environment_names_a_folder(cache, monkeypatch):
    usual = compilation.folder()
    for given, base in ((str(cache / "mine"), cache / "mine"), ("here", cache / "here"), ("~/c", cache / "home/c")):
        monkeypatch.chdir(cache)
        monkeypatch.setenv("HOME", str(cache / "home"))
        monkeypatch.setenv(compilation.SETTING, given)
        assert compilation.folder() == base / usual.name
    assert compilation.keep_programs() == cache / "home/c" / usual.name
    monkeypatch.setenv(compilation.SETTING, "OFF")
    assert compilation.folder() == usual


def test_a_program_that_chose_a_folder_keeps_it(cache):
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    assert compilation.keep_programs() is None
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_a_users_threshold_stays(cache, monkeypatch):
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(before))
    compilation.keep_programs()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_without_a_folder_to_write_the_run_goes_on(cache, monkeypatch, capsys):
    (cache / "progemu_jax").write_text("a file")
    assert compilation.keep_programs() is None
    assert compilation.keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(cache / "progemu_jax") in said


def test_a_folder_that_is_there_but_takes_no_file_is_one_line(cache, monkeypatch, capsys):
    def refuse(**where):
        raise OSError(errno.EROFS, "Read-only file system")

    compilation.folder().mkdir(parents=True)
    monkeypatch.setattr(compilation.tempfile, "TemporaryFile", refuse)
    assert compilation.keep_programs() is None
    assert capsys.readouterr().err == f"compiled programs are not kept: {compilation.folder()}: Read-only file system\n"


def test_a_user_without_a_home_gets_no_folder_called_tilde(cache, monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does where there is neither HOME nor entry
    monkeypatch.chdir(cache)
    assert compilation.keep_programs() is None
    assert "no home" in capsys.readouterr().err
    assert not list(cache.iterdir())


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    for age in range(4):
        path = tmp_path / f"jit_{age}-cache"
        path.write_bytes(zlib.compress(os.urandom(1000)))
        os.utime(path, (time.time() - 10 * age, time.time() - 10 * age))
    (tmp_path / "not ours").write_bytes(bytes(5000))
    compilation.tidy(tmp_path, 2500)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".checked", "jit_0-cache", "jit_1-cache", "not ours"]


def test_a_file_whose_writer_was_killed_goes(tmp_path):
    whole = zlib.compress(os.urandom(1000))
    for name, data in {"whole": whole, "half": whole[:500], "empty": b""}.items():
        (tmp_path / f"jit_{name}-cache").write_bytes(data)
    compilation.tidy(tmp_path)
    assert [p.name for p in tmp_path.glob("*-cache")] == ["jit_whole-cache"]


PROGRAM = """
import hashlib
from progemu_jax.devices import compilation
compilation.LEAST_SECONDS = 0.0
compilation.keep_programs()
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax._src import monitoring

hits = []
monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("/cache_hits") else None)
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.device_put(np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),
                   NamedSharding(mesh, PartitionSpec("data")))
w = jax.device_put(np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32),
                   NamedSharding(mesh, PartitionSpec()))
step = jax.jit(lambda w, x: w - 0.1 * jax.grad(lambda w: (jnp.tanh(jnp.exp(x @ w) @ w.T) ** 2).mean())(w))
for _ in range(3):
    w = jax.block_until_ready(step(w, x))
print(hashlib.sha256(np.asarray(w).tobytes()).hexdigest(), len(hits) > 0)
"""


def test_kept_programs_compute_the_same_bits_on_two_devices(cache):
    flags = "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false"
    outs = []
    for more in ({compilation.SETTING: "0"}, {}, {}):
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **more}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        outs.append(done.stdout.split())
    assert len({bits for bits, _ in outs}) == 1
    assert [hit for _, hit in outs] == ["False", "False", "True"]
