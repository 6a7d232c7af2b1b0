"""JSON lines: what is written comes back, and what is broken is named by its line."""

import os

import pytest

from progemu_jax.errors import UserError
from progemu_jax.files import records


def test_lines_come_back_and_broken_ones_keep_their_number(tmp_path):
    path = tmp_path / "a.jsonl"
    records.write_lines(path, [{"a": 1}, {"b": "é"}])
    assert list(records.read_lines(path)) == [(1, {"a": 1}), (2, {"b": "é"})]
    path.write_bytes(path.read_bytes() + b"\n{\n\xff\n" + b"[" * 100_000 + b"\n3")
    assert list(records.read_lines(path))[2:] == [(4, None), (5, None), (6, None), (7, 3)]
    assert list(records.read_lines(tmp_path / "absent")) == []
    with pytest.raises(UserError, match="cannot be read"):
        list(records.read_lines(tmp_path))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"id": "a"}\n{', "line 2 is not JSON; do this"),
        ('{"id": "a"}\n\n3\n', "line 3 is not a JSON object"),
        ('{"id": "a"}\n{"id": 3}', "line 2: 'id' is missing or not text"),
        ('{"id": ""}', "line 1: 'id' is missing"),
        ("\n \n", "holds no rows"),
    ],
)
def test_rows_are_objects_with_their_keys(tmp_path, content, match):
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match=r"a\.jsonl: no such file; do this"):
        records.read_rows(path, "id", remedy="do this")
    path.write_text('{"id": "a", "n": 1}\n')
    assert records.read_rows(path, "id") == [{"id": "a", "n": 1}]
    path.write_text(content)
    with pytest.raises(UserError, match=match):
        records.read_rows(path, "id", remedy="do this")


def test_what_cannot_be_written_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: is a folder"):
        records.write_text(tmp_path / "there", "x")
    with pytest.raises(UserError, match="there: is a folder"):
        records.delete(tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_is_not_there_need_not_be_deleted(tmp_path):
    (tmp_path / "x").write_text("x")
    records.delete(tmp_path / "x")
    records.delete(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"a": [1, {"b": "x"}], "c": None, "d": True, "e": 1e308, "f": "\U0001f600"}, ""),
        ({"a": [1, {"b": float("nan")}]}, "not finite"), ([-float("inf")], "not finite"),
        ({"a": 10**400}, "too many digits"), ({"\ud800": 1}, "half a character"), (["x\udfff"], "half a character"),
    ],
)  # fmt: skip
def test_what_json_of_python_has_beyond_json(value, what):
    found = records.oddity(value)
    assert what in found
    assert bool(found) == bool(what)


@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError, match="no regular file"):
            records.read_text(tmp_path / name)
        assert records.read_json(tmp_path / name) is None
        with pytest.raises(UserError, match="no regular file"):
            list(records.read_lines(tmp_path / name))


def test_json_that_nests_too_deep_does_not_parse(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert records.read_json(tmp_path / "a.json") is None


@pytest.mark.parametrize(
    "name", ["/a", "../a", "a/../../b", "a\0b", "\ud800", "a" * 256, "é" * 128, "a/" * 1001, None, 3, ["a"]]
)
def test_a_name_that_leaves_its_folder_or_is_none_is_refused(name):
    assert not records.can_be_inside(name)
    assert all(records.can_be_inside(fine) for fine in ("a", "a/b.png", "./a", "a b/é.png", "..a", "a" * 255))
