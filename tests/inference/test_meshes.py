"""Sampling and tokenising on eight devices give what one gives; shards of predictions of hosts make one folder."""

import dataclasses

import jax
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.devices import sharding
from progemu_jax.files.predictions import Case
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.models import transformer, vqgan
from progemu_jax.models.diagonal_head import NAME
from progemu_jax.sampling.policy import Sampling
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Layout

CODES = 24

POLICY = Sampling(guidance=2.0, keep_prior=True, top_k=12, text_top_k=20, max_text=5)


def make_model(mode="rows"):
    words = vocabulary.load(None, CODES)
    config = transformer.TransformerConfig(
        vocab_size=words.size, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, prior_alignment=True, prior_beside=True, initializer_range=0.5,
        diagonal=mode == "diagonal",
    )  # fmt: skip
    codec = vqgan.VQGANConfig(ch=16, patch=2, ch_mult=(1,), num_res_blocks=1, attn_levels=(), codebook_size=CODES)
    tokenizer = Tokenizer(initial(lambda key: vqgan.init_variables(codec, key), 1), codec)
    params = initial(lambda key: transformer.init_params(config, key), 3)
    if config.diagonal:  # what is learnt last starts from zeros
        rng = np.random.default_rng(1)
        params[NAME] = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), params[NAME])
    policy = dataclasses.replace(POLICY, mode=mode)
    return ProgEmu(params, config, Layout(2, 3, 96, 12), words, tokenizer, policy, "toy")


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        ({"data": 4, "tensor": 2}, "rows"),
        pytest.param({"data": 8}, "rows", marks=pytest.mark.slow),
        ({"data": 4, "tensor": 2}, "diagonal"),
    ],
)
def test_eight_devices_sample_as_one(shape, mode):
    rng = np.random.default_rng(0)
    cases = [Case(f"p{i}", rng.integers(0, CODES, (2, 3)), ["New edema.", "x"][i % 2]) for i in range(8)]
    images = rng.integers(0, 256, (8, 16, 16)).astype(np.uint8)
    one, many = make_model(mode), make_model(mode).on(sharding.make_mesh(**shape))
    q_proj, parts = many.params["layers_0"]["self_attn"]["q_proj"], shape.get("tensor", 1)
    assert q_proj.addressable_shards[0].data.shape == (32, 4 // parts, 8)
    if mode == "diagonal":
        assert many.params[NAME]["down_proj"].addressable_shards[0].data.shape == (48 // parts, 32)
    expected, found = one.sample(cases, 5), many.sample(cases, 5)
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.texts == expected.texts
    assert len({codes.tobytes() for codes in found.codes}) > 4
    assert abs(found.images.astype(int) - expected.images).max() <= 1
    np.testing.assert_array_equal(many.tokenize(images), one.tokenize(images))
