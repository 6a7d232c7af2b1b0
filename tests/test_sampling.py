"""The decode loop against plain forward passes, and the policies against their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax import vocab
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.engine import Grammar, generate, pad_prompts
from progemu_jax.sampling.policy import Sampling, draw, guide, top_k_threshold
from progemu_jax.sequence import Layout, unpack

CODES, LAYOUT = 24, Layout(height=2, width=3, length=96, prompt_budget=12)
GREEDY = Sampling(temperature=0.0, text_temperature=0.0, max_text=6)


@pytest.fixture(scope="module")
def parts():
    words = vocab.load(None, CODES)
    config = TransformerConfig(
        vocab_size=words.size, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, prior_alignment=True, initializer_range=0.5,
    )  # fmt: skip
    return words, config, transformer.init_params(config, jax.random.key(3))


def cases(n, seed=0):
    rng = np.random.default_rng(seed)
    texts = ["New edema.", "Improved left pleural effusion, now small.", "x", "No significant change."]
    return [rng.integers(0, CODES, (2, 3)) for _ in range(n)], [texts[i % 4] for i in range(n)]


def sample(parts, priors, prompts, policy, seeds, slots=64, **options):
    words, config, params = parts
    batch = pad_prompts(words, LAYOUT, priors, prompts, policy=policy, slots=slots)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    return generate(params, config, LAYOUT, Grammar.of(words), policy, batch, keys, **options)


def by_forward(parts, prior, prompt, policy):
    """Greedy decoding of one case by whole forward passes over its exact tokens: no cache, no padding."""
    words, config, params = parts

    def start(p, t):
        b = pad_prompts(words, LAYOUT, [p], [t], policy=GREEDY)
        n = int(b.valid.sum())
        return list(b.tokens[0, :n]), list(b.positions[0, :n]), b.aligned[0].reshape(-1)

    twin = (prior, "") if policy.keep_prior else (None, None)
    rows = [start(prior, prompt)] + ([start(*twin)] if policy.guided else [])
    produced = []

    def scores(scale, low, high):
        out = []
        for tokens, positions, aligned in rows:
            first = len(tokens) - len(produced)
            lines = np.full(len(tokens), -1)
            for k in range(first - 1, len(tokens)):
                place = k - (first - 1)
                lines[k] = aligned[place] if place < len(aligned) else -1
            hidden, _ = Transformer(config).apply(
                {"params": params}, jnp.asarray([tokens]), jnp.asarray([positions]), aligned=jnp.asarray([lines])
            )
            out.append(transformer.logits(params, hidden[:, -1], (low, high)))
        return np.array(guide(jnp.concatenate(out), scale) if policy.guided else out[0])[0]

    def push(token):
        produced.append(token)
        for tokens, positions, _ in rows:
            tokens.append(token)
            positions.append(positions[-1] + 1)

    codes = []
    for _ in range(2):
        for _ in range(3):
            s = scores(policy.guidance, words.visual_start, words.visual_start + CODES)
            codes.append(int(s.argmax()))
            push(codes[-1] + words.visual_start)
        push(words.eol)
    push(words.eof)
    push(words.eoi)
    text = []
    while len(text) < policy.max_text:
        s = scores(policy.text_guidance, 0, words.eos + 1)
        s[words.text_size :] = -np.inf
        if len(text) >= policy.min_text:
            s[words.eos] = scores(policy.text_guidance, 0, words.eos + 1)[words.eos]
        token = int(s.argmax())
        if token == words.eos:
            break
        text.append(token)
        push(token)
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
    from progemu_jax import sequence

    packed = sequence.pack(words, LAYOUT, priors[0], prompts[0], codes[0], "x")
    assert (unpack(words, LAYOUT, packed["tokens"]).target == codes[0]).all()


def test_top_k_threshold_is_the_kth_largest():
    x = jax.random.normal(jax.random.key(0), (6, 500)).at[:, :100].set(-jnp.inf)
    for k in (1, 3, 64, 400):
        assert (top_k_threshold(x, k) == jnp.sort(x, -1)[:, -k][:, None]).all()


def test_draw_follows_the_distribution():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    n = 20_000
    keys = jax.vmap(jax.random.key)(jnp.arange(n, dtype=jnp.uint32))
    for top_k, expected in ((0, [0.5, 0.3, 0.15, 0.05]), (2, [0.625, 0.375, 0, 0])):
        counts = np.bincount(draw(jnp.tile(logits, (n, 1)), keys, 1.0, top_k), minlength=4) / n
        assert np.abs(counts - expected).sum() < 4 * np.sqrt(4 / n)


def test_guide_is_its_formula():
    x = jax.random.normal(jax.random.key(1), (4, 10))
    scores = jax.nn.log_softmax(x)
    np.testing.assert_allclose(guide(x, 1.0), scores[:2], rtol=1e-6)
    np.testing.assert_allclose(guide(x, 3.0), scores[2:] + 3 * (scores[:2] - scores[2:]), rtol=1e-5)


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"guidance": float("nan")}, {"top_k": -2}, {"max_text": 0}])
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_kept_codes_stay_and_cost_no_pass_of_their_own(parts, guidance):
    policy = dataclasses.replace(GREEDY, guidance=guidance)
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
