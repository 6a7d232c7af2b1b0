"""`make gpu`: every part in its smallest size, where nothing is installed; what is cut leaves its rows."""

import importlib.util
import json
import os
import site
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/gpu.py"
# What the machine that it is for has not got.
ABSENT = ("tensorflow_datasets", "tensorflow", "grain", "SimpleITK", "ml_collections", "tensorboardX", "pydicom")
# Without `site`, so that no editable install is found; then as `python benchmarks/gpu.py ...`.
BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent!r}))  # importing them fails, and nobody finds them
sys.path += {packages!r}
sys.path.insert(0, {folder!r})
sys.argv = [{script!r}, "--size=smallest", "--here"]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of a run in which every part is in the smallest size."""
    out = tmp_path_factory.mktemp("out")
    fields = {"absent": ABSENT, "packages": site.getsitepackages(), "folder": str(SCRIPT.parent), "script": str(SCRIPT)}
    program = BARE.format(**fields)
    flags = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OUT": str(out), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-S", "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    written = [json.loads(line) for line in (out / "gpu-cpu.jsonl").read_text().splitlines()]
    assert written == [json.loads(line) for line in done.stdout.splitlines()]
    return written


def of(rows, part):
    return [row for row in rows if row["part"] == part]


def test_every_part_runs_on_a_bare_machine(gpu, rows):
    assert [row for row in rows if "failed" in row or "cut" in row] == []
    measured = {row["part"] for row in rows if "skipped" not in row}
    assert measured | {"peer"} == set(gpu.PARTS)  # torch and transformers may be there or not
    if importlib.util.find_spec("torch") is None:
        assert [row["skipped"] for row in of(rows, "peer")] == ["torch and transformers not installed"]


def test_what_is_reckoned_of_an_image_is_what_a_whole_one_takes(rows):
    modes = {row["mode"]: row for row in of(rows, "emu3") if "seconds" in row}
    part, whole = modes["plain"], modes["plain, a whole image"]
    assert (part["passes_measured"], part["passes_of_an_image"]) == (3, 9)  # the last row of 3 x 3 codes
    assert whole["passes_measured"] == whole["passes_of_an_image"] == 9
    for row in modes.values():
        assert row["seconds_of_an_image"] == pytest.approx(row["seconds_a_pass"] * row["passes_of_an_image"], rel=1e-3)
        more = row["seconds_of_a_prompt"] + 4 * row["seconds_a_word"]
        assert row["seconds"] == pytest.approx(row["seconds_of_an_image"] + more, rel=1e-3)


def test_results_beside_the_cpu_come_with_and_without_jit(rows):
    found = {(row["result"], row["jit"], row["beside"]): row["within"] for row in of(rows, "agreement")}
    assert {key[1:] for key in found} == {(True, "cpu"), (False, "cpu"), (True, "without jit")}
    assert all(found.values())


def test_a_part_that_takes_too_long_is_killed_and_its_rows_stay(gpu):
    rows, program = [], 'import time; print(\'{"part": "x", "seconds": 1}\', flush=True); time.sleep(60)'
    start = time.time()
    gpu.watched("x", [sys.executable, "-S", "-c", program], start + 1, rows.append)
    assert time.time() - start < 20
    assert rows[0] == {"part": "x", "seconds": 1}
    assert [list(row) for row in rows[1:]] == [["part", "cut"]]


def test_a_part_whose_process_dies_is_said(gpu):
    rows = []
    gpu.watched("x", [sys.executable, "-S", "-c", "import os; os.abort()"], time.time() + 30, rows.append)
    assert [list(row) for row in rows] == [["part", "failed"]]


def test_rows_lie_in_the_file_at_once_and_name_the_device(gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    rows = gpu.Rows(None, append=False)
    rows({"part": "device", "note": "before the device is known"})
    assert list(tmp_path.iterdir()) == []
    rows({"part": "device", "device": "NVIDIA H200"})
    rows({"part": "agreement", "within": False})
    lines = (tmp_path / "gpu-nvidia-h200.jsonl").read_text().splitlines()
    assert [json.loads(line)["part"] for line in lines] == ["device", "device", "agreement"]
    assert rows.failed


def test_an_unknown_part_is_refused():
    done = subprocess.run([sys.executable, "-S", SCRIPT, "--only=peers"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no part peers; choose among device, peer" in done.stderr
