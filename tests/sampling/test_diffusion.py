"""The diffusion model: schedule, solvers, guidance, seeds, training, and how users meet it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import progemu_jax
from progemu_jax import provenance
from progemu_jax.checkpoints import arrays, export
from progemu_jax.convert import components
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.devices.sharding import make_mesh
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import to_dict
from progemu_jax.inference.counterfactual import CounterfactualModel
from progemu_jax.models import autoencoder, text_encoder, unet
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import TextEncoderConfig
from progemu_jax.models.unet import UNet, UNetConfig
from progemu_jax.sampling.diffusion import DiffusionSampling, first_noise, guide, solver_table
from progemu_jax.tasks.diffusion import DiffusionConfig, DiffusionTask, packer
from progemu_jax.text import text_tokenizers
from progemu_jax.training.loop import TrainConfig, fit

SIZE, LENGTH = 32, 12
CODEC = AutoencoderConfig(channels=(8,), patch=4, scale=0.8)
TEXT = TextEncoderConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, text_length=LENGTH)
MODEL = UNetConfig(in_channels=8, channels=(16,), attention=(True,), heads=2, cross_attention_dim=16, text_dim=16)
WORDS = text_tokenizers.WordPiece.of_texts(["New small left pleural effusion.", "Resolved edema."])
POLICY = DiffusionSampling(steps=3, guidance=2.0, image_guidance=1.5)


@pytest.fixture(scope="module")
def params():
    """Of all three parts; the UNet's zero-initialised layers are filled, else every sample is the same."""
    keys = jax.random.split(jax.random.key(1), 3)
    denoiser = unet.init_params(MODEL, keys[0])
    for name in ("conv_in", "conv_out"):
        kernel = denoiser[name]["kernel"]
        denoiser[name]["kernel"] = 0.1 * jax.random.normal(jax.random.key(2), kernel.shape)
    return {
        components.UNET: denoiser,
        components.AUTOENCODER: autoencoder.init_params(CODEC, keys[1]),
        components.TEXT_ENCODER: text_encoder.init_params(TEXT, keys[2]),
    }


@pytest.fixture(scope="module")
def run(params, tmp_path_factory):
    """A run directory with the three exports, as the stages leave them."""
    folder = tmp_path_factory.mktemp("run")
    configs = {
        components.UNET: {
            "model": to_dict(MODEL),
            "schedule": to_dict(Schedule()),
            "policy": to_dict(POLICY),
            "image_size": SIZE,
            "hash": "0" * 64,
        },
        components.AUTOENCODER: {"model": to_dict(CODEC)},
        components.TEXT_ENCODER: {"model": to_dict(TEXT)},
    }
    for kind, config in configs.items():
        with export.ExportWriter(folder / components.IN_RUN[kind]) as writer:
            for name, leaf in arrays.flatten(params[kind]).items():
                writer.add(name, leaf)
            if kind == components.TEXT_ENCODER:
                (writer.folder / "tokenizer").mkdir()
                WORDS.save(writer.folder / "tokenizer")
            writer.finish({"kind": kind, **config})
    return folder


@pytest.fixture(scope="module")
def model(run):
    return progemu_jax.load(run)


def gray(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)


# --- schedule and solvers ---


