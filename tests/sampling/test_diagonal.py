"""Anti-diagonal decoding: equal to one forward pass in its order, in h + w - 1 passes, with masks, guidance, queue."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.errors import UserError
from progemu_jax.models import diagonal_head, linear, transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling import diagonal
from progemu_jax.sampling.engine import Engine, Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import Sampling, guide, pick, restrict
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.sampling.queue import Request, sample_queue
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.diagonals import diagonals, in_diagonals
from progemu_jax.text.sequence import Kind, Layout

CODES, LAYOUT = 24, Layout(height=3, width=4, length=128, prompt_budget=8)
WARM = Sampling(temperature=0.7, top_k=9, text_temperature=0.0, max_text=3, mode="diagonal")
PROMPT = "New edema."


@pytest.fixture(scope="module")
def parts():
    words = vocabulary.load(None, CODES)
    config = TransformerConfig(
        vocab_size=words.size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, prior_alignment=True, prior_beside=True, learned_positions=64, diagonal=True,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    return words, config, jax.tree.map(lambda x: (0.5 * rng.standard_normal(x.shape)).astype(x.dtype), shapes)


@pytest.fixture(scope="module")
def priors():
    return [*np.random.default_rng(0).integers(0, CODES, (2, 3, 4)), None]


def sample(parts, priors, policy, seeds, slots=64, **options):
    words, config, params = parts
    prompts = pad_prompts(words, LAYOUT, priors, [PROMPT] * len(priors), policy=policy, slots=slots)
    keys = jax.vmap(jax.random.key)(np.asarray(seeds, np.uint32))
    out = generate(params, config, LAYOUT, Grammar.of(words), policy, prompts, keys, **options)
    return jax.tree.map(np.asarray, out)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, rows):
    """One pass over packed rows: states [B, T, M] of the tokens, and of what tells each code."""
    hidden, _ = Transformer(config).apply(
        {"params": params}, rows["tokens"], rows["positions"], aligned=rows["aligned"], beside=rows["beside"],
        segments=rows["kinds"] != Kind.PAD,
    )  # fmt: skip
    return hidden, diagonal_head.told(config, params, hidden, rows["left"], rows["above"], rows["beside"])


def scores_by_forward(parts, prior, codes, policy):
    """f32 [h w, V]: what each code is drawn from, by one forward pass over whole rows, packed in this order."""
    words, config, params = parts
    states = []
    for p, prompt in [(prior, PROMPT)] + [(prior, "") if policy.keep_prior else (None, None)] * policy.guided:
        row = in_diagonals(sequence.pack(words, LAYOUT, p, prompt, codes, ""), LAYOUT)
        row = {name: values[None] for name, values in row.items()}
        _, told = forward(config, params, row)
        # Codes in the row order: by the positions of their places.
        at = np.flatnonzero(row["kinds"][0] == Kind.VISUAL)
        states.append(told[0][at[np.argsort(np.asarray(row["positions"])[0, at])]])
    rows = Grammar.of(words).visual_rows
    logits = transformer.logits(params, jnp.stack(states), rows)
    return guide(logits, policy.guidance)[0] if policy.guided else logits[0]


@pytest.mark.parametrize(("guidance", "keep_prior"), [(1.0, False), (3.0, False), (3.0, True)])
def test_decode_equals_forward(parts, priors, guidance, keep_prior):
    policy = dataclasses.replace(WARM, guidance=guidance, keep_prior=keep_prior, text_guidance=guidance)
    out = sample(parts, priors, policy, range(3))
    for i, prior in enumerate(priors):
        scores = scores_by_forward(parts, prior, out.codes[i], policy)
        keys = jax.vmap(lambda k, i=i: jax.random.fold_in(jax.random.key(np.uint32(i)), k))(np.arange(12))
        drawn = pick(restrict(scores, policy.temperature, policy.top_k), keys, policy.temperature)
        assert np.asarray(drawn).reshape(3, 4).tolist() == out.codes[i].tolist()


def test_int8_weights_decode_as_their_forward_pass(parts, priors):
    words, config, params = parts
    small = linear.quantize(params)
    head = small[diagonal_head.NAME]
    assert all(isinstance(value, linear.Int8) for name, value in head.items() if name != "prior_layernorm")
    policy = dataclasses.replace(WARM, guidance=3.0)
    out = sample((words, config, small), priors[:1], policy, [0])
    scores = scores_by_forward((words, config, small), priors[0], out.codes[0], policy)
    keys = jax.vmap(lambda k: jax.random.fold_in(jax.random.key(np.uint32(0)), k))(np.arange(12))
    drawn = pick(restrict(scores, policy.temperature, policy.top_k), keys, policy.temperature)
    assert np.asarray(drawn).reshape(3, 4).tolist() == out.codes[0].tolist()
    whole = scores_by_forward(parts, priors[0], out.codes[0], policy)
    assert 0 < jnp.linalg.norm(scores - whole) / jnp.linalg.norm(whole) < 0.1


def test_passes_are_the_diagonals_and_the_text(parts, priors):
    out = sample(parts, priors, WARM, range(3))
    assert (out.passes - (out.text >= 0).sum(1) <= 3 + 4 - 1).all()
    image = sample(parts, priors, WARM, range(3), text=False)
    assert image.passes.tolist() == [3 + 4 - 1] * 3
    assert (image.codes == out.codes).all()
    assert len({c.tobytes() for c in sample(parts, priors[:1] * 4, WARM, range(4)).codes}) > 1


def test_narrow_passes_draw_what_one_width_draws(parts, priors, monkeypatch):
    assert diagonal._widths(17) == (6, 12, 17)
    policy = dataclasses.replace(WARM, guidance=2.5)
    one = sample(parts, priors, policy, range(3))
    monkeypatch.setattr(diagonal, "_widths", lambda most: (1, 3, most))
    other = sample(parts, priors, dataclasses.replace(policy, window=15), range(3))  # not the program of before
    assert (other.codes == one.codes).all()
    assert (other.text == one.text).all()
    assert (other.passes == one.passes).all()


def test_text_is_what_a_forward_pass_over_the_image_in_this_order_tells(parts, priors):
    words, config, params = parts
    out = sample(parts, priors[:1], dataclasses.replace(WARM, min_text=3), [0])
    row = in_diagonals(sequence.pack(words, LAYOUT, priors[0], PROMPT, out.codes[0], ""), LAYOUT)
    end = int(np.flatnonzero(row["tokens"] == words.eoi)[-1])
    text = [int(t) for t in out.text[0]]
    assert len(text) == 3
    row["tokens"][end + 1 : end + 4] = text
    row["kinds"][end + 1 : end + 4] = Kind.TEXT
    row["positions"][end + 1 : end + 4] = row["positions"][end] + 1 + np.arange(3)
    hidden, _ = forward(config, params, {name: values[None] for name, values in row.items()})
    assert transformer.logits(params, hidden[0, end : end + 3], (0, words.text_size)).argmax(-1).tolist() == text


def test_kept_codes_stay(parts, priors):
    rng = np.random.default_rng(1)
    keep, given = rng.random((3, 3, 4)) < 0.5, rng.integers(0, CODES, (3, 3, 4))
    out = sample(parts, priors, WARM, range(3), keep=keep, codes=given)
    assert (out.codes[keep] == given[keep]).all()
    assert (out.codes[~keep] != given[~keep]).any()
    # All drawn codes given: nothing is left to draw, and the text is the same.
    whole = sample(parts, priors, WARM, range(3))
    again = sample(parts, priors, WARM, [7, 8, 9], keep=np.ones((3, 3, 4), bool), codes=whole.codes)
    assert (again.codes == whole.codes).all()
    assert (again.text == whole.text).all()


def test_queue_draws_what_a_batch_draws(parts, priors):
    words, config, params = parts
    policy = dataclasses.replace(WARM, guidance=2.0)
    alone = sample(parts, priors, policy, range(3))
    requests = [Request(prior, PROMPT, seed, tag=seed) for seed, prior in enumerate(priors)]
    results = list(
        sample_queue(params, config, LAYOUT, Grammar.of(words), policy, words, requests, slots=2, prompt_slots=64)
    )
    assert sorted(r.request.tag for r in results) == [0, 1, 2]
    for result in results:
        i = result.request.tag
        assert (result.codes == alone.codes[i]).all()
        assert list(result.text) == [t for t in alone.text[i] if t >= 0]
        assert result.passes == alone.passes[i]


def test_a_case_does_not_depend_on_its_companions(parts, priors):
    out, other = sample(parts, priors, WARM, [1, 2, 3]), sample(parts, priors[::-1], WARM, [3, 2, 1])
    assert (out.codes == other.codes[::-1]).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4), (4, 1), (3, 4), (4, 3), (16, 16), (2, 7)])
def test_order_by_hand_and_each_token_behind_what_tells_it(height, width):
    order, first, rows = diagonals(height, width)
    size = height * (width + 1) + 2
    assert sorted(order) == list(range(size))
    assert len(first) - 1 == height + width - 1
    assert first[0] == 0
    assert first[-1] == size
    passed = np.empty(size, int)
    for d in range(len(first) - 1):
        passed[order[first[d] : first[d + 1]]] = d
    for place in range(size - 2):
        r, c = divmod(place, width + 1)
        assert passed[place] == (r + c if (r, c) != (height - 1, width) else height + width - 2)
    assert (rows >= 0).sum() == height * width
    if (height, width) == (3, 4):  # places 4, 9, 14 are EOLs, 15 EOF, 16 EOI
        assert order.tolist() == [0, 1, 5, 2, 6, 10, 3, 7, 11, 4, 8, 12, 9, 13, 14, 15, 16]


def test_neighbours_in_packed_rows():
    words = vocabulary.load(None, CODES)
    codes = np.arange(12).reshape(3, 4)
    row = in_diagonals(sequence.pack(words, LAYOUT, codes[::-1], PROMPT, codes, "Text."), LAYOUT)
    plain = sequence.pack(words, LAYOUT, codes[::-1], PROMPT, codes, "Text.")
    assert sorted(row["tokens"]) == sorted(plain["tokens"])
    codes_of = row["tokens"] - words.visual_start
    for at in np.flatnonzero(row["kinds"] == Kind.VISUAL):
        r, c = divmod(int(codes_of[at]), 4)
        assert row["beside"][at] - words.visual_start == codes[::-1][r, c]
        if c:
            assert codes_of[row["left"][at]] == codes[r, c - 1]
        else:
            assert row["left"][at] == (-1 if r else np.flatnonzero(row["tokens"] == words.img)[-1])
        assert (codes_of[row["above"][at]] == codes[r - 1, c]) if r else row["above"][at] == -1
        assert max(row["left"][at], row["above"][at]) < at
    others = row["kinds"] != Kind.VISUAL
    assert (row["left"][others] == -1).all()
    assert (row["above"][others] == -1).all()


def test_drafts_and_models_without_the_head_are_refused(parts):
    words, config, _ = parts
    plain = dataclasses.replace(config, diagonal=False)
    with pytest.raises(UserError, match="the model has no head for it"):
        Engine(plain, LAYOUT, Grammar.of(words), WARM)
    with pytest.raises(ValueError, match="takes no drafts"):
        Sampling(mode="diagonal", draft="jacobi")
    with pytest.raises(ValueError, match="mode='fast'"):
        Sampling(mode="fast")
