"""Optimizer, schedule and accumulation against closed forms and optax."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.cross_entropy import cross_entropy

from progemu_jax.errors import UserError
from progemu_jax.models import linear, transformer
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig

CFG = TrainConfig(steps=100, learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10)


def test_schedule_warms_up_peaks_and_ends_at_the_floor():
    schedule = optim.make_schedule(CFG)
    np.testing.assert_allclose([schedule(s) for s in range(10)], np.arange(1, 11) / 10, rtol=1e-6)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 45 / 90))
    np.testing.assert_allclose([schedule(s) for s in (10, 55, 100, 500)], [1.0, middle, 0.1, 0.1], rtol=1e-5)


def test_decay_spares_norms_and_biases_even_when_layers_are_stacked():
    params = {
        "layers": {
            "norm": {"scale": jnp.ones((2, 4))},
            "wq": {"kernel": jnp.ones((2, 4, 4)), "bias": jnp.ones((2, 4))},
        },
        "gain": jnp.ones(4),
        "embedding": jnp.ones((8, 4)),
    }
    assert optim.decayed(params) == {
        "layers": {"norm": {"scale": False}, "wq": {"kernel": True, "bias": False}},
        "gain": False,
        "embedding": True,
    }


def test_update_is_clip_then_adam_then_decay():
    """First step by hand: Adam's first update is the gradient's sign; decay is added unscaled."""
    cfg = dataclasses.replace(CFG, warmup_steps=0, weight_decay=0.5, clip=1.0, eps=1e-12)
    params = {"kernel": jnp.array([[2.0, -4.0]]), "bias": jnp.array([1.0])}
    grads = {"kernel": jnp.array([[30.0, -40.0]]), "bias": jnp.array([0.0])}
    tx = optim.make_optimizer(cfg)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-(1 + 1.0), -(-1 - 2.0)]], rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], [0.0])
    mu = next(s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
    np.testing.assert_allclose(mu["kernel"], [[0.1 * 0.6, -0.1 * 0.8]], rtol=1e-5)  # clipped to norm 1


def _descend(cfg, steps=200):
    tx = optim.make_optimizer(cfg)
    target = normal(8, 8)
    params = {"kernel": jnp.zeros((8, 8))}

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(lambda p: jnp.sum((p["kernel"] - target) ** 2))(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state, float(jnp.abs(params["kernel"] - target).mean())


def test_bfloat16_moments_are_half_the_memory_and_train_as_well():
    cfg = dataclasses.replace(CFG, learning_rate=0.05, final_learning_rate=1e-4, steps=200, weight_decay=0.0, clip=0)
    _, full, error = _descend(cfg)
    _, half, error_half = _descend(dataclasses.replace(cfg, moment_dtype="bfloat16"))
    assert error < 1e-2
    assert error_half < 2e-2

    def size(state):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)

    assert size(half) * 2 == size(full)


def test_bfloat16_second_moment_does_not_freeze():
    """Gradients that grow by half: with b2 0.999 rounding to nearest would never leave the old value."""
    tx = optim.scale_by_adam_bfloat16(0.9, 0.999, 1e-8)
    params = jnp.zeros(2000)
    state = tx.init(params)._replace(nu=jnp.ones(2000, jnp.bfloat16))
    step = jax.jit(lambda s: tx.update(jnp.full(2000, 1.5), s)[1])
    for _ in range(300):
        state = step(state)
    expected = 2.25 - 1.25 * 0.999**300
    assert float(state.nu.astype(jnp.float32).mean()) == pytest.approx(expected, rel=0.01)


def test_stochastic_rounding_is_right_on_average_and_between_neighbours():
    x = jnp.full(20000, 1.0 + 0.3 * 2**-7)  # bfloat16 has steps of 2**-7 above 1
    rounded = optim.stochastic_round(x, optim.hashed_bits(x.shape, (1,))).astype(jnp.float32)
    assert set(np.unique(rounded)) == {1.0, 1.0 + 2**-7}
    assert float((rounded > 1).mean()) == pytest.approx(0.3, abs=0.02)
    special = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 0.0, -2.0])
    bits = jnp.full(special.shape, 2**32 - 1, jnp.uint32)
    np.testing.assert_array_equal(optim.stochastic_round(special, bits).astype(jnp.float32), special)


def test_hashed_bits_are_uniform_and_differ_by_index_and_seed():
    bits = np.asarray(optim.hashed_bits((50, 400), (3, 4)))
    other = np.asarray(optim.hashed_bits((50, 400), (3, 5)))
    assert len(np.unique(bits)) > 19_990
    for bit in range(32):
        assert abs((bits >> bit & 1).mean() - 0.5) < 0.015
        assert abs(((bits ^ other) >> bit & 1).mean() - 0.5) < 0.015
    shifted = np.corrcoef(bits[:, 1:].ravel(), bits[:, :-1].ravel())[0, 1]
    assert abs(shifted) < 0.03


def test_adafactor_is_the_papers():
    """Two steps by hand (Shazeer & Stern 2018, algorithm 4 without relative step and momentum)."""
    cfg = dataclasses.replace(
        CFG, optimizer="adafactor", warmup_steps=0, learning_rate=1e-2, final_learning_rate=1e-2, clip=0, weight_decay=0
    )
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.zeros((128, 160))}
    tx = optim.make_optimizer(cfg)
    state = tx.init(params)
    rows, columns = np.zeros(128), np.zeros(160)
    for t in (1, 2):
        grad = rng.normal(size=(128, 160)).astype(np.float32)
        updates, state = tx.update({"kernel": jnp.asarray(grad)}, state, params)
        decay, square = 1 - t**-0.8, grad.astype(np.float64) ** 2 + 1e-30
        rows, columns = decay * rows + (1 - decay) * square.mean(1), decay * columns + (1 - decay) * square.mean(0)
        u = grad / np.sqrt(np.outer(rows, columns) / rows.mean())
        u /= max(1.0, np.sqrt((u**2).mean()))
        np.testing.assert_allclose(updates["kernel"], -1e-2 * u, rtol=1e-4, atol=1e-7)
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held < 128 + 160 + 16


MUON = dataclasses.replace(CFG, optimizer="muon", warmup_steps=0, clip=0, learning_rate=1e-2, weight_decay=0.1)


def muon_updates(params, grads):
    """Of the first step."""
    tx = optim.make_optimizer(MUON)
    return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params)[0])(grads, params)


def test_muon_makes_matrices_orthogonal_and_leaves_the_rest_to_adam():
    """The first step by hand: all directions of a gradient equally long, with the root mean square of Adam's."""
    grads = {"down_proj": normal(6, 24), "embed_tokens": normal(9, 6), "norm": {"scale": normal(6)}}
    params = {"down_proj": normal(7, 24)[:6], "embed_tokens": normal(10, 6)[:9], "norm": {"scale": jnp.ones(6)}}
    updates = muon_updates(params, grads)
    moved = np.asarray(updates["down_proj"]) + 1e-2 * 0.1 * np.asarray(params["down_proj"])  # decay apart
    left, _, right = np.linalg.svd(grads["down_proj"], full_matrices=False)
    turned = left.T @ (moved / (-1e-2 * 0.2 * np.sqrt(24))) @ right.T
    assert (np.diag(turned) > 0.6).all()
    assert (np.diag(turned) < 1.3).all()
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 0.02
    for one, grad in ((updates["embed_tokens"], grads["embed_tokens"]), (updates["norm"]["scale"], normal(6))):
        first = (0.9 * 0.1 / (1 - 0.9**2) + 1) * np.sign(grad)  # Adam's with Nesterov's momentum, no decay
        np.testing.assert_allclose(one, -1e-2 * first, rtol=1e-3)


