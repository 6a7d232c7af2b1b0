"""The scorer's task: augmentation."""

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.tasks.scorer import augment


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
