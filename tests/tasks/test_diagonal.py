"""What anti-diagonal decoding learns from: the row order's distributions, by the head alone first."""

import dataclasses

import jax
import numpy as np
import pytest
from support.initial import initial
from support.language_model import OF_IMAGES, changed

from progemu_jax.models import diagonal_head, transformer
from progemu_jax.tasks import diagonal
from progemu_jax.tasks.diagonal import DIAGONAL, TEACHER, DiagonalConfig, DiagonalTask
from progemu_jax.tasks.progemu import ProgEmuConfig, packer
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Layout
from progemu_jax.training.loop import TrainConfig

CODES = 24
TASK = ProgEmuConfig(length=96, weight_prior=0.0, weight_prompt=0.0, weight_structure=0.0, loss_chunk=4)
TRAIN = TrainConfig(steps=40, warmup_steps=0, learning_rate=1e-2)


@pytest.fixture(scope="module")
def words():
    return vocabulary.load(None, CODES)


def rows(words, height, width, number=4):
    layout, rng = Layout(height, width, 96), np.random.default_rng(0)
    codebook = rng.standard_normal((CODES, 3))
    pack = diagonal.packer(packer(words, layout, TASK, codebook, train=True), layout)
    examples = [
        {"prior": rng.integers(0, CODES, (height, width)), "followup": rng.integers(0, CODES, (height, width)),
         "prompt": "New edema.", "interpretation": "There is new edema."}
        for _ in range(number)
    ]  # fmt: skip
    packed = [pack(example, rng) for example in examples]
    return layout, {name: np.stack([row[name] for row in packed]) for name in packed[0]}


def task_of(words, layout, whole=False):
    model = dataclasses.replace(OF_IMAGES, vocab_size=words.size, initializer_range=0.5, diagonal=True)
    return DiagonalTask(words, layout, DiagonalConfig(), whole, model, TASK, TRAIN, words.visual_start)


def start(task):
    plain = dataclasses.replace(task.model_config, diagonal=False)
    return initial(lambda key: transformer.init_params(plain, key), 3)


def test_an_image_of_one_row_is_told_as_in_the_row_order(words):
    """There both orders are one: nothing to learn, and the cross-entropies are equal."""
    layout, batch = rows(words, 1, 4)
    task = task_of(words, layout)
    metrics = jax.jit(task.eval_step)(jax.jit(task.from_params)(start(task)), batch)
    assert float(metrics["divergence"]) == pytest.approx(0, abs=1e-5)
    assert float(metrics["loss_visual"]) == pytest.approx(float(metrics["loss_visual_rows"]), rel=1e-5)


def test_the_head_learns_and_the_rest_stays_to_the_bit(words):
    layout, batch = rows(words, 3, 4)
    task = task_of(words, layout)
    first = state = jax.jit(task.from_params)(start(task))
    step, found = jax.jit(task.train_step), []
    for n in range(40):
        state, metrics = step(state, batch, jax.random.key(n))
        found.append(float(metrics["divergence"]))
    assert found[-1] < 0.5 * found[0]
    moved = changed(task.params(first), task.params(state))
    assert moved
    assert all(name.startswith(diagonal_head.NAME) for name in moved)
    assert task.params(state).keys() == {*start(task), diagonal_head.NAME}
    own = float(metrics["loss_visual_rows"])
    assert own == pytest.approx(float(step(first, batch, jax.random.key(0))[1]["loss_visual_rows"]), rel=1e-6)


def test_the_whole_learns_with_the_model_before_as_the_teacher_of_both_orders(words):
    layout, batch = rows(words, 3, 4)
    task = task_of(words, layout, whole=True)
    before = start(task)
    first = state = jax.jit(task.from_params)(before)
    step = jax.jit(task.train_step)
    for n in range(3):
        state, metrics = step(state, batch, jax.random.key(n))
        if n == 0:  # still the teacher itself
            assert float(metrics["divergence_rows"]) == pytest.approx(0, abs=1e-6)
    assert float(metrics["divergence_rows"]) > 1e-4
    assert not changed(state["frozen"][TEACHER], first["frozen"][TEACHER])
    assert TEACHER not in task.params(state)
    assert "lm_head" in changed(before, {name: x for name, x in task.params(state).items() if name in before})


def test_rows_of_both_orders_hold_the_same_tokens(words):
    _, batch = rows(words, 3, 4)
    at = batch[DIAGONAL + "of"]
    for name in ("tokens", "positions", "kinds", "weights", "aligned"):
        np.testing.assert_array_equal(batch[DIAGONAL + name], np.take_along_axis(batch[name], at, axis=1))
    assert (np.sort(at) == np.arange(96)).all()
    assert (batch[DIAGONAL + "tokens"] != batch["tokens"]).any()


def test_the_head_comes_first():
    with pytest.raises(ValueError, match=r"give head\.steps"):
        DiagonalConfig(whole=TRAIN)
