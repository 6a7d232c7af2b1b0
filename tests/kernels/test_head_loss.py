"""Cross-entropy fused with the head, against whole logits; and those against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cross_entropy import cross_entropy

from progemu_jax.devices import sharding
from progemu_jax.kernels import head_loss


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
    loss, metrics = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    assert float(loss) == pytest.approx(_reference(logits, labels, weights), rel=1e-5)
    assert float(metrics["weight"]) == pytest.approx(weights.sum(), rel=1e-6)
    hits = (logits.argmax(-1) == labels) * weights
    assert float(metrics["accuracy"]) == pytest.approx(hits.sum() / weights.sum(), rel=1e-5)
    unweighted, _ = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    assert float(unweighted) == pytest.approx(_reference(logits, labels, np.ones((3, 7))), rel=1e-5)


def test_padding_counts_for_nothing_whatever_it_holds(tokens):
    hidden, head, labels, weights = tokens
    logits = jnp.asarray(hidden @ head)
    expected, _ = cross_entropy(logits, jnp.asarray(labels), jnp.asarray(weights))
    padded = jnp.where(weights[..., None] > 0, logits, jnp.inf)
    marked = jnp.where(weights > 0, labels, -100)
    loss, metrics = cross_entropy(padded, marked, jnp.asarray(weights))
    assert float(loss) == float(expected)
    assert np.isfinite(float(metrics["accuracy"]))


def test_no_tokens_at_all_is_zero_loss_and_zero_gradient(tokens):
    hidden, head, labels, weights = tokens
    loss, grad = jax.jit(
        jax.value_and_grad(lambda h: cross_entropy(h @ head, jnp.asarray(labels), jnp.zeros_like(weights))[0])
    )(hidden)
    assert float(loss) == 0.0
    assert float(jnp.abs(grad).max()) == 0.0


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((1, 1, 4096), jnp.bfloat16)  # 4096 equal ids: in bfloat16 the sum would stop at 256
    loss, _ = cross_entropy(logits, jnp.zeros((1, 1), jnp.int32))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(np.log(4096), rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_head_equals_the_whole_with_gradients(tokens, chunk, padded, monkeypatch):
    """Also with rows of the table that stand for no id, and with a last block that is not whole."""
    monkeypatch.setattr(head_loss, "BLOCK_ON_CPU", 4)
    hidden, head, labels, weights = map(jnp.asarray, tokens)
    table = jnp.concatenate([head.T, 100 * jnp.ones((3, 5))]) if padded else head.T

    def whole(h, t):
        return cross_entropy(h @ t[:11].T, labels, weights)[0]

    def chunked(h, t):
        return head_loss.head_cross_entropy(h, t, labels, weights, chunk=chunk, vocab_size=11)

    a, ga = jax.jit(jax.value_and_grad(whole, argnums=(0, 1)))(hidden, table)
    (b, nll), gb = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1), has_aux=True))(hidden, table)
    np.testing.assert_allclose(b, a, rtol=1e-5)
    for x, y in zip(gb, ga, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    scores = np.asarray(hidden, np.float64) @ np.asarray(head)
    exact = np.log(np.exp(scores).sum(-1)) - np.take_along_axis(scores, np.asarray(labels)[..., None], -1)[..., 0]
    np.testing.assert_allclose(nll, np.where(weights > 0, exact, 0.0), rtol=1e-5)


def test_a_head_that_is_not_trained_has_no_gradient(tokens, monkeypatch):
    """Nothing of its table's size is made."""
    monkeypatch.setattr(head_loss, "BLOCK_ON_CPU", 4)
    hidden, head, labels, weights = map(jnp.asarray, tokens)

    def loss(h, t):
        return head_loss.head_cross_entropy(h, t, labels, weights, chunk=4)[0]

    def sizes(wanted):
        text = str(jax.make_jaxpr(jax.grad(loss, argnums=wanted))(hidden, head.T))
        return text.count("f32[11,5] = ")

    assert sizes((0, 1)) > sizes(0) == 0


