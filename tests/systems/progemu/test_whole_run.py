"""The command line end to end at toy size: all stages, and resume after kill -9."""

import json
import shutil

import numpy as np
import pytest
from support import vqgan_reference
from support.command_line import TOY, kill_at, one_line, run, same_parameters, whole_run

import progemu_jax
from progemu_jax.checkpoints import arrays, export
from progemu_jax.convert import __main__ as conversion
from progemu_jax.tasks import word_vectors
from progemu_jax.text import vocabulary

pytestmark = pytest.mark.timeout(900)  # the first test pays for a whole run


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("toy"), TOY)


def test_every_stage_leaves_what_it_promises(toy):
    workdir = toy / "run"
    assert "image" in (workdir / "report/index.html").read_text()
    rows = [json.loads(line) for line in (workdir / "predictions/progemu/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {"pair_id", "sample", "seed", "prompt", "text", "image", "checkpoint", "sampling"} <= rows[0].keys()
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert "systems" in metrics
    audit = metrics["systems"]["progemu"]["memorisation"]
    assert audit["generated"]["images"] == 6
    assert -1 < audit["real"]["identity"]["median"] <= audit["real"]["identity"]["greatest"] < 1.001
    assert np.load(workdir / "scores/progemu.npz")["identity"].shape == (6, 64)
    control = metrics["systems"]["contradicting"]["metrics"]
    assert {"mae_asked", "mae_asked_copy", "severity_own_direction"} <= control.keys()
    assert metrics["systems"]["null_edit_answers"]["metrics"]["mae_prior"]["value"] < 3 < control["mae_asked"]["value"]
    assert 0 < metrics["systems"]["counterfactual"]["metrics"]["severity_mae"]["value"] < 1
    assert "Copies of training images" in (workdir / "report/index.html").read_text()
    assert [path for path in workdir.rglob("*.tmp") if path.name != ".lock"] == []


def test_the_run_loads_as_a_model(toy):
    model = progemu_jax.load(toy / "run")
    assert model.tokenize(np.zeros((32, 32), np.uint8)).shape == (4, 4)
    assert model.logits(np.zeros((1, 5), np.int32)).shape == (1, 5, model.vocabulary.size)


def test_a_complete_run_is_left_alone(toy):
    before = (toy / "run/metrics.json").stat().st_mtime_ns
    out = run(toy, toy / "run")
    assert out.returncode == 0
    assert out.stdout.count("complete") == 10
    assert (toy / "run/metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("base", ["full", "nf4"])
def test_a_run_starts_from_another_ones_weights_with_lora(toy, tmp_path, base):
    """The tokenizer as it is, the language model with LoRA: the export is the merged model, the adapter is PEFT's.

    In 4 bits every projection of the layers is another one, and nothing else.
    """
    shutil.copytree(toy / "run/data", tmp_path / "run/data")
    shutil.rmtree(tmp_path / "run/data/shards/icg_cxr/tokens")
    start = toy / "run"
    keys = {
        "tokenizer.init": start, "tokenizer.train.steps": 0, "progemu.init": start, "progemu.model.lora_rank": 2,
        "progemu.model.lora_base": base, "progemu.model.lora_targets": "('q_proj', 'up_proj')",
        "progemu.task.init_from_codebook": False, "progemu.stage1.steps": 0, "progemu.stage2.steps": 2,
        "progemu.stage2.show_every": 2,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    out = run(toy, tmp_path / "run", "--stages=tokenizer,tokens,train", *flags)
    assert out.returncode == 0, out.stdout + out.stderr
    moved = {"layers_0.self_attn.q_proj", "layers_0.mlp.up_proj"}
    if base == "nf4":
        moved |= {f"layers_0.self_attn.{name}_proj" for name in "kvo"} | {
            f"layers_0.mlp.{x}_proj" for x in ("gate", "down")
        }
    for part, expected in (("tokenizer", set()), ("train", moved)):
        old, new = (export.load_export(folder / part / "export")[0] for folder in (start, tmp_path / "run"))
        old, new = arrays.flatten(old), arrays.flatten(new)
        assert old.keys() == new.keys()
        assert {name for name in old if np.any(np.asarray(old[name]) != np.asarray(new[name]))} == expected
    assert {p.name for p in (tmp_path / "run/train/adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    again = run(
        toy,
        tmp_path / "run",
        "--stages=train",
        *(f for f in flags if "progemu.init=" not in f),
        "--config.progemu.init=nowhere",
    )
    one_line(again, "config.progemu.init", "nowhere", "no such folder")


@pytest.mark.slow
def test_a_run_starts_from_a_vqgan_of_others(tmp_path):
    """In taming-transformers' names, converted: trained further, its codes are those that the language model learns."""
    sizes = {"channels": 3, "ch": 32, "ch_mult": (1,) * 4, "blocks": 1, "attention": (3,), "z": 8, "embed": 8}
    source = vqgan_reference.write(tmp_path / "cxr.safetensors", sizes | {"codes": 64})
    assert conversion.main([f"--source={source}", f"--target={tmp_path / 'vqgan'}"]) == 0
    (tmp_path / "toy.py").write_text(TOY)
    keys = {
        "data.phantom.patients": 20, "tokenizer.init": tmp_path / "vqgan", "tokenizer.train.steps": 2,
        "progemu.stage1.steps": 1, "progemu.stage2.steps": 1,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    out = run(tmp_path, tmp_path / "run", "--stages=data,tokenizer,tokens,train", *flags)
    assert out.returncode == 0, out.stdout + out.stderr
    old, new = (folder / "tokenizer/export" for folder in (tmp_path / "vqgan", tmp_path / "run"))
    assert export.read_export_config(new)["model"] == export.read_export_config(old)["model"]
    old, new = (arrays.flatten(export.load_export(folder)[0]) for folder in (old, new))
    assert old.keys() == new.keys()
    moved = {name for name in old if not np.array_equal(old[name], new[name])}
    assert {"params.decoder.norm_out.scale", "params.encoder.conv_in.kernel"} <= moved
    model = progemu_jax.load(tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    assert model.layout.height == 4
    assert model.vocabulary.codebook_size == 64
    assert model.detokenize(model.tokenize(image)).shape == (32, 32)
    assert model.counterfactual(image, "New small left pleural effusion.").images.shape == (1, 32, 32)


@pytest.mark.slow
def test_a_run_learns_words_first_and_from_its_own_futures_last(toy, tmp_path):
    """Every part that teaches a model to obey, in one run; a killed round goes on with the futures that were drawn."""
    shutil.copytree(toy / "run", tmp_path / "run", ignore=shutil.ignore_patterns("train", "predictions", "scores"))
    small = {"steps": 2, "batch_size": 4, "warmup_steps": 0}
    keys = {
        "sample.policy.mode": "diagonal",
        "progemu.task.restate": 0.7, "progemu.task.dictionary": 0.3, "progemu.task.rehearse": 0.2,
        "progemu.task.complete": 0.5, "progemu.task.identity": 0.1, "progemu.task.read": 0.2,
        "progemu.task.omitted_weight": 1.0, "vocabulary": "english", "progemu.task.word_vectors": True,
        "progemu.task.word_dropout": 0.1, "progemu.task.soften": 0.5, "progemu.stage1.steps": 0,
        "progemu.stage2.steps": 2, "progemu.stage2.optimizer": "muon", "progemu.refine.rounds": 1,
        "progemu.refine.requests": 6,
        "progemu.refine.futures": 2, "progemu.refine.scorer.images": 64, "progemu.refine.scorer.valid_images": 16,
        "progemu.refine.scorer.net.severity": True, "progemu.refine.scorer.net.widths": "(8, 16)",
        **{f"progemu.{part}.{k}": v for part in ("words", "reading.train", "refine.train", "refine.scorer.train",
                                                 "diagonal.head")
           for k, v in small.items()},
    }  # fmt: skip
    stages = ("--stages=reward,train", *(f"--config.{key}={value}" for key, value in keys.items()))
    out = run(toy, tmp_path / "run", *stages)
    assert out.returncode == 0, out.stdout + out.stderr
    assert "refine 0: mean reward" in out.stdout
    train = tmp_path / "run/train"
    with np.load(train / "refine0/futures.npz") as drawn:
        assert {name: drawn[name].shape for name in drawn.files} == {
            "prior": (6, 4, 4), "futures": (6, 2, 4, 4), "reward": (6, 2), "reference": (6, 2),
        }  # fmt: skip
        assert (drawn["reference"] < 0).all()
    known = word_vectors.load("english", vocabulary.load("english").text_size)
    rows = np.asarray(export.load_export(train / "export")[0]["embed_tokens"])[known.tokens]
    projection = np.linalg.lstsq(known.vectors, rows, rcond=None)[0]  # one of all words, in every stage
    np.testing.assert_allclose(known.vectors @ projection, rows, atol=1e-5)
    assert rows.std() > 0.01
    model = progemu_jax.load(tmp_path / "run")
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    one, other = (model.counterfactual(image, "New edema.", seed=1, mode=mode) for mode in ("rows", "diagonal"))
    assert one.images.shape == other.images.shape == (1, 32, 32)
    assert (one.codes != other.codes).any()
    told = json.loads((train / "refine0/futures.json").read_text())
    assert len(told) == 6
    assert all(row["prompt"] for row in told)
    for part in ("words", "stage2", "reading", "refine0"):
        assert [p.name for p in (train / part / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for gone in ("export", "stage.json", "refine0/checkpoints"):
        path = tmp_path / "again/train" / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = run(toy, tmp_path / "again", *stages)
    assert out.returncode == 0, out.stdout + out.stderr
    assert "refine 0: mean reward" not in out.stdout
    same_parameters(tmp_path / "run", tmp_path / "again", ("train/export",))


PARTS = ("tokenizer/export", "train/export")


@pytest.mark.slow
def test_killed_anywhere_it_ends_in_the_same_parameters(toy, tmp_path):
    """kill -9 in three stages, then the same command: bit for bit the undisturbed parameters."""
    workdir, stages = tmp_path / "run", "--stages=data,tokenizer,tokens,train"
    signs = ("data/tree/journal.jsonl", "tokenizer/checkpoints/[0-9]*", "train/stage2/checkpoints/[0-9]*")
    kill_at(toy, workdir, signs, stages)
    assert not (workdir / "train/export").exists()
    out = run(toy, workdir, stages)
    assert out.returncode == 0, out.stdout + out.stderr
    same_parameters(toy / "run", workdir, PARTS)


def test_another_config_in_the_same_workdir_names_the_key(toy):
    one_line(run(toy, toy / "run", "--config.tokenizer.train.steps=13"), "steps", "12", "13")