def test_muon_takes_the_linear_maps_of_a_transformer_by_the_axes_that_they_sum_over():
    options = {"prior_alignment": True, "prior_beside": True, "learned_positions": 4, "diagonal": True}
    params = jax.eval_shape(
        lambda: transformer.init_params(transformer.TransformerConfig(vocab_size=8, **options), jax.random.key(0))
    )
    found = jax.tree_util.tree_leaves_with_path(
        optim._matrices(params), is_leaf=lambda x: isinstance(x, optax.contrib.MuonDimensionNumbers)
    )
    summed = {path[-1].key: axes.reduction_axis for path, axes in found}
    assert summed == {name: axes for name, axes in linear.INPUTS.items() if name != "lm_head"}


def test_muon_takes_a_product_s_axes_together_and_scanned_layers_apart():
    """Heads and their widths are one axis of the matrix; each layer is a matrix of its own."""
    shapes, flat = {"q_proj": (6, 2, 3), "o_proj": (2, 3, 6)}, {"q_proj": (6, 6), "o_proj": (6, 6)}

    def tree(seed):
        draw = np.random.default_rng(seed).standard_normal
        layers = [{name: draw(shape, np.float32) for name, shape in shapes.items()} for _ in range(2)]
        return {
            "layers": {name: np.stack([layer[name] for layer in layers]) for name in shapes},
            **{f"layers_{i}": layer for i, layer in enumerate(layers)},
            **{name: {"gate_proj": layers[0][name].reshape(flat[name])} for name in shapes},
        }

    updates = muon_updates(tree(0), tree(1))
    for name in shapes:
        for i in range(2):
            one, scanned = updates[f"layers_{i}"][name], updates["layers"][name][i]
            np.testing.assert_allclose(scanned, one, rtol=1e-4, atol=1e-6)
        matrix = updates[name]["gate_proj"]
        np.testing.assert_allclose(updates["layers_0"][name].reshape(flat[name]), matrix, rtol=1e-4, atol=1e-6)


