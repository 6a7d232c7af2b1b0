"""JSON lines: what is written comes back, and what is broken is named by its line."""

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
    with pytest.raises(OSError, match="there"):
        records.write_text(tmp_path / "there", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


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
