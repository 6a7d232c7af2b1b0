"""What is printed of a mistake: one line, whoever wrote the words in it."""

import pytest

from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser

HOSTILE = "a\nerror: forged \x1b[2J\ud800\u2028\x85\u202e é"


def printed(capsys):
    lines = capsys.readouterr().err.split("\n")
    assert lines[1:] == [""]
    assert lines[0].isprintable()
    return lines[0]


def test_words_of_a_stranger_stay_in_one_line(capsys):
    def work():
        raise UserError(HOSTILE)

    assert exit_status(work) == 2
    assert printed(capsys) == r"error: a\nerror: forged \x1b[2J\ud800\u2028\x85\u202e é"


@pytest.mark.parametrize("argument", [f"--{HOSTILE}", f"--number={HOSTILE}", HOSTILE])
def test_a_mistake_in_a_flag_is_one_line(capsys, argument):
    parser = Parser("python -m progemu_jax.toy")
    parser.add_argument("--number", type=int)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([argument])
    assert stopped.value.code == 2
    assert printed(capsys).startswith("error: ")