def test_adamw_is_optax_adamw():
    cfg = dataclasses.replace(CFG, learning_rate=1e-2, clip=0, weight_decay=0.1)
    ours, theirs = (
        optim.make_optimizer(cfg),
        optax.adamw(optim.make_schedule(cfg), 0.9, 0.95, cfg.eps, weight_decay=0.1),
    )
    params = mine = {"kernel": normal(4, 5)}
    state, other = optim.start(ours, cfg, mine), theirs.init(params)
    for i in range(5):
        grads = {"kernel": normal(i + 1, 4, 5)[i]}
        state = optim.advance(ours, cfg, state, grads)
        updates, other = theirs.update(grads, other, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(state["params"]["kernel"], params["kernel"], rtol=1e-6)


def test_moving_average_by_hand():
    cfg = dataclasses.replace(CFG, ema=0.5, warmup_steps=0)
    tx = optim.make_optimizer(cfg)
    state = optim.start(tx, cfg, {"kernel": jnp.ones((2, 2))})
    average = np.ones((2, 2))
    for n in range(8):
        state = optim.advance(tx, cfg, state, {"kernel": jnp.ones((2, 2))})
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * np.asarray(state["params"]["kernel"])
        np.testing.assert_allclose(optim.averaged(state)["kernel"], average, rtol=1e-5)
    assert optim.averaged({"params": 3}) == 3


def test_bfloat16_parameters_take_steps_smaller_than_their_last_bit():
    cfg = dataclasses.replace(CFG, learning_rate=1e-4, final_learning_rate=1e-4, warmup_steps=0, weight_decay=0)
    tx = optim.make_optimizer(cfg)
    state = optim.start(tx, cfg, {"kernel": jnp.ones((64, 64), jnp.bfloat16)})
    step = jax.jit(lambda s: optim.advance(tx, cfg, s, {"kernel": jnp.ones((64, 64))}))
    for _ in range(20):
        state = step(state)
    assert state["params"]["kernel"].dtype == jnp.bfloat16
    assert float(state["params"]["kernel"].astype(jnp.float32).mean()) == pytest.approx(1 - 20e-4, abs=3e-4)


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def accumulated(loss_fn, params, batch, n):
    run = jax.jit(lambda params, batch, key: optim.value_and_grad_accumulated(loss_fn, params, batch, key, n))
    return run(params, batch, jax.random.key(0))


@pytest.mark.parametrize("n", [2, 4])
def test_accumulated_gradients_equal_the_whole_batch_however_padding_falls(n):
    params = {"w": normal(5, 7)}
    batch = {
        "x": normal(8, 6, 5),
        "y": np.random.default_rng(2).integers(0, 7, (8, 6)),
        "weights": (np.arange(6) < np.arange(1, 9)[:, None] % 7).astype(np.float32),  # uneven padding
    }

    def loss_fn(params, batch, key):
        return cross_entropy(batch["x"] @ params["w"], batch["y"], batch["weights"])

    (loss, metrics), grads = accumulated(loss_fn, params, batch, 1)
    (loss_n, metrics_n), grads_n = accumulated(loss_fn, params, batch, n)
    np.testing.assert_allclose(loss_n, loss, rtol=1e-5)
    np.testing.assert_allclose(grads_n["w"], grads["w"], rtol=1e-4, atol=1e-6)
    assert metrics_n.keys() == metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics_n[name], metrics[name], rtol=1e-5)


