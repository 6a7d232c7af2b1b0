"""Training of a scorer on a cohort's own labels, sex, age and view, on training patients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from progemu_jax.models.scorer import AGE_MEAN, AGE_STD, ScorerNet, ScorerNetConfig
from progemu_jax.tasks.scorer import distorted
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig


class LabelScorerTask:
    """Multi-label classification, with the person beside; see `progemu_jax.training.loop.fit` for the protocol.

    Batches: image uint8 [B, H, W]; findings f32 [B, L] in {0, 1}, NaN unknown, which teaches nothing (U-Ignore of Irvin
    et al. 2019, section 4); age f32 [B] in years, sex f32 [B] (1 F, 0 M), NaN unknown; view int32 [B].
    """

    name = "label scorer"

    def __init__(self, net: ScorerNetConfig, train: TrainConfig, image_size: int):
        self.net, self.train, self.image_size = ScorerNet(net), train, image_size
        self.optimizer = optim.make_optimizer(train)

    def init(self, key: jax.Array) -> dict[str, Any]:
        params = self.net.init(key, jnp.zeros((1, self.image_size, self.image_size)))["params"]
        return optim.start(self.optimizer, self.train, params)

    def loss(self, params: Any, images: jax.Array, batch: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the heads' losses; images f32 [B, H, W] in [0, 1]."""
        out = self.net.apply({"params": params}, images)
        age = (batch["age"] - AGE_MEAN) / AGE_STD
        terms = {
            "findings": _mean(optax.sigmoid_binary_cross_entropy, out["findings"], batch["findings"]),
            "age": _mean(optax.huber_loss, out["age"], age),
            "sex": _mean(optax.sigmoid_binary_cross_entropy, out["sex"], batch["sex"]),
        }
        loss = 2 * terms["findings"] + 0.5 * terms["age"] + 0.25 * terms["sex"]
        if "view" in out:
            terms["view"] = optax.softmax_cross_entropy_with_integer_labels(out["view"], batch["view"]).mean()
            loss += 0.25 * terms["view"]
        return loss, {f"loss_{k}": v for k, v in terms.items()}

    def train_step(self, state: dict[str, Any], batch: dict, key: jax.Array) -> tuple[dict, dict]:
        images = distorted(key, batch["image"])
        (loss, metrics), grads = jax.value_and_grad(self.loss, has_aux=True)(state["params"], images, batch)
        return optim.advance(self.optimizer, self.train, state, grads), {"loss": loss, **metrics}

    def eval_step(self, state: dict[str, Any], batch: dict) -> dict[str, jax.Array]:
        loss, metrics = self.loss(optim.averaged(state), batch["image"].astype(jnp.float32) / 255, batch)
        return {"loss": loss, **metrics}


def _mean(term: Any, predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of a loss over the known targets."""
    known = ~jnp.isnan(target)
    values = term(predicted, jnp.where(known, target, 0))
    return jnp.where(known, values, 0).sum() / jnp.maximum(known.sum(), 1)