def test_noise_has_the_variance_that_the_schedule_says():
    schedule = Schedule()
    alphas = schedule.alphas()
    assert alphas.shape == (1000,)
    assert alphas[0] == pytest.approx(1 - 0.00085)
    assert alphas[-1] == pytest.approx(0.00466, abs=1e-5)  # Stable Diffusion's last one
    noisy = schedule.add_noise(jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1), 3.0), jnp.asarray([999]))
    assert float(noisy[0, 0, 0, 0]) == pytest.approx(2 * alphas[-1] ** 0.5 + 3 * (1 - alphas[-1]) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_a_solver_that_is_told_the_true_noise_returns_the_clean_latent(solver):
    table = solver_table(Schedule(last_alpha_one=True), DiffusionSampling(steps=12, solver=solver))
    clean, noise = 0.7, -1.3
    x, before = table["alpha"][0] * clean + table["sigma"][0] * noise, 0.0
    for i in range(12):
        found = (x - table["sigma"][i] * noise) / table["alpha"][i]
        assert found == pytest.approx(clean, abs=1e-4)
        x, before = table["a"][i] * x + table["b"][i] * found + table["c"][i] * before, found
    assert x == pytest.approx(clean, abs=1e-4)


def test_the_timesteps_are_stable_diffusions():
    assert solver_table(Schedule(), DiffusionSampling(steps=50))["time"].tolist() == list(range(981, 0, -20))
    assert solver_table(Schedule(), DiffusionSampling(steps=1000))["time"][0] == 999
    assert solver_table(Schedule(), DiffusionSampling(steps=4, solver="dpm++"))["time"].tolist() == [999, 749, 500, 250]


def exact_error(solver, steps, spread=0.5):
    """Relative error on the exact noise of Gaussian data: x_0 = x_T s / sqrt(alpha^2 s^2 + sigma^2)."""
    table = solver_table(Schedule(last_alpha_one=True), DiffusionSampling(steps=steps, solver=solver))
    x, before = 1.0, 0.0
    alpha, sigma = table["alpha"].astype(float), table["sigma"].astype(float)
    for i in range(steps):
        clean = alpha[i] * spread**2 / (alpha[i] ** 2 * spread**2 + sigma[i] ** 2) * x
        x, before = table["a"][i] * x + table["b"][i] * clean + table["c"][i] * before, clean
    return abs(x * np.hypot(alpha[0] * spread, sigma[0]) / spread - 1)


def test_solvers_converge_and_the_second_order_one_sooner():
    for solver in ("ddim", "dpm++"):
        assert exact_error(solver, 100) < 0.03 < exact_error(solver, 20) < 0.12
    for steps in (10, 20, 50, 100):
        assert exact_error("dpm++", steps) < exact_error("ddim", steps)


def test_two_guidance_scales_are_instruct_pix2pixs_formula():
    full, image, none = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    rows = jnp.concatenate([full, image, none])
    got = guide(rows, DiffusionSampling(guidance=7.5, image_guidance=1.5), True)
    np.testing.assert_allclose(got, none + 1.5 * (image - none) + 7.5 * (full - image), rtol=1e-5, atol=1e-5)
    got = guide(rows[:4], DiffusionSampling(guidance=3.0, image_guidance=1.0), True)
    np.testing.assert_allclose(got, image + 3.0 * (full - image), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guide(jnp.asarray(full), DiffusionSampling(guidance=1.0), False), full)


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"solver": "euler"}, {"guidance": -1.0}, {"image_guidance": float("nan")}, {"steps": 2000}],
)
def test_a_policy_that_makes_no_sense_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        DiffusionSampling(**values)


# --- models ---


def test_the_priors_channels_start_at_zero_and_widening_keeps_the_output():
    narrow = dataclasses.replace(MODEL, in_channels=4)
    params = unet.init_params(narrow, jax.random.key(0))
    params["conv_out"]["kernel"] = jax.random.normal(jax.random.key(1), params["conv_out"]["kernel"].shape)
    x, prior = jax.random.normal(jax.random.key(2), (2, 1, 8, 8, 4))
    args = (jnp.asarray([10]), jnp.ones((1, 3, 16)))
    before = UNet(narrow).apply({"params": params}, x, *args)
    after = UNet(MODEL).apply({"params": unet.widen(params)}, jnp.concatenate([x, prior], -1), *args)
    np.testing.assert_allclose(after, before, atol=1e-5)
    fresh = unet.init_params(MODEL, jax.random.key(0))["conv_in"]["kernel"]
    assert not fresh[:, :, 4:].any()
    assert fresh[:, :, :4].any()


@pytest.mark.slow
def test_recomputing_in_the_backward_pass_changes_no_gradient(params):
    x, text = jnp.ones((1, 8, 8, 8)), jnp.ones((1, 3, 16))

    def grad(cfg):
        loss = lambda p: jnp.sum(jnp.square(UNet(cfg).apply({"params": p}, x, jnp.asarray([5]), text)))  # noqa: E731
        return jax.jit(jax.grad(loss))(params[components.UNET])

    plain, saved = grad(MODEL), grad(dataclasses.replace(MODEL, remat=True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(saved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(a).max() + 1e-9))


@pytest.mark.parametrize(
    "limits", [{"MOST_SCORES": 64}, {"SCORES_IN_CACHE": 64}, {"MOST_SCORES": 64, "SCORES_IN_CACHE": 64}]
)
def test_attention_in_blocks_of_queries_or_heads_is_attention(monkeypatch, limits):
    from progemu_jax.kernels import attention

    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 16, 8))
    some = jnp.arange(16)[None] < jnp.asarray([[11], [3]])
    causal = jnp.tril(jnp.ones((16, 16), bool))[None, None]
    masks = (None, some[:, None, None], causal)
    whole = [attention.multi_head_attention(q, k, v, 2, mask) for mask in masks]
    assert not np.allclose(whole[0], whole[1])
    for name, value in limits.items():
        monkeypatch.setattr(attention, name, value)
    for mask, want in zip(masks, whole, strict=True):
        np.testing.assert_allclose(attention.multi_head_attention(q, k, v, 2, mask), want, atol=1e-6)


# --- sampling ---


