"""Command lines of the modules: an empty or senseless value is one line, status 2, and nothing is written."""

import errno
import signal
import subprocess
import sys

import pytest

from progemu_jax import provenance, tables
from progemu_jax.convert import __main__ as convert
from progemu_jax.data import leaks, memorisation
from progemu_jax.errors import INTERRUPTED, exit_status
from progemu_jax.eval import __main__ as evaluation
from progemu_jax.gallery import __main__ as gallery
from progemu_jax.pretrained import __main__ as pretrained
from progemu_jax.scorers import __main__ as scorers

FLAGS = {  # every flag that is a path or a name, with a value
    convert: {"source": "a", "target": "b", "dialect": "original"},
    evaluation: {"predictions": "a", "references": "b", "out": "c", "reference-scores": "d"},
    gallery: {"model": "a", "scorer": "b", "out": "c"},
    leaks: {"tree": "a", "subjects": "b", "write": "c"},
    memorisation: {"shards": "a", "predictions": "b", "references": "c"},
    pretrained: {"run": "a", "out": "b"},
    scorers: {"scorer": "phantom", "references": "a", "predictions": "b", "cache": "c"},
    tables: {"workdir": "a"},
}
CASES = [(module, name) for module, flags in FLAGS.items() for name in flags]


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """ask(module, argv) -> the one line that it fails with; nothing is in the current folder then."""
    monkeypatch.chdir(tmp_path)

    def run(module, argv):
        try:
            status = module.main(argv)
        except SystemExit as stopped:
            status = stopped.code
        out, err = capsys.readouterr()
        assert (status, out) == (2, "")
        assert err.count("\n") == 1, err
        assert len(err) < 400
        assert not list(tmp_path.iterdir())
        return err

    return run


@pytest.mark.parametrize(
    "value", ["", " ", "a\nb", "x" * 5000, "x" * 300], ids=["empty", "blank", "line", "path", "name"]
)
@pytest.mark.parametrize(("module", "name"), CASES, ids=[f"{m.__name__.split('.')[1]}-{n}" for m, n in CASES])
def test_a_value_that_is_no_path_is_one_line(ask, module, name, value):
    line = ask(module, [f"--{flag}={value if flag == name else given}" for flag, given in FLAGS[module].items()])
    assert line.startswith(f"error: --{name}: ")


@pytest.mark.parametrize("module", FLAGS, ids=[module.__name__.split(".")[1] for module in FLAGS])
def test_flags_that_are_missing_or_unknown_are_one_line(ask, module):
    required = next(iter(FLAGS[module]))
    if module is not gallery:
        assert required in ask(module, [])
    assert "--nonsense" in ask(
        module, [*(f"--{name}={value}" for name, value in FLAGS[module].items()), "--nonsense=1"]
    )


def test_a_named_folder_without_the_folder_is_one_line(ask):
    assert "--predictions=NAME=" in ask(evaluation, ["--predictions=NAME=", "--references=a", "--out=b"])
    assert "no file" in ask(provenance, [""])


def test_what_a_command_ends_with(capsys):
    def raises(error):
        raise error

    assert exit_status(lambda: "done") == 0
    assert exit_status(lambda: 1) == 1
    capsys.readouterr()
    assert exit_status(lambda: raises(PermissionError(errno.EACCES, "Permission denied", "/x"))) == 2
    assert "/x: Permission denied" in capsys.readouterr().err
    assert exit_status(lambda: raises(KeyboardInterrupt()), "the same command goes on") == INTERRUPTED == 130
    assert capsys.readouterr().err == "error: interrupted; the same command goes on\n"
    with pytest.raises(OSError, match="a fault of ours"):
        exit_status(lambda: raises(OSError("a fault of ours")))


@pytest.mark.parametrize("module", ["progemu_jax.main", "progemu_jax.convert"])
def test_ctrl_c_while_a_command_imports_is_one_line(module, tmp_path):
    """SIGINT comes as the first heavy import begins."""
    (tmp_path / "jax.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    (tmp_path / "absl.py").write_text((tmp_path / "jax.py").read_text())
    out = subprocess.run(
        [sys.executable, "-m", module], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert out.returncode in (INTERRUPTED, -signal.SIGINT)  # a shell has 130 for both
    assert out.stderr == "error: interrupted\n"
