"""Which attention runs where, and that the kernels compute the same."""

import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.initial import initial
from support.tiny_diffusion import normal

from progemu_jax.devices import accelerators, sharding
from progemu_jax.kernels import attention
from progemu_jax.models.transformer import Transformer, TransformerConfig, init_params, logits

BF16, F32, WORDS, PADDING = jnp.bfloat16, jnp.float32, jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)


@pytest.mark.parametrize(
    ("backend", "dtype", "head_dim", "segments", "dropout", "expected"),
    [
        ("cpu", BF16, 128, None, False, "xla"),
        ("gpu", BF16, 128, PADDING, False, "cudnn"),
        ("gpu", BF16, 64, None, False, "cudnn"),
        ("gpu", F32, 128, None, False, "xla"),  # 16-bit floats only
        ("gpu", BF16, 256, None, False, "xla"),
        ("gpu", BF16, 128, WORDS, False, "xla"),  # packed
        ("gpu", BF16, 128, None, True, "xla"),
        ("tpu", F32, 128, WORDS, False, "splash"),
        ("tpu", BF16, 64, None, False, "xla"),
        ("tpu", BF16, 128, None, True, "xla"),
    ],
)
def test_auto_takes_a_kernel_that_computes_what_is_asked(backend, dtype, head_dim, segments, dropout, expected):
    dtype = jnp.dtype(dtype)
    assert attention.choose("auto", backend, dtype, head_dim, segments, dropout) == expected
    assert attention.choose("xla", backend, dtype, head_dim, segments, dropout) == "xla"


@pytest.mark.parametrize(
    ("capability", "expected"), [("7.5", "xla"), ("8.0", "cudnn"), ("12.0", "cudnn"), ("gfx942", "xla")]
)
def test_a_gpu_without_flash_attention_in_cudnn_takes_xla(capability, expected):
    """A T4, as on Colab, is of capability 7.5: what was asked for by name is not overruled."""
    able = accelerators.has_flash_attention(types.SimpleNamespace(compute_capability=capability))
    assert attention.choose("auto", "gpu", jnp.dtype(BF16), 128, None, False, able) == expected
    assert attention.choose("cudnn", "gpu", jnp.dtype(BF16), 128, None, False, able) == "cudnn"
    assert not accelerators.has_flash_attention(jax.devices("cpu")[0])


def inputs(T, B=2, K=2, G=2, D=128):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32) for shape in ((B, K, G, T, D), (B, K, T, D), (B, K, T, D))]


def plainly(q, k, v, block):
    return jax.jit(lambda *x: attention.causal_attend(*x, None, block))(q, k, v)


@pytest.mark.parametrize("packed", [False, True])
def test_splash_is_blockwise_attention_with_its_gradients(packed):
    """In Pallas' interpreter; a length that the kernel's blocks do not divide."""
    T = 150
    segments = jnp.asarray(np.arange(T) > 70, jnp.int32)[None].repeat(2, 0) if packed else None

    def total(run):
        return lambda *x: (jnp.sin(out := run(*x)).sum(), out)

    ours = total(lambda q, k, v: attention.splash(q, k, v, segments, interpret=True))
    plain = total(lambda q, k, v: attention.causal_attend(q, k, v, segments, 64))
    (ga, a), (gb, b) = (jax.jit(jax.grad(f, (0, 1, 2), has_aux=True))(*inputs(T)) for f in (ours, plain))
    np.testing.assert_allclose(a, b, atol=2e-6)
    for x, y in zip(ga, gb, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)


@pytest.mark.parametrize("local", [False, True])
def test_splash_on_a_mesh_runs_on_each_devices_rows_and_heads(local):
    """local: the rows are given to their devices before, as sampling does; the heads are still to split."""
    mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])
    q, k, v = inputs(128, G=1)

    def splash(*x):
        return attention.splash(*x, interpret=True)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        spec = jax.sharding.NamedSharding(mesh, sharding.spec(("batch", "kv_heads")))
        if local:
            rows = sharding.spec(("batch",))
            axes = set(sharding.RULES["batch"])
            splash = jax.shard_map(splash, in_specs=rows, out_specs=rows, axis_names=axes, check_vma=False)
        out = jax.jit(splash)(*(jax.device_put(x, spec) for x in (q, k, v)))
    np.testing.assert_allclose(out, plainly(q, k, v, 128), atol=2e-6)


