"""Fine-tuning on little memory: what is trained, what stays, and LoRA's merge."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.initial import initial
from support.language_model import MODEL, TRAIN, batch, changed, logits

from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.checkpoints.resume import Checkpoints
from progemu_jax.config import Config
from progemu_jax.convert import peft
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.models import nf4, transformer
from progemu_jax.tasks import lora
from progemu_jax.tasks.lora import TuneConfig
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask

LORA = dataclasses.replace(MODEL, lora_rank=4, lora_alpha=8.0)
QLORA = dataclasses.replace(LORA, lora_base="nf4")


def trained(model=MODEL, tune=None, steps=3, **more):
    """(task, first state, state after some steps)."""
    train = dataclasses.replace(TRAIN, **more)
    task = ProgEmuTask(model, ProgEmuConfig(length=12), train, tune=tune)
    state = first = initial(task.init)
    step = jax.jit(task.train_step)
    for i in range(steps):
        state, _ = step(state, batch(), jax.random.key(i))
    return task, first, state


def shapes(model):
    """Shapes of its parameters."""
    return jax.eval_shape(lambda: transformer.init_params(model, jax.random.key(0)))


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
    names = {n.rsplit(".", 1)[-1] for n in flatten(shapes(model))}
    assert {n for n in names if "_lora_" in n} == {f"{t}_lora_{x}" for t in ("q_proj", "down_proj") for x in "ab"}
    with pytest.raises(ValueError, match="lora_targets: 'w'"):
        dataclasses.replace(MODEL, lora_targets=("w",))


@pytest.mark.parametrize("scan", [False, True])
def test_last_layers_and_frozen_parameters_stay(scan):
    model = dataclasses.replace(MODEL, scan_layers=scan)
    task, first, last = trained(model, TuneConfig(last_layers=1, freeze=("lm_head",)))
    before, after = task.params(first), task.params(last)
    assert jax.tree.structure(before) == jax.tree.structure(shapes(model))
    if scan:
        before, after = transformer.unstack_layers(before), transformer.unstack_layers(after)
    parts = {name.split(".")[0] for name in changed(before, after)}
    assert parts == {"layers_1", "norm"}
    assert sum(x.size for x in jax.tree.leaves(last["opt_state"])) < sum(x.size for x in jax.tree.leaves(after))


def test_the_diagonal_head_stays_as_it_is():
    """No loss but its own reaches it, and weight decay would shrink it."""
    model = dataclasses.replace(MODEL, diagonal=True)
    trained, frozen = lora.split(shapes(model), model, TuneConfig())
    assert set(frozen) == {"diagonal_head"}
    assert set(trained) == set(shapes(MODEL))
    assert lora.join(trained, frozen) == shapes(model)


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


def plain_base(params):
    """The same parameters with the weights that the 4 bits stand for."""
    return jax.tree.map(
        lambda x: jax.vmap(lambda one: nf4.unpack(one, np.float32))(x) if nf4.is_nf4(x) else x,
        params,
        is_leaf=nf4.is_nf4,
    )


def test_gradients_on_4_bits_are_those_on_the_weights_they_stand_for():
    """And no program holds all layers' weights unpacked, though none of it is computed again."""
    model = dataclasses.replace(QLORA, scan_layers=True)
    task, state, _ = trained(model, steps=0)
    state["params"] = jax.tree.map(lambda x: np.random.default_rng(1).normal(size=x.shape) / 8, state["params"])
    params = task.params(state)
    full = ProgEmuTask(dataclasses.replace(model, lora_base="full"), task.config, task.train)

    def slope(task, params):
        learnt, frozen = lora.split(params, task.model_config, TuneConfig())
        step = jax.jit(jax.grad(lambda x, frozen: task.loss(lora.join(x, frozen), batch(), None)[0]))
        return step(learnt, frozen), step.lower(learnt, frozen).compile().as_text()

    (found, text), (expected, other) = slope(task, params), slope(full, plain_base(params))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(b).max() > 1e-4
        np.testing.assert_allclose(a, b, atol=1e-5)
    unpacked = ("f32[2,32,48]", "f32[2,48,32]", "f32[2,4,8,32]", "f32[2,32,4,8]")
    assert all(shape in other for shape in unpacked)
    assert not any(shape in text for shape in unpacked)
    assert "u8[2,1536]" in text


def test_training_on_4_bits_leaves_the_base_and_merges_into_a_plain_model(tmp_path):
    task, first, last = trained(QLORA)
    assert changed(first["frozen"], last["frozen"]) == set()
    params = task.params(last)
    merged, plain = lora.merge(params, QLORA)
    assert plain == dataclasses.replace(MODEL, lora_alpha=LORA.lora_alpha)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes(MODEL)
    )
    np.testing.assert_allclose(logits(merged, plain), logits(params, QLORA), atol=1e-5)
    stacked, scanned = transformer.stack_layers(params), dataclasses.replace(QLORA, scan_layers=True)
    again = transformer.unstack_layers(lora.merge(stacked, scanned)[0])
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert lora.based(params, QLORA)["layers_0"]["mlp"]["up_proj"] is params["layers_0"]["mlp"]["up_proj"]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, last)
        checkpoints.wait()
        _, back, _ = checkpoints.restore(jax.eval_shape(task.init, jax.random.key(0)))
    assert jax.tree.structure(back) == jax.tree.structure(last)
    assert not changed(back, last)


def test_4_bits_on_a_mesh_train_as_on_one_device():
    model = dataclasses.replace(QLORA, hidden_size=64, scan_layers=True)
    task, first, _ = trained(model, steps=0)
    mesh = sharding.make_mesh(1, 2, 2, devices=jax.devices()[:4])
    step = jax.jit(task.train_step)
    (_, alone), key = step(first, batch(), jax.random.key(0)), jax.random.key(0)
    where = task.state_shardings(mesh, jax.eval_shape(task.init, key))
    assert where["frozen"]["layers"]["self_attn"]["q_proj"].codes.spec == jax.P(None, "fsdp", "tensor", None)
    state, given = jax.device_put(first, where), jax.device_put(batch(), sharding.batch_sharding(mesh))
    _, split = jax.jit(task.train_step, out_shardings=(where, None))(state, given, key)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(split[name], alone[name], rtol=1e-5)


def test_4_bits_without_lora_are_refused():
    with pytest.raises(UserError, match=r"config\.progemu\.model: lora_base='nf4' without LoRA: .*; give lora_rank"):
        from_dict(Config, {"progemu": {"model": {"lora_base": "nf4"}}})
    with pytest.raises(UserError, match="lora_base='int4' is unknown; choose among full, nf4"):
        from_dict(Config, {"progemu": {"model": {"lora_base": "int4", "lora_rank": 2}}})
