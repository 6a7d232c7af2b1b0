"""What fits where: programs of a small model compiled for devices that are not here, and rows counted from shapes."""

import importlib.util
import json
import math

import jax
import pytest

from progemu_jax import run
from progemu_jax.config import Config
from progemu_jax.configs import demo, progemu_8b, progemu_8b_nf4
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict
from progemu_jax.plan import counts, plan
from progemu_jax.tasks.progemu import ProgEmuTask

SIZES = {
    "hidden_size": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 128, "intermediate_size": 64,
    "dtype": "bfloat16", "param_dtype": "bfloat16", "scan_layers": True, "remat": True, "dropout": 0.0,
}  # fmt: skip


def small(*accelerators, devices=(8,), **mesh):
    """Of 32 x 32 images, 4 x 4 codes."""
    config = demo.get_config()
    config.progemu.model.update(SIZES)
    config.data.image_size = 32
    config.progemu.task.update({"length": 64, "prompt_budget": 8})
    config.sample.policy.max_text = 4
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, **mesh}
    config.plan = {"devices": devices, "accelerators": accelerators, "cases": 1}
    return config


def rows(config, workdir):
    run.run(config, workdir, ["plan"])
    return {(r["program"], r["target"]): r for r in json.loads((workdir / "plan.json").read_text())["rows"]}


@pytest.fixture
def no_tpu_compiler(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))


def test_fake_devices_and_counted_rows(tmp_path, no_tpu_compiler, capsys):
    """Without the TPU's compiler the programs are compiled for fake CPU devices, each in a process of its own."""
    found = rows(small("H100", "v5p", fsdp=2, tensor=2), tmp_path)
    assert found.keys() == {(program, target) for program in plan.PROGRAMS for target in ("cpu", "H100")}
    train, sample = found["train", "cpu"], found["sample", "cpu"]
    assert (train["mesh"], sample["mesh"]) == ([2, 2, 2], [4, 1, 2])
    assert train["sent"]["all-reduce"] > 0
    assert sample["sent"]["all-reduce"] > 0  # what the heads give is summed over the tensor axis
    assert "memory" not in train  # of another compiler than the accelerators'
    assert train["tokens"] == 4 * 64
    assert found["train", "H100"]["flops"] == train["flops"]
    memory = found["train", "H100"]["memory"]
    assert memory["total"] == pytest.approx(sum(value for name, value in memory.items() if name != "total"))
    out, err = capsys.readouterr()
    assert "TPU rows are left out" in err
    assert "| train | 8 H100 SXM | 2 x 2 x 2 |" in out


def test_a_diagonal_a_pass(tmp_path, no_tpu_compiler, monkeypatch):
    """The finished model has the head; an image is 4 + 4 - 1 passes in place of 16."""
    monkeypatch.setattr(plan, "PROGRAMS", ("sample",))
    config = small("H100", "v5p", tensor=2)
    config.progemu.diagonal = {"head": {"steps": 1}}
    assert from_dict(Config, config).sample.policy.guided
    drawn = counts.Program("sample", (4, 1, 2), 1, "H100")
    by_code = counts.row_by_formula(drawn, from_dict(Config, config))
    config.sample.policy.mode = "diagonal"
    found = rows(config, tmp_path)
    assert found["sample", "cpu"]["sent"]["all-reduce"] > 0  # it compiled
    counted, head = found["sample", "H100"], 7 * 64 * 64 + 3 * 64 * 64  # gate, up and down of 64 channels; mix
    assert counted["flops"] - by_code["flops"] == pytest.approx(4 * 2 * 16 * 2 * head)  # cases, guidance, codes
    assert counted["moved"] == pytest.approx((7 + 4) / (16 + 4) * by_code["moved"] + 7 * 2 * head / 2)
    assert counted["memory"]["weights"] == by_code["memory"]["weights"]
    trained, _, _ = counts.model_of(from_dict(Config, config), 2)  # by stages 1 and 2
    assert counts.diagonal_parameters(trained) == 0


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra tpu-plan")
def test_a_slice_is_compiled_for_by_its_own_compiler(tmp_path):
    found = rows(small("v5p", fsdp=2), tmp_path)
    for program in plan.PROGRAMS:
        memory = found[program, "v5p"]["memory"]
        assert memory["total"] >= memory["argument"] + memory["temp"] > 0
    assert found["train", "v5p"]["sent"]["all-gather"] > 0
    assert sum(found["sample", "v5p"]["sent"].values()) < 1e5  # prompts; every device has its own cases


