"""Losses against float64 NumPy and hand-worked values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax import losses


def _reference(logits, labels, weights):
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    token = log_z - np.take_along_axis(logits, np.asarray(labels)[..., None], -1)[..., 0]
    return (token * weights).sum() / weights.sum()


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, (3, 7))
    weights = (rng.random((3, 7)) < 0.7) * rng.uniform(0.5, 3.0, (3, 7))
    hidden = rng.normal(size=(3, 7, 5)).astype(np.float32)
    head = rng.normal(size=(5, 11)).astype(np.float32)
    return hidden, head, labels, weights.astype(np.float32)


def test_cross_entropy_is_the_weighted_mean(tokens):
    hidden, head, labels, weights = tokens
    logits = 5 * hidden @ head
    loss, metrics = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    assert float(loss) == pytest.approx(_reference(logits, labels, weights), rel=1e-5)
    assert float(metrics["weight"]) == pytest.approx(weights.sum(), rel=1e-6)
    hits = (logits.argmax(-1) == labels) * weights
    assert float(metrics["accuracy"]) == pytest.approx(hits.sum() / weights.sum(), rel=1e-5)
    unweighted, _ = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    assert float(unweighted) == pytest.approx(_reference(logits, labels, np.ones((3, 7))), rel=1e-5)


def test_padding_counts_for_nothing_whatever_it_holds(tokens):
    hidden, head, labels, weights = tokens
    logits = jnp.asarray(hidden @ head)
    expected, _ = losses.cross_entropy(logits, jnp.asarray(labels), jnp.asarray(weights))
    padded = jnp.where(weights[..., None] > 0, logits, jnp.inf)
    marked = jnp.where(weights > 0, labels, -100)
    loss, metrics = losses.cross_entropy(padded, marked, jnp.asarray(weights))
    assert float(loss) == float(expected)
    assert np.isfinite(float(metrics["accuracy"]))


def test_no_tokens_at_all_is_zero_loss_and_zero_gradient(tokens):
    hidden, head, labels, weights = tokens
    loss, grad = jax.value_and_grad(
        lambda h: losses.cross_entropy(h @ head, jnp.asarray(labels), jnp.zeros_like(weights))[0]
    )(jnp.asarray(hidden))
    assert float(loss) == 0.0
    assert float(jnp.abs(grad).max()) == 0.0


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 1, 4096), jnp.bfloat16)  # 4096 equal ids: in bfloat16 the sum would stop at 256
    loss, _ = losses.cross_entropy(logits, jnp.zeros((1, 1), jnp.int32))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(np.log(4096), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 21, 64])
def test_chunked_equals_whole_with_gradients(tokens, chunk):
    hidden, head, labels, weights = map(jnp.asarray, tokens)

    def whole(h, w):
        return losses.cross_entropy(h @ w, labels, weights)

    def chunked(h, w):
        return losses.chunked_cross_entropy(h, lambda x: x @ w, labels, weights, chunk=chunk)

    (a, ma), ga = jax.value_and_grad(whole, argnums=(0, 1), has_aux=True)(hidden, head)
    (b, mb), gb = jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True)(hidden, head)
    np.testing.assert_allclose(b, a, rtol=1e-5)
    for name in ma:
        np.testing.assert_allclose(mb[name], ma[name], rtol=1e-5)
    for x, y in zip(ga, gb, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-6)


def test_chunked_never_holds_all_logits():
    tokens, width, vocab = 1024, 8, 4096
    hidden, head = jnp.ones((tokens, width)), jnp.ones((width, vocab))
    labels = jnp.zeros(tokens, jnp.int32)

    def memory(loss):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = memory(lambda h, w: losses.cross_entropy(h @ w, labels)[0])
    small = memory(lambda h, w: losses.chunked_cross_entropy(h, lambda x: x @ w, labels, chunk=64)[0])
    logits = tokens * vocab * 4
    assert whole >= logits
    assert small < logits / 4


def test_hinge_losses_by_hand():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0])
    assert float(losses.hinge_discriminator(real, fake)) == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2))
    assert float(losses.hinge_generator(fake)) == pytest.approx(1.5)


def test_adaptive_weight_equalises_norms_is_bounded_and_passes_no_gradient():
    rec, gan = jnp.full((2, 2), 3.0), jnp.full((4,), 0.5)
    weight = losses.adaptive_weight(rec, gan)
    assert float(weight * jnp.linalg.norm(gan)) == pytest.approx(6.0, rel=1e-3)
    assert float(losses.adaptive_weight(rec, jnp.zeros(4))) == 1e4
    assert float(jax.grad(lambda s: losses.adaptive_weight(s * rec, gan))(1.0)) == 0.0


def test_edge_loss_sees_edges_not_brightness():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 1)), jnp.float32)
    assert float(losses.edge_loss(image, image)) == 0.0
    assert float(losses.edge_loss(image, image + 0.5)) == pytest.approx(0.0, abs=1e-6)
    step = jnp.zeros((1, 4, 4, 1)).at[:, :, 2:].set(1.0)
    # Scale 1: rows do not change, one of three column differences is 1. Scale 2: the only one is 1.
    expected = 0.5 * (0.5 / 3) + 0.5 * (0.5 * 1.0)
    assert float(losses.edge_loss(step, jnp.zeros_like(step), scales=2)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="not divisible"):
        losses.edge_loss(image[:, :6], image[:, :6])
