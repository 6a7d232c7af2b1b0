"""ProgEmu's task: what counts in the loss, and what a step changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.initial import initial
from support.language_model import OF_IMAGES

from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask, omitted_tokens, packer, soft_codes
from progemu_jax.tasks.reading import ReadingConfig
from progemu_jax.text import vocabulary
from progemu_jax.text.findings import NO_CHANGE
from progemu_jax.text.sequence import Kind, Layout, unpack
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


def test_a_prompt_that_is_longer_in_another_order_keeps_its_own(words):
    prompt, other = "Edema is new. Heart is larger.", "Heart is larger. Edema is new."
    budget = len(words.encode(prompt))
    assert len(words.encode(other)) == budget + 1
    layout = Layout(2, 3, 128, prompt_budget=budget)
    config = ProgEmuConfig(length=128, prompt_budget=budget, null_prompt=0.0, shuffle_sentences=1.0)
    pack = packer(words, layout, config, CODEBOOK, True)
    found = [unpack(words, layout, pack(example(prompt=prompt), np.random.default_rng(i))["tokens"]) for i in range(8)]
    assert {row.prompt for row in found} == {prompt}


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
    model = dataclasses.replace(OF_IMAGES, vocab_size=words.size)
    return ProgEmuTask(model, ProgEmuConfig(length=64), TrainConfig(steps=10, accumulate=1))


@pytest.fixture(scope="module")
def state(task):
    return initial(task.init)


@pytest.fixture(scope="module")
def loss(task):
    """(loss, metrics) of (params, batch), compiled: by single operations it takes as long as all other tests here."""
    return jax.jit(lambda params, batch: task.loss(params, batch, None))


def stack(words, n=4, **more):
    rows = [pack(words, example(**more)) for _ in range(n)]
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}


def test_padding_is_out_of_the_loss_and_eos_is_in(words, state, loss):
    batch, params = stack(words), state["params"]
    whole, metrics = loss(params, batch)
    assert float(metrics["weight"]) == (batch["kinds"][:, 1:] != Kind.PAD).sum()
    noise = dict(batch)
    noise["tokens"] = np.where(batch["kinds"] == Kind.PAD, 7, batch["tokens"])
    assert float(loss(params, noise)[0]) == float(whole)
    changed = dict(batch)
    changed["tokens"] = np.where(batch["kinds"] == Kind.EOS, 7, batch["tokens"])
    assert float(loss(params, changed)[0]) != float(whole)


def test_no_token_sees_the_future(words, state, loss):
    """Changing the text after the image leaves the loss on the image as it was."""
    batch = stack(words)
    other = dict(batch)
    other["tokens"] = np.where(batch["kinds"] == Kind.TEXT, 3, batch["tokens"])
    one, two = (float(loss(state["params"], b)[1]["loss_visual"]) for b in (batch, other))
    assert one == two


def test_accumulation_gives_the_same_gradient_step(words, task, state):
    batch = stack(words)
    other = ProgEmuTask(task.model_config, task.config, dataclasses.replace(task.train, accumulate=2))
    one, two = (jax.jit(t.train_step)(state, batch, jax.random.key(1))[0] for t in (task, other))
    for a, b in zip(jax.tree.leaves(one["params"]), jax.tree.leaves(two["params"]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_embeddings_gradient_as_rows_gives_the_same_step(words, task, state, monkeypatch):
    batch = stack(words)
    (dense, of_dense), (rows, of_rows) = (
        monkeypatch.setattr(ProgEmuTask, "_few_rows", lambda *_, few=few: few)
        or jax.jit(lambda *x: task.train_step(*x))(state, batch, jax.random.key(1))  # not another test's program
        for few in (False, True)
    )
    for name in of_dense:
        np.testing.assert_allclose(of_rows[name], of_dense[name], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(rows), jax.tree.leaves(dense), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    table = [s["opt_state"][1].mu["embed_tokens"] for s in (rows, dense)]
    assert np.abs(table[0]).max() > 1e-4
    np.testing.assert_allclose(*table, rtol=1e-3, atol=1e-7)


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


def test_only_codes_that_differ_from_the_prior_are_learnt_softly(words, task, state, loss):
    batch, params = stack(words), state["params"]
    config = dataclasses.replace(task.config, soften=1.0)
    soft = ProgEmuTask(task.model_config, config, task.train, words.visual_start, CODEBOOK)
    softly = jax.jit(lambda params, batch: soft.loss(params, batch, None))
    assert float(softly(params, batch)[0]) == float(loss(params, batch)[0])
    # One code of each row becomes another: its loss is the mean over what stands for it, by their own exact losses.
    at = int(np.flatnonzero(batch["kinds"][0] == Kind.VISUAL)[-1])  # the last one is nothing's context but the text's
    rows = {k: v[:1] for k, v in batch.items()}
    rows["weights"] = (np.arange(64) == at)[None].astype(np.float32)
    code = (int(rows["aligned"][0, at - 1]) - words.visual_start + 3) % CODES

    def exact(code):
        tokens = rows["tokens"].copy()
        tokens[0, at] = words.visual_start + code
        return {**rows, "tokens": tokens}

    losses = [float(loss(params, exact(c))[0]) for c in range(CODES)]
    expected = soft_rows(CODEBOOK, 1.0)[code] @ losses
    np.testing.assert_allclose(float(softly(params, exact(code))[0]), expected, rtol=1e-5)


OFF = {"null_prompt": 0.0, "shuffle_sentences": 0.0, "drop_negative": 0.0}


def test_a_row_that_reads_has_loss_on_its_text_alone_and_no_prompt(words):
    row = example(followup=RNG.integers(0, CODES, (2, 3)))
    read = pack(words, row, train=True, read=1.0, changed_weight=4.0, **OFF)
    assert Kind.PRIOR in read["kinds"]
    assert Kind.PROMPT not in read["kinds"]
    text = np.isin(read["kinds"], (Kind.TEXT, Kind.EOS))
    np.testing.assert_array_equal(read["weights"], text.astype(np.float32))
    assert words.decode(read["tokens"][read["kinds"] == Kind.TEXT]) == row["interpretation"]
    assert Kind.PROMPT in pack(words, row, train=False, read=1.0)["kinds"]


def test_a_row_without_a_prompt_has_a_structured_report_whose_changes_weigh_more(words):
    row = example(interpretation="Left pneumothorax is new. Persistent mild edema.")
    how = ProgEmuConfig(length=128, read=1.0, shuffle_sentences=0.0, null_prompt=0.0)

    def packed(reading, length=128, **example):
        layout, config = Layout(2, 3, length), dataclasses.replace(how, length=length)
        return packer(words, layout, config, CODEBOOK, True, reading)({**row, **example}, np.random.default_rng(0))

    got = packed(ReadingConfig(changed_weight=1.5))
    text = got["kinds"] == Kind.TEXT
    assert words.decode(got["tokens"][text]) == (
        "No left pleural effusion. No right pleural effusion. New left pneumothorax. No right pneumothorax. "
        "No cardiomegaly. Persistent mild pulmonary edema. No atelectasis. No consolidation."
    )
    heavy = words.decode(got["tokens"][text & (got["weights"] == 2.5)])
    assert heavy.strip() == "New left pneumothorax."
    assert set(got["weights"][text]) == {1, 2.5}
    # As the report has it: where the rules do not read it, and where all statements are too long for the row.
    unread, short = packed(ReadingConfig(), interpretation="Effusion is larger."), packed(ReadingConfig(), length=56)
    assert words.decode(unread["tokens"][unread["kinds"] == Kind.TEXT]) == "Effusion is larger."
    assert words.decode(short["tokens"][short["kinds"] == Kind.TEXT]) == row["interpretation"]
    with pytest.raises(ValueError, match="share=0"):
        ReadingConfig(share=0)


def test_means_by_kind_leave_out_what_has_no_loss(words, state, loss):
    """A row that reads beside one that paints: the image's means are those of the one that paints."""
    row = example(followup=RNG.integers(0, CODES, (2, 3)))
    rows = [pack(words, row, train=True, changed_weight=4.0, read=read, **OFF) for read in (0.0, 1.0)]
    batches = [{k: np.stack([a[k], b[k]]) for k in a} for a, b in (rows, [rows[0]] * 2)]
    (_, mixed), (_, painted) = (loss(state["params"], batch) for batch in batches)
    assert set(painted) == set(mixed)
    for name in ("loss_prior", "loss_structure", "loss_visual", "loss_changed", "loss_far"):
        assert float(mixed[name]) == pytest.approx(float(painted[name]), rel=1e-5), name
    assert float(painted["loss_far"]) > 0


