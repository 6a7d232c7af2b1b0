"""Speculation is lossless: against plain decoding token by token, and against exact distributions by enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import Sampling, guide, restrict
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.sampling.speculation import couple
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.sequence import Layout

PROMPT = "New edema."
WARM = Sampling(temperature=0.7, top_k=5, guidance=3.0, max_text=3)


def build(codes, height, width):
    """A random model whose next code depends strongly on what came before."""
    words = vocabulary.load(None, codes)
    layout = Layout(height=height, width=width, length=128, prompt_budget=8)
    config = TransformerConfig(
        vocab_size=words.size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, prior_alignment=True, prior_beside=True,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: (0.5 * rng.standard_normal(x.shape)).astype(x.dtype), shapes)
    return words, layout, config, params


@pytest.fixture(scope="module")
def parts():
    return build(codes=24, height=3, width=4)


@pytest.fixture(scope="module")
def priors(parts):
    return [*np.random.default_rng(0).integers(0, 24, (3, 3, 4)), None]


def sample(parts, priors, policy, seeds, slots=64, **given):
    words, layout, config, params = parts
    prompts = [PROMPT, "x", "No significant change."]
    batch = pad_prompts(words, layout, priors, [prompts[i % 3] for i in seeds], policy=policy, slots=slots)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    return jax.tree.map(np.asarray, generate(params, config, layout, Grammar.of(words), policy, batch, keys, **given))


def equal(parts, priors, policy, **draft):
    """Drafts leave the result as it is, with nothing kept and with some codes kept."""
    fast = dataclasses.replace(policy, **draft)
    rng = np.random.default_rng(1)
    keep, codes = rng.random((len(priors), 3, 4)) < 0.4, rng.integers(0, 24, (len(priors), 3, 4))
    for given in ({}, {"keep": keep, "codes": codes}):
        plain = sample(parts, priors, policy, range(len(priors)), **given)
        out = sample(parts, priors, fast, range(len(priors)), **given)
        assert (out.codes == plain.codes).all()
        assert (out.text == plain.text).all()
        assert len(np.unique(out.codes)) > 6
    assert (out.codes == codes)[keep].all()


@pytest.mark.parametrize("draft", ["prior", "jacobi"])
def test_gumbel_coupling_gives_the_tokens_of_plain_decoding(parts, priors, draft):
    equal(parts, priors, dataclasses.replace(WARM, keep_or_change=draft == "prior"), draft=draft, window=4)


@pytest.mark.slow
@pytest.mark.parametrize("window", [2, 5, 17, 60])
@pytest.mark.parametrize("draft", ["prior", "jacobi"])
@pytest.mark.parametrize(
    "policy",
    [Sampling(top_k=0, max_text=3), Sampling(temperature=0.0, guidance=2.0, keep_prior=True, max_text=3)],
)
def test_gumbel_coupling_equals_plain_decoding_at_every_window(parts, priors, policy, draft, window):
    equal(parts, priors, policy, draft=draft, window=window)


def test_rows_go_at_their_own_pace(parts, priors):
    policy = dataclasses.replace(WARM, draft="jacobi", coupling="maximal", window=4)
    keep = np.zeros((4, 3, 4), bool)
    keep[1] = True
    codes, order = np.stack([priors[0]] * 4), [2, 0, 3, 1]
    out = sample(parts, [priors[0]] * 4, policy, range(4), text=False, keep=keep, codes=codes)
    again = sample(parts, [priors[0]] * 4, policy, order, text=False, keep=keep[order], codes=codes[order])
    assert (again.codes == out.codes[order]).all()
    assert (again.passes == out.passes[order]).all()
    assert (out.codes[1] == priors[0]).all()
    assert out.passes[1] == -(-17 // 4)  # all is forced: every pass takes the whole window
    assert (out.passes <= 17).all()


def test_couple_follows_the_target_and_keeps_the_guess_as_often_as_can_be():
    n = 20_000
    scores = jnp.asarray([0.3, -1.0, 1.2, -jnp.inf, 0.0])
    p = np.asarray(jax.nn.softmax(scores))
    q = np.asarray([0.5, 0.1, 0.1, 0.2, 0.1])
    guess = np.random.default_rng(0).choice(5, (n, 1), p=q).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), (n, 1))
    for density, met in ((q, np.minimum(p, q).sum()), (None, (p * q).sum())):  # drawn from q; given, so one point
        rows = jax.nn.one_hot(guess, 5) if density is None else np.broadcast_to(np.float32(q), (n, 1, 5))
        token = jax.jit(couple)(jnp.broadcast_to(scores, (n, 1, 5)), guess, rows, keys)
        counts = np.bincount(token[:, 0], minlength=5)
        assert ((counts - n * p) ** 2 <= 16 * n * p * (1 - p)).all()
        assert abs((token == guess).mean() - met) < 4 * np.sqrt(met * (1 - met) / n)


@pytest.fixture(scope="module")
def small():
    return build(codes=4, height=2, width=2)


PRIOR = np.asarray([[2, 0], [1, 3]])


def exact(parts, policy):
    """Probability of each of the 4 ** 4 images by whole forward passes: f64 [256], in row-major order of the codes."""
    words, layout, config, params = parts
    images = np.asarray(list(itertools.product(range(4), repeat=4))).reshape(-1, 2, 2)

    @jax.jit
    def forward(tokens, positions, aligned):
        priors = {"aligned": aligned, "beside": transformer.beside_of(aligned)}
        hidden, _ = Transformer(config).apply({"params": params}, tokens, positions, **priors)
        return transformer.logits(params, hidden, (words.visual_start, words.visual_start + 4))

    scores = []
    for prior, prompt in [(PRIOR, PROMPT), *([(None, None)] if policy.guided else [])]:
        rows = [sequence.pack(words, layout, prior, prompt, image, "x") for image in images]
        first = len(sequence.prompt_tokens(words, layout, prior, prompt)["tokens"]) - 1
        logits = forward(*(np.stack([r[k] for r in rows]) for k in ("tokens", "positions", "aligned")))
        scores.append(logits[:, first + np.asarray([0, 1, 3, 4])])  # of the codes; place 2 is EOL
    scores = jnp.concatenate(scores)
    scores = restrict(guide(scores, policy.guidance) if policy.guided else scores, policy.temperature, policy.top_k)
    steps = np.asarray(jax.nn.log_softmax(scores), np.float64)
    steps = np.take_along_axis(steps, images.reshape(-1, 4, 1), axis=-1)
    return np.exp(steps.sum((1, 2)))


def distance(parts, policy, draws, batch=5000):
    """Total variation of drawn images from their exact distribution, and what sampling alone exceeds 1 time in 1000."""
    target = exact(parts, policy)
    assert target.sum() == pytest.approx(1, abs=1e-5)
    target /= target.sum()
    counts = np.zeros(256)
    words, layout, config, params = parts
    prompts = pad_prompts(words, layout, [PRIOR] * batch, [PROMPT] * batch, policy=policy, slots=24)
    for start in range(0, draws, batch):
        keys = jax.vmap(jax.random.key)(np.arange(start, start + batch, dtype=np.uint32))
        out = generate(params, config, layout, Grammar.of(words), policy, prompts, keys, text=False)
        index = np.asarray(out.codes).reshape(batch, 4) @ (4 ** np.arange(3, -1, -1))
        counts += np.bincount(index, minlength=256)
    alone = np.random.default_rng(0).multinomial(draws, target, 2000) / draws
    return np.abs(counts / draws - target).sum() / 2, np.quantile(np.abs(alone - target).sum(1) / 2, 0.999)


LAW = Sampling(temperature=0.8, top_k=3, guidance=1.5, max_text=2)


REFUSING = [("prior", "maximal"), ("jacobi", "maximal"), ("jacobi", "independent")]


@pytest.mark.parametrize(("draft", "coupling"), REFUSING)
def test_drafts_leave_the_distribution_as_it_is(small, draft, coupling):
    found, alone = distance(small, dataclasses.replace(LAW, draft=draft, coupling=coupling, window=4), 10_000)
    assert found < alone


@pytest.mark.slow
@pytest.mark.parametrize(("draft", "coupling"), [("prior", "gumbel"), ("jacobi", "gumbel"), *REFUSING])
def test_total_variation_over_1e5_draws(small, draft, coupling):
    found, alone = distance(small, dataclasses.replace(LAW, draft=draft, coupling=coupling, window=4), 100_000)
    print(f"{draft} {coupling}: total variation {found:.4f}, sampling alone (99.9 %) {alone:.4f}")
    assert found < alone
    # That it can fail: a distribution a little off.
    off = exact(small, dataclasses.replace(LAW, temperature=0.9))
    assert np.abs(off - exact(small, LAW)).sum() / 2 > 2 * alone


@pytest.mark.parametrize("bad", [{"draft": "next"}, {"coupling": "none"}, {"window": 1}])
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
