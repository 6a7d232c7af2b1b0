"""Mistakes on the command line: one line that names the value, status 2, before any work is done."""

import os

import pytest
from support.command_line import TOY, one_line, run, run_here

from progemu_jax import main

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY)
    return folder


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.tokenizer.train.stepz=3", ["stepz"]),
        ("--config.data.source=nowhere", ["nowhere"]),
        ("--stages=data,paint", ["paint"]),
        ("--config.tokenizer.train.batch_size=0", ["config.tokenizer", "batch_size"]),
        ("--config.data.processes=two", ["processes", "two"]),  # a key that the file leaves out
        ("--config.data.root.x=1", ["config.data.root.x"]),
        ("--config.progemu.task.length=60", ["length=60"]),
        ("--config.data.image_size=36", ["image_size=36"]),
    ],
)
def test_bad_flags_are_one_line(toy, tmp_path, monkeypatch, capsys, flag, words):
    one_line(run_here(monkeypatch, capsys, toy, tmp_path / "new", flag), *words)
    assert not list(tmp_path.glob("new/*/*"))  # nothing was done before it was noticed


def test_a_missing_root_is_one_line(toy, tmp_path, monkeypatch, capsys):
    for root in ("", str(tmp_path / "absent")):
        keys = "--config.data.source=open_cxr", f"--config.data.root={root}"
        out = run_here(monkeypatch, capsys, toy, tmp_path / "new", *keys)
        one_line(out, "absent" if root else "config.data.root is empty")


def test_a_workdir_that_cannot_be_is_one_line(toy):
    one_line(run(toy, toy / "toy.py"), "--workdir=", "toy.py")


def test_stray_words_and_an_empty_workdir_are_one_line(toy, tmp_path, monkeypatch, capsys):
    """--stages=data tokenizer; --workdir=$RUN where RUN is not set."""
    monkeypatch.chdir(tmp_path)
    out = run_here(monkeypatch, capsys, toy, tmp_path / "new", "--stages=data", "tokenizer")
    one_line(out, "'tokenizer'", "--stages=data,tokenizer")
    for empty in ("", " "):
        one_line(run_here(monkeypatch, capsys, toy, empty), "--workdir=", "empty")
    assert not list(tmp_path.iterdir())


def test_unknown_key_in_the_file_is_one_line(tmp_path):
    (tmp_path / "toy.py").write_text(TOY.replace("return config", "config.dota = 1\n    return config"))
    one_line(run(tmp_path, tmp_path / "run"), "config.dota", "data")


def test_xla_has_more_threads_than_devices_which_wait_for_each_other(monkeypatch):
    """With as many, a run beside busy programs was aborted: other work kept one device from its all-reduce."""
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2), raising=False)
    main.use_all_cores()
    assert "--xla_force_host_platform_device_count=2" in os.environ["XLA_FLAGS"]
    assert int(os.environ["NPROC"]) == 4
    monkeypatch.setenv("NPROC", "3")  # the user's own
    monkeypatch.setenv("XLA_FLAGS", "")
    main.use_all_cores()
    assert os.environ["NPROC"] == "3"