def test_an_identity_row_repeats_the_prior_and_says_so(words):
    row = example(followup=RNG.integers(0, CODES, (2, 3)))
    same = pack(words, row, train=True, identity=1.0, changed_weight=4.0, omitted_weight=2.0, **OFF)
    codes = same["tokens"][same["kinds"] == Kind.VISUAL] - words.visual_start
    np.testing.assert_array_equal(codes, row["prior"].reshape(-1))
    for kind in (Kind.PROMPT, Kind.TEXT):
        assert words.decode(same["tokens"][same["kinds"] == kind]) == NO_CHANGE
    assert (same["weights"] == 1).all()
    other = pack(words, row, train=False, identity=1.0)
    np.testing.assert_array_equal(
        other["tokens"][other["kinds"] == Kind.VISUAL] - words.visual_start, row["followup"].reshape(-1)
    )


def test_tokens_on_what_the_prompt_omits_by_hand(words):
    told, omitted = "New edema.", " Left effusion is larger."
    text, counts = told + omitted, [len(words.encode(t)) for t in (told, omitted)]
    flags = omitted_tokens(words, "New edema.", text)
    np.testing.assert_array_equal(flags, [0] * counts[0] + [1] * counts[1])
    assert len(flags) == len(words.encode(text))
    assert omitted_tokens(words, text, text).sum() == 0
    assert omitted_tokens(words, "New edema.", "").tolist() == []
    row = pack(words, example(interpretation=text), omitted_weight=2.5)
    np.testing.assert_array_equal(row["weights"][row["kinds"] == Kind.TEXT], 1 + 2.5 * flags)
    assert (row["weights"][row["kinds"] != Kind.TEXT] == 1).all()