def test_microbatches_get_different_keys():
    def loss_fn(params, batch, key):
        noise = jax.random.normal(key)
        return params * noise, {"square": noise**2}

    (mean, metrics), _ = accumulated(loss_fn, jnp.ones(()), jnp.zeros((4, 1)), 4)
    assert float(metrics["square"]) > 1.01 * float(mean) ** 2  # equal only when all draws are the same


def test_unknown_choices_are_named():
    with pytest.raises(UserError, match="lion"):
        optim.make_optimizer(dataclasses.replace(CFG, optimizer="lion"))
    with pytest.raises(UserError, match="int8"):
        optim.make_optimizer(dataclasses.replace(CFG, moment_dtype="int8"))
    for name in ("muon", "adafactor"):
        with pytest.raises(UserError, match=f"bfloat16.*{name}"):
            optim.make_optimizer(dataclasses.replace(CFG, optimizer=name, moment_dtype="bfloat16"))
    with pytest.raises(UserError, match="accumulate=3 does not divide"):
        optim.value_and_grad_accumulated(lambda p, b, k: (p, {}), jnp.ones(()), jnp.zeros((4, 1)), jax.random.key(0), 3)


@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_rows_as_the_gradient_of_a_table(moments):
    """One of them twice; clipped by the norm of all."""
    cfg = dataclasses.replace(CFG, learning_rate=1e-2, warmup_steps=0, clip=0.5, moment_dtype=moments)
    tx = optim.make_optimizer(cfg)
    params = {"embed_tokens": normal(38, 6), "lm_head": normal(6, 38).T, "norm": {"scale": np.ones(6, np.float32)}}
    ids, rows = np.array([3, 37, 3, 0, 20]), normal(5, 6)
    dense = {
        "embed_tokens": np.zeros((38, 6), np.float32),
        "lm_head": normal(1, 38, 6)[0],
        "norm": {"scale": normal(6)},
    }
    np.add.at(dense["embed_tokens"], ids, rows)
    sparse = {**dense, "embed_tokens": optim.Rows.of(ids, rows, 38)}
    np.testing.assert_allclose(optim.global_norm(sparse), optax.global_norm(dense), rtol=1e-6)
    states = []
    for grads in (sparse, dense):
        step = jax.jit(lambda state, grads=grads: optim.advance(tx, cfg, state, grads))
        states.append(step(step(optim.start(tx, cfg, params))))
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    for a, b in zip(*(jax.tree.leaves(state) for state in states), strict=True):
        a, b = np.asarray(a.astype(jnp.float32)), np.asarray(b.astype(jnp.float32))
        tolerance = {"rtol": 2**-6, "atol": 1e-3} if moments == "bfloat16" else {"rtol": 1e-5, "atol": 1e-7}
        np.testing.assert_allclose(a, b, **tolerance)  # stochastic rounding takes other bits
