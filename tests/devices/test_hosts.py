"""Several processes on this machine: every stage of a run (make soak), and what does not meet."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.command_line import ROOT, TOY, command, environment, run

from progemu_jax.checkpoints import export


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_make_the_run_of_one(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    one = run(tmp_path, tmp_path / "one")
    assert one.returncode == 0, one.stdout + one.stderr
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=1 --xla_cpu_multi_thread_eigen=false"
    processes = [
        subprocess.Popen(
            command(tmp_path, tmp_path / "two", "--multihost"),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={
                **environment(), "XLA_FLAGS": flags, "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i),
            },
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    worst = 0.0
    for part in ("tokenizer/export", "train/export", "scorer/export"):
        pair = [export.load_export(tmp_path / name / part)[0] for name in ("one", "two")]
        for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
            worst = max(worst, float(np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32)).max()))
    print(f"largest difference of a parameter: {worst:.1e}")
    assert worst <= 1e-4
    for system in sorted(os.listdir(tmp_path / "one/predictions")):
        if not (tmp_path / "one/predictions" / system).is_dir():
            continue
        files = [tmp_path / name / "predictions" / system / "predictions.jsonl" for name in ("one", "two")]
        rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
        first, second = ([(r["pair_id"], r["sample"], r["image"]) for r in part] for part in rows)
        assert first == second
        assert all((files[1].parent / r["image"]).exists() for r in rows[1] if r["image"])
    assert not list((tmp_path / "two/predictions/.parts").glob("*/*"))
    assert (tmp_path / "two/report/index.html").exists()
    again = run(tmp_path, tmp_path / "two")  # one process, the same directory: all is there
    assert again.returncode == 0
    assert again.stdout.count("complete") == 8


def test_processes_that_do_not_meet_end_in_one_line(tmp_path):
    code = "from progemu_jax.devices import hosts\ntry: hosts.start()\nexcept hosts.UserError as e: print('line:', e)"
    for extra, words in (
        ({"JAX_NUM_PROCESSES": "2"}, "go together"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "expected a number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "5", "JAX_COORDINATOR_ADDRESS": "localhost:1"}, "do not meet"),
    ):
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **extra}, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("line:")]
        assert len(lines) == 1, done.stderr
        assert words in lines[0]
