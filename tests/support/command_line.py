"""The command line in a process of its own, and a config in the smallest size that goes through every stage."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import flags

from progemu_jax import main
from progemu_jax.checkpoints import export

ROOT = Path(__file__).resolve().parents[2]
TOY = """
from progemu_jax.configs.common import phantom

def get_config():
    config = phantom(name="toy", patients=40, tokenizer_steps=12, crops=2, stage1_steps=4, stage2_steps=8,
                     scorer_images=64, scorer_steps=4, words_steps=4, decoder_steps=6)
    config.data.phantom.size = 64
    config.data.tree_size = 64
    config.data.image_size = 32
    config.data.processes = 1
    p = config.progemu
    for part in (config.tokenizer.train, config.decoder.train, p.words, p.stage1, p.stage2, config.scorer.train):
        part.batch_size = 4
        part.save_every = 3
    config.tokenizer.model.ch = 16
    config.tokenizer.model.patch = 8
    config.tokenizer.model.ch_mult = (1,)
    config.progemu.model.num_layers = 1
    config.scorer.net.widths = (8, 16)
    config.scorer.valid_images = 16
    config.identity = {"net": {"widths": (8, 8)}, "train": {"steps": 3, "batch_size": 4, "save_every": 3}}
    config.sample.batch_size = 4
    config.sample.max_cases = 6
    return config
"""


def command(folder, workdir, *more):
    return [sys.executable, "-m", "progemu_jax.main", f"--config={folder / 'toy.py'}", f"--workdir={workdir}", *more]


def environment():
    """Of its process: one device a core, machine code optimised and kept as the tests have theirs."""
    fast = "--xla_backend_optimization_level=0"
    flags = fast if fast in os.environ.get("XLA_FLAGS", "") else ""
    return {**os.environ, "TQDM_DISABLE": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run(folder, workdir, *more):
    return subprocess.run(
        command(folder, workdir, *more), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900
    )


def run_here(monkeypatch, capsys, folder, workdir, *more):
    """`run` in this process, for mistakes that end it before any work: starting Python takes longer than the check."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which the command adds to
    status = enter(command(folder, workdir, *more)[2:])
    return subprocess.CompletedProcess(sys.argv, status, *capsys.readouterr())


def enter(arguments):
    """`main.entry` with these arguments, the program's name first; the exit status. Flags are as in a fresh process."""
    before, sys.argv = sys.argv, list(arguments)
    try:
        main.entry()
    except SystemExit as stopped:
        return stopped.code
    finally:
        sys.argv = before
        for name in [name for name in flags.FLAGS if name.split(".")[0] == "config"]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def whole_run(folder, config):
    """`folder` with the config as toy.py and a complete run of it in run/."""
    (folder / "toy.py").write_text(config)
    out = run(folder, folder / "run")
    assert out.returncode == 0, out.stdout + out.stderr
    return folder


def same_parameters(one, two, parts):
    """Bit for bit, in the exports `parts` of two runs."""
    for part in parts:
        pair = [export.load_export(workdir / part)[0] for workdir in (one, two)]
        same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), *pair)
        assert all(jax.tree.leaves(same)), part


def one_line(out, *words):
    assert out.returncode == 2, out.stdout + out.stderr
    lines = [line for line in out.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, out.stderr
    assert all(word in lines[0] for word in words), lines[0]


def kill_at(folder, workdir, signs, *more):
    """Starts the command once for each sign, a glob in the workdir, and kills -9 soon after the sign is there."""
    rng = np.random.default_rng(0)
    for sign in signs:
        process = subprocess.Popen(
            command(folder, workdir, *more),
            cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and not any(workdir.glob(sign)):
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before {sign} was there"
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.wait()
