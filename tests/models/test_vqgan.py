"""The image tokenizer: blocks against NumPy, quantiser, temporal path, sizes, discriminator."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.models import conv_layers as vl
from progemu_jax.models import discriminator, vqgan

CFG = vqgan.VQGANConfig(ch=8, ch_mult=(1, 2), attn_levels=(1,), z_channels=4, embed_dim=3, codebook_size=11)


def random_tree(tree, seed=0, scale=0.2):
    """NumPy values for a tree of abstract arrays (compiling the initialisers costs seconds)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) * scale).astype(leaf.dtype), tree)


def random_variables(cfg):
    variables = jax.eval_shape(lambda: vqgan.init_variables(cfg, jax.random.key(0)))
    variables = {name: random_tree(tree) for name, tree in variables.items()}
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return variables


def module_variables(module, *args):
    """Random variables of one block, and the block as a jitted function of (variables, *args)."""
    variables = random_tree(jax.eval_shape(lambda: module.init(jax.random.key(0), *args)))
    return variables, jax.jit(module.apply)


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(cfg, variables, *args, method=None):
    return vqgan.VQGAN(cfg).apply(variables, *args, method=method)


def images_of(batch, side, channels=1, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, side, side, channels)).astype(np.float32)


def convolve(x, kernel, bias):
    """3 x 3 convolution of a padded image `[H + 2, W + 2, C]`, by loops over the window, in float64."""
    H, W = x.shape[0] - 2, x.shape[1] - 2
    windows = (x[i : i + H, j : j + W].astype(np.float64) @ kernel[i, j] for i in range(3) for j in range(3))
    return sum(windows) + bias


@pytest.mark.parametrize("patch", [1, 2])
def test_parts_agree_with_the_whole(patch):
    cfg = dataclasses.replace(CFG, patch=patch)
    variables, images = random_variables(cfg), images_of(2, 16)
    latents = np.asarray(apply(cfg, variables, images, method="encode"))
    variables["params"]["quantize"]["embedding"] = latents.reshape(-1, 3)[::2][:11]  # so that many are used
    restored, codes, aux = apply(cfg, variables, images)
    side = 16 // cfg.factor
    assert restored.shape == images.shape
    assert codes.shape == (2, side, side)
    assert codes.dtype == jnp.int32
    assert len(np.unique(codes)) > 5
    np.testing.assert_array_equal(apply(cfg, variables, images, method="tokenize")[0], codes)
    decoded = apply(cfg, variables, codes, method="detokenize")
    np.testing.assert_allclose(decoded, np.clip(restored, -1, 1), atol=1e-4)
    np.testing.assert_array_equal(aux["counts"], np.bincount(np.ravel(codes), minlength=11))
    np.testing.assert_allclose(aux["sums"].sum(0), aux["latents"].sum(0), atol=1e-4)
    frequency = np.bincount(np.ravel(codes), minlength=11) / codes.size
    entropy = -sum(f * np.log(f) for f in frequency if f)
    np.testing.assert_allclose(aux["perplexity"], np.exp(entropy), rtol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_near_enough_to_given_ones_are_kept(normalize):
    cfg = dataclasses.replace(CFG, normalize_codes=normalize)
    variables, images = random_variables(cfg), images_of(3, 16)
    z = np.asarray(apply(cfg, variables, images, method="encode")).reshape(-1, cfg.embed_dim)
    variables["params"]["quantize"]["embedding"] = z[:11] + 0.1
    table = np.asarray(variables["params"]["quantize"]["embedding"])
    if normalize:
        z, table = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, table))
    distance = np.square(z[:, None] - table).sum(-1)
    near = np.random.default_rng(0).integers(0, 11, len(z))
    excess = distance[np.arange(len(z)), near] - distance.min(1)
    slack = float(np.median(excess))
    codes, least = apply(cfg, variables, images, near.reshape(3, 8, 8), slack, method="tokenize")
    clear = np.abs(excess - slack) > 1e-5  # rounding may decide a tie either way
    want = np.where(excess <= slack, near, distance.argmin(1))
    assert 0 < (want == near).mean() < 1
    np.testing.assert_array_equal(np.ravel(codes)[clear], want[clear])
    np.testing.assert_allclose(np.ravel(least), distance.min(1), atol=1e-5)