def test_a_case_does_not_depend_on_its_companions(model):
    cases = [Case(f"pair{i}", gray(i), "New small left pleural effusion.") for i in range(3)]
    alone = [Case("pair0", gray(0), cases[0].prompt), Case("x", gray(7), "Resolved edema."), Case("y", gray(8), "a")]
    both = [model.sample(c, seed=3).images for c in (cases, alone)]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    assert not np.array_equal(both[0][1], both[1][1])
    assert not np.array_equal(both[0][0], model.sample(cases, seed=4).images[0])


def test_counterfactual_has_images_and_says_that_there_is_no_text(model):
    out = model.counterfactual(gray(0), "New small left pleural effusion.", num_samples=2, seed=1)
    assert out.images.shape == (2, SIZE, SIZE)
    assert out.images.dtype == np.uint8
    assert out.texts is out.codes is out.mask is None
    np.testing.assert_array_equal(out.prior + out.difference, out.images)
    assert out.uncertainty.any()
    assert not np.array_equal(*out.images)
    again = model.counterfactual(gray(0), "New small left pleural effusion.", num_samples=2, seed=1)
    np.testing.assert_array_equal(again.images, out.images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "prompt: empty"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"seed": -1}, "seed=-1"),
        ({"steps": 0}, "steps=0"),
        ({"temperature": 1.0}, "unknown key"),
        ({"prior": None}, "needs a prior image"),
        ({"mask": np.ones((SIZE, SIZE), bool)}, "a diffusion model takes no mask"),
        ({"mask": "auto"}, "a diffusion model takes no mask"),
        ({"text": True}, "a diffusion model writes no text"),
        ({"prior": np.zeros((4, 4, 4), np.uint8)}, "expected \\[H, W\\]"),
    ],
)
def test_bad_requests_end_in_one_line(model, arguments, message):
    values = {"prior": gray(0), "prompt": "Resolved edema."} | arguments
    with pytest.raises(UserError, match=message):
        model.counterfactual(**values)


def test_what_needs_codes_or_a_mask_says_so_and_the_futures_are_saved(model, tmp_path):
    out = model.counterfactual(gray(0), "Resolved edema.", num_samples=2, mask=None, text=False)
    for ask, message in ((lambda: out.entropy, "no codes"), (out.composite, "takes no mask")):
        with pytest.raises(UserError, match=message):
            ask()
    rows = [json.loads(line) for line in out.save(tmp_path / "out").read_text().splitlines()]
    assert [row["text"] for row in rows] == [None, None]
    assert provenance.read_png(tmp_path / "out" / rows[1]["image"])["progemu:model"] == model.hash


def test_it_is_a_counterfactual_model(model):
    assert isinstance(model, CounterfactualModel)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("a", None, "x"), "needs a prior image"),
        (Case("a", np.zeros((4, 4), np.int32), "x"), r"expected an image, uint8 \[32, 32\], got int32 \[4, 4\]"),
        (Case("a", np.zeros((SIZE, SIZE), np.uint8), "new\x00edema"), r"U\+0000"),
    ],
)
def test_a_case_is_checked_before_any_work_and_named(model, case, message):
    model.check(Case("a", gray(0), ""))
    with pytest.raises(UserError, match=message):
        model.check(case)
    with pytest.raises(UserError, match="case a: .*" + message):
        model.sample([case])


def test_eight_devices_sample_as_one(run, model):
    cases = [Case(f"p{i}", gray(i), ["New small left pleural effusion.", "Resolved edema."][i % 2]) for i in range(8)]
    many = progemu_jax.load(run)
    assert many.on(make_mesh(data=4, tensor=2)) is many
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == 8
    for part in (cases, cases[:3]):  # three do not divide over four: unsplit
        expected, found = (m.sample(part, 5).images for m in (model, many))
        assert abs(found.astype(int) - expected).max() <= 1
        assert len({image.tobytes() for image in found}) == len(part)


def test_a_run_without_all_parts_says_what_is_missing(run, tmp_path):
    import shutil

    shutil.copytree(run / "train", tmp_path / "part/train")
    with pytest.raises(UserError, match="holds no autoencoder"):
        progemu_jax.load(tmp_path / "part")
    with pytest.raises(UserError, match="autoencoder of its own"):
        progemu_jax.load(run, tokenizer=run)


def test_a_run_becomes_a_diffusers_folder_unless_its_autoencoder_cannot(run, tmp_path):
    from progemu_jax.convert.convert import convert

    with pytest.raises(UserError, match="patch=4 has no place"):
        convert(run, tmp_path / "out")
    convert(run / "train/unet", tmp_path / "unet")
    part = diffusers_folder.open_folder(tmp_path / "unet").parts[components.UNET]
    assert part.model == MODEL


# --- training ---


