"""The training tasks: what counts in a loss, what a step changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.data.batches import ArrayBatches
from progemu_jax.models.discriminator import DiscriminatorConfig
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask, code_embeddings, packer, soft_codes
from progemu_jax.tasks.scorer import augment
from progemu_jax.tasks.tokenizer import TokenizerLossConfig, TokenizerTask
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.training.loop import TrainConfig

CODES, LAYOUT = 16, Layout(2, 3, 64, prompt_budget=12)
RNG = np.random.default_rng(0)
CODEBOOK = RNG.standard_normal((CODES, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def words():
    return vocabulary.load(None, CODES)


def example(**more):
    prior = RNG.integers(0, CODES, (2, 3))
    row = {"prior": prior, "followup": prior.copy(), "prompt": "New edema.", "interpretation": "Edema is new. No mass."}
    return {**row, **more}


def pack(words, row, train=False, **task):
    config = ProgEmuConfig(length=64, prompt_budget=12, **task)
    return packer(words, LAYOUT, config, CODEBOOK, train)(row, np.random.default_rng(1))


def test_a_prompt_is_restated_at_packing_in_training_alone(words):
    row, off = example(prompt="New left pneumothorax."), {"null_prompt": 0.0, "shuffle_sentences": 0.0}

    def prompt(seed, train=True, budget=30, **task):
        config = ProgEmuConfig(length=96, prompt_budget=budget, **off, **task)
        made = packer(words, Layout(2, 3, 96, prompt_budget=budget), config, CODEBOOK, train)
        packed = made(row, np.random.default_rng(seed))
        return words.decode(packed["tokens"][packed["kinds"] == Kind.PROMPT])

    told = [prompt(seed, restate=1.0) for seed in range(30)]
    assert len(set(told)) > 15
    assert told == [prompt(seed, restate=1.0) for seed in range(30)]
    assert {prompt(seed, train=False, restate=1.0) for seed in range(9)} == {row["prompt"]}
    assert {prompt(seed) for seed in range(9)} == {row["prompt"]}
    # What does not fit the model's budget is not told: the prompt stays.
    assert row["prompt"] in {prompt(seed, budget=8, restate=1.0) for seed in range(30)}
    with pytest.raises(ValueError, match="restate"):
        ProgEmuConfig(restate=1.5)


def test_an_unchanged_code_has_weight_one_and_a_far_one_more(words):
    row = example()
    assert (pack(words, row, changed_weight=4.0)["weights"] == 1).all()
    row["followup"][0, 1] = (row["followup"][0, 1] + 5) % CODES
    packed = pack(words, row, changed_weight=4.0)
    visual = packed["weights"][packed["kinds"] == Kind.VISUAL]
    a, b = CODEBOOK[row["prior"][0, 1]], CODEBOOK[row["followup"][0, 1]]
    expected = 1 + 4 * min(4.0, ((a - b) ** 2).sum() / (2 * CODEBOOK.var(0).sum()))
    np.testing.assert_allclose(visual, [1, expected, 1, 1, 1, 1], rtol=1e-5)


@pytest.mark.parametrize(("task", "prior", "prompt"), [("null_prompt", False, False), ("empty_prompt", True, False)])
def test_prompt_dropping(words, task, prior, prompt):
    kinds = pack(words, example(), train=True, **{task: 1.0})["kinds"]
    assert (Kind.PRIOR in kinds) == prior
    assert (Kind.PROMPT in kinds) == prompt
    assert Kind.PROMPT in pack(words, example(), train=False, **{task: 1.0})["kinds"]


@pytest.fixture(scope="module")
def task(words):
    model = TransformerConfig(
        vocab_size=words.size, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
        intermediate_size=48, prior_alignment=True,
    )  # fmt: skip
    return ProgEmuTask(model, ProgEmuConfig(length=64), TrainConfig(steps=10, accumulate=1))


def stack(words, n=4, **more):
    rows = [pack(words, example(**more)) for _ in range(n)]
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}


def test_padding_is_out_of_the_loss_and_eos_is_in(words, task):
    batch = stack(words)
    params = task.init(jax.random.key(0))["params"]
    loss, metrics = task.loss(params, batch, None)
    assert float(metrics["weight"]) == (batch["kinds"][:, 1:] != Kind.PAD).sum()
    noise = dict(batch)
    noise["tokens"] = np.where(batch["kinds"] == Kind.PAD, 7, batch["tokens"])
    assert float(task.loss(params, noise, None)[0]) == float(loss)
    changed = dict(batch)
    changed["tokens"] = np.where(batch["kinds"] == Kind.EOS, 7, batch["tokens"])
    assert float(task.loss(params, changed, None)[0]) != float(loss)


def test_no_token_sees_the_future(words, task):
    """Changing the text after the image leaves the loss on the image as it was."""
    batch = stack(words)
    params = task.init(jax.random.key(0))["params"]
    other = dict(batch)
    other["tokens"] = np.where(batch["kinds"] == Kind.TEXT, 3, batch["tokens"])
    one, two = (float(task.loss(params, b, None)[1]["loss_visual"]) for b in (batch, other))
    assert one == two


def test_accumulation_gives_the_same_gradient_step(words, task):
    batch = stack(words)
    state = task.init(jax.random.key(0))
    other = ProgEmuTask(task.model_config, task.config, dataclasses.replace(task.train, accumulate=2))
    one, _ = task.train_step(state, batch, jax.random.key(1))
    two, _ = other.train_step(state, batch, jax.random.key(1))
    for a, b in zip(jax.tree.leaves(one["params"]), jax.tree.leaves(two["params"]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_embeddings_gradient_as_rows_gives_the_same_step(words, task, monkeypatch):
    batch, state = stack(words), task.init(jax.random.key(0))
    (dense, of_dense), (rows, of_rows) = (
        monkeypatch.setattr(ProgEmuTask, "_few_rows", lambda *_, few=few: few)
        or task.train_step(state, batch, jax.random.key(1))
        for few in (False, True)
    )
    for name in of_dense:
        np.testing.assert_allclose(of_rows[name], of_dense[name], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    table = [s["opt_state"][1].mu["embed_tokens"] for s in (rows, dense)]
    assert np.abs(table[0]).max() > 1e-4
    np.testing.assert_allclose(*table, rtol=1e-3, atol=1e-7)


def test_code_embeddings_put_like_codes_together(words, task):
    params = task.init(jax.random.key(0))["params"]
    codebook = CODEBOOK.copy()
    codebook[1] = codebook[0] + 1e-3
    new = code_embeddings(params, codebook, words.visual_start, 0)
    rows = np.asarray(new["embed_tokens"][words.visual_start : words.visual_start + CODES])
    distances = np.linalg.norm(rows - rows[0], axis=1)
    assert distances[1] < 0.05 * distances[2:].min()
    assert (new["embed_tokens"][: words.visual_start] == params["embed_tokens"][: words.visual_start]).all()


def test_soft_targets_by_hand():
    codebook = np.asarray([[0.0], [1.0], [4.0]])  # nearest neighbours at squared distances 1, 1, 9: mean 11 / 3
    weights = np.exp(-np.asarray([[0, 1, 16], [1, 0, 9], [16, 9, 0]]) / (0.5 * 11 / 3))
    rows = soft_rows(codebook, 0.5)
    np.testing.assert_allclose(rows, weights / weights.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(soft_rows(codebook, 1e-6), np.eye(3), atol=1e-6)


def soft_rows(codebook, soften):
    every = jnp.arange(len(codebook))
    rows = np.asarray(soft_codes(codebook, soften, 0).similar(every, every))
    return rows / rows.sum(1, keepdims=True)


def test_only_codes_that_differ_from_the_prior_are_learnt_softly(words, task):
    batch = stack(words)
    params = task.init(jax.random.key(0))["params"]
    config = dataclasses.replace(task.config, soften=1.0)
    soft = ProgEmuTask(task.model_config, config, task.train, words.visual_start, CODEBOOK)
    assert float(soft.loss(params, batch, None)[0]) == float(task.loss(params, batch, None)[0])
    # One code of each row becomes another: its loss is the mean over what stands for it, by their own exact losses.
    at = int(np.flatnonzero(batch["kinds"][0] == Kind.VISUAL)[-1])  # the last one is nothing's context but the text's
    rows = {k: v[:1] for k, v in batch.items()}
    rows["weights"] = (np.arange(64) == at)[None].astype(np.float32)
    code = (int(rows["aligned"][0, at - 1]) - words.visual_start + 3) % CODES

    def exact(code):
        tokens = rows["tokens"].copy()
        tokens[0, at] = words.visual_start + code
        return {**rows, "tokens": tokens}

    losses = [float(task.loss(params, exact(c), None)[0]) for c in range(CODES)]
    expected = soft_rows(CODEBOOK, 1.0)[code] @ losses
    np.testing.assert_allclose(float(soft.loss(params, exact(code), None)[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("gan", [0.0, 0.5])
def test_tokenizer_learns_and_keeps_its_codebook_alive(gan):
    loss = TokenizerLossConfig(gan=gan, discriminator=DiscriminatorConfig(ch=4, num_layers=1))
    train = TrainConfig(steps=40, learning_rate=3e-3, warmup_steps=2, weight_decay=0.0)
    net = VQGANConfig(ch=8, ch_mult=(1,), attn_levels=(), patch=4, codebook_size=32, embed_dim=4, z_channels=4)
    task = TokenizerTask(net, loss, train, 16)
    y, x = np.mgrid[:16, :16]
    images = np.stack([127 + 100 * np.sin(x * f + y * g) for f, g in RNG.uniform(0.1, 0.6, (16, 2))]).astype(np.uint8)
    state, step = task.init(jax.random.key(0)), jax.jit(task.train_step)
    first = float(task.eval_step(state, {"image": images})["l1"])
    for i in range(40):
        state, metrics = step(state, {"image": images}, jax.random.key(i))
    last = task.eval_step(state, {"image": images})
    assert float(last["l1"]) < 0.6 * first
    assert float(last["perplexity"]) > 8
    assert ("gan_weight" in metrics) == bool(gan)
    if gan:
        assert float(metrics["gan_weight"]) > 0


def test_scorer_augmentation_moves_masks_with_the_image():
    masks = np.zeros((8, 64, 64, 6), bool)
    masks[:, 20:40, 16:48] = True
    images = np.where(masks[..., 0], 255, 40).astype(np.uint8)
    out, batch = augment(jax.random.key(0), {"image": images, "masks": jnp.asarray(masks)})
    out, moved = np.asarray(out), np.asarray(batch["masks"][..., 0])
    assert out.min() >= 0
    assert out.max() <= 1
    assert (out[moved].mean() - out[~moved].mean()) > 0.5
    assert any((m != masks[0, ..., 0]).any() for m in moved)


def test_array_batches_go_on_from_their_state():
    arrays = {"x": np.arange(10)}
    one = ArrayBatches(arrays, 4, seed=3)
    for _ in range(3):
        next(one)
    two = ArrayBatches(arrays, 4, seed=3)
    two.set_state(one.get_state())
    assert (next(one)["x"] == next(two)["x"]).all()
