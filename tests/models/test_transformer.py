"""The transformer: cached decoding against the plain forward pass, masks, options, the 8B configuration."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.kernels import attention
from progemu_jax.models import layers as nnl
from progemu_jax.models import linear
from progemu_jax.models import transformer as tf

CFG = tf.TransformerConfig(
    vocab_size=50,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    attention_block=8,
    prior_alignment=True,
    prior_beside=True,
    learned_positions=12,
)


def tokens_of(batch, length, seed=1):
    return np.random.default_rng(seed).integers(CFG.vocab_size, size=(batch, length), dtype=np.int32)


def random_params(cfg, seed=0):
    """Parameters drawn by NumPy, norm scales away from 1. NumPy here saves hundreds of compilations."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return (rng.normal(size=leaf.shape) * 0.2).astype(leaf.dtype)

    abstract = jax.eval_shape(lambda: tf.init_params(cfg, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(draw, abstract)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("prefill", "deterministic"))
def forward(cfg, params, tokens, **kwargs):
    return tf.Transformer(cfg).apply({"params": params}, tokens, **kwargs)


@pytest.fixture(scope="module")
def params():
    return random_params(CFG)


@pytest.mark.parametrize(
    ("lengths", "padded", "chunk", "slots", "scan"),
    [
        ((4, 9, 1), 9, 1, 20, False),
        ((4, 9, 1), 9, 1, 20, True),
        ((3, 6), 8, 3, 18, True),
        ((5,), 5, 2, 15, False),
        ((2, 4, 6, 8), 8, 4, 24, False),
    ],
)
def test_decoding_equals_the_forward_pass(params, lengths, padded, chunk, slots, scan):
    cfg = dataclasses.replace(CFG, scan_layers=scan)
    params = tf.stack_layers(params) if scan else params
    lengths = np.array(lengths)
    batch, total = len(lengths), 16
    tokens, aligned = tokens_of(batch, total), tokens_of(batch, total, seed=2) - 20
    beside = np.asarray(tf.beside_of(aligned))
    whole = np.asarray(forward(cfg, params, tokens, aligned=aligned, beside=beside)[0])
    valid = np.arange(padded) < lengths[:, None]
    hidden, cache = forward(
        cfg,
        params,
        np.where(valid, tokens[:, :padded], 49),
        aligned=aligned[:, :padded],
        beside=beside[:, :padded],
        segments=valid,
        cache=tf.init_cache(cfg, batch, slots),
        prefill=True,
    )
    np.testing.assert_allclose(np.asarray(hidden)[valid], whole[:, :padded][valid], atol=1e-4)
    for step in range((total - lengths.max()) // chunk):
        np.testing.assert_array_equal(cache["length"], lengths + step * chunk)
        places = lengths[:, None] + step * chunk + np.arange(chunk)
        part, *priors = (np.take_along_axis(x, places, axis=1) for x in (tokens, aligned, beside))
        hidden, cache = forward(cfg, params, part, aligned=priors[0], beside=priors[1], cache=cache)
        np.testing.assert_allclose(hidden, np.take_along_axis(whole, places[..., None], axis=1), atol=1e-4)
    assert step >= 1


def test_padding_in_a_later_chunk_does_not_count(params):
    tokens = tokens_of(2, 10)
    whole = np.asarray(forward(CFG, params, tokens)[0])
    _, cache = forward(CFG, params, tokens[:, :4], cache=tf.init_cache(CFG, 2, 12), prefill=True)
    valid = np.array([[True] * 3, [True, False, False]])
    hidden, cache = forward(CFG, params, np.where(valid, tokens[:, 4:7], 0), segments=valid, cache=cache)
    np.testing.assert_array_equal(cache["length"], [7, 5])
    np.testing.assert_allclose(np.asarray(hidden)[valid], whole[:, 4:7][valid], atol=1e-4)
    hidden, _ = forward(CFG, params, np.stack([tokens[0, 7:8], tokens[1, 5:6]]), cache=cache)
    np.testing.assert_allclose(hidden[:, 0], np.stack([whole[0, 7], whole[1, 5]]), atol=1e-4)


def test_no_token_sees_a_later_one_and_segments_do_not_mix(params):
    tokens = tokens_of(2, 10)
    whole = np.asarray(forward(CFG, params, tokens)[0])
    changed = tokens.copy()
    changed[:, 8] = (tokens[:, 8] + 1) % 50
    changed = np.asarray(forward(CFG, params, changed)[0])
    np.testing.assert_allclose(whole[:, :8], changed[:, :8], atol=1e-6)
    assert np.abs(whole[:, 8:] - changed[:, 8:]).max(axis=-1).min() > 1e-2
    segments = np.array([[1] * 4 + [2] * 6] * 2)
    positions = np.tile(np.concatenate([np.arange(4), np.arange(6)]), (2, 1))
    packed, _ = forward(CFG, params, tokens, positions=positions, segments=segments)
    alone, _ = forward(CFG, params, tokens[:, 4:])
    np.testing.assert_allclose(packed[:, 4:], alone, atol=1e-5)


def test_attention_matches_a_direct_float64_computation():
    """Grouped queries, RoPE and the blocks of queries, against loops over heads in NumPy."""
    rng = np.random.default_rng(0)
    T, K, G, D = 7, 2, 3, 6
    q, k, v = (rng.normal(size=(1, T, h, D)) for h in (K * G, K, K))

    def turn(x):
        angles = np.arange(T)[:, None] * 100.0 ** (-np.arange(0, D, 2) / D)
        pair = x[..., : D // 2] + 1j * x[..., D // 2 :]
        pair = pair * np.exp(1j * angles)[None, :, None]
        return np.concatenate([pair.real, pair.imag], axis=-1)

    want = np.zeros((1, T, K * G, D))
    for n in range(K * G):
        scores = turn(q)[0, :, n] @ turn(k)[0, :, n // G].T / np.sqrt(D)
        scores = np.where(np.tri(T) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        want[0, :, n] = weights / weights.sum(-1, keepdims=True) @ v[0, :, n // G]
    rope = jax.jit(lambda x: nnl.rope(x, *nnl.rope_angles(jnp.arange(T)[None], D, 100.0)))
    q, k = (np.asarray(rope(x.astype(np.float32))) for x in (q, k))
    q = q.reshape(1, T, K, G, D).transpose(0, 2, 3, 1, 4)
    for block in (3, 100):
        attend = jax.jit(lambda q, k, v, block=block: attention.causal_attend(q, k, v, None, block))
        out = attend(q, k.transpose(0, 2, 1, 3), v.astype(np.float32).transpose(0, 2, 1, 3))
        np.testing.assert_allclose(np.asarray(out).transpose(0, 3, 1, 2, 4).reshape(want.shape), want, atol=1e-5)


def test_head_rows_are_a_slice_of_the_whole(params):
    hidden = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, CFG.hidden_size)), jnp.float32)
    whole = tf.logits(params, hidden)
    assert whole.dtype == jnp.float32
    np.testing.assert_allclose(tf.logits(params, hidden, (10, 25)), whole[..., 10:25], atol=1e-6)
    sliced = {"lm_head": tf.head(params, (10, 25))}
    np.testing.assert_allclose(tf.logits(sliced, hidden), whole[..., 10:25], atol=1e-6)


def test_tied_head_is_the_embedding():
    cfg = dataclasses.replace(CFG, tie_embeddings=True)
    params = random_params(cfg)
    assert "lm_head" not in params
    assert tf.head(params) is params["embed_tokens"]


def test_scanned_and_rematerialised_layers_give_the_same_gradients(params):
    tokens = tokens_of(2, 9)

    def gradients(params, **options):
        cfg = dataclasses.replace(CFG, **options)
        return jax.jit(jax.grad(lambda p: jnp.mean(forward(cfg, p, tokens)[0][:, :, :5] ** 2)))(params)

    want = gradients(params)
    scanned = tf.unstack_layers(gradients(tf.stack_layers(params), scan_layers=True, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), want, scanned)


def test_prior_alignment_changes_only_where_a_code_is_given(params):
    tokens = tokens_of(1, 6)
    plain = np.asarray(forward(CFG, params, tokens)[0])
    none, some = (
        np.asarray(forward(CFG, params, tokens, aligned=np.array([row]))[0])
        for row in ([-1] * 6, [-1, -1, -1, 4, 4, -1])
    )
    np.testing.assert_allclose(plain, none, atol=1e-6)
    np.testing.assert_allclose(plain[:, :3], some[:, :3], atol=1e-6)
    assert np.abs(plain - some)[:, 3].max() > 1e-2
    cfg = dataclasses.replace(CFG, prior_alignment=False)
    assert "prior_proj" not in jax.eval_shape(lambda: tf.init_params(cfg, jax.random.key(0)))


def test_prior_beside_says_what_the_prior_has_where_the_token_lies_and_whether_they_differ(params):
    tokens = np.array([[7, 7, 7, 7]])
    rows = {"none": [-1] * 4, "same": [-1, 7, 7, -1], "other": [-1, 7, 4, -1]}
    rows = {name: np.array([row]) for name, row in rows.items()}
    found = {name: np.asarray(forward(CFG, params, tokens, beside=row)[0]) for name, row in rows.items()}
    np.testing.assert_allclose(found["none"], forward(CFG, params, tokens)[0], atol=1e-6)
    assert np.abs(found["same"] - found["none"])[0, 1].max() > 1e-2
    np.testing.assert_allclose(found["same"][:, :2], found["other"][:, :2], atol=1e-6)
    assert np.abs(found["same"] - found["other"])[0, 2].max() > 1e-2
    told = {**params, "changed_embed": params["changed_embed"] + 1.0}  # what differs is told by a vector of its own
    assert np.abs(forward(CFG, told, tokens, beside=rows["other"])[0] - found["other"])[0, 2].max() > 1e-2
    np.testing.assert_allclose(forward(CFG, told, tokens, beside=rows["same"])[0], found["same"], atol=1e-6)
    np.testing.assert_array_equal(tf.beside_of(jnp.asarray([[3, 4, -1]])), [[-1, 3, 4]])
    cfg = dataclasses.replace(CFG, prior_beside=False)
    assert not {"beside_proj", "changed_embed"} & set(jax.eval_shape(lambda: tf.init_params(cfg, jax.random.key(0))))


def test_learnt_positions_are_of_the_position_ids(params):
    tokens, ids = np.full((1, 4), 7, np.int32), np.array([[3, 3, 11, 40]])
    table = params["position_embed"].copy()
    table[11] += 1.0
    moved = {**params, "position_embed": table}
    before, after = (np.asarray(forward(CFG, p, tokens, positions=ids)[0]) for p in (params, moved))
    np.testing.assert_allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert (np.abs(before - after).max(-1) > 1e-2).tolist() == [
        [False, False, True, True]
    ]  # 40 is beyond: the last one
    cfg = dataclasses.replace(CFG, learned_positions=0)
    assert "position_embed" not in jax.eval_shape(lambda: tf.init_params(cfg, jax.random.key(0)))


def test_dropout_acts_at_its_rate_and_only_in_training(params):
    kept = attention.dropout(jnp.ones((200, 500)), 0.1, jax.random.key(0))
    assert abs(float((kept == 0).mean()) - 0.1) < 5 * math.sqrt(0.09 / 1e5)
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.01)
    cfg, tokens = dataclasses.replace(CFG, dropout=0.1), tokens_of(2, 6)
    train = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}
    first, again = (forward(cfg, params, tokens, **train)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    still = forward(cfg, params, tokens)[0]
    np.testing.assert_allclose(still, forward(CFG, params, tokens)[0], atol=1e-6)
    assert float(jnp.abs(first - still).mean()) > 1e-2


def test_bfloat16_stays_near_float32(params):
    tokens = tokens_of(2, 9)
    want, _ = forward(CFG, params, tokens)
    got, _ = forward(dataclasses.replace(CFG, dtype="bfloat16"), params, tokens)
    assert got.dtype == jnp.bfloat16
    assert float(jnp.abs(got.astype(jnp.float32) - want).mean()) < 0.02


@pytest.mark.parametrize(
    ("spec", "x", "w"), [("RM,MKD->RKD", (7, 6), (6, 4, 5)), ("RND,NDM->RM", (7, 4, 5), (4, 5, 6))]
)
def test_bfloat16_products_and_their_gradients_on_cpu(spec, x, w):
    """Of the rounded factors, in float32: the weight's gradient is not rounded, whichever factor is turned for it."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (x, w))
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (x, w)]
    expected = np.einsum(spec, *rounded)
    slope = np.asarray(jnp.asarray(rng.standard_normal(expected.shape), jnp.bfloat16), np.float64)
    left, rest = spec.split(",")
    right, out = rest.split("->")
    of_x, of_w = (
        np.einsum(f"{out},{right}->{left}", slope, rounded[1]),
        np.einsum(f"{left},{out}->{right}", rounded[0], slope),
    )
    y, pull = jax.vjp(lambda x, w: linear.einsum(spec, x, w), jnp.asarray(x, jnp.bfloat16), jnp.asarray(w))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)
    got_x, got_w = pull(jnp.asarray(slope, y.dtype))
    np.testing.assert_allclose(got_x.astype(jnp.float32), of_x, rtol=2**-8, atol=1e-6)
    assert got_w.dtype == jnp.float32
    np.testing.assert_allclose(got_w, of_w, rtol=1e-5, atol=1e-5)


def test_cache_rows_can_be_repeated(params):
    tokens = tokens_of(2, 6)
    _, cache = forward(CFG, params, tokens[:, :4], cache=tf.init_cache(CFG, 2, 8), prefill=True)
    many = tf.map_cache_rows(lambda x, axis: jnp.repeat(x, 3, axis), cache)
    one, _ = forward(CFG, params, tokens[:, 4:5], cache=cache)
    three, _ = forward(CFG, params, np.repeat(tokens[:, 4:5], 3, axis=0), cache=many)
    np.testing.assert_allclose(three, np.repeat(one, 3, axis=0), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_emu3_8b_has_the_parameters_of_transformers_emu3(scan):
    """Default `Emu3TextConfig`: V 184622, M 4096, L 32, 32 heads and 8 KV heads of 128, F 14336, no biases.

    attention  2 * 4096 * 4096 (q, o) + 2 * 4096 * 1024 (k, v)     =    41,943,040
    MLP        3 * 4096 * 14336                                    =   176,160,768
    norms      2 * 4096                                            =         8,192
    32 layers of 218,112,000                                       = 6,979,584,000
    embedding  184622 * 4096                                       =   756,211,712
    final norm                                                     =         4,096
    `Emu3TextModel`                                                = 7,735,799,808
    head, untied (`Emu3ForCausalLM`)                               +   756,211,712
    """
    cfg = tf.emu3_8b(scan_layers=scan)
    tree = jax.eval_shape(lambda: tf.init_params(cfg, jax.random.key(0)))
    size = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert size - tree["lm_head"].size == 7_735_799_808
    assert size == 8_492_011_520
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("bfloat16")}
    hidden, _ = jax.eval_shape(lambda p: forward(cfg, p, jnp.zeros((1, 8192), jnp.int32)), tree)
    assert hidden.shape == (1, 8192, 4096)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads"):
        dataclasses.replace(CFG, num_kv_heads=3)
    with pytest.raises(ValueError, match="head_dim"):
        dataclasses.replace(CFG, head_dim=7)