def test_cudnns_shapes_are_right():
    """Its layout through the same public function's XLA path."""
    real = jax.nn.dot_product_attention
    q, k, v = inputs(20, D=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", lambda *x, implementation, **o: real(*x, **o))
        out = jax.jit(lambda *x: attention.self_attend(*x, jnp.ones((2, 20), bool), "cudnn", 8))(q, k, v)
    np.testing.assert_allclose(out, plainly(q, k, v, 8), atol=2e-6)


def test_a_kernel_asked_for_by_name_says_what_it_cannot_do():
    q, k, v = inputs(4, D=8)
    with pytest.raises(ValueError, match="no dropout"):
        attention.self_attend(q, k, v, None, "cudnn", 4, 0.1, jax.random.key(0))
    with pytest.raises(ValueError, match="packed segments"):
        attention.self_attend(q, k, v, jnp.zeros((2, 4), jnp.int32), "cudnn", 4)
    with pytest.raises(ValueError, match="attention='flash'"):
        TransformerConfig(attention="flash")


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_of_causal_attention_is_that_of_attention_with_a_mask(packed):
    """Two queries a key/value head; the second block of queries is shorter."""
    key = jax.random.split(jax.random.key(0), 4)
    q, g = (jax.random.normal(k, (2, 2, 2, 13, 4)) for k in key[:2])
    k, v = (jax.random.normal(k, (2, 2, 13, 4)) for k in key[2:])
    segments = jnp.repeat(jnp.array([[1, 2], [3, 3]]), jnp.array([5, 8]), axis=1) if packed else None
    mask = jnp.tril(jnp.ones((13, 13), bool))
    if packed:
        mask = (mask & (segments[:, :, None] == segments[:, None]))[:, None, None]

    def slopes(attend):
        return jax.jit(jax.grad(lambda *x: (attend(*x) * g).sum(), argnums=(0, 1, 2)))(q, k, v)

    found = slopes(lambda *x: attention.causal_attend(*x, segments, 8))
    for a, b in zip(found, slopes(lambda *x: attention.attend(*x, mask)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("policy", "scan"), [("nothing", False), ("attention", True), ("dots", True)])
def test_what_is_computed_again_is_the_same(policy, scan):
    sizes = dict(vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
                 intermediate_size=24, scan_layers=scan)  # fmt: skip
    plain, again = TransformerConfig(**sizes), TransformerConfig(**sizes, remat=True, remat_policy=policy)
    params = initial(lambda key: init_params(plain, key))
    tokens = jnp.arange(24).reshape(2, 12) % 32

    def loss(params, config):
        hidden, _ = Transformer(config).apply({"params": params}, tokens)
        return jnp.square(logits(params, hidden)).mean()

    a, b = (jax.jit(jax.grad(loss), static_argnums=1)(params, config) for config in (plain, again))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_policies_save_what_they_say():
    """Residuals of one layer: nothing < attention < dots."""
    sizes = dict(vocab_size=32, hidden_size=64, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=16,
                 intermediate_size=128, scan_layers=True, remat=True)  # fmt: skip
    held = []
    for policy in ("nothing", "attention", "dots"):
        config = TransformerConfig(**sizes, remat_policy=policy)
        params = jax.eval_shape(lambda c=config: init_params(c, jax.random.key(0)))

        def loss(params, config=config):
            hidden, _ = Transformer(config).apply({"params": params}, jnp.zeros((4, 256), jnp.int32))
            return jnp.square(hidden).mean()

        held.append(jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes)
    assert held[0] < held[1] < held[2]


@pytest.mark.parametrize(
    "limits", [{"MOST_SCORES": 64}, {"SCORES_IN_CACHE": 64}, {"MOST_SCORES": 64, "SCORES_IN_CACHE": 64}]
)
def test_attention_in_blocks_of_queries_or_heads_is_attention(monkeypatch, limits):
    from progemu_jax.kernels import attention

    q, k, v = normal((3, 2, 16, 8))

    def attend(*x):
        return jax.jit(lambda *x: attention.multi_head_attention(*x[:3], 2, x[3]))(*x)

    some = jnp.arange(16)[None] < jnp.asarray([[11], [3]])
    causal = jnp.tril(jnp.ones((16, 16), bool))[None, None]
    masks = (None, some[:, None, None], causal)
    whole = [attend(q, k, v, mask) for mask in masks]
    assert not np.allclose(whole[0], whole[1])
    for name, value in limits.items():
        monkeypatch.setattr(attention, name, value)
    for mask, want in zip(masks, whole, strict=True):
        np.testing.assert_allclose(attend(q, k, v, mask), want, atol=1e-6)


def passes_over_a_cache(monkeypatch, backend):
    """One prompt of 6 tokens, then passes of 1 and 3 with rows of different lengths: outputs, and the cache."""
    monkeypatch.setattr(attention, "platform", lambda: backend)
    B, K, D, S = 3, 2, 8, 14
    shape = {"k": (B, K, *((D, S) if attention.cached_keys() == "BKDS" else (S, D))), "v": (B, K, S, D)}
    cache = {name: jnp.full(size, 1e6) for name, size in shape.items()}  # what no token has written counts nowhere
    q, k, v = inputs(10, B, K, D=D)
    offset, outs = jnp.asarray([6, 2, 4]), []

    def one(cache, offset, q, k, v):
        cache = attention.write_cache(cache, k, v, offset, prefill=False)
        return attention.attend_cache(q, cache, offset), cache

    cache = attention.write_cache(cache, k[:, :, :6], v[:, :, :6], jnp.zeros(B, int), prefill=True)
    for start, stop in ((6, 7), (7, 10)):
        out, cache = jax.jit(one)(cache, offset, *(x[..., start:stop, :] for x in (q, k, v)))
        outs.append(out)
        offset = offset + stop - start
    return outs, cache


def test_attention_over_a_cache_is_attention_over_what_was_written(monkeypatch):
    """On a CPU, whose keys lie otherwise, as elsewhere."""
    q, k, v = inputs(10, 3, 2, D=8)
    found = {backend: passes_over_a_cache(monkeypatch, backend) for backend in ("cpu", "gpu")}
    for row, length in enumerate((6, 2, 4)):
        seen = [*range(length), *range(6, 10)]
        for x, y, number in zip(*(found[backend][0] for backend in found), (1, 3), strict=True):
            total = length + number + (number == 3)
            one = [a[row : row + 1] for a in (q, k, v)]
            rows = [np.asarray(a)[..., seen[:total], :] for a in one]
            whole = attention.causal_attend(*(jnp.asarray(a) for a in rows), None, 16)
            np.testing.assert_allclose(x[row : row + 1], whole[..., total - number : total, :], atol=1e-5)
            np.testing.assert_allclose(x, y, atol=1e-5)
    np.testing.assert_array_equal(found["cpu"][1]["k"].swapaxes(2, 3), found["gpu"][1]["k"])
    np.testing.assert_array_equal(found["cpu"][1]["v"], found["gpu"][1]["v"])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_loop_of_passes_copies_no_cache(rows):
    """Read off the compiled program: nothing of a cache's size is copied or transposed, in the loop or around it."""
    K, D, S = 2, 16, 80
    cache = {"k": jnp.zeros((rows, K, D, S)), "v": jnp.zeros((rows, K, S, D))}

    def loop(cache, q):
        def body(i, carry):
            cache, q = carry
            offset = jnp.full(rows, i)
            cache = attention.write_cache(cache, q[:, :, 0], q[:, :, 1], offset, prefill=False)
            return cache, attention.attend_cache(q, cache, offset)

        return jax.lax.fori_loop(0, 40, body, (cache, q))

    text = jax.jit(loop, donate_argnums=0).lower(cache, jnp.ones((rows, K, 2, 1, D))).compile().as_text()
    moved = re.findall(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", text)
    assert "while(" in text
    assert max((math.prod(map(int, shape.split(","))) for shape in moved), default=0) < rows * K * S * D