def task(train, **changes):
    config = DiffusionConfig(**({"drop_text": 0.3, "drop_prior": 0.3, "drop_both": 0.3} | changes))
    frozen = {
        "autoencoder": autoencoder.init_params(CODEC, jax.random.key(3)),
        "text_encoder": text_encoder.init_params(TEXT, jax.random.key(4)),
    }
    null = tuple(x[0] for x in WORDS([""], LENGTH))
    return DiffusionTask(MODEL, CODEC, TEXT, config, train, frozen, null)


def batches(seed, size=8):
    rng = np.random.default_rng(seed)
    pack = packer(DiffusionConfig(), WORDS, LENGTH, lambda e: e["prompt"], True)
    while True:
        rows = [
            pack({"prior": gray(i), "followup": gray(i + 9), "prompt": "Resolved edema."}, rng) for i in range(size)
        ]
        yield {k: np.stack([row[k] for row in rows]) for k in rows[0]}


def test_a_single_image_has_the_constant_prior():
    pack = packer(DiffusionConfig(crop=0.0), WORDS, LENGTH, lambda e: e["text"], True)
    row = pack({"image": gray(0), "text": "New small left pleural effusion."}, np.random.default_rng(0))
    np.testing.assert_array_equal(row["image"], gray(0))
    assert (row["prior"] == 128).all()
    assert row["mask"].sum() == 8  # six pieces and both ends


def test_a_dropped_condition_is_the_empty_text_and_a_prior_of_zeros():
    t = task(TrainConfig())
    batch = {k: jnp.asarray(v) for k, v in next(batches(0, 4)).items()}
    prior, text, mask = t.conditions(t.frozen, batch, jnp.asarray([0, 1, 2, 3]))
    assert [bool(p.any()) for p in prior] == [True, True, False, False]
    np.testing.assert_array_equal(mask.sum(1), [batch["mask"][0].sum(), 2, batch["mask"][2].sum(), 2])
    np.testing.assert_array_equal(text[1], text[3])
    np.testing.assert_array_equal(text[0], text[2])


def test_every_large_array_of_the_state_is_split_over_fsdp():
    big = dataclasses.replace(MODEL, channels=(64,))
    t = DiffusionTask(big, CODEC, TEXT, DiffusionConfig(), TrainConfig(ema=0.9), task(TrainConfig()).frozen, None)
    abstract = jax.eval_shape(t.init, jax.random.key(0))
    shardings = t.state_shardings(make_mesh(data=2, fsdp=4), abstract)
    split = 0
    for leaf, where in zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings), strict=True):
        if leaf.size >= 2**14:
            assert where.spec[-1] == "fsdp"
            assert where.shard_shape(leaf.shape)[-1] == leaf.shape[-1] // 4
            split += 1
        else:
            assert where.is_fully_replicated
    assert split >= 4 * 5  # parameters, both moments and the average


@pytest.mark.slow
def test_training_on_eight_devices_is_training_on_one(tmp_path):
    train = TrainConfig(steps=3, batch_size=8, learning_rate=1e-3, log_every=1, save_every=3, ema=0.9)
    states = {}
    for name, mesh in {"one": None, "eight": make_mesh(data=2, fsdp=4)}.items():
        states[name] = fit(task(train), train, batches, None, tmp_path / name, mesh=mesh)
    for key in ("params", "ema"):
        for a, b in zip(*(jax.tree.leaves(states[n][key]) for n in ("one", "eight")), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_parameters_and_the_frozen_ones_stay(tmp_path):
    train = TrainConfig(steps=4, batch_size=8, learning_rate=1e-3, log_every=1, save_every=2)
    whole = fit(task(train), train, batches, None, tmp_path / "whole")

    def stops_after_two(seed):
        for i, batch in enumerate(batches(seed)):
            if i == 2:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(task(train), train, stops_after_two, None, tmp_path / "cut")
    resumed = fit(task(train), train, batches, None, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    jax.tree.map(np.testing.assert_array_equal, resumed["frozen"], task(train).frozen)


def test_parts_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="the text encoder's states have width 16"):
        DiffusionTask(
            dataclasses.replace(MODEL, text_dim=0, cross_attention_dim=24), CODEC, TEXT, DiffusionConfig(),
            TrainConfig(), {}, None,
        )  # fmt: skip
    with pytest.raises(ValueError, match="choose 'description' or 'impression'"):
        DiffusionConfig(prompt="findings")
    with pytest.raises(ValueError, match="no multiple of groups"):
        UNetConfig(channels=(20,), attention=(True,))


def test_first_noise_is_each_cases_own():
    keys = jax.vmap(jax.random.key)(np.asarray([5, 6, 7], np.uint32))
    three, one = first_noise(keys, (4, 4, 4)), first_noise(keys[1:2], (4, 4, 4))
    np.testing.assert_array_equal(three[1], one[0])
    assert abs(float(first_noise(keys, (64, 64, 4)).std()) - 1) < 0.02
