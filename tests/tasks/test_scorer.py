"""The scorer's task: augmentation and the loss on severities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from support.small_scorer import SMALL

from progemu_jax.tasks.scorer import ScorerTask, augment
from progemu_jax.training.loop import TrainConfig


def test_scorer_augmentation_moves_masks_with_the_image():
    masks = np.zeros((8, 64, 64, 6), bool)
    masks[:, 20:40, 16:48] = True
    images = np.where(masks[..., 0], 255, 40).astype(np.uint8)
    out, batch = jax.jit(augment)(jax.random.key(0), {"image": images, "masks": jnp.asarray(masks)})
    out, moved = np.asarray(out), np.asarray(batch["masks"][..., 0])
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out[moved].mean() - out[~moved].mean()) > 0.5
    assert any((m != masks[0, ..., 0]).any() for m in moved)


def loss_of(head, **batch):
    """(loss, metrics) of a head for severities that says 0.5 of everything, or of none."""
    net = dataclasses.replace(SMALL, severity=head)
    task = ScorerTask(net, TrainConfig(steps=1), 32)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(task.init, jax.random.key(0))["params"])
    images = jnp.zeros((2, 32, 32))
    labels = {"findings": np.zeros((2, 8), np.float32), "group": np.zeros(2, int), "age": np.full(2, 60.0)}
    labels |= {"sex": np.zeros(2, int), "masks": np.zeros((2, 32, 32, 6), bool)}
    return jax.jit(task.loss)(params, images, {**labels, **batch})


def test_severity_by_hand():
    severity = np.array([[0.0] * 8, [0.25] * 8], np.float32)
    loss, metrics = loss_of(True, severity=severity)
    # A logit of 0 costs log 2 whatever the soft label is; it is 0.5 off an absent finding and 0.25 off a mild one.
    np.testing.assert_allclose(metrics["loss_severity"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["severity_mae"], 0.375, rtol=1e-6)
    plain, without = loss_of(False)
    assert not {k for k in without if "severity" in k}
    np.testing.assert_allclose(loss - plain, 2 * np.log(2), rtol=1e-5)
