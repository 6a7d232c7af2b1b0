"""100 kills of everything (make soak), and in seconds: a child dies where it is told to, digests see a bit."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from soak import children, digests, kills, targets
from support.command_line import ROOT, environment

WORK = ROOT / "runs/soak"  # keeps the progress of a series that was stopped


@pytest.mark.slow
@pytest.mark.timeout(65 * 60)
def test_killed_a_hundred_times_nothing_is_lost(capfd):
    command = [sys.executable, "-m", "soak.kills", f"--work={WORK}"]
    with capfd.disabled():  # a line a kill
        done = subprocess.run(command, cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT / "tests")})
    assert done.returncode == 0, f"PYTHONPATH=tests {' '.join(command)}"


def target(**options):
    some = {"name": "a.train", "kills": 8, "last": "export", "command": (), "home": "a", "outputs": ("train",)}
    return targets.Target(**{**some, **options})


def test_moments_end_in_the_last_save_and_a_seed_gives_them_again():
    paths = ["train/checkpoints/2.tmp/x", "train/checkpoints/2.tmp", "train/export.tmp/x", "train/export.tmp"]
    events = [[i / 10, "os.rename", path] for i, path in enumerate([*paths, "train/.stage.json*"])]
    plan = kills.moments(target(trains=True), events, random.Random(1))
    assert plan == kills.moments(target(trains=True), events, random.Random(1)) != []
    assert len(plan) == 8
    assert [one["event"][1] for one in plan[-3:]][1:] == ["train/.stage.json*", "train/export"]
    assert "export" in plan[-3]["event"][1]
    (stopped,) = [one for one in plan if one["signal"] == signal.SIGTERM]
    assert "checkpoints" in stopped["event"][1]
    assert kills.moments(target(kills=1), events, random.Random(1))[0]["event"][1].startswith("train/export")


def test_every_stage_and_command_is_killed_a_hundred_times_in_all(tmp_path):
    found = targets.all_targets(tmp_path)
    assert sum(one.kills for one in found) == 100
    assert {one.name.split(".")[0] for one in found} == {"progemu", "diffusion", "convert", "scorers", "eval"}


def test_digests_see_one_bit_and_no_time(tmp_path):
    for name, last in (("a", 2.0), ("b", np.nextafter(2.0, 3))):
        (tmp_path / name / "out").mkdir(parents=True)
        np.savez(tmp_path / name / "out/x.npz", x=np.array([1.0, 2.0]), y=np.array([last]))
        (tmp_path / name / "out/speed.jsonl").write_text(name)
    a, b = (digests.digests(tmp_path / name, ("out",)) for name in "ab")
    assert a.keys() == {"out/x.npz:x", "out/x.npz:y"}
    assert digests.differences(a, a) == []
    assert digests.differences(a, b) == ["differs: out/x.npz:y"]
    assert digests.differences(a, {"new": ""})[-1] == "left behind: new"


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, ".")
from soak import children
folder = Path("out").absolute()
folder.mkdir()
print(children.ended(children.start(("victim", "1"), folder, Path("log"), None, Path("seen")))[0])
for moment in json.loads(sys.argv[1]):
    print(children.ended(children.start(("victim", "0"), folder, Path("log"), moment))[0])
"""
VICTIM = """
from pathlib import Path

def main(arguments):
    for i in (1, 2):
        Path(f"out/{i}-123456.tmp").write_text(arguments[0])
        Path(f"out/{i}-123456.tmp").rename(f"out/{i}")
    return 3
"""


def test_a_child_dies_before_its_operation(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/__main__.py").write_text(VICTIM)
    event = {"event": ["os.rename", "2-*.tmp"]}
    told = [{**event, "signal": signal.SIGKILL}, {"event": ["open", "1-*.tmp"], "after": 1, "signal": signal.SIGTERM}]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(told)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["3", "-9", "-15"], done.stderr
    assert (tmp_path / "out/1").read_text() == "0"
    assert (tmp_path / "out/2").read_text() == "1"
    assert [row[1:] for row in json.loads((tmp_path / "seen").read_text())][1] == ["os.rename", "1-*.tmp"]
    assert children.name_of("/a", "/b/c") is None
