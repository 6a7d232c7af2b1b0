"""Training of the phantom scorer, on patients that no generator sees and no test uses.

The evaluating scorer judges images: it never enters a loss of a generator, a selection, or features for tuning. A run
that refines (`tasks.refine`) trains another one, with another seed, to choose by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from progemu_jax.models.scorer import AGE_MEAN, AGE_STD, ScorerNet, ScorerNetConfig
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class ScorerConfig:
    """Scorer's data, network and training.

    Attributes:
      images, valid_images: phantom images rendered for training and validation, patients disjoint.
      seed: of its patients; their seed space is disjoint from every cohort's.
    """

    images: int = 8000
    valid_images: int = 1000
    seed: int = 0
    net: ScorerNetConfig = field(default_factory=ScorerNetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class ScorerTask:
    """Multi-head classification, regression and segmentation; see `progemu_jax.training.loop.fit` for the protocol.

    Batches: image uint8 [B, H, W], findings f32 [B, 8] in {0, 1}, group int [B], age f32 [B] in years, sex int [B]
    (1 is F), masks bool [B, H, W, 6]; severity f32 [B, 8] in [0, 1] where the network has a head for it.
    """

    name = "scorer"

    def __init__(self, net: ScorerNetConfig, train: TrainConfig, image_size: int):
        self.net, self.train, self.image_size = ScorerNet(net), train, image_size
        self.optimizer = optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = self.net.init(key, jnp.zeros((1, self.image_size, self.image_size)))["params"]
        return optim.start(self.optimizer, self.train, params)

    def loss(
        self, params: Any, images: jax.Array, batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the heads' losses; images f32 [B, H, W] in [0, 1]."""
        out = self.net.apply({"params": params}, images)
        terms = {
            "findings": optax.sigmoid_binary_cross_entropy(out["findings"], batch["findings"]).mean(),
            "group": optax.softmax_cross_entropy_with_integer_labels(out["group"], batch["group"]).mean(),
            "age": optax.huber_loss(out["age"], (batch["age"] - AGE_MEAN) / AGE_STD).mean(),
            "sex": optax.sigmoid_binary_cross_entropy(out["sex"], batch["sex"].astype(jnp.float32)).mean(),
            "organs": optax.sigmoid_binary_cross_entropy(out["organs"], batch["masks"].astype(jnp.float32)).mean(),
        }
        loss = 2 * terms["findings"] + 0.5 * terms["group"] + 0.5 * terms["age"] + 0.25 * terms["sex"] + terms["organs"]
        metrics = {f"loss_{k}": v for k, v in terms.items()}
        if "severity" in out:
            # Cross-entropy with a soft label: least at the mean severity, and steep where a sigmoid alone is flat.
            term = optax.sigmoid_binary_cross_entropy(out["severity"], batch["severity"]).mean()
            loss, metrics["loss_severity"] = loss + 2 * term, term
            metrics["severity_mae"] = jnp.abs(jax.nn.sigmoid(out["severity"]) - batch["severity"]).mean()
        return loss, metrics

    def train_step(self, state: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array) -> tuple[dict, dict]:
        images, batch = augment(key, batch)
        (loss, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state["params"], images, batch)
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": loss, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        loss, metrics = self.loss(optim.averaged(state), batch["image"].astype(jnp.float32) / 255, batch)
        return {"loss": loss, **metrics}


def augment(key: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What a generator's images may look like, so that the judge minds anatomy and not sharpness.

    Exposure and gamma, blur (a tokenizer's), noise, shifts and black borders (registration's).

    Returns:
      images f32 [B, H, W] in [0, 1]; the batch with its masks, if any, shifted alike.
    """
    images = batch["image"].astype(jnp.float32) / 255
    b, h, w = images.shape
    keys = jax.random.split(key, 7)

    def uniform(k: jax.Array, low: float, high: float) -> jax.Array:
        return jax.random.uniform(k, (b, 1, 1), minval=low, maxval=high)

    images = jnp.clip(images, 1e-3, 1) ** uniform(keys[0], 0.85, 1.18) * uniform(keys[1], 0.9, 1.1)
    blurred = images
    for axis in (1, 2):
        blurred = (jnp.roll(blurred, 1, axis) + 2 * blurred + jnp.roll(blurred, -1, axis)) / 4
    images += uniform(keys[2], 0.0, 1.0) * (blurred - images)
    images += uniform(keys[3], 0.0, 0.03) * jax.random.normal(keys[4], images.shape)
    reach = h // 32
    shifts = jax.random.randint(keys[5], (b, 2), -reach, reach + 1)
    shift = jax.vmap(lambda x, s: jnp.roll(x, s, (0, 1)))
    images = shift(images, shifts)
    if "masks" in batch:
        batch = {**batch, "masks": shift(batch["masks"], shifts)}
    rows, columns = jnp.arange(h)[None, :, None], jnp.arange(w)[None, None, :]
    low, high = shifts[:, :1, None], shifts[:, 1:, None]
    outside = (
        (rows < low) | (rows >= h + jnp.minimum(low, 0)) | (columns < high) | (columns >= w + jnp.minimum(high, 0))
    )
    images = jnp.where(outside, 0.0, jnp.clip(images, 0, 1))
    return images, batch