def test_what_does_not_compile_is_a_row(tmp_path, monkeypatch, no_tpu_compiler, capsys):
    monkeypatch.setattr(plan, "PROGRAMS", ("train",))
    found = rows(small("v5p", devices=(4,), tensor=4), tmp_path)  # two heads over four devices
    assert "heads axis of size 2 does not divide by mesh tensor=4" in found["train", "cpu"]["failed"]
    assert "does not compile" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (small("A100"), "'A100' is unknown; choose among H100"),
        (small("H100", fsdp=3), "fsdp=3 tensor=1 does not divide 8 devices"),
    ],
)
def test_senseless_plans_are_one_line(tmp_path, config, words):
    with pytest.raises(UserError, match=words):
        run.run(config, tmp_path, ["plan"])


def test_the_8b_model_is_counted_as_it_is():
    config = from_dict(Config, progemu_8b.get_config())
    model, layout, _ = counts.model_of(config, 1)
    parts = counts.parameters(model)
    norms = 65 * 4096
    padding = 2 * 4096 * (184_640 - 184_622)
    assert model.num_layers * parts["layer"] + parts["tables"] + norms - padding == 8_492_011_520
    case = counts.Program("train", (8, 8, 1), 1, "v5p")
    found = counts.count(model, layout, case, config)
    assert found["tokens"] == 64 * 9216
    dense = 6 * (model.num_layers * parts["layer"] + parts["head"])
    assert found["flops"] == pytest.approx(found["tokens"] * (dense + 6 * 32 * 4096 * 9216))


def test_the_8b_model_is_fine_tuned_on_one_card():
    """LoRA on 4 bits: what is counted as the state is the state's bytes but for norms; 22 GB hold all of it."""
    config = from_dict(Config, progemu_8b_nf4.get_config())
    row = counts.row_by_formula(counts.Program("train", (1, 1, 1), 1, "RTX 4090"), config)
    model, layout, task = counts.model_of(config, 1)
    state = jax.eval_shape(ProgEmuTask(model, task, config.progemu.stage2).init, jax.random.key(0))
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert row["memory"]["state"] == pytest.approx(held, rel=1e-4)
    assert layout.length == 9216
    assert row["memory"]["total"] < 22e9
    assert (row["recomputed"], row["offloaded"]) == ("the layers", "nothing")
    assert "| train | 1 RTX 4090 | 1 x 1 x 1 | " in plan.table([row])
    assert plan.table([row]).splitlines()[-1].split(" | ")[4] == "yes"
    full = from_dict(Config, {**progemu_8b_nf4.get_config(), "progemu": progemu_8b.get_config().progemu})
    more = counts.row_by_formula(counts.Program("train", (1, 1, 1), 1, "RTX 4090"), full)
    assert more["memory"]["total"] > 50e9
    assert row["flops"] / row["tokens"] == pytest.approx(more["flops"] / more["tokens"] * 2 / 3, rel=0.1)


def test_rooflines_take_the_network_where_the_fast_links_end():
    row = {"mesh": [8, 8, 1], "flops_done": 64 * 989e12, "moved": 3.35e12 / 2}
    row["sent"] = {"all-gather": 450e9 / 4, "all-reduce (data)": 50e9 / 2}
    times = counts.roofline(row, "H100")
    assert times == {"arithmetic": 1.0, "memory": 0.5, "links": 0.75, "step": 1.0}
    assert counts.roofline({**row, "mesh": [1, 8, 1], "flops_done": 0}, "H100")["links"] == pytest.approx(0.25 + 1 / 18)
