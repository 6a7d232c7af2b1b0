"""Cross-entropy written out over whole logits: what `kernels.head_loss` must equal."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weights: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean of the tokens' cross-entropies.

    Args:
      logits: float [..., V].
      labels: int [...]; ignored (any value) where the weight is 0.
      weights: float [...] >= 0, 0 for padding; None counts every token once.
    Returns:
      (loss, {"accuracy", "weight"}), float32 scalars: the means over the weights, and their sum. With no
      weight at all the loss is 0.
    """
    sums = _sums(logits, labels, _weights(labels, weights))
    return _means(sums)


def _weights(labels, weights):
    return jnp.ones(labels.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)


def _sums(logits, labels, weights):
    logits = logits.astype(jnp.float32)
    counted = weights > 0
    safe = jnp.where(counted, labels, 0)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    token = log_z - jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    hit = jnp.argmax(logits, axis=-1) == safe
    # `where`, not a product: 0 * inf would let a padded position poison the batch.
    loss = jnp.sum(jnp.where(counted, weights * token, 0.0))
    return loss, jnp.sum(jnp.where(counted, weights * hit, 0.0)), jnp.sum(weights)


def _means(sums):
    loss, hits, weight = sums
    denominator = jnp.where(weight > 0, weight, 1.0)
    return loss / denominator, {"accuracy": hits / denominator, "weight": weight}