def test_head_weighs_the_gradient_of_what_follows(tokens):
    hidden, head, labels, weights = map(jnp.asarray, tokens)

    def scaled(h, scale):
        return scale * head_loss.head_cross_entropy(h, head.T, labels, weights, chunk=4)[0]

    one, three = (jax.jit(jax.grad(scaled))(hidden, scale) for scale in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)


def test_tokens_that_do_not_count_are_not_computed(tokens):
    """Whatever their hidden states hold; and none at all is a loss of 0."""
    hidden, head, labels, weights = map(jnp.asarray, tokens)
    marked = jnp.where(weights[..., None] > 0, hidden, jnp.nan)

    def loss(h, w):
        return head_loss.head_cross_entropy(h, head.T, labels, w, chunk=2)[0]

    slope = jax.jit(jax.value_and_grad(loss))
    value, grad = slope(hidden, weights)
    again, grad_again = slope(marked, weights)
    assert float(value) == float(again)
    np.testing.assert_array_equal(grad, grad_again)
    nothing, zero = slope(hidden, jnp.zeros_like(weights))
    assert float(nothing) == 0.0
    assert not np.any(zero)


def test_soft_targets_are_cross_entropy_against_their_rows(tokens):
    hidden, head, _, weights = map(jnp.asarray, tokens)
    rng = np.random.default_rng(5)
    codebook, start = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32), 4
    on = jnp.asarray(rng.random((3, 7)) < 0.5)
    labels = jnp.where(on, jnp.asarray(rng.integers(start, start + 6, (3, 7))), 2)
    soft = head_loss.SoftCodes(on, codebook, 0.7, start)

    def whole(h):
        rows = soft.similar(jnp.arange(6), jnp.arange(6))
        rows = (rows / rows.sum(1, keepdims=True))[jnp.maximum(labels - start, 0)]
        rows = jnp.pad(rows, ((0, 0), (0, 0), (start, 1)))
        wanted = jnp.where(on[..., None], rows, jax.nn.one_hot(labels, 11))
        return -(weights[..., None] * wanted * jax.nn.log_softmax(h @ head)).sum() / weights.sum()

    def chunked(h):
        return head_loss.head_cross_entropy(h, head.T, labels, weights, chunk=3, soft=soft)[0]

    (a, ga), (b, gb) = (jax.jit(jax.value_and_grad(f))(hidden) for f in (whole, chunked))
    np.testing.assert_allclose(b, a, rtol=1e-5)
    np.testing.assert_allclose(gb, ga, rtol=1e-5, atol=1e-6)


def test_head_on_a_mesh_gives_the_same(tokens):
    """Rows over data, vocabulary over tensor; the gradient keeps the table's split."""
    hidden, head, labels, weights = map(jnp.asarray, tokens)
    hidden, labels, weights = (jnp.concatenate([x, x[:1]]) for x in (hidden, labels, weights))
    table = jnp.pad(head.T, ((0, 1), (0, 0)))
    mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])

    def loss(h, t):
        return head_loss.head_cross_entropy(h, t, labels, weights, chunk=4, vocab_size=11)[0]

    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(hidden, table)
    states = jax.value_and_grad(loss)  # of a head that is not trained
    placed = [jax.device_put(x, jax.sharding.NamedSharding(mesh, sharding.spec(axes))) for x, axes in (
        (hidden, ("batch", None, None)), (table, ("vocab", None)))]  # fmt: skip
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found, (value, slope) = (jax.jit(f)(*placed) for f in (jax.value_and_grad(loss, argnums=(0, 1)), states))
    np.testing.assert_array_equal(slope, found[1][0])
    assert float(value) == float(found[0])
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_logits_never_exist():
    tokens, width, vocab = 1024, 8, 4096
    hidden, head = jnp.ones((1, tokens, width)), jnp.ones((vocab, width))
    labels = jnp.zeros((1, tokens), jnp.int32)

    def memory(loss):
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = memory(lambda h, t: cross_entropy(h @ t.T, labels)[0])
    small = memory(lambda h, t: head_loss.head_cross_entropy(h, t, labels, jnp.ones_like(labels), chunk=32)[0])
    assert whole >= tokens * vocab * 4
    assert small < whole / 10
