"""Speculation is lossless: against plain decoding token by token, and against exact distributions by enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax import vocab
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.engine import Grammar, generate, pad_prompts
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.speculation import couple
from progemu_jax.sequence import Layout

KINDS = [(d, c) for d in ("prior", "jacobi") for c in ("gumbel", "maximal", "independent")]


def build(codes, height, width, seed=3):
    words = vocab.load(None, codes)
    layout = Layout(height=height, width=width, length=128, prompt_budget=8)
    config = TransformerConfig(
        vocab_size=words.size, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, prior_alignment=True, initializer_range=0.5,
    )  # fmt: skip
    return words, layout, config, transformer.init_params(config, jax.random.key(seed))


@pytest.fixture(scope="module")
def parts():
    return build(codes=24, height=3, width=4)


def sample(parts, priors, prompts, policy, seeds, **given):
    words, layout, config, params = parts
    batch = pad_prompts(words, layout, priors, prompts, policy=policy, slots=64)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    return generate(params, config, layout, Grammar.of(words), policy, batch, keys, **given)


def cases(parts, n, seed=0):
    words, layout, *_ = parts
    rng = np.random.default_rng(seed)
    texts = ["New edema.", "x", "No significant change."]
    return [rng.integers(0, words.codebook_size, (layout.height, layout.width)) for _ in range(n)], [
        texts[i % 3] for i in range(n)
    ]


POLICIES = [
    Sampling(top_k=0, max_text=3),
    Sampling(temperature=0.7, top_k=5, guidance=3.0, max_text=3),
    Sampling(temperature=0.0, guidance=2.0, keep_prior=True, max_text=3),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("draft", "window"), [("prior", 4), ("jacobi", 2), ("jacobi", 5), ("jacobi", 40)])
def test_gumbel_coupling_gives_the_tokens_of_plain_decoding(parts, policy, draft, window):
    priors, prompts = cases(parts, 6)
    plain = sample(parts, priors, prompts, policy, range(6))
    fast = dataclasses.replace(policy, draft=draft, window=window)
    out = sample(parts, priors, prompts, fast, range(6))
    assert (np.asarray(out.codes) == np.asarray(plain.codes)).all()
    assert (np.asarray(out.text) == np.asarray(plain.text)).all()
