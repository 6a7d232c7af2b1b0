"""What paints with the prior's pixels: what it starts as, what it may not change, and that it learns."""

import jax
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.errors import UserError
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.models import prior_decoder, vqgan
from progemu_jax.models.prior_decoder import PriorDecoder, PriorDecoderConfig, code_distance
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.tasks.prior_decoder import PriorDecoderLossConfig, PriorDecoderTask
from progemu_jax.training.loop import TrainConfig

CODER = VQGANConfig(ch=8, ch_mult=(1, 2), patch=2, attn_levels=(), codebook_size=16, embed_dim=4, z_channels=8)
CONFIG = PriorDecoderConfig(widths=(8, 16))


@pytest.fixture(scope="module")
def variables():
    return initial(lambda key: vqgan.init_variables(CODER, key), 1)


@pytest.fixture(scope="module")
def params():
    return initial(lambda key: prior_decoder.init_params(CONFIG, key))


def images(n, seed=0, side=16):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side), np.uint8)


def test_it_starts_as_the_sum_that_needs_no_training(params):
    decoded, prior, decoded_prior = np.random.default_rng(2).uniform(-1, 1, (3, 2, 16, 16)).astype(np.float32)
    painted = jax.jit(PriorDecoder(CONFIG).apply)({"params": params}, decoded, prior, decoded_prior, np.ones((2, 4, 4)))
    gate = float(jax.nn.sigmoid(4.0))
    np.testing.assert_allclose(painted, decoded + gate * (prior - decoded_prior), atol=1e-6)


def test_distance_of_codes_is_none_for_equal_ones_and_about_one_at_random():
    table = np.random.default_rng(1).standard_normal((64, 4), np.float32)
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 64, (2, 1, 40, 40))
    assert not code_distance(table, one, one).any()
    assert 0.9 < float(code_distance(table, one, other).mean()) < 1.1


def test_without_a_prior_the_tokenizer_is_the_plain_one_bit_for_bit(variables, params):
    plain, painting = Tokenizer(variables, CODER), Tokenizer(variables, CODER, painter=(params, CONFIG))
    codes = plain.tokenize(images(3))
    np.testing.assert_array_equal(painting.detokenize(codes), plain.detokenize(codes))
    np.testing.assert_array_equal(plain.detokenize(codes, prior=images(3, 1)), plain.detokenize(codes))


def test_unchanged_codes_give_the_prior_back(variables, params):
    painting, prior = Tokenizer(variables, CODER, painter=(params, CONFIG)), images(3)
    codes = painting.tokenize(prior)
    plain = np.abs(painting.detokenize(codes).astype(int) - prior).mean()
    assert np.abs(painting.detokenize(codes, prior=prior).astype(int) - prior).mean() < 0.05 * plain
    np.testing.assert_array_equal(
        painting.detokenize(codes, prior=prior, prior_codes=codes), painting.detokenize(codes, prior=prior)
    )
    one = painting.detokenize(codes[0], prior=prior[0])
    assert one.shape == prior[0].shape


def test_a_prior_of_another_size_is_one_line(variables, params):
    painting = Tokenizer(variables, CODER, painter=(params, CONFIG))
    with pytest.raises(UserError, match="images: "):
        painting.detokenize(painting.tokenize(images(2)), prior=images(2).astype(np.float32))


def test_training_brings_the_change_and_keeps_the_patient(variables):
    """Follow-ups are priors with a bright square in one of four corners, which the codes tell."""
    rng = np.random.default_rng(0)
    prior = images(32) // 2
    followup = prior.copy()
    for image in followup:
        y, x = rng.integers(0, 2, 2) * 8
        image[y : y + 8, x : x + 8] = 255
    train = TrainConfig(steps=150, batch_size=32, learning_rate=5e-3, warmup_steps=0)
    task = PriorDecoderTask(CONFIG, PriorDecoderLossConfig(), train, CODER, variables, 0.0, 16)
    state, step = initial(task.init), jax.jit(task.train_step)
    batch = {"prior": prior, "followup": followup}
    evaluate = jax.jit(task.eval_step)
    before = evaluate(state, batch)
    for i in range(train.steps):
        state, _ = step(state, batch, jax.random.key(i))
    after = evaluate(state, batch)
    assert after["loss"] < 0.7 * before["loss"]
    assert after["error_changed"] < 0.7 * before["error_changed"]
    for old, new in zip(jax.tree.leaves(variables), jax.tree.leaves(state["frozen"]), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_image_that_does_not_divide_is_one_line(variables):
    with pytest.raises(UserError, match=r"config\.decoder\.model: an image of 18"):
        PriorDecoderTask(CONFIG, PriorDecoderLossConfig(), TrainConfig(), CODER, variables, 0.0, 18)
