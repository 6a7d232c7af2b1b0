"""The scorer of a cohort's labels: what is unknown teaches nothing."""

import dataclasses

import jax
import numpy as np
from support.small_scorer import SMALL

from progemu_jax.tasks.label_scorer import LabelScorerTask
from progemu_jax.training.loop import TrainConfig

NET = dataclasses.replace(SMALL, findings=3, groups=0, organs=0, views=2)
NAN = np.float32("nan")


def batch(findings, age=(50, 60), sex=(1, 0)):
    return {
        "image": np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8),
        "findings": np.array(findings, np.float32), "age": np.array(age, np.float32),
        "sex": np.array(sex, np.float32), "view": np.array([0, 1], np.int32),
    }  # fmt: skip


def test_only_the_heads_that_are_asked_for():
    task = LabelScorerTask(NET, TrainConfig(steps=1), 32)
    out = jax.eval_shape(task.net.apply, {"params": jax.eval_shape(task.init, jax.random.key(0))["params"]},
                         jax.ShapeDtypeStruct((2, 32, 32), np.float32))  # fmt: skip
    assert set(out) == {"features", "findings", "age", "sex", "view"}
    assert (out["findings"].shape, out["view"].shape) == ((2, 3), (2, 2))


def test_unknown_labels_ages_and_sexes_teach_nothing():
    task = LabelScorerTask(NET, TrainConfig(steps=1, warmup_steps=0), 32)
    state, step = task.init(jax.random.key(0)), jax.jit(task.train_step)
    grown = {}
    for name, one in {
        "known": batch([[1, 0, 1], [0, 0, 1]]),
        "some": batch([[1, NAN, 1], [0, NAN, 1]], age=(NAN, 60), sex=(1, NAN)),
        "none": batch([[NAN] * 3] * 2, age=(NAN, NAN), sex=(NAN, NAN)),
    }.items():
        _, metrics = step(state, one, jax.random.key(1))
        grown[name] = {k: float(v) for k, v in metrics.items()}
        assert all(np.isfinite(v) for v in grown[name].values()), name
    assert grown["none"]["loss_findings"] == grown["none"]["loss_age"] == grown["none"]["loss_sex"] == 0
    # A column that nobody knows has no gradient at all.
    grad = jax.jit(jax.grad(lambda p, b: task.loss(p, b["image"].astype(np.float32) / 255, b)[0]))
    some = grad(state["params"], batch([[1, NAN, 1], [0, NAN, 1]]))
    head = next(v["kernel"] for k, v in some.items() if k.startswith("Dense") and v["kernel"].shape[-1] == 3)
    assert np.abs(head[:, 1]).max() == 0
    assert np.abs(head[:, 0]).max() > 0
