"""The decode loop against plain forward passes, and the policies against their definitions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.errors import UserError
from progemu_jax.models import linear, transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling import memory
from progemu_jax.sampling.engine import Engine, Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import Sampling, guide
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.sampling.queue import Request, sample_queue
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.sequence import Layout, unpack

CODES, LAYOUT = 24, Layout(height=2, width=3, length=96, prompt_budget=12)

GREEDY = Sampling(temperature=0.0, text_temperature=0.0, max_text=6)


@pytest.fixture(scope="module")
def parts():
    words = vocabulary.load(None, CODES)
    config = TransformerConfig(
        vocab_size=words.size, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, prior_alignment=True, prior_beside=True, initializer_range=0.5,
    )  # fmt: skip
    return words, config, initial(lambda key: transformer.init_params(config, key), 3)


def cases(n, seed=0):
    rng = np.random.default_rng(seed)
    texts = ["New edema.", "Improved left pleural effusion, now small.", "x", "No significant change."]
    return [rng.integers(0, CODES, (2, 3)) for _ in range(n)], [texts[i % 4] for i in range(n)]


def sample(parts, priors, prompts, policy, seeds, slots=64, **options):
    words, config, params = parts
    batch = pad_prompts(words, LAYOUT, priors, prompts, policy=policy, slots=slots)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    return generate(params, config, LAYOUT, Grammar.of(words), policy, batch, keys, **options)


@functools.partial(jax.jit, static_argnums=0)
def plain(config, params, tokens, positions, aligned, segments):
    priors = {} if aligned is None else {"aligned": aligned, "beside": transformer.beside_of(aligned)}
    hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, segments=segments, **priors)
    return transformer.logits(params, hidden)


guided = jax.jit(guide)


def plain_scores(parts, prior, prompt, produced, policy):
    """Guided scores f32 [1 + produced, V] of what follows the prompt, by one plain forward pass a row: no cache."""
    words, config, params = parts
    twin = (prior, "") if policy.keep_prior else (None, None)
    rows = []
    for p, t in [(prior, prompt)] + ([twin] if policy.guided else []):
        start = sequence.prompt_tokens(words, LAYOUT, p, t)
        n, m = len(start["tokens"]), len(produced)
        row = np.zeros((4, LAYOUT.length), np.int32)  # tokens, positions, aligned, segments; nothing sees its padding
        row[0, :n], row[0, n : n + m] = start["tokens"], produced
        row[1, :n], row[1, n : n + m] = start["positions"], start["positions"][-1] + 1 + np.arange(m)
        grid = sequence.aligned_rows(words, LAYOUT, p).reshape(-1)
        row[2] = -1
        row[2, n - 1 : n - 1 + grid.size] = grid
        row[3, : n + m] = 1
        # Rolled to begin where the prompt ends, so that all shapes are one, and compiled once.
        rows.append(np.roll(np.asarray(plain(config, params, *row[:, None])[0]), 1 - n, axis=0))
    logits = np.stack(rows)
    return np.array(guided(logits, policy.guidance)[0] if policy.guided else logits[0])[: 1 + m]


def by_forward(parts, prior, prompt, policy):
    """Greedy decoding of one case, each token by whole forward passes over all before it."""
    words, produced, codes, text = parts[0], [], [], []

    def scores():
        return plain_scores(parts, prior, prompt, produced, policy)[-1]

    for _ in range(2):
        for _ in range(3):
            codes.append(int(scores()[words.visual_start : words.visual_start + CODES].argmax()))
            produced.append(codes[-1] + words.visual_start)
        produced.append(words.eol)
    produced += [words.eof, words.eoi]
    while len(text) < policy.max_text:
        s = scores()
        end = s[words.eos] if len(text) >= policy.min_text else -np.inf
        token = int(s[: words.text_size].argmax())
        if end > s[token]:
            break
        text.append(token)
        produced.append(token)
    return np.asarray(codes).reshape(2, 3), text


@pytest.mark.parametrize(("guidance", "keep_prior"), [(1.0, False), (3.0, False), (3.0, True)])
def test_decode_equals_forward(parts, guidance, keep_prior):
    policy = dataclasses.replace(GREEDY, guidance=guidance, text_guidance=guidance, keep_prior=keep_prior)
    priors, prompts = cases(3)
    out = sample(parts, priors, prompts, policy, [0, 1, 2])
    for i in range(3):
        codes, text = by_forward(parts, priors[i], prompts[i], policy)
        assert (np.asarray(out.codes[i]) == codes).all()
        assert [int(t) for t in out.text[i] if t >= 0] == text


def test_a_case_depends_on_its_seed_not_on_its_companions(parts):
    policy = Sampling(top_k=8, guidance=1.5, max_text=6)
    priors, prompts = cases(4)
    out = sample(parts, priors, prompts, policy, [5, 6, 7, 8])
    order = [2, 0, 3, 1]
    again = sample(
        parts, [priors[i] for i in order], [prompts[i] for i in order], policy, [(5, 6, 7, 8)[i] for i in order]
    )
    assert (np.asarray(again.codes) == np.asarray(out.codes)[order]).all()
    assert (np.asarray(again.text) == np.asarray(out.text)[order]).all()
    other = sample(parts, priors, prompts, policy, [15, 16, 17, 18])
    assert (np.asarray(other.codes) != np.asarray(out.codes)).any()


def test_output_follows_the_grammar(parts):
    words = parts[0]
    policy = Sampling(top_k=0, max_text=5, min_text=2)
    priors, prompts = cases(4)
    out = sample(parts, priors, prompts, policy, range(4))
    codes, text = np.asarray(out.codes), np.asarray(out.text)
    assert codes.min() >= 0
    assert codes.max() < CODES
    assert text.max() < words.text_size
    for row in text:
        written = row[row >= 0]
        assert len(written) >= 2
        assert (row[len(written) :] == -1).all()
    packed = sequence.pack(words, LAYOUT, priors[0], prompts[0], codes[0], "x")
    assert (unpack(words, LAYOUT, packed["tokens"]).target == codes[0]).all()


def test_kept_codes_stay_and_cost_no_pass_of_their_own(parts):
    policy = dataclasses.replace(GREEDY, guidance=3.0)
    priors, prompts = cases(3)
    free = sample(parts, priors, prompts, policy, range(3))
    keep = np.zeros((3, 2, 3), bool)
    keep[1, 0, 1:], keep[1, 1, 0], keep[2] = True, True, True
    # Given the codes that greedy decoding would choose, the rest is what it would be.
    out = sample(parts, priors, prompts, policy, range(3), keep=keep, codes=free.codes)
    assert (np.asarray(out.codes) == np.asarray(free.codes)).all()
    assert (np.asarray(out.text) == np.asarray(free.text)).all()
    words = (np.asarray(out.text) >= 0).sum(1)
    # 8 places and EOF, EOI: three free codes with a run of forced places after them; all kept is chunks of 4.
    assert (np.asarray(out.passes) - np.minimum(words, policy.max_text - 1) == [6, 4, 3]).all()
    given = np.random.default_rng(1).integers(0, CODES, (3, 2, 3))
    out = sample(parts, priors, prompts, policy, range(3), keep=keep, codes=given)
    assert (np.asarray(out.codes)[keep] == given[keep]).all()
    assert (np.asarray(out.codes[0]) == np.asarray(free.codes[0])).all()


def test_image_alone_has_the_codes_of_image_and_text(parts):
    priors, prompts = cases(2)
    whole = sample(parts, priors, prompts, GREEDY, range(2))
    image = sample(parts, priors, prompts, GREEDY, range(2), text=False)
    assert (np.asarray(image.codes) == np.asarray(whole.codes)).all()
    assert (np.asarray(image.text) == -1).all()


@pytest.mark.parametrize(
    ("batch", "slots", "guidance", "keep_prior", "chunks"),
    [
        (1, 40, 1.0, False, (1,)),
        (2, 48, 3.0, False, (4, 1)),
        (5, 64, 3.0, True, (3, 2, 4)),
    ],
)
def test_every_logit_of_decoding_equals_the_forward_pass(parts, batch, slots, guidance, keep_prior, chunks):
    """Over batch sizes, paddings and chunkings, also where a pass holds more tokens than are then taken."""
    words, config, params = parts
    policy = dataclasses.replace(GREEDY, guidance=guidance, keep_prior=keep_prior)
    priors, prompts = cases(batch)
    rng = np.random.default_rng(4)
    codes, text = rng.integers(0, CODES, (batch, 2, 3)), rng.integers(0, words.text_size, (batch, 5))
    batch_of = pad_prompts(words, LAYOUT, priors, prompts, policy=policy, slots=slots)
    keys = jax.vmap(jax.random.key)(np.arange(batch, dtype=np.uint32))
    run, everything = Engine(config, LAYOUT, Grammar.of(words), policy), (0, config.vocab_size)
    nothing = jnp.zeros((batch, 2, 3), bool), jnp.zeros((batch, 2, 3), jnp.int32)
    state = jax.jit(run.prefill)(params, batch_of, keys, *nothing)
    forward, commit = jax.jit(run.forward), jax.jit(run.commit)
    stream = np.concatenate([np.asarray(run.stream(jnp.asarray(codes.reshape(batch, -1)))), text], axis=1)
    scores = jax.jit(lambda params, hidden: run.scores(params, hidden, everything, guidance))
    got = [scores(params, state.hidden)[:, None]]
    at, turn = 0, 0
    while at < stream.shape[1]:
        count = min(chunks[turn % len(chunks)], stream.shape[1] - at)
        refused = np.full((batch, max(chunks) - count), words.pad)  # drafts
        tokens = np.concatenate([stream[:, at : at + count], refused], axis=1)
        hidden, cache = forward(params, state, jnp.asarray(tokens))
        got.append(scores(params, hidden)[:, :count])
        state = commit(state, hidden, cache, jnp.full(batch, count))
        at, turn = at + count, turn + 1
    got = np.concatenate(got, axis=1)
    for i in range(batch):
        produced = stream[i].tolist()
        np.testing.assert_allclose(got[i], plain_scores(parts, priors[i], prompts[i], produced, policy), atol=1e-4)


def queue_of(parts, requests, policy, stops=None, **options):
    words, config, params = parts
    grammar = Grammar.of(words, stops)
    return list(
        sample_queue(params, config, LAYOUT, grammar, policy, words, requests, prompt_slots=64, **options)
    )  # fmt: skip


def test_a_queued_case_depends_on_its_seed_not_on_slot_companions_or_order(parts):
    policy = Sampling(top_k=8, text_top_k=40, guidance=2.0, max_text=9)
    priors, prompts = cases(7)
    keep = np.zeros((2, 3), bool)
    keep[0, 1:] = True
    requests = [Request(p, t, 50 + i, tag=i) for i, (p, t) in enumerate(zip(priors, prompts, strict=True))]
    requests[2] = dataclasses.replace(requests[2], keep=keep, codes=priors[2])
    options = {"slots": 3, "stops": (*range(200), parts[0].eos)}  # texts of several lengths
    first = {r.request.tag: r for r in queue_of(parts, requests, policy, **options)}
    again = {r.request.tag: r for r in queue_of(parts, requests[::-1], policy, **options)}
    alone = {r.request.tag: r for q in requests[2:4] for r in queue_of(parts, [q], policy, **options)}
    assert sorted(first) == list(range(7))
    for tag, result in first.items():
        for other in (again[tag], *([alone[tag]] if tag in alone else [])):
            assert (other.codes == result.codes).all()
            assert other.text == result.text
    assert (first[2].codes[keep] == priors[2][keep]).all()
    assert len({len(r.text) for r in first.values()}) > 1


def test_a_queue_gives_what_one_batch_gives_and_refills_its_slots(parts):
    policy = dataclasses.replace(GREEDY, guidance=3.0)
    priors, prompts = cases(5)
    out = sample(parts, priors, prompts, policy, range(5))
    taken = []

    def arriving():
        for i in range(5):
            taken.append(i)
            yield Request(priors[i], prompts[i], i, tag=i)

    words, config, params = parts
    results = sample_queue(
        params, config, LAYOUT, Grammar.of(words), policy, words, arriving(), slots=2, prompt_slots=64
    )
    for count, r in enumerate(results):
        assert len(taken) <= count + 3  # read as slots become free
        assert (r.codes == np.asarray(out.codes[r.request.tag])).all()
        assert list(r.text) == [int(t) for t in out.text[r.request.tag] if t >= 0]
        assert r.passes == out.passes[r.request.tag]
    assert count == 4


def test_a_bad_case_in_a_queue_does_not_lose_the_others(parts):
    priors, prompts = cases(4)
    requests = [Request(p, t, i, tag=i) for i, (p, t) in enumerate(zip(priors, prompts, strict=True))]
    requests[1] = dataclasses.replace(requests[1], prompt="edema " * 200)
    requests[2] = dataclasses.replace(requests[2], keep=np.ones((2, 3), bool), codes=np.full((2, 3), CODES))
    results = {r.request.tag: r for r in queue_of(parts, requests, GREEDY, slots=2, text=False)}
    assert "prompt" in str(results[1].error)
    assert "codes" in str(results[2].error)
    assert all(results[i].error is None and results[i].codes is not None and results[i].text == () for i in (0, 3))


def test_too_many_samples_for_the_memory_are_refused_before_anything_runs(parts):
    words, config, _ = parts
    run = Engine(config, LAYOUT, Grammar.of(words), GREEDY)
    each = memory.bytes_per_case(run, 64)
    memory.check(run, 4, 64, free=4 * each)
    with pytest.raises(UserError, match=r"5 samples at a time need .* ask for at most 4 at a time"):
        memory.check(run, 5, 64, free=5 * each - 1)
    # The estimate counts at least the cache that is really made.
    cache = jax.eval_shape(lambda: transformer.init_cache(config, 1, run.cache_slots(64)))
    assert each > sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((cache["k"], cache["v"])))


def test_int8_weights_are_within_half_a_step_and_change_logits_little(parts):
    words, config, params = parts
    small = jax.jit(linear.quantize)(params)
    w, q = params["layers_0"]["mlp"]["up_proj"], small["layers_0"]["mlp"]["up_proj"]
    assert q.values.dtype == jnp.int8
    assert q.scale.shape == (1, w.shape[1])
    assert (jnp.abs(q.values * q.scale - w) <= q.scale * 0.5001).all()
    stacked = jax.jit(lambda p: linear.quantize(transformer.stack_layers(p)))(params)["layers"]["self_attn"]["o_proj"]
    assert (stacked.values[1] == small["layers_1"]["self_attn"]["o_proj"].values).all()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, words.size, (2, 30)))
    whole, light = (plain(config, p, tokens, None, None, None) for p in (params, small))
    error = jnp.linalg.norm(light - whole) / jnp.linalg.norm(whole)
    assert 0 < error < 0.03
    dense = jax.tree.map(
        lambda x: x.values * x.scale if isinstance(x, linear.Int8) else x, small,
        is_leaf=lambda x: isinstance(x, linear.Int8),
    )  # fmt: skip
    exact = plain(config, dense, tokens, None, None, None)
    np.testing.assert_allclose(light, exact, atol=1e-4)
