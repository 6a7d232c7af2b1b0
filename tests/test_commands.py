"""The console script: every command is the module's own, with its flags, mistakes and statuses."""

import importlib.util
import subprocess
import sys

import pytest

from progemu_jax import commands
from progemu_jax.commands import COMMANDS, Command


def script(*words, cwd=None):
    """The script as pip writes it, in a process of its own."""
    code = "import sys; from progemu_jax.commands import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=cwd)


def test_help_lists_every_command_and_what_it_runs(capsys):
    assert commands.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert commands.main([]) == 0
    assert capsys.readouterr().out == shown
    for name, command in COMMANDS.items():
        assert f"  {name} " in shown
        assert command.module in shown
        spec = importlib.util.find_spec(command.module)
        assert spec.submodule_search_locations is None or importlib.util.find_spec(f"{command.module}.__main__")


def test_a_wrong_command_is_one_line(capsys):
    for word in ("dmeo", "", "a\nb"):
        assert commands.main([word]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert "demo, run, try" in printed.err


def test_a_command_gets_its_flags_before_the_users(monkeypatch, tmp_path, capsys):
    (tmp_path / "shown.py").write_text("import sys\nprint(__name__, sys.argv[1:])\nsys.exit(7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "shown", Command("shown", "", ("--a=1",)))
    monkeypatch.setattr(sys, "argv", ["progemu-jax", "shown", "--a=2", "b"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 7
    assert capsys.readouterr().out == "__main__ ['--a=1', '--a=2', 'b']\n"


def test_ctrl_c_while_a_command_is_imported_is_one_line(monkeypatch, tmp_path, capsys):
    (tmp_path / "cut.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "cut", Command("cut", ""))
    monkeypatch.setattr(sys, "argv", ["progemu-jax"])
    assert commands.main(["cut"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_demo_is_the_demo_and_another_workdir_wins(tmp_path):
    done = script("demo", "--stages=list", f"--workdir={tmp_path / 'W'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tokenizer: missing" in done.stdout
    assert str(tmp_path / "W") in done.stdout
    assert not list(tmp_path.iterdir())


def test_mistakes_in_flags_are_the_modules_own(tmp_path):
    done = script("eval", "--predictions=x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--references" in done.stderr
