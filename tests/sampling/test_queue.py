"""The queue with drafts and on a mesh: a case is what it is alone, and what a batch makes of it."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.models import transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import most_tokens, pad_prompts
from progemu_jax.sampling.queue import Request, sample_queue
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.sequence import Layout

CODES, LAYOUT = 24, Layout(height=2, width=3, length=96, prompt_budget=12)
WORDS = vocabulary.load(None, CODES)
GRAMMAR = Grammar.of(WORDS, (*range(200), WORDS.eos))  # texts of several lengths
POLICY = Sampling(top_k=8, text_top_k=40, guidance=2.0, max_text=7)
KEEP = np.asarray([[False, True, True], [False, False, False]])


@pytest.fixture(scope="module")
def model():
    config = TransformerConfig(
        vocab_size=WORDS.size, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, prior_alignment=True, prior_beside=True, initializer_range=0.5,
    )  # fmt: skip
    return initial(lambda key: transformer.init_params(config, key), 3), config


def requests(count):
    """So many cases, the third with kept codes."""
    rng = np.random.default_rng(0)
    texts = ["New edema.", "Improved left pleural effusion, now small.", "x", "No significant change."]
    found = [Request(rng.integers(0, CODES, (2, 3)), texts[i % 4], 50 + i, tag=i) for i in range(count)]
    found[2] = dataclasses.replace(found[2], keep=KEEP, codes=found[2].prior)
    return found


def queue(model, asked, policy, **options):
    results = list(sample_queue(*model, LAYOUT, GRAMMAR, policy, WORDS, asked, **options))
    assert sorted(r.request.tag for r in results) == sorted(r.tag for r in asked)
    return {r.request.tag: r for r in results}


def same(one, other, passes=True):
    """Of the cases that both have."""
    for tag in one.keys() & other.keys():
        np.testing.assert_array_equal(one[tag].codes, other[tag].codes)
        assert one[tag].text == other[tag].text
        assert not passes or one[tag].passes == other[tag].passes


@pytest.mark.parametrize(
    ("draft", "coupling"),
    [
        ("jacobi", "gumbel"),
        ("jacobi", "maximal"),
        pytest.param("prior", "gumbel", marks=pytest.mark.slow),
        pytest.param("prior", "maximal", marks=pytest.mark.slow),
        pytest.param("jacobi", "independent", marks=pytest.mark.slow),
    ],
)
def test_drafts_in_a_queue(model, draft, coupling):
    """A case is the same in another order, among others, alone and in a batch; by "gumbel" also without drafts."""
    policy = dataclasses.replace(POLICY, draft=draft, coupling=coupling, window=4)
    asked = requests(7)
    found = queue(model, asked, policy, slots=3)
    same(found, queue(model, asked[::-1], policy, slots=3))
    same(found, queue(model, asked[2:3], policy, slots=3))
    assert (found[2].codes == asked[2].prior)[KEEP].all()
    assert len({r.codes.tobytes() for r in found.values()}) > 5
    assert len({len(r.text) for r in found.values()}) > 1
    assert len({r.passes - len(r.text) for r in found.values()}) > 1  # images at a pace of their own
    if coupling == "gumbel":
        same(found, queue(model, asked, POLICY, slots=3), passes=False)
    else:  # in a batch the noise of a case is of its own passes, too
        batch = pad_prompts(
            WORDS, LAYOUT, [r.prior for r in asked], [r.prompt for r in asked],
            policy=policy, slots=most_tokens(WORDS, LAYOUT),
        )  # fmt: skip
        keys = jax.vmap(jax.random.key)(np.asarray([r.seed for r in asked], np.uint32))
        keep = np.stack([np.zeros((2, 3), bool) if r.keep is None else r.keep for r in asked])
        codes = np.stack([r.prior for r in asked])
        out = generate(*model, LAYOUT, GRAMMAR, policy, batch, keys, keep=keep, codes=codes)
        for tag, result in found.items():
            np.testing.assert_array_equal(result.codes, out.codes[tag])
            assert list(result.text) == [t for t in np.asarray(out.text[tag]) if t >= 0]
            assert result.passes == out.passes[tag]


@pytest.mark.slow
def test_images_alone_by_drafts(model):
    policy = dataclasses.replace(POLICY, draft="jacobi", window=4)
    whole, images = (queue(model, requests(5), policy, slots=2, text=text) for text in (True, False))
    for tag, result in images.items():
        np.testing.assert_array_equal(result.codes, whole[tag].codes)
        assert result.text == ()


@pytest.mark.parametrize(
    ("shape", "slots", "draft"),
    [
        ({"data": 2, "tensor": 2}, 4, "jacobi"),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, 8, "none", marks=pytest.mark.slow),
        pytest.param({"data": 8}, 8, "jacobi", marks=pytest.mark.slow),
        pytest.param({"data": 8}, 3, "none", marks=pytest.mark.slow),  # does not divide: unsplit
    ],
)
def test_many_devices_give_the_cases_of_one(model, shape, slots, draft):
    policy = dataclasses.replace(POLICY, draft=draft, window=4)
    mesh = sharding.make_mesh(**shape, devices=jax.devices()[: math.prod(shape.values())])
    axes = (model[0], transformer.LOGICAL_AXES, mesh, sharding.SAMPLING_RULES)
    spread = jax.device_put(model[0], sharding.param_shardings(*axes)), model[1]
    asked = requests(11)
    asked.insert(4, Request(asked[0].prior, "edema " * 200, 1, tag=99))
    one = queue(model, asked, policy, slots=slots)
    many = queue(spread, asked, policy, slots=slots, mesh=mesh)
    assert "prompt" in str(one.pop(99).error)
    assert "prompt" in str(many.pop(99).error)
    same(one, many)
    same(many, queue(spread, asked[-2:], policy, slots=slots, mesh=mesh))  # fewer than there are parts


def test_a_prompt_has_room_or_is_refused():
    """The default holds the longest prompt that is let through; fewer slots are one line."""
    prior = np.zeros((2, 3), int)
    words = next(n for n in range(1, 99) if len(WORDS.encode("edema " * (n + 1))) > LAYOUT.prompt_budget)
    longest = len(sequence.prompt_tokens(WORDS, LAYOUT, prior, "edema " * words)["tokens"])
    room = most_tokens(WORDS, LAYOUT)
    assert room - LAYOUT.prompt_budget < longest <= room
    assert most_tokens(WORDS, dataclasses.replace(LAYOUT, prompt_budget=0)) == 96 - LAYOUT.image_tokens - 1
    with pytest.raises(UserError, match=f"prompt: {longest} tokens, there is room for {longest - 1}"):
        pad_prompts(WORDS, LAYOUT, [prior], ["edema " * words], policy=Sampling(), slots=longest - 1)
