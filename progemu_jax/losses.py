"""Losses as pure functions; everything is computed in float32 whatever the inputs' dtype."""

from collections.abc import Sequence
from typing import NamedTuple

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


class SoftCodes(NamedTuple):
    """Targets spread over the codes that look alike: code q stands for code c with exp(-|e_c - e_q|^2 / width).

    on: bool [B, T], the tokens that are learnt so. codebook: f32 [Q, E]. width: squared distance. start: id of code 0.
    """

    on: jax.Array
    codebook: jax.Array
    width: float
    start: int

    def rows(self, codes: jax.Array) -> jax.Array:
        """int [...] -> f32 [..., Q]: the distributions that stand for these codes."""
        table = jnp.asarray(self.codebook)
        norms = jnp.sum(jnp.square(table), axis=-1)
        cross = jnp.einsum("...E,QE->...Q", table[codes], table, precision="highest")
        distance = jnp.maximum(norms[codes][..., None] + norms - 2 * cross, 0.0)
        distance = jnp.where(codes[..., None] == jnp.arange(len(table)), 0.0, distance)
        return jax.nn.softmax(-distance / self.width, axis=-1)


def head_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
    counted: jax.Array | None = None,
    vocab_size: int | None = None,
    soft: SoftCodes | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted mean cross-entropy of a head, the [B, T, V] logits of which never exist.

    `chunk` tokens of each row go through the head at a time. Where a gradient is wanted it is made in the same pass
    (three products with the head, not four): d loss / d logits is at hand with the logits. Tokens that are not
    counted are left out before, not masked after: they cost nothing.

    Args:
      hidden: float [B, T, D]. The products are in its dtype, with sums in float32.
      table: float [V, D], the head.
      targets: int [B, T]; ignored (any value) where the weight is 0.
      weights: float [B, T] >= 0, of the loss.
      counted: bool [B, T]: whose cross-entropy is wanted; None: where the weight is positive.
      vocab_size: ids from this on are padding of the table, and impossible.
      soft: what is learnt of some tokens in place of their target.

    Returns:
      (loss, nll): float32 scalar, and float32 [B, T] without gradient: each counted token's exact cross-entropy (soft
      or not), 0 elsewhere. With no weight at all the loss is 0.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    weights = weights.astype(jnp.float32)
    counted = weights > 0 if counted is None else counted | (weights > 0)
    length = targets.shape[1]
    chunk = min(chunk, length)
    # Counted tokens first, in each row by itself: rows may lie on different devices.
    order = jnp.argsort(~counted, axis=1, stable=True)
    pad = [(0, 0), (0, -length % chunk)]

    def first(x):
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        return jnp.pad(x, pad + [(0, 0)] * (x.ndim - 2))

    items = {"target": jnp.where(counted, targets, 0), "weight": weights, "counted": counted}
    if soft is not None:
        items["soft"] = soft.on
    total, nll = _Head(chunk, vocab_size, soft and soft._replace(on=None))(
        first(hidden), table, {name: first(x) for name, x in items.items()}
    )
    back = jnp.argsort(order, axis=1)
    weight = weights.sum()
    nll = jax.lax.stop_gradient(jnp.take_along_axis(nll[:, :length], back, axis=1))
    return total / jnp.where(weight > 0, weight, 1.0), nll


class _Head:
    """(hidden [B, T, D], table [V, D], items of [B, T]) -> (sum of weighted losses, nll [B, T]); T divides by chunk."""

    def __init__(self, chunk: int, vocab_size: int | None, soft: SoftCodes | None):
        self.chunk, self.vocab_size, self.soft = chunk, vocab_size, soft

    def __call__(self, hidden, table, items):
        @jax.custom_vjp
        def total(hidden, table):
            return self._run(hidden, table, items, False)[0]

        def forward(hidden, table):
            out, gradients = self._run(hidden, table, items, True)
            return out, gradients

        def backward(gradients, cotangents):
            scale = cotangents[0]
            return tuple((g * scale).astype(g.dtype) for g in gradients)

        total.defvjp(forward, backward)
        return total(hidden, table)

    def _run(self, hidden, table, items, with_gradient):
        size = self.chunk
        head = table.astype(hidden.dtype)
        ids = jnp.arange(table.shape[0])

        def body(index, carry):
            loss, nll, d_hidden, d_table = carry
            part = {n: jax.lax.dynamic_slice_in_dim(x, index * size, size, 1) for n, x in items.items()}
            states = jax.lax.dynamic_slice_in_dim(hidden, index * size, size, 1)
            logits = jnp.einsum("BTD,VD->BTV", states, head, preferred_element_type=jnp.float32)
            if self.vocab_size is not None and self.vocab_size < table.shape[0]:
                logits = jnp.where(ids < self.vocab_size, logits, -1e30)
            log_z = jax.nn.logsumexp(logits, axis=-1)
            # By comparison, not by index: the vocabulary may be split over devices.
            exact = ids == part["target"][..., None]
            token = log_z - jnp.sum(jnp.where(exact, logits, 0.0), axis=-1)
            learnt, wanted = token, exact.astype(jnp.float32)
            if self.soft is not None:
                start, stop = self.soft.start, self.soft.start + len(self.soft.codebook)
                spread = self.soft.rows(jnp.clip(part["target"] - start, 0, stop - start - 1))
                softly = log_z - jnp.sum(spread * logits[..., start:stop], axis=-1)
                learnt = jnp.where(part["soft"], softly, token)
                wide = jnp.pad(spread, [(0, 0), (0, 0), (start, table.shape[0] - stop)])
                wanted = jnp.where(part["soft"][..., None], wide, wanted)
            weight = part["weight"]
            # `where`, not a product: 0 * inf would let a padded position poison the batch.
            loss += jnp.sum(jnp.where(weight > 0, weight * learnt, 0.0))
            token = jnp.where(part["counted"], token, 0.0)
            nll = jax.lax.dynamic_update_slice_in_dim(nll, token, index * size, 1)
            if with_gradient:
                slope = weight[..., None] * (jnp.exp(logits - log_z[..., None]) - wanted)
                slope = jnp.where(weight[..., None] > 0, slope, 0.0).astype(hidden.dtype)
                back = jnp.einsum("BTV,VD->BTD", slope, head, preferred_element_type=jnp.float32)
                d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, back.astype(hidden.dtype), index * size, 1)
                d_table += jnp.einsum("BTV,BTD->VD", slope, states, preferred_element_type=jnp.float32)
            return loss, nll, d_hidden, d_table

        most = jnp.max(jnp.sum(items["counted"], axis=1))
        start = (
            jnp.zeros((), jnp.float32),
            jnp.zeros(hidden.shape[:2], jnp.float32),
            jnp.zeros_like(hidden) if with_gradient else None,
            jnp.zeros(table.shape, jnp.float32) if with_gradient else None,
        )
        loss, nll, d_hidden, d_table = jax.lax.fori_loop(0, -(-most // size), body, start)
        return (loss, nll), (d_hidden, None if d_table is None else d_table.astype(table.dtype))


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
