"""Re-identification learns who is who, from films that are moved by chance."""

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.models.reidentification import ReidentificationConfig, ReidentificationNet
from progemu_jax.tasks.reidentification import ReidentificationTask, moved
from progemu_jax.training.loop import TrainConfig

SMALL = ReidentificationConfig(widths=(8, 8), dimensions=8)
TRAIN = TrainConfig(steps=20, batch_size=8, learning_rate=3e-3, warmup_steps=1)


def films(seed):
    """uint8 [8, 32, 32]: a disc of the patient's place and size, with this day's noise and exposure."""
    rng, rows = np.random.default_rng(seed), np.arange(32)
    out = np.zeros((8, 32, 32))
    for i in range(8):
        y, x, r = 9 + 2 * (i % 4) * 2, 10 + 12 * (i // 4), 3 + i % 3
        out[i] = 150 * ((rows[:, None] - y) ** 2 + (rows[None] - x) ** 2 < r * r) + 40
    return np.clip(out * rng.uniform(0.8, 1.2, (8, 1, 1)) + rng.normal(0, 6, out.shape), 0, 255).astype(np.uint8)


def test_films_of_one_patient_find_each_other():
    task = ReidentificationTask(SMALL, TRAIN, 32)
    step, state = jax.jit(task.train_step), task.init(jax.random.key(0))
    batch = {"prior": films(0), "followup": films(1), "patient": np.arange(8, dtype=np.int32)}
    key, losses = jax.random.key(1), []
    for i in range(TRAIN.steps):
        state, metrics = step(state, batch, jax.random.fold_in(key, i))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    held_out = ReidentificationNet(SMALL).apply({"params": state["params"]}, jnp.asarray(films(2)) / 255.0)
    known = ReidentificationNet(SMALL).apply({"params": state["params"]}, jnp.asarray(films(3)) / 255.0)
    np.testing.assert_allclose(jnp.linalg.norm(held_out, axis=1), 1, rtol=1e-5)
    assert ((held_out @ known.T).argmax(1) == np.arange(8)).mean() >= 0.75


def test_another_pair_of_the_same_patient_is_no_wrong_answer():
    task = ReidentificationTask(SMALL, TRAIN, 32)
    params = task.init(jax.random.key(0))["params"]
    prior, followup = (jnp.asarray(films(s), jnp.float32) / 255 for s in (0, 1))
    loss = jax.jit(lambda patient: task.loss(params, prior, followup, {"patient": patient})[0])
    assert float(loss(jnp.zeros(8, int))) == 0  # all one patient: nobody to confuse it with
    assert float(loss(jnp.arange(8))) > 0.05


def test_films_are_moved_each_by_itself_and_stay_films():
    batch = np.repeat(films(0)[:1], 6, axis=0)
    out = np.asarray(jax.jit(moved)(jax.random.key(0), batch))
    assert out.shape == (6, 32, 32)
    assert out.min() >= 0
    assert out.max() <= 1
    assert len({x.tobytes() for x in out}) == 6
    np.testing.assert_array_equal(out, np.asarray(jax.jit(moved)(jax.random.key(0), batch)))
