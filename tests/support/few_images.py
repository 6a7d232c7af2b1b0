"""A random model whose images are few: their exact distribution by enumeration, and how far drawn ones are from it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from progemu_jax.models import diagonal_head, transformer
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.policy import guide, restrict
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.tasks import diagonal
from progemu_jax.tasks.diagonal import DIAGONAL, DiagonalConfig, DiagonalTask
from progemu_jax.tasks.progemu import ProgEmuConfig, packer
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.diagonals import in_diagonals
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.training.loop import TrainConfig

PRIOR = np.asarray([[2, 0], [1, 3]])
PROMPT = "New edema."
IMAGES = np.asarray(list(itertools.product(range(4), repeat=4))).reshape(-1, 2, 2)  # all of 2 x 2 codes of 4


def build(codes, height, width, length=128, seed=3):
    """Vocabulary, layout, config, parameters of a model whose next code depends strongly on what came before."""
    words = vocabulary.load(None, codes)
    layout = Layout(height=height, width=width, length=length, prompt_budget=8)
    config = TransformerConfig(
        vocab_size=words.size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, prior_alignment=True, prior_beside=True,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: (0.5 * rng.standard_normal(x.shape)).astype(x.dtype), shapes)
    return words, layout, config, params


def untrained(parts):
    """The same with a diagonal head as trainings begin with it."""
    words, layout, config, params = parts
    config = dataclasses.replace(config, diagonal=True)
    return words, layout, config, {**params, diagonal_head.NAME: diagonal_head.init_params(config, jax.random.key(0))}


def trained(parts, law, steps=300):
    """`untrained` parts, the head alone trained (`tasks.diagonal`) on all images, each as often as `law` says."""
    words, layout, config, params = parts
    train = TrainConfig(steps=steps, warmup_steps=0, learning_rate=1e-2, weight_decay=0.0)
    settings = ProgEmuConfig(length=layout.length, loss_chunk=4)
    task = DiagonalTask(words, layout, DiagonalConfig(text=0.0), False, config, settings, train, words.visual_start)
    pack = diagonal.packer(packer(words, layout, settings, np.eye(4), train=False), layout)
    rows = [
        pack({"prior": prior, "prompt": PROMPT, "followup": image, "interpretation": "x"}, None)
        for prior in [PRIOR] + [None] * law.guided
        for image in IMAGES
    ]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    often = np.tile(exact(parts, law), 1 + law.guided)
    batch[DIAGONAL + "weights"] *= np.float32(len(IMAGES) * often)[:, None]
    step = jax.jit(task.train_step)
    state = jax.jit(task.from_params)(params)
    for n in range(steps):
        state, _ = step(state, batch, jax.random.key(n))
    return words, layout, config, task.params(state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(config, visual, params, rows):
    """f32 [B, T, Q] of the code that each token is, in the diagonal order; in the row order, of the one behind it."""
    hidden, _ = Transformer(config).apply(
        {"params": params}, rows["tokens"], rows["positions"], aligned=rows["aligned"], beside=rows["beside"]
    )
    if "left" in rows:
        hidden = diagonal_head.told(config, params, hidden, rows["left"], rows["above"], rows["beside"])
    return transformer.logits(params, hidden, visual)


def exact(parts, policy):
    """Probability of each of `IMAGES` by whole forward passes, in the order that the policy draws in: f64 [256]."""
    words, layout, config, params = parts
    scores = []
    for prior, prompt in [(PRIOR, PROMPT), *([(None, None)] if policy.guided else [])]:
        rows = [sequence.pack(words, layout, prior, prompt, image, "x") for image in IMAGES]
        rows = [in_diagonals(row, layout) if policy.diagonal else row for row in rows]
        rows = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        rows = {"beside": np.asarray(transformer.beside_of(rows["aligned"])), **rows}
        at = np.flatnonzero(rows["kinds"][0] == Kind.VISUAL)
        at = at[np.argsort(rows["positions"][0, at])]  # codes in the row order
        scores.append(_logits(config, Grammar.of(words).visual_rows, params, rows)[:, at - (not policy.diagonal)])
    scores = jnp.concatenate(scores)
    scores = restrict(guide(scores, policy.guidance) if policy.guided else scores, policy.temperature, policy.top_k)
    steps = np.asarray(jax.nn.log_softmax(scores), np.float64)
    steps = np.take_along_axis(steps, IMAGES.reshape(-1, 4, 1), axis=-1)
    target = np.exp(steps.sum((1, 2)))
    assert target.sum() == pytest.approx(1, abs=1e-5)
    return target / target.sum()


def drawn(parts, policy, draws, batch=5000):
    """How often each of `IMAGES` is drawn: f64 [256]."""
    counts = np.zeros(len(IMAGES))
    words, layout, config, params = parts
    prompts = pad_prompts(words, layout, [PRIOR] * batch, [PROMPT] * batch, policy=policy, slots=24)
    for start in range(0, draws, batch):
        keys = jax.vmap(jax.random.key)(np.arange(start, start + batch, dtype=np.uint32))
        out = generate(params, config, layout, Grammar.of(words), policy, prompts, keys, text=False)
        counts += np.bincount(np.asarray(out.codes).reshape(batch, 4) @ (4 ** np.arange(3, -1, -1)), minlength=256)
    return counts / draws


def total_variation(one, other):
    return np.abs(one - other).sum() / 2


def alone(target, draws):
    """What the total variation of so many draws of `target` from it exceeds 1 time in 1000."""
    found = np.random.default_rng(0).multinomial(draws, target, 2000) / draws
    return np.quantile(np.abs(found - target).sum(1) / 2, 0.999)
