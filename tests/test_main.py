"""The command line end to end at toy size: all stages, resume after kill -9, bad input in one line."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from progemu_jax import checkpoint

pytestmark = pytest.mark.timeout(900)  # the first test pays for a whole run
ROOT = Path(__file__).resolve().parents[1]
TOY = """
from progemu_jax.configs.common import phantom

def get_config():
    config = phantom(name="toy", patients=40, tokenizer_steps=12, crops=2, stage1_steps=4, stage2_steps=8,
                     scorer_images=64, scorer_steps=4)
    config.data.phantom.size = 64
    config.data.tree_size = 64
    config.data.image_size = 32
    config.data.processes = 1
    for part in (config.tokenizer.train, config.progemu.stage1, config.progemu.stage2, config.scorer.train):
        part.batch_size = 4
        part.save_every = 3
    config.tokenizer.model.ch = 16
    config.progemu.model.num_layers = 1
    config.scorer.valid_images = 16
    config.sample.batch_size = 4
    config.sample.max_cases = 6
    return config
"""


def command(folder, workdir, *more):
    return [sys.executable, "-m", "progemu_jax.main", f"--config={folder / 'toy.py'}", f"--workdir={workdir}", *more]


def environment():
    return {**os.environ, "TQDM_DISABLE": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def run(folder, workdir, *more):
    return subprocess.run(
        command(folder, workdir, *more), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY)
    out = run(folder, folder / "run")
    assert out.returncode == 0, out.stdout + out.stderr
    return folder


def test_every_stage_leaves_what_it_promises(toy):
    workdir = toy / "run"
    assert "image" in (workdir / "report/index.html").read_text()
    rows = [json.loads(line) for line in (workdir / "predictions/progemu/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert {"pair_id", "sample", "seed", "prompt", "text", "image", "checkpoint", "sampling"} <= rows[0].keys()
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert "systems" in metrics
    assert metrics["systems"]["progemu"]["memorisation"]["generated"]["images"] == 6
    assert "Copies of training images" in (workdir / "report/index.html").read_text()


def test_a_complete_run_is_left_alone(toy):
    before = (toy / "run/metrics.json").stat().st_mtime_ns
    out = run(toy, toy / "run")
    assert out.returncode == 0
    assert out.stdout.count("complete") == 8
    assert (toy / "run/metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_starts_from_another_ones_weights_with_lora(toy, tmp_path):
    """The tokenizer as it is, the language model with LoRA: the export is the merged model, the adapter is PEFT's."""
    shutil.copytree(toy / "run/data", tmp_path / "run/data")
    shutil.rmtree(tmp_path / "run/data/shards/icg_cxr/tokens")
    start = toy / "run"
    keys = {
        "tokenizer.init": start, "tokenizer.train.steps": 0, "progemu.init": start, "progemu.model.lora_rank": 2,
        "progemu.model.lora_targets": "('q_proj', 'up_proj')", "progemu.task.init_from_codebook": False,
        "progemu.stage1.steps": 0, "progemu.stage2.steps": 2, "progemu.stage2.show_every": 2,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    out = run(toy, tmp_path / "run", "--stages=tokenizer,tokens,train", *flags)
    assert out.returncode == 0, out.stdout + out.stderr
    for part, expected in (("tokenizer", set()), ("train", {"layers_0.self_attn.q_proj", "layers_0.mlp.up_proj"})):
        old, new = (checkpoint.load_export(folder / part / "export")[0] for folder in (start, tmp_path / "run"))
        old, new = checkpoint.flatten(old), checkpoint.flatten(new)
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


def kill_at(folder, workdir, signs, *more):
    """Starts the command once for each sign, a glob in the workdir, and kills -9 soon after the sign is there."""
    rng = np.random.default_rng(0)
    for sign in signs:
        process = subprocess.Popen(
            command(folder, workdir, *more),
            cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and not any(workdir.glob(sign)):
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before {sign} was there"
        time.sleep(float(rng.uniform(0, 0.3)))
        process.send_signal(signal.SIGKILL)
        process.wait()


def same_parameters(one, two):
    for part in ("tokenizer/export", "train/export"):
        pair = [checkpoint.load_export(workdir / part)[0] for workdir in (one, two)]
        same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), *pair)
        assert all(jax.tree.leaves(same)), part


