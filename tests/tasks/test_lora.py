"""Fine-tuning on little memory: what is trained, LoRA's merge and export, and starting from imported weights."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from progemu_jax.checkpoints import export
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.convert import peft
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.errors import UserError
from progemu_jax.files.settings import to_dict
from progemu_jax.models import transformer, vqgan
from progemu_jax.models.transformer import Transformer, TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.sampling.policy import Sampling
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.tasks import lora
from progemu_jax.tasks.lora import TuneConfig
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask
from progemu_jax.tasks.tokenizer import TokenizerLossConfig, TokenizerTask
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Kind
from progemu_jax.training.loop import TrainConfig

MODEL = TransformerConfig(
    vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48,
)  # fmt: skip
LORA = dataclasses.replace(MODEL, lora_rank=4, lora_alpha=8.0)
TRAIN = TrainConfig(steps=10, batch_size=2, learning_rate=1e-2, warmup_steps=0)


def batch(length=12):
    tokens = np.random.default_rng(0).integers(1, 64, (2, length)).astype(np.int32)
    kinds = np.full(tokens.shape, Kind.VISUAL, np.int8)
    kinds[:, -3:], kinds[:, 0], kinds[1, -1] = Kind.TEXT, Kind.BOS, Kind.PAD
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    aligned = np.full(tokens.shape, -1, np.int32)
    return {"tokens": tokens, "kinds": kinds, "positions": positions, "aligned": aligned,
            "weights": np.ones(tokens.shape, np.float32)}  # fmt: skip


def trained(model=MODEL, tune=None, steps=3, **more):
    """(task, first state, state after some steps)."""
    train = dataclasses.replace(TRAIN, **more)
    task = ProgEmuTask(model, ProgEmuConfig(length=12), train, tune=tune)
    state = first = jax.jit(task.init)(jax.random.key(0))
    step = jax.jit(task.train_step)
    for i in range(steps):
        state, _ = step(state, batch(), jax.random.key(i))
    return task, first, state


def initial(model):
    """Shapes of its parameters."""
    return jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))


def changed(first, last):
    one, two = (flatten(x) for x in (first, last))
    return {name for name in one if np.any(np.asarray(one[name]) != np.asarray(two[name]))}


@functools.partial(jax.jit, static_argnums=1)
def logits(params, model, aligned=None):
    hidden, _ = Transformer(model).apply({"params": params}, batch()["tokens"], aligned=aligned)
    return transformer.logits(params, hidden)


@pytest.fixture(scope="module")
def lora_run():
    return trained(LORA)


def test_lora_starts_as_the_base_and_trains_its_own_parameters_only(lora_run):
    task, first, last = lora_run
    before, after = task.params(first), task.params(last)
    plain, _ = lora.merge(before, LORA)
    np.testing.assert_array_equal(logits(before, LORA), logits(plain, MODEL))  # B is zero
    moved = changed(before, after)
    assert moved == {name for name in flatten(after) if "_lora_" in name}
    assert len(moved) == 2 * 7 * 2
    moments = sum(leaf.size for leaf in jax.tree.leaves(last["opt_state"]) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(last["params"]))


@pytest.mark.parametrize("scan", [False, True])
def test_merged_gives_the_logits_of_the_adapter(lora_run, scan):
    task, _, last = lora_run
    params, model = task.params(last), LORA
    if scan:
        params, model = transformer.stack_layers(params), dataclasses.replace(LORA, scan_layers=True)
    merged, plain = lora.merge(params, model)
    assert plain.lora_rank == 0
    assert not any("_lora_" in name for name in flatten(merged))
    np.testing.assert_allclose(logits(merged, plain), logits(params, model), atol=1e-5)
    assert (
        np.abs(logits(merged, plain) - logits(lora.join({}, task.params(trained(LORA, steps=0)[1])), LORA)).max() > 0.1
    )


def test_peft_files_rebuild_the_merged_weights(lora_run, tmp_path):
    """As PEFT reads them: W + B A alpha / r, of the names and shapes of torch's linear layers."""
    task, _, last = lora_run
    params = task.params(last)
    peft.export_peft(params, LORA, tmp_path, "BASE")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8.0)
    assert config["base_model_name_or_path"] == "BASE"
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    merged, _ = lora.merge(params, LORA)
    flat_base, flat_merged = flatten(params), flatten(merged)
    entries = emu3_folder.language_entries(MODEL, ("model.", ""))
    targets = [entry for entry in entries if entry.layout == "linear"]
    assert len(arrays) == 2 * len(targets) == 28
    for entry in targets:
        stem = f"base_model.model.{entry.name.removesuffix('.weight')}"
        a, b = arrays[f"{stem}.lora_A.weight"], arrays[f"{stem}.lora_B.weight"]
        wanted = entry.theirs(np.asarray(flat_base[entry.leaf])) + b @ a * (8.0 / 4)
        np.testing.assert_allclose(wanted, entry.theirs(np.asarray(flat_merged[entry.leaf])), atol=1e-6)
    with pytest.raises(UserError, match="no LoRA"):
        peft.export_peft(params, MODEL, tmp_path, "BASE")


