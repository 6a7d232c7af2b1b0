"""Training of a scorer on a cohort's own labels, sex, age and view, on training patients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from progemu_jax.models.scorer import AGE_MEAN, AGE_STD
from progemu_jax.tasks.scorer import ScorerTask


class LabelScorerTask(ScorerTask):
    """Multi-label classification, with the person beside, in place of the phantom scorer's heads.

    Batches: image uint8 [B, H, W]; findings f32 [B, L] in {0, 1}, NaN unknown, which teaches nothing (U-Ignore of Irvin
    et al. 2019, section 4); age f32 [B] in years, sex f32 [B] (1 F, 0 M), NaN unknown; view int32 [B].
    """

    name = "label scorer"

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


def _mean(term: Any, predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of a loss over the known targets."""
    known = ~jnp.isnan(target)
    values = term(predicted, jnp.where(known, target, 0))
    return jnp.where(known, values, 0).sum() / jnp.maximum(known.sum(), 1)