def test_killed_anywhere_it_ends_in_the_same_parameters(toy, tmp_path):
    """kill -9 in three stages, then the same command: bit for bit the undisturbed parameters."""
    workdir, stages = tmp_path / "run", "--stages=data,tokenizer,tokens,train"
    signs = ("data/tree/journal.jsonl", "tokenizer/checkpoints/[0-9]*", "train/stage2/checkpoints/[0-9]*")
    kill_at(toy, workdir, signs, stages)
    assert not (workdir / "train/export").exists()
    out = run(toy, workdir, stages)
    assert out.returncode == 0, out.stdout + out.stderr
    same_parameters(toy / "run", workdir)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_in_the_same_results(toy, tmp_path):
    """As above in all eight stages, down to the predictions, scores and metrics."""
    workdir = tmp_path / "run"
    signs = (
        "data/source*",
        "data/tree/journal.jsonl",
        "data/references/images/*",
        "tokenizer/checkpoints/[0-9]*",
        "data/shards/icg_cxr/tokens*",
        "train/stage1/checkpoints/[0-9]*",
        "train/stage2/checkpoints/[0-9]*",
        "scorer/train.npz",
        "scorer/checkpoints/[0-9]*",
        "predictions/progemu/images/*",
        "predictions/text-only/images/*",
        "scores/*.npz",
    )
    kill_at(toy, workdir, signs)
    out = run(toy, workdir)
    assert out.returncode == 0, out.stdout + out.stderr
    same_parameters(toy / "run", workdir)
    for name in ("progemu", "shuffled-prompts", "text-only", "reconstruction"):
        one, two = ((w / f"predictions/{name}/predictions.jsonl").read_text() for w in (toy / "run", workdir))
        assert one == two
    one, two = (json.loads((w / "metrics.json").read_text()) for w in (toy / "run", workdir))
    assert one["systems"] == two["systems"]


def one_line(out, *words):
    assert out.returncode == 2, out.stdout + out.stderr
    lines = [line for line in out.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, out.stderr
    assert all(word in lines[0] for word in words), lines[0]


def test_another_config_in_the_same_workdir_names_the_key(toy):
    one_line(run(toy, toy / "run", "--config.tokenizer.train.steps=13"), "steps", "12", "13")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.tokenizer.train.stepz=3", ["stepz"]),
        ("--config.data.source=nowhere", ["nowhere"]),
        ("--stages=data,paint", ["paint"]),
        ("--config.tokenizer.train.batch_size=0", ["config.tokenizer", "batch_size"]),
        ("--config.data.processes=two", ["processes", "two"]),  # a key that the file leaves out
        ("--config.data.root.x=1", ["config.data.root.x"]),
        ("--config.progemu.task.length=60", ["length=60"]),
        ("--config.data.image_size=36", ["image_size=36"]),
    ],
)
def test_bad_flags_are_one_line(toy, tmp_path, flag, words):
    one_line(run(toy, tmp_path / "new", flag), *words)
    assert not list(tmp_path.glob("new/*/*"))  # nothing was done before it was noticed


def test_a_missing_root_is_one_line(toy, tmp_path):
    for root in ("", str(tmp_path / "absent")):
        out = run(toy, tmp_path / "new", "--config.data.source=open_cxr", f"--config.data.root={root}")
        one_line(out, "absent" if root else "config.data.root is empty")


def test_a_workdir_that_cannot_be_is_one_line(toy):
    one_line(run(toy, toy / "toy.py"), "--workdir=", "toy.py")


