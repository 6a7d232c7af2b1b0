"""Decoding in blocks: the results of decoding whole, true progress, and an end when the watcher raises."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from progemu_jax.devices import sharding
from progemu_jax.models import transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling import watch
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Layout

CODES, LAYOUT, CASES = 24, Layout(height=3, width=4, length=96, prompt_budget=8), 4
WORDS = vocabulary.load(None, CODES)
GRAMMAR = Grammar.of(WORDS, (*range(200), WORDS.eos))  # texts of several lengths
POLICY = Sampling(temperature=0.8, top_k=9, text_top_k=40, guidance=2.0, max_text=5)
KEEP = np.random.default_rng(1).random((CASES, 3, 4)) < 0.3


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        vocab_size=WORDS.size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, prior_alignment=True, prior_beside=True, learned_positions=64, diagonal=True,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    return jax.tree.map(lambda x: (0.5 * rng.standard_normal(x.shape)).astype(x.dtype), shapes), config


def sample(model, policy, **options):
    priors = np.random.default_rng(0).integers(0, CODES, (CASES, 3, 4))
    texts = ["New edema.", "x", "Improved edema.", "No change."]
    prompts = pad_prompts(WORDS, LAYOUT, list(priors), texts, policy=policy, slots=64)
    keys = jax.vmap(jax.random.key)(np.arange(CASES, dtype=np.uint32))
    out = generate(*model, LAYOUT, GRAMMAR, policy, prompts, keys, keep=KEEP, codes=priors, **options)
    return jax.tree.map(np.asarray, out)


def watched(model, policy, **options):
    told = []
    return sample(model, policy, watch=told.append, **options), told


def same(one, other):
    for name in one._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "diagonal"},
        {"draft": "jacobi", "window": 4},
        pytest.param({"guidance": 1.0, "temperature": 0.0}, marks=pytest.mark.slow),
        pytest.param({"draft": "prior", "window": 4, "coupling": "maximal"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_blocks_draw_what_the_whole_draws(model, monkeypatch, changes):
    monkeypatch.setattr(watch, "BLOCK", 0)  # a pass a block
    policy = dataclasses.replace(POLICY, **changes)
    out, told = watched(model, policy)
    same(out, sample(model, policy))
    assert len({len(row[row >= 0]) for row in out.text}) > 1
    units = [one.unit for one in told]
    assert units == sorted(units)  # codes, then tokens
    assert set(units) == {"codes", "tokens"}
    for unit, of in (("codes", int((~KEEP).sum(axis=(1, 2)).max())), ("tokens", policy.max_text)):
        done = [one.done for one in told if one.unit == unit]
        assert done == sorted(done)
        assert 0 <= done[0] < done[-1] < of
        assert {one.of for one in told if one.unit == unit} == {of}


def test_longer_blocks_and_images_alone(model):
    out, told = watched(model, POLICY, text=False)
    same(out, sample(model, POLICY, text=False))
    assert {one.unit for one in told} == {"codes"}


def test_on_a_mesh(model):
    mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
    params = jax.device_put(model[0], sharding.replicated(mesh))
    same(watched((params, model[1]), POLICY, mesh=mesh)[0], sample(model, POLICY))


def test_what_the_watcher_raises_ends_it_and_the_next_request_is_whole(model):
    def stop(progress):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(model, POLICY, watch=stop)
    same(watched(model, POLICY)[0], sample(model, POLICY))


def test_a_block_grows_and_shrinks_with_the_time_that_a_pass_takes(monkeypatch):
    clock, asked, seconds = [0.0], [], {1: 0.01, 2: 0.02, 4: 0.04, 8: 0.08, 16: 0.16}
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def advance(passes):
        asked.append(passes)
        clock[0] += seconds[passes]
        return watch.Progress("codes", 0, 1) if len(asked) < 8 else None

    watch.in_blocks(advance, lambda progress: None)
    assert asked == [1, 2, 4, 8, 16, 8, 16, 8]
