"""The tokenizer's task: it learns, keeps its code-book alive, and what fine-tuning leaves as it came."""

import jax
import numpy as np
import pytest
from support.initial import initial
from support.language_model import changed

from progemu_jax.checkpoints import export
from progemu_jax.errors import UserError
from progemu_jax.files.settings import to_dict
from progemu_jax.models import vqgan
from progemu_jax.models.discriminator import DiscriminatorConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.tasks.tokenizer import TokenizerLossConfig, TokenizerTask
from progemu_jax.training.loop import TrainConfig

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("gan", [0.0, 0.5])
def test_tokenizer_learns_and_keeps_its_codebook_alive(gan):
    loss = TokenizerLossConfig(gan=gan, discriminator=DiscriminatorConfig(ch=4, num_layers=1))
    train = TrainConfig(steps=40, learning_rate=3e-3, warmup_steps=2, weight_decay=0.0)
    net = VQGANConfig(ch=8, ch_mult=(1,), attn_levels=(), patch=4, codebook_size=32, embed_dim=4, z_channels=4)
    task = TokenizerTask(net, loss, train, 16)
    y, x = np.mgrid[:16, :16]
    images = np.stack([127 + 100 * np.sin(x * f + y * g) for f, g in RNG.uniform(0.1, 0.6, (16, 2))]).astype(np.uint8)
    state, step, evaluate = (initial(task.init), *map(jax.jit, (task.train_step, task.eval_step)))
    first = float(evaluate(state, {"image": images})["l1"])
    for i in range(40):
        state, metrics = step(state, {"image": images}, jax.random.key(i))
    last = evaluate(state, {"image": images})
    assert float(last["l1"]) < 0.6 * first
    assert float(last["perplexity"]) > 8
    assert ("gan_weight" in metrics) == bool(gan)
    if gan:
        assert float(metrics["gan_weight"]) > 0


@pytest.mark.slow
def test_emu3_tokenizer_is_fine_tuned_with_its_statistics_and_codes_kept(tmp_path):
    """Batch norms of the temporal path keep what they came with; a frozen code-book and encoder keep every code."""
    config = VQGANConfig(
        in_channels=3, out_channels=3, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_levels=(1,), z_channels=4,
        embed_dim=4, codebook_size=32, temporal=True, group_channels=1,
    )  # fmt: skip
    variables = jax.tree.map(np.asarray, initial(lambda key: vqgan.init_variables(config, key)))
    rng = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), variables["batch_stats"]
    )
    export.export(variables, {"model": to_dict(config)}, tmp_path / "vq")
    start = open_folder(str(tmp_path / "vq"), "tokenizer", VQGANConfig())
    train = TrainConfig(steps=10, batch_size=2, learning_rate=3e-3, warmup_steps=0, weight_decay=0.0)
    freeze = ("encoder", "quant_conv", "quantize")
    task = TokenizerTask(start.model, TokenizerLossConfig(), train, 8, freeze, fresh=False)
    state = task.from_variables(start.variables(), jax.random.key(1))
    images = (rng.random((2, 4, 4)).repeat(2, 1).repeat(2, 2) * 255).astype(np.uint8)
    step, evaluate = jax.jit(task.train_step), jax.jit(task.eval_step)
    before = evaluate(state, {"image": images})
    for i in range(10):
        state, metrics = step(state, {"image": images}, jax.random.key(i))
    after = evaluate(state, {"image": images})
    assert float(after["l1"]) < 0.95 * float(before["l1"])
    np.testing.assert_array_equal(after["codes"], before["codes"])
    out = task.inference_variables(state)
    for a, b in zip(jax.tree.leaves(out["batch_stats"]), jax.tree.leaves(variables["batch_stats"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(out["params"]) == jax.tree.structure(variables["params"])
    assert not changed(out["params"]["encoder"], variables["params"]["encoder"])
    assert "revived" not in metrics
    # With the code-book in training: trained codes are not thrown onto a batch at the first step.
    task = TokenizerTask(start.model, TokenizerLossConfig(revive_until=0.0), train, 8, fresh=False)
    state = task.from_variables(start.variables(), jax.random.key(1))
    new, _ = jax.jit(task.train_step)(state, {"image": images}, jax.random.key(0))
    unused = np.asarray(before["codes"]) == 0
    moved = np.abs(np.asarray(new["params"]["quantize"]["embedding"]) - variables["params"]["quantize"]["embedding"])
    assert unused.any()
    assert moved[unused].max() < 1e-5
    with pytest.raises(UserError, match="freeze"):
        TokenizerTask(start.model, TokenizerLossConfig(), train, 8, ("codes",))


def test_code_use_is_of_the_whole_split():
    sums = {"codes": np.asarray([3.0, 0.0, 1.0, 0.0])}
    found = TokenizerTask.summarize(sums)
    assert found["codes_used"] == 0.5
    assert found["perplexity_all"] == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
