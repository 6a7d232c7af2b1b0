"""Losses as pure functions; everything is computed in float32 whatever the inputs' dtype."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def hinge_discriminator(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Discriminator's hinge loss on its outputs (any shape): 0.5 E[max(0, 1 - real) + max(0, 1 + fake)]."""
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def hinge_generator(fake: jax.Array) -> jax.Array:
    """Generator's side of the hinge loss: -E[fake]."""
    return -jnp.mean(fake.astype(jnp.float32))


def adaptive_weight(reconstruction_grad: jax.Array, gan_grad: jax.Array, maximum: float = 1e4) -> jax.Array:
    """Weight of the adversarial loss that makes both gradients equally long (VQGAN, eq. 7).

    Both gradients are with respect to the decoder's last layer; no gradient flows through the weight.
    """
    ratio = jnp.linalg.norm(reconstruction_grad.astype(jnp.float32).ravel()) / (
        jnp.linalg.norm(gan_grad.astype(jnp.float32).ravel()) + 1e-4
    )
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, maximum))


def edge_loss(x: jax.Array, y: jax.Array, *, scales: int = 3, weights: Sequence[float] | None = None) -> jax.Array:
    """Mean absolute difference of the images' horizontal and vertical gradients over an image pyramid.

    Stands in for a perceptual loss (LPIPS needs pretrained weights): a blurred pleural line or rib
    edge costs as much as the contrast it lost, where a pixel loss hardly notices.

    Args:
      x, y: float [B, H, W, C], H and W divisible by 2**(scales - 1). weights: one a scale, finest first;
        by default they are equal and sum to 1.
    """
    weights = [1 / scales] * scales if weights is None else weights
    if len(weights) != scales:
        raise ValueError(f"{len(weights)} weights for {scales} scales")
    if any(side % 2 ** (scales - 1) for side in x.shape[1:3]):
        raise ValueError(f"image sides {x.shape[1:3]} are not divisible by {2 ** (scales - 1)}")
    difference = x.astype(jnp.float32) - y.astype(jnp.float32)  # gradients and pooling are linear
    total = jnp.zeros((), jnp.float32)
    for level, weight in enumerate(weights):
        if level:
            b, h, w, c = difference.shape
            difference = difference.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
        rows = jnp.mean(jnp.abs(jnp.diff(difference, axis=1)))
        columns = jnp.mean(jnp.abs(jnp.diff(difference, axis=2)))
        total += weight * 0.5 * (rows + columns)
    return total