def test_an_example_without_a_text_teaches_the_image_alone(words):
    row = example(interpretation=None)
    for task in ({}, {"identity": 1.0, "read": 1.0, "null_prompt": 1.0, "omitted_weight": 2.0, "restate": 1.0}):
        packed = pack(words, row, train=True, **task)
        assert words.decode(packed["tokens"][packed["kinds"] == Kind.PROMPT]) == row["prompt"]
        assert Kind.TEXT not in packed["kinds"]
        np.testing.assert_array_equal(packed["weights"], packed["kinds"] != Kind.EOS)


def test_a_prompt_in_other_pieces_is_the_same_prompt(words):
    def prompts(train=True, **row):
        config = ProgEmuConfig(length=64, prompt_budget=12, word_dropout=0.3, **OFF)
        made = packer(words, LAYOUT, config, CODEBOOK, train)
        packed = [made(example(**row), np.random.default_rng(seed)) for seed in range(20)]
        assert {words.decode(p["tokens"][p["kinds"] == Kind.PROMPT]) for p in packed} == {row["prompt"]}
        return {tuple(p["tokens"][p["kinds"] == Kind.PROMPT]) for p in packed}

    assert len(prompts(prompt="New edema.")) > 2
    assert prompts(prompt="New edema.", train=False) == {tuple(words.encode("New edema."))}
    # Where its pieces do not fit the budget it has its usual ones.
    long = "New left pneumothorax."
    assert all(len(p) < LAYOUT.prompt_budget for p in prompts(prompt=long))


@pytest.mark.parametrize("name", ["read", "dictionary", "complete", "identity"])
def test_shares_are_shares(name):
    with pytest.raises(ValueError, match=f"{name}=1.5"):
        ProgEmuConfig(**{name: 1.5})
