"""The fuzzer of values: its short form over every reader, that it sees what it looks for, and what it has found."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import cohorts
from support.fuzz import driver, edits, files, worker
from support.fuzz.readers import READERS
from support.fuzz.readers.reader import Reader

from progemu_jax.errors import UserError

SHORT = 320


def fuzz(work, *options):
    """The command; what it printed last. Hypothesis draws the same in any process that has loaded the same modules."""
    command = [sys.executable, "-m", "support.fuzz", f"--work={work}", *options]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The sound folders of every reader, written once."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.timeout(1500)
def test_every_reader_takes_or_refuses_what_it_is_given(work):
    found = fuzz(work, f"--cases={SHORT}")
    rows = [json.loads(line) for line in (work / "cases.jsonl").read_text().splitlines()]
    assert found["failed"] == []
    assert found["cases"] == len(rows) == SHORT
    assert {row["reader"] for row in rows} == set(READERS)
    outcomes = [row["outcome"] for row in rows]
    assert min(outcomes.count("accepted"), outcomes.count("refused")) > SHORT / 10  # the edits bite, but not always


def test_a_run_that_was_cut_goes_on(tmp_path):
    options = "--cases=20", "--reader=provenance", "--reader=leaks"
    fuzz(tmp_path, *options)
    log = tmp_path / "cases.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole[:7]) + whole[7][:20])
    assert fuzz(tmp_path, *options)["cases"] == 20
    drawn = [
        [json.dumps(json.loads(line)["edits"]) for line in lines] for lines in (whole, log.read_text().splitlines())
    ]
    assert drawn[0] == drawn[1]


@pytest.fixture
def sound(tmp_path):
    folder = tmp_path / "sound"
    folder.mkdir()
    (folder / "a.json").write_text('{"n": 1, "list": [1, 2], "text": "x/y.png"}')
    (folder / "b.csv").write_text('name,prompt\na,"b, c"\n')
    return folder


def test_edits_are_those_of_their_seed(sound):
    drawn = [edits.batch(sound, ["a.json", "b.csv"], seed, 20) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 20
    text = json.dumps(drawn[0])
    assert json.dumps(json.loads(text)) == text  # the log keeps them


@pytest.mark.parametrize(
    ("name", "edit", "text"),
    [
        ("a.json", {"do": "double", "at": ["n"]}, '{"n": 1, "list": [1, 2], "text": "x/y.png", "n": 1}'),
        ("a.json", {"do": "set", "at": ["list", 1], "value": {"$raw": "1e999"}},
         '{"n": 1, "list": [1, 1e999], "text": "x/y.png"}'),
        ("a.json", {"do": "set", "at": ["n"], "value": "\ud800"},
         r'{"n": "\ud800", "list": [1, 2], "text": "x/y.png"}'),
        ("a.json", {"do": "delete", "at": ["list"]}, '{"n": 1, "text": "x/y.png"}'),
        ("a.json", {"do": "set", "at": ["gone", 3], "value": 1}, '{"n": 1, "list": [1, 2], "text": "x/y.png"}'),
        ("b.csv", {"do": "set", "at": [1, 0], "value": 'q"'}, 'name,prompt\r\n"q""","b, c"\r\n'),
        ("b.csv", {"do": "set", "at": [1], "value": 'q"'}, 'name,prompt\r\nq"\n'),
        ("b.csv", {"do": "double", "at": [0, 1]}, 'name,prompt,prompt\r\na,"b, c"\r\n'),
    ],
)  # fmt: skip
def test_an_edit_changes_what_it_names(sound, name, edit, text):
    files.make(sound, {"file": name, **edit})
    assert (sound / name).read_bytes().decode() == text


def prints(*lines, status=2):
    def read():
        os.write(2, "".join(f"{line}\n" for line in lines).encode())
        return status

    return read


def raises(error):
    def read():
        raise error

    return read


def write(path, text="x"):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (prints("error: no"), ""),
        (raises(UserError("no\nerror: \x1b")), ""),  # what prints it makes one line of it
        (lambda: write("out/new"), ""),
        (prints("error: no", "error: again"), "2 lines of error"),
        (prints("error: no", "and more"), "words behind the error"),
        (prints(), "0 lines of error"),
        (prints("error: \x1b[2J"), "control characters"),
        (prints(f"error: {cohorts.SECRET}"), "patients' words are printed"),
        (lambda: write("out/rejected.jsonl", cohorts.SECRET), "patients' words in rejected.jsonl"),
        (raises(KeyError("x")), "KeyError"),
        (lambda: 3, "status 3"),
        (lambda: write("../victim.txt"), "touched"),
        (lambda: write("../victims/new"), "touched"),
        (lambda: write("a.json"), "touched"),  # of its own folder, but not what it writes
        (lambda: [None for _ in iter(int, 1)], "too long"),
        (lambda: threading.Event().wait(), "too long"),
    ],
)
def test_what_must_not_be_is_seen(sound, tmp_path, monkeypatch, capfd, read, fault):
    monkeypatch.setattr(worker, "SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE", 0.1)
    monkeypatch.chdir(tmp_path)
    said = [os.open(tmp_path / f"{n}.txt", os.O_RDWR | os.O_CREAT) for n in (1, 2)]
    kept = [os.dup(n) for n in (1, 2)]
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(said[1]), "w"))
    try:
        os.dup2(said[1], 2)
        worker.alarms()
        reply = worker.attempt(Reader("x", None, read, ()), sound, tmp_path / "around", [], said)
    finally:
        os.dup2(kept[1], 2)
        for file in (*said, *kept):
            os.close(file)
    assert (reply["outcome"] == "failed") == bool(fault), reply
    assert fault in reply["why"]


@pytest.fixture(scope="module")
def process(work):
    one = driver.Worker(work, 0)
    yield one
    one.close()


FOUND = json.loads((Path(__file__).parent / "fuzz_found.json").read_text())


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case["was"])
def test_what_was_found_stays_mended(process, case):
    """Cases that failed once: the reader, the edits, and what was wrong."""
    assert process.ask({"reader": case["reader"]})["outcome"] == "accepted"
    reply = process.ask({"reader": case["reader"], "edits": case["edits"]})
    assert reply["outcome"] == case["outcome"], reply
