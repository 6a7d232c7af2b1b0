"""ProgEmu at toy size on a mesh, for the tests of one and of several processes. As a script: one process of a job.

hosts_training.py WORKDIR STEPS MESH [--stop-at N]
"""

import dataclasses
import json
import os
import signal
import sys

import jax
import numpy as np

from progemu_jax.devices import hosts, sharding
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask
from progemu_jax.text.sequence import Kind
from progemu_jax.training import loop

# 61 ids: no tensor axis divides them, the padded table's rows do.
MODEL = TransformerConfig(
    vocab_size=61, padded_vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=48, max_length=16, scan_layers=True, prior_alignment=True, prior_beside=True, dropout=0.1,
)  # fmt: skip
CFG = loop.TrainConfig(
    steps=20, batch_size=8, learning_rate=3e-3, final_learning_rate=1e-3, warmup_steps=3, log_every=1, eval_every=20,
    save_every=5, seed=4,
)  # fmt: skip
LENGTH = 16


def task(cfg=CFG, model=MODEL):
    return ProgEmuTask(model, ProgEmuConfig(length=LENGTH), cfg)


def rows(seed, step, size=8):
    """One batch of all processes: tokens with some structure to learn."""
    rng = np.random.default_rng([seed, step])
    start = rng.integers(0, 61, (size, 1))
    tokens = (start + 7 * np.arange(LENGTH) + rng.integers(0, 2, (size, LENGTH))) % 61
    kinds = np.full((size, LENGTH), Kind.VISUAL, np.int32)
    kinds[:, 0], kinds[:, 12:] = Kind.BOS, Kind.TEXT
    return {
        "tokens": tokens.astype(np.int32),
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape).copy(),
        "kinds": kinds,
        "aligned": np.where(kinds == Kind.VISUAL, (tokens + 1) % 61, -1).astype(np.int32),
        "weights": np.ones(tokens.shape, np.float32),
    }


class Batches:
    """This process's rows, with a position that means the same in every process."""

    def __init__(self, seed):
        self.seed, self.position = seed, 0
        self.seen = []

    def __next__(self):
        batch = rows(self.seed, self.position)
        mine = np.array_split(np.arange(8), jax.process_count())[jax.process_index()]
        self.position += 1
        self.seen.append(batch["tokens"][mine].tolist())
        return {name: value[mine] for name, value in batch.items()}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def eval_batches():
    """The last one is odd: no number of devices divides it."""
    return [rows(100, 0), rows(101, 0, size=3)]


def run(workdir, mesh, steps=20, save_every=5, **options):
    """Trains to the schedule's end, or is cut by a hook; `fit`'s final state."""
    options = {"batches": Batches, **options}
    batches = options.pop("batches")
    cfg = dataclasses.replace(CFG, steps=steps, save_every=save_every)
    return loop.fit(task(cfg), cfg, batches, eval_batches, workdir, mesh=mesh, **options)


def make_mesh(text, devices=None):
    data, fsdp, tensor = map(int, text.split("x"))
    return sharding.make_mesh(data, fsdp, tensor, devices=devices)


def losses(workdir):
    """{step: loss}, and the losses of evaluation under negative steps."""
    found = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= {row["step"]: row["loss"]} if "loss" in row else {-row["step"]: row["eval/loss"]}
    return found


if __name__ == "__main__":
    hosts.start()
    workdir, steps, mesh = sys.argv[1], int(sys.argv[2]), make_mesh(sys.argv[3])
    stop_at = int(sys.argv[5]) if len(sys.argv) > 4 else None
    sources = []

    def start(seed):
        sources.append(Batches(seed))
        return sources[-1]

    def hook(step, state, metrics):
        if step == stop_at and jax.process_index() == 1:  # one host alone is told to go
            os.kill(os.getpid(), signal.SIGTERM)

    state = run(workdir, mesh, steps, batches=start, hooks=[hook])
    kernel = state["params"]["layers"]["mlp"]["gate_proj"]
    mu = state["opt_state"][1].mu["layers"]["mlp"]["gate_proj"]
    print(json.dumps({
        "devices": jax.device_count(), "processes": jax.process_count(), "seen": sources[0].seen if sources else [],
        "split": [*map(str, kernel.sharding.spec)], "moment": [*map(str, mu.sharding.spec)],
        "local": list(kernel.addressable_shards[0].data.shape),
    }))  # fmt: skip
