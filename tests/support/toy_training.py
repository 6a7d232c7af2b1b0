"""A small task for the training-loop tests. As a script it trains and kills itself at a random moment."""

import dataclasses
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from progemu_jax.training import loop, optim

CFG = loop.TrainConfig(
    steps=120, batch_size=8, accumulate=1, learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=10,
    log_every=7, eval_every=30, save_every=20, seed=3,
)  # fmt: skip


class Toy:
    """Linear regression with noise drawn from the step's key, so that a wrong key shows in the result."""

    name = "toy"

    def __init__(self, cfg=CFG, bad_at=None):
        self.cfg, self.bad_at, self.tx = cfg, bad_at, optim.make_optimizer(cfg)
        self.leaf = "down_proj" if cfg.optimizer == "muon" else "kernel"  # Muon acts on what it knows by name

    def init(self, key):
        params = {"dense": {self.leaf: jax.random.normal(key, (4, 3))}}
        return {"params": params, "opt_state": self.tx.init(params), "count": jnp.zeros((), jnp.int32)}

    def loss(self, params, batch, key):
        noise = 0.0 if key is None else 0.1 * jax.random.uniform(key, (3,))
        out = batch["x"] @ params["dense"][self.leaf] + noise
        return jnp.mean((out - batch["y"]) ** 2), {}

    def train_step(self, state, batch, key):
        (loss, _), grads = optim.value_and_grad_accumulated(self.loss, state["params"], batch, key, self.cfg.accumulate)
        updates, opt_state = self.tx.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        if self.bad_at is not None:
            loss = jnp.where(state["count"] + 1 == self.bad_at, jnp.nan, loss)
        state = {"params": params, "opt_state": opt_state, "count": state["count"] + 1}
        return state, {"loss": loss, "grad_norm": optax.global_norm(grads)}

    def eval_step(self, state, batch):
        return {"loss": self.loss(state["params"], batch, None)[0], "weight": jnp.sum(batch["x"] ** 2)}


class Batches:
    """A fresh draw a step, with a resumable position."""

    def __init__(self, seed, count=None, size=8):
        self.seed, self.position, self.count, self.size, self.closed = seed, 0, count, size, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.count:
            raise StopIteration
        x = np.random.default_rng([self.seed, self.position]).normal(size=(self.size, 4)).astype(np.float32)
        self.position += 1
        return {"x": x, "y": 2 * x[:, :3]}

    def get_state(self):
        return {"position": self.position, "raw": bytes([0, 255, self.position % 256])}

    def set_state(self, state):
        assert state["raw"] == bytes([0, 255, state["position"] % 256])
        self.position = state["position"]

    def close(self):
        self.closed = True


def eval_batches():
    """The last batch is short, and odd: no number of devices divides it."""
    return [next(Batches(100)), next(Batches(101, size=3))]


def run(workdir, cfg=CFG, task=None, batches=Batches, **options):
    return loop.fit(task or Toy(cfg), cfg, batches, eval_batches, workdir, **options)


class Deadly(Batches):
    """Kills the process some time after a step's batch was drawn, whatever the machine's speed until there."""

    def __init__(self, seed, step, delay):
        super().__init__(seed)
        self.step, self.delay = step, delay

    def __next__(self):
        time.sleep(0.01)  # so slow that a delay passes few steps
        if self.step is not None and self.position >= self.step:
            threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            self.step = None
        return super().__next__()


SAVING = dataclasses.replace(CFG, save_every=2)  # many chances to die while saving
LONG = dataclasses.replace(SAVING, steps=200)

if __name__ == "__main__":
    folder, delay = sys.argv[1], float(sys.argv[2])
    if len(sys.argv) > 3:
        run(folder, LONG, batches=lambda seed: Deadly(seed, int(sys.argv[3]), delay))
    else:

        def start(seed):
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return Batches(seed)

        run(folder, SAVING, batches=start)
    os.kill(os.getpid(), signal.SIGKILL)  # it was too fast for the timer: still no clean exit
