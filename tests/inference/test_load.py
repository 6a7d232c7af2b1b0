"""`progemu_jax.load` on a run directory with random weights."""

import dataclasses
import gc
import importlib
import json
import shutil
import weakref

import jax
import numpy as np
import pytest
from support import tiny_run
from support.errors import fails

import progemu_jax
from progemu_jax.config import Config
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case
from progemu_jax.files.settings import from_dict
from progemu_jax.inference.counterfactual import CounterfactualModel
from progemu_jax.models import transformer, vqgan
from progemu_jax.systems.progemu import model_config


def test_counterfactual_reproduces_and_has_the_promised_shapes(model):
    prior = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    out = model.counterfactual(prior, "New small left pleural effusion.", num_samples=3, seed=3)
    again = model.counterfactual(prior, "New small left pleural effusion.", num_samples=3, seed=3)
    assert out.images.shape == (3, 32, 32)
    assert out.images.dtype == np.uint8
    assert out.codes.shape == (3, 4, 4)
    assert len(out.texts) == 3
    assert (out.codes == again.codes).all()
    assert out.texts == again.texts


def test_codes_are_as_good_a_prior_as_the_image(model):
    image = np.random.default_rng(1).integers(0, 255, (32, 32), np.uint8)
    codes = model.tokenize(image)
    a = model.counterfactual(image, "New edema.", num_samples=3, seed=1)
    b = model.counterfactual(codes, "New edema.", num_samples=3, seed=1)
    assert (a.codes == b.codes).all()
    assert (model.detokenize(a.codes) == a.images).all()


def test_it_is_a_counterfactual_model(model):
    assert isinstance(model, CounterfactualModel)


def test_each_model_keeps_its_own_prepared_weights_and_they_go_with_it(model, tmp_path):
    other = progemu_jax.load(tiny_run.write(tmp_path))
    cases = [Case("a", np.zeros((4, 4), np.int32), "x")]
    made = model.sample(cases)
    mine, others = model.prepared(), other.prepared()
    np.testing.assert_array_equal(other.sample(cases).codes, made.codes)
    assert model.prepared() is mine
    assert other.prepared() is others
    assert mine[0] is not others[0]
    gone = [weakref.ref(other), *(weakref.ref(leaf) for leaf in jax.tree.leaves(others[0]))]
    del other, others
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]
    other_params = jax.tree.map(lambda x: -x, model.params)
    old, model.params = model.params, other_params
    assert model.prepared() is not mine  # other weights are prepared anew
    model.params = old


def test_logits_are_of_the_whole_vocabulary(model):
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
def test_bad_requests_are_one_clear_line(model, prior, prompt, more, words):
    with pytest.raises(UserError, match=words) as caught:
        model.counterfactual(prior, prompt, **more)
    assert "\n" not in str(caught.value)


def test_load_of_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        progemu_jax.load(tmp_path / "absent")
    with pytest.raises(UserError, match="tokenizer"):
        progemu_jax.load(tmp_path)


def test_what_needs_a_part_that_is_not_there_is_one_line(tiny_folder):
    tokenizer = progemu_jax.load(tiny_folder / "tokenizer/export")
    language_model = progemu_jax.load(tiny_folder / "train/export")
    case, image = Case("a", np.zeros((4, 4), np.int32), "x"), np.zeros((32, 32), np.uint8)
    for ask in (tokenizer.check, lambda case: tokenizer.sample([case]), lambda _: tokenizer.prior_codes(image)):
        fails("holds no language model", ask, case)
    for ask in (lambda case: language_model.sample([case]), lambda _: language_model.prior_codes(image)):
        fails("holds no image tokenizer", ask, case)


@pytest.mark.parametrize("name", ["demo", "demo_quick", "phantom", "open_cxr"])
def test_every_shipped_config_builds_its_models(name):
    """Shapes only: the transformer and the tokenizer of each config."""
    config = from_dict(Config, importlib.import_module(f"progemu_jax.configs.{name}").get_config())
    _, layout, model = model_config.model_parts(config)
    assert layout.height * config.tokenizer.model.factor == config.data.image_size
    params = jax.eval_shape(lambda k: transformer.init_params(model, k), jax.random.key(0))
    assert params["embed_tokens"].shape[0] == model.vocab_size
    jax.eval_shape(lambda k: vqgan.init_variables(config.tokenizer.model, k), jax.random.key(0))
    assert dataclasses.is_dataclass(config)


class TestPolicy:
    def test_a_runs_config_goes_before_the_export(self, tiny_folder, model, tmp_path):
        folder = shutil.copytree(tiny_folder, tmp_path / "run")
        assert progemu_jax.load(folder).policy.guidance == 2.0
        (folder / "config.json").write_text(json.dumps({"sample": {"policy": {"guidance": 1.5, "top_k": 7}}}))
        assert (progemu_jax.load(folder).policy.guidance, progemu_jax.load(folder).policy.top_k) == (1.5, 7)
        assert progemu_jax.load(folder / "train/export", tokenizer=folder).policy.guidance == 2.0
        assert progemu_jax.load(folder).hash == model.hash
        (folder / "config.json").write_text(json.dumps({"sample": {"policy": {"guidence": 1.5}}}))
        with pytest.raises(UserError, match=r"config\.json.*guidence.*guidance"):
            progemu_jax.load(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(UserError, match=r"config\.json"):
            progemu_jax.load(folder)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("train", "model", None), ("train", "layout", "drop"), ("train", "vocabulary_hash", 3),
        ("train", "vocabulary", "drop"), ("train", "hash", "drop"), ("train", "policy", []),
        ("train", "stops", 3), ("tokenizer", "model", "drop"), ("tokenizer", "model", 7),
    ],
)  # fmt: skip
def test_an_export_whose_config_lacks_something_is_one_line(tmp_path, part, key, value):
    run = tiny_run.write(tmp_path)
    (run / "config.json").unlink(missing_ok=True)
    path = run / part / "export/export.json"
    record = json.loads(path.read_text())
    record["config"][key] = value
    if value == "drop":
        del record["config"][key]
    path.write_text(json.dumps(record))
    fails("export|model|sampling|tokenizer: expected", progemu_jax.load, run)


def test_a_config_without_a_sampling_section_is_one_line(tmp_path):
    run = tiny_run.write(tmp_path)
    (run / "config.json").write_text('{"sample": null}')
    fails("holds no sample.policy", progemu_jax.load, run)