def test_patches_fold_and_unfold():
    x = images_of(2, 8, 3)
    folded = vqgan.space_to_depth(x, 2)
    np.testing.assert_array_equal(folded[1, 2, 3].reshape(2, 2, 3), x[1, 4:6, 6:8])
    np.testing.assert_array_equal(vqgan.depth_to_space(folded, 2), x)


def test_downsampling_pads_below_and_on_the_right_only():
    x = images_of(1, 6, 2)
    variables, run = module_variables(vl.Downsample(), x)
    p = variables["params"]["conv"]
    padded = np.pad(x[0], ((0, 2), (0, 2), (0, 0)))
    want = convolve(padded, p["kernel"], p["bias"])[::2, ::2]
    np.testing.assert_allclose(run(variables, x)[0], want, atol=1e-5)


def test_upsampling_is_nearest_then_convolution():
    x = images_of(1, 4, 2)
    variables, run = module_variables(vl.Upsample(), x)
    p = variables["params"]["conv"]
    padded = np.pad(x[0].repeat(2, 0).repeat(2, 1), ((1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(run(variables, x)[0], convolve(padded, p["kernel"], p["bias"]), atol=1e-5)


def test_spatial_norm_is_a_group_norm_modulated_by_the_upsampled_codes():
    x, codes = images_of(2, 8, 16) * 3 + 5, images_of(2, 2, 3, seed=1)
    variables, run = module_variables(vl.SpatialNorm(), x, codes)
    p = variables["params"]
    groups = x.astype(np.float64).reshape(2, 64, 4, 4)  # 16 channels: 4 groups of 4
    centred = groups - groups.mean((1, 3), keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(x.shape)
    normed = normed * p["norm_layer"]["scale"] + p["norm_layer"]["bias"]
    large = codes.repeat(4, 1).repeat(4, 2)
    scale, shift = (large @ p[n]["kernel"][0, 0] + p[n]["bias"] for n in ("conv_y", "conv_b"))
    np.testing.assert_allclose(run(variables, x, codes), normed * scale + shift, atol=1e-5)


def test_group_count():
    assert [vl.num_groups(c) for c in (4, 8, 32, 48, 128, 256, 1024)] == [1, 2, 8, 12, 32, 32, 32]


def test_attention_over_pixels():
    x = images_of(1, 3, 8)
    variables, run = module_variables(vl.AttnBlock(), x)
    p = variables["params"]
    norm = vl.GroupNorm().apply({"params": p["norm"]}, x)
    q, k, v = (np.asarray(norm, np.float64).reshape(9, 8) @ p[n]["kernel"][0, 0] + p[n]["bias"] for n in "qkv")
    scores = np.exp(q @ k.T / np.sqrt(8))
    out = scores / scores.sum(1, keepdims=True) @ v @ p["proj_out"]["kernel"][0, 0] + p["proj_out"]["bias"]
    np.testing.assert_allclose(run(variables, x), x + out.reshape(x.shape), atol=1e-5)


def test_nearest_code_in_one_piece_and_in_several():
    rng = np.random.default_rng(0)
    z, table = rng.normal(size=(37, 4)).astype(np.float32), rng.normal(size=(19, 4)).astype(np.float32)
    want = ((z[:, None].astype(np.float64) - table) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(vqgan.nearest(z, table), want)
    np.testing.assert_array_equal(vqgan.nearest(z, table, entries=60), want)


@pytest.mark.parametrize("normalize", [False, True])
def test_quantiser_gradients(normalize):
    cfg = dataclasses.replace(CFG, normalize_codes=normalize)
    module = vqgan.Quantizer(cfg)
    z = images_of(2, 2, 3)
    table = np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)
    run = lambda z, table: module.apply({"params": {"embedding": table}}, z)  # noqa: E731
    vectors, codes, aux = run(z, table)
    size = lambda x: np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    near, latents = (table / size(table), z / size(z)) if normalize else (table, z)
    np.testing.assert_allclose(vectors, near[codes], atol=1e-5)
    np.testing.assert_allclose(aux["commit_loss"], ((latents - near[codes]) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(aux["codebook_loss"], aux["commit_loss"], rtol=1e-6)
    through, to_table = jax.grad(lambda *a: run(*a)[0].sum(), (0, 1))(z, table)
    assert not np.any(to_table), "the reconstruction must not move the codes"
    if not normalize:
        np.testing.assert_array_equal(through, np.ones_like(z))
    to_z, to_table = jax.grad(lambda *a: run(*a)[2]["codebook_loss"], (0, 1))(z, table)
    assert not np.any(to_z)
    np.testing.assert_array_equal(np.abs(to_table).sum(1) > 0, np.asarray(aux["counts"]) > 0)
    to_z, to_table = jax.grad(lambda *a: run(*a)[2]["commit_loss"], (0, 1))(z, table)
    assert np.all(np.abs(to_z).sum(-1) > 0)
    assert not np.any(to_table)


def test_moving_average_codes_end_at_the_mean_of_their_latents():
    embedding = np.array([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]], np.float32)
    aux = {"counts": np.array([4.0, 2.0, 0.0]), "sums": np.array([[8.0, 4.0], [1.0, 1.0], [0.0, 0.0]])}
    counts, sums, moved = np.ones(3, np.float32), embedding, embedding
    for _ in range(200):
        moved, counts, sums = vqgan.ema_update(moved, counts, sums, aux, 0.9)
    np.testing.assert_allclose(moved[:2], [[2.0, 1.0], [0.5, 0.5]], atol=1e-4)
    np.testing.assert_allclose(moved[2], [9.0, 9.0], rtol=1e-3)  # unused: stays


def test_convolution_over_time_is_causal_so_frame_0_can_be_decoded_alone():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 5, 2)).astype(np.float32)
    variables, run = module_variables(vl.CausalConv3D(2, (3, 3, 3)), x)
    whole = run(variables, x)
    assert whole.shape == x.shape
    changed = x.copy()
    changed[:, 2:] += 1
    np.testing.assert_allclose(run(variables, changed)[:, :2], whole[:, :2], atol=1e-6)
    np.testing.assert_allclose(run(variables, x[:, :1])[:, 0], run(variables, x.repeat(2, 1))[:, 0], atol=1e-5)


def test_temporal_path_sees_a_still_image_as_four_frames():
    cfg = dataclasses.replace(CFG, temporal=True, embed_dim=4)
    variables, images = random_variables(cfg), images_of(2, 8)
    restored, codes, _ = apply(cfg, variables, images)
    assert restored.shape == images.shape
    assert codes.shape == (2, 4, 4)
    encoder = variables["params"]["encoder"]
    frame = apply(dataclasses.replace(cfg, temporal=False), variables, images, method=spatial_encoding)
    x = jnp.repeat(frame, 4, axis=1)
    for i in range(2):  # 4 frames -> 2 -> 1
        conv = vl.CausalConv3D(4, (4, 3, 3), (2, 1, 1))
        x = jax.nn.silu(conv.apply({"params": encoder[f"time_conv_{i}"]}, x))
        assert x.shape[1] == 2 - i
    stats = variables["batch_stats"]["encoder"]["time_res_stack_0"]
    x = vl.TemporalResBlock().apply({"params": encoder["time_res_stack_0"], "batch_stats": stats}, x)
    x = vl.CausalConv3D(4, (3, 1, 1)).apply({"params": variables["params"]["quant_conv"]}, x)
    np.testing.assert_allclose(apply(cfg, variables, images, method="encode"), x[:, 0], atol=1e-5)


def spatial_encoding(model, images):
    return model.encoder(images, False)


def test_emu3_vq_has_the_layers_of_emu3_visionvq():
    """The default `Emu3VisionVQConfig`'s parameters, counted layer by layer without our modules."""
    conv = lambda i, o, k=9: i * o * k + o  # noqa: E731
    group = lambda c: 2 * c  # noqa: E731
    spatial = lambda c: 2 * c + 2 * conv(4, c, 1)  # noqa: E731
    res = lambda i, o, n: n(i) + n(o) + conv(i, o) + conv(o, o) + (conv(i, o, 1) if i != o else 0)  # noqa: E731
    attn = lambda c, n: n(c) + 4 * conv(c, c, 1)  # noqa: E731
    temporal_res = 2 * (2 * 4) + 2 * conv(4, 4, 27)
    c, widths = 256, [256, 512, 512, 1024]
    encoder = conv(3, 256)
    for level, width in enumerate(widths):
        encoder += res(c, width, group) + res(width, width, group)
        encoder += 2 * attn(width, group) if level == 3 else conv(width, width)
        c = width
    middle = lambda n: 2 * res(1024, 1024, n) + attn(1024, n)  # noqa: E731
    encoder += middle(group) + group(1024) + conv(1024, 4) + 2 * conv(4, 4, 36) + 2 * temporal_res
    decoder = conv(4, 1024) + middle(spatial) + 2 * conv(4, 4, 27) + 2 * temporal_res
    for level, width in reversed(list(enumerate(widths))):
        decoder += res(c, width, spatial) + 2 * res(width, width, spatial)
        decoder += (3 * attn(width, spatial) if level == 3 else 0) + (conv(width, width) if level else 0)
        c = width
    decoder += spatial(256) + conv(256, 3)
    want = encoder + decoder + 32_768 * 4 + 2 * conv(4, 4, 3)
    cfg = vqgan.emu3_vq()
    tree = jax.eval_shape(lambda: vqgan.init_variables(cfg, jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == want == 270_740_287
    codes, _ = jax.eval_shape(
        lambda v, x: vqgan.VQGAN(cfg).apply(v, x, method="tokenize"), tree, jnp.zeros((1, 512, 512, 3))
    )
    assert codes.shape == (1, 64, 64)


def test_training_lowers_the_loss():
    """A few steps of plain gradient descent on one batch, through the straight-through quantiser."""
    cfg, images = dataclasses.replace(CFG, normalize_codes=True, ch_mult=(1,)), images_of(4, 8) * 0.2 + 0.5
    params = initial(lambda key: vqgan.init_variables(cfg, key))["params"]

    @jax.jit
    def step(params):
        def loss(params):
            restored, _, aux = vqgan.VQGAN(cfg).apply({"params": params}, images, True)
            error = jnp.mean(jnp.square(restored - images))
            return error + aux["codebook_loss"] + 0.25 * aux["commit_loss"], error

        (_, error), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, gradients), error

    errors = []
    for _ in range(30):
        params, error = step(params)
        errors.append(float(error))
    assert errors[-1] < 0.3 * errors[0], errors


def test_discriminator_judges_patches_and_images_apart():
    cfg, images = discriminator.DiscriminatorConfig(ch=8, num_layers=2), images_of(3, 32)
    params = random_tree(jax.eval_shape(lambda: discriminator.init_params(cfg, jax.random.key(0))))
    run = jax.jit(lambda x: discriminator.Discriminator(cfg).apply({"params": params}, x))
    logits = run(images)
    assert logits.shape == (3, 6, 6, 1)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(run(images[1:2])[0], logits[1], atol=1e-5)
    assert np.std(logits) > 1e-3
