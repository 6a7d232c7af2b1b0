"""The diffusion task: conditions, dropping, sharding, resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_diffusion import CODEC, LENGTH, MODEL, TEXT, WORDS, gray, part

from progemu_jax.devices.sharding import make_mesh
from progemu_jax.errors import UserError
from progemu_jax.models import autoencoder, text_encoder
from progemu_jax.models.unet import UNetConfig
from progemu_jax.tasks.diffusion import DiffusionConfig, DiffusionTask, packer
from progemu_jax.training.loop import TrainConfig, fit


def task(train, **changes):
    config = DiffusionConfig(**({"drop_text": 0.3, "drop_prior": 0.3, "drop_both": 0.3} | changes))
    frozen = {
        "autoencoder": part(autoencoder, CODEC, 3),
        "text_encoder": part(text_encoder, TEXT, 4),
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