def test_unknown_key_in_the_file_is_one_line(tmp_path):
    (tmp_path / "toy.py").write_text(TOY.replace("return config", "config.dota = 1\n    return config"))
    one_line(run(tmp_path, tmp_path / "run"), "config.dota", "data")


class TestModel:
    """`progemu_jax.load` on the toy run."""

    @pytest.fixture(scope="class")
    def model(self, toy):
        import progemu_jax

        return progemu_jax.load(toy / "run")

    def test_counterfactual_reproduces_and_has_the_promised_shapes(self, model):
        prior = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
        out = model.counterfactual(prior, "New small left pleural effusion.", num_samples=2, seed=3)
        again = model.counterfactual(prior, "New small left pleural effusion.", num_samples=2, seed=3)
        assert out.images.shape == (2, 32, 32)
        assert out.images.dtype == np.uint8
        assert out.codes.shape == (2, 4, 4)
        assert len(out.texts) == 2
        assert (out.codes == again.codes).all()
        assert out.texts == again.texts

    def test_codes_are_as_good_a_prior_as_the_image(self, model):
        image = np.random.default_rng(1).integers(0, 255, (32, 32), np.uint8)
        codes = model.tokenize(image)
        a = model.counterfactual(image, "x", seed=1)
        b = model.counterfactual(codes, "x", seed=1)
        assert (a.codes == b.codes).all()
        assert (model.detokenize(a.codes) == a.images).all()

    def test_logits_are_of_the_whole_vocabulary(self, model):
        assert model.logits(np.zeros((2, 5), np.int32)).shape == (2, 5, model.vocabulary.size)

    @pytest.mark.parametrize(
        ("prior", "prompt", "more", "words"),
        [
            (np.full((8, 8), np.nan), "x", {}, "finite"),
            (np.zeros((8, 8, 7), np.uint8), "x", {}, "H, W"),
            (np.zeros((8, 8), np.uint16), "x", {}, "uint16"),
            ("absent.png", "x", {}, "absent.png"),
            (np.zeros((8, 8), np.uint8), " ", {}, "prompt"),
            (np.zeros((8, 8), np.uint8), "effusion " * 500, {}, "prompt"),
            (np.zeros((8, 8), np.uint8), "x", {"seed": -1}, "seed"),
            (np.zeros((8, 8), np.uint8), "x", {"num_samples": 0}, "num_samples"),
            (np.zeros((8, 8), np.uint8), "x", {"guidence": 3.0}, "guidance"),
        ],
    )
    def test_bad_requests_are_one_clear_line(self, model, prior, prompt, more, words):
        from progemu_jax.errors import UserError

        with pytest.raises(UserError, match=words) as caught:
            model.counterfactual(prior, prompt, **more)
        assert "\n" not in str(caught.value)


def test_load_of_nothing_says_so(tmp_path):
    import progemu_jax
    from progemu_jax.errors import UserError

    with pytest.raises(UserError, match="no such folder"):
        progemu_jax.load(tmp_path / "absent")
    with pytest.raises(UserError, match="tokenizer"):
        progemu_jax.load(tmp_path)


@pytest.mark.parametrize("name", ["demo", "demo_quick", "phantom", "open_cxr"])
def test_every_shipped_config_builds_its_models(name):
    """Shapes only: the transformer and the tokenizer of each config."""
    import importlib

    from progemu_jax import workflow
    from progemu_jax.config import Config, from_dict
    from progemu_jax.models import transformer, vqgan

    config = from_dict(Config, importlib.import_module(f"progemu_jax.configs.{name}").get_config())
    _, layout, model = workflow.model_parts(config)
    assert layout.height * config.tokenizer.model.factor == config.data.image_size
    params = jax.eval_shape(lambda k: transformer.init_params(model, k), jax.random.key(0))
    assert params["embed_tokens"].shape[0] == model.vocab_size
    jax.eval_shape(lambda k: vqgan.init_variables(config.tokenizer.model, k), jax.random.key(0))
    assert dataclasses.is_dataclass(config)