def test_targets_limit_what_is_added():
    model = dataclasses.replace(MODEL, lora_rank=2, lora_targets=("q_proj", "down_proj"))
    names = {n.rsplit(".", 1)[-1] for n in flatten(initial(model))}
    assert {n for n in names if "_lora_" in n} == {f"{t}_lora_{x}" for t in ("q_proj", "down_proj") for x in "ab"}
    with pytest.raises(ValueError, match="lora_targets: 'w'"):
        dataclasses.replace(MODEL, lora_targets=("w",))


@pytest.mark.parametrize("scan", [False, True])
def test_last_layers_and_frozen_parameters_stay(scan):
    model = dataclasses.replace(MODEL, scan_layers=scan)
    task, first, last = trained(model, TuneConfig(last_layers=1, freeze=("lm_head",)))
    before, after = task.params(first), task.params(last)
    assert jax.tree.structure(before) == jax.tree.structure(initial(model))
    if scan:
        before, after = transformer.unstack_layers(before), transformer.unstack_layers(after)
    parts = {name.split(".")[0] for name in changed(before, after)}
    assert parts == {"layers_1", "norm"}
    assert sum(x.size for x in jax.tree.leaves(last["opt_state"])) < sum(x.size for x in jax.tree.leaves(after))


def test_senseless_choices_are_named():
    for tune, words in (
        (TuneConfig(last_layers=3), "has 2 layers"),
        (TuneConfig(freeze=("head",)), "'head'; choose among embed_tokens"),
        (TuneConfig(freeze=("embed_tokens", "lm_head", "norm", "layers_0", "layers_1")), "nothing is left"),
    ):
        with pytest.raises(UserError, match=words):
            trained(MODEL, tune, steps=0)


def test_average_of_a_lora_run_is_what_is_evaluated():
    task, _, state = trained(LORA, ema=0.9)
    assert set(state) == {"params", "opt_state", "ema", "frozen"}
    averaged = task.params(state)
    raw = lora.join(state["params"], state["frozen"])
    assert changed(averaged, raw)
    loss = jax.jit(lambda params: task.loss(params, batch(), None, every=True)[0])
    assert float(jax.jit(task.eval_step)(state, batch())["loss"]) == pytest.approx(float(loss(averaged)), rel=1e-6)


def language_export(folder, model=MODEL):
    words = vocabulary.load(None, 16)
    model = dataclasses.replace(model, vocab_size=words.size)
    params = jax.jit(lambda key: transformer.init_params(model, key))(jax.random.key(3))
    config = {"model": to_dict(model), "layout": {"height": 2, "width": 2, "length": 64}, "vocabulary": "",
              "policy": to_dict(Sampling()), "vocabulary_hash": words.hash, "hash": "0" * 12}  # fmt: skip
    export.export(params, config, folder)
    return params, model


@pytest.mark.parametrize("scan", [False, True])
def test_a_start_is_the_imported_function_whatever_is_added(tmp_path, scan):
    params, model = language_export(tmp_path / "lm")
    own = dataclasses.replace(TransformerConfig(), lora_rank=2, prior_alignment=True, scan_layers=scan, dropout=0.1)
    start = open_folder(str(tmp_path / "lm"), "language_model", own)
    assert (start.model.hidden_size, start.model.dropout) == (32, 0.1)
    assert start.vocabulary.codebook_size == 16
    read = start.variables()
    aligned = np.full((2, 12), 5, np.int32)
    np.testing.assert_allclose(logits(read, start.model, aligned), logits(params, model), atol=1e-5)
    assert (
        float(np.abs(flatten(read)["layers.mlp.up_proj_lora_a" if scan else "layers_0.mlp.up_proj_lora_a"]).max()) > 0
    )


def test_a_start_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config\.progemu\.init: .*no such folder"):
        open_folder(str(tmp_path / "none"), "language_model", MODEL)
    language_export(tmp_path / "lm")
    with pytest.raises(UserError, match=r"config\.tokenizer\.init=.*holds no tokenizer"):
        open_folder(str(tmp_path / "lm"), "tokenizer", VQGANConfig())


@pytest.mark.slow
def test_emu3_tokenizer_is_fine_tuned_with_its_statistics_and_codes_kept(tmp_path):
    """Batch norms of the temporal path keep what they came with; a frozen code-book and encoder keep every code."""
    config = VQGANConfig(
        in_channels=3, out_channels=3, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_levels=(1,), z_channels=4,
        embed_dim=4, codebook_size=32, temporal=True, group_channels=1,
    )  # fmt: skip
    variables = jax.tree.map(np.asarray, jax.jit(lambda key: vqgan.init_variables(config, key))(jax.random.key(0)))
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
