"""Runs of diffusion systems: shipped configs, stages and what they depend on, first weights, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from support import diffusion_reference as ref
from support.diffusion_models import UNET_CONFIG, component

from progemu_jax import eval as evaluation
from progemu_jax.config import Config
from progemu_jax.configs import diffusion as configs
from progemu_jax.configs import (
    instructpix2pix,
    instructpix2pix_full,
    medjourney,
    medjourney_full,
    medjourney_impression,
    medjourney_impression_full,
    text_only,
    text_only_full,
)
from progemu_jax.convert import components
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.diffusers import names as diffusers_names
from progemu_jax.convert.diffusers.names import Dialect
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.models import unet
from progemu_jax.run import build_stages, check
from progemu_jax.systems.diffusion import conditioning, encoders, train
from progemu_jax.tables import RUNS, TABLE_1, tables, verdict
from progemu_jax.tasks.diffusion import DiffusionConfig
from progemu_jax.tasks.words import drawn_changes
from progemu_jax.text import text_tokenizers
from progemu_jax.text.restate import restate

ALL = {f"phantom {n}": lambda n=n: configs.phantom(n) for n in configs.SYSTEMS}
ALL |= {f"full {n}": lambda n=n: configs.full(n) for n in configs.SYSTEMS}
SHIPPED = {
    "medjourney": (medjourney, medjourney_full),
    "medjourney-impression": (medjourney_impression, medjourney_impression_full),
    "instructpix2pix": (instructpix2pix, instructpix2pix_full),
    "text-only": (text_only, text_only_full),
}


def stages_of(config):
    return {stage.name: stage for stage in build_stages(config)}


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_words_of_restated_prompts_are_words_to_the_text_encoder(tmp_path, monkeypatch, share):
    config = from_dict(Config, configs.phantom("medjourney", small=True))
    config = dataclasses.replace(
        config, diffusion=dataclasses.replace(config.diffusion, task=DiffusionConfig(restate=share))
    )
    example = {"text": "No edema.", "prompt": "New edema."}
    monkeypatch.setattr(encoders.batches, "examples", lambda *_: [example])
    monkeypatch.setattr(encoders, "_WORDINGS", 3000)
    encoders.make_text_encoder(config, tmp_path)
    folder = tmp_path / components.IN_RUN[components.TEXT_ENCODER] / components.TEXT_TOKENIZER
    words, rng = text_tokenizers.load(folder), np.random.default_rng(9)
    said = [restate(drawn_changes(rng), rng) for _ in range(100)]
    whole = np.mean([not any(words.tokens[i].startswith("##") for i in words.ids(text)) for text in said])
    assert whole > 0.95 if share else whole < 0.2


@pytest.mark.parametrize("name", ALL)
def test_every_shipped_config_is_sound_and_its_models_fit_together(name):
    config = from_dict(Config, ALL[name]())
    check(config)
    model, text, codec = config.diffusion.model, config.text_encoder.model, config.autoencoder.model
    assert model.out_channels == codec.latent_channels
    if name.startswith("phantom"):
        assert (model.text_dim or model.cross_attention_dim) == text.hidden_size
        for cfg in (model, codec, text):
            assert diffusers_names.entries_of(cfg, Dialect())
    else:
        assert model == (unet.sd15 if not model.text_dim else unet.medjourney)(
            in_channels=model.in_channels, dtype="bfloat16", remat=True
        )
    budget = {c.stage1.steps + c.stage2.steps for c in (from_dict(Config, make()).diffusion for make in ALL.values())}
    assert len(budget) == 2  # one for the phantom's systems, one for the full ones


@pytest.mark.parametrize("name", SHIPPED)
def test_a_config_file_is_the_system_that_it_names(name):
    for module, make in zip(SHIPPED[name], (configs.phantom, configs.full), strict=True):
        assert module.get_config().to_json() == make(name).to_json()
        assert f"--config=configs/{module.__name__.split('.')[-1]}.py" in module.__doc__


@pytest.mark.parametrize("size", configs.STEPS)
def test_every_row_of_the_tables_has_a_config_and_they_differ(size):
    seen = set()
    for system, registered, title in RUNS.values():
        config = configs.for_tables(system, registered=registered, steps=8, small=True, size=size)
        config.name = ""
        check(from_dict(Config, config))
        config.diffusion.name, config.sample.systems = "x", ("x",)
        seen.add(config.to_json())
        assert title
    assert len(seen) == len(RUNS)
    progemu = configs.for_tables("progemu", registered=True, steps=24, small=False, size=size)
    assert progemu.data.image_size == size
    check(from_dict(Config, progemu))


def test_table_1_has_its_page_before_table_2_is_begun(monkeypatch, tmp_path):
    done = []

    def run(folder, system, registered, budget, stages):
        done.append(folder.name)
        for stage in stages:
            (folder / stage).mkdir(parents=True, exist_ok=True)
        names = ("progemu", "reconstruction") if system == "progemu" else (system,)
        for name in names if "score" in stages else ():
            (folder / "scores").mkdir(exist_ok=True)
            (folder / f"scores/{name}.npz").touch()

    def evaluate(systems, references, scores, out, **page):
        done.append(
            (page["title"].split(" of ")[0], {str(s.scores.relative_to(out)).split("/")[0] for s in systems.values()})
        )
        (out / "metrics.json").write_text('{"systems": {}}')

    monkeypatch.setattr("progemu_jax.tables._run", run)
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    tables(tmp_path, {})
    first, pages = {*TABLE_1, "progemu"}, [entry for entry in done if isinstance(entry, tuple)]
    assert pages == [("Table 1", first), ("Tables 1 and 2", {*RUNS, "progemu"})]
    assert set(done[2 : done.index(pages[0])]) == first
    tables(tmp_path, {})  # nothing is left to do: one page
    assert [entry for entry in done if isinstance(entry, tuple)] == [*pages, pages[1]]


def test_how_it_is_sampled_changes_no_training():
    config = configs.phantom("medjourney")
    before = stages_of(from_dict(Config, config))
    config.diffusion.policy.steps = 7
    after = stages_of(from_dict(Config, config))
    changed = [name for name in before if before[name].config_slice != after[name].config_slice]
    assert changed == ["sample"]
    assert list(before) == ["data", "autoencoder", "text_encoder", "train", "scorer", "sample", "score", "evaluate"]


def test_impressions_need_the_tree_and_descriptions_do_not():
    needs = {
        name: stages_of(from_dict(Config, configs.phantom(name)))["train"].inputs
        for name in ("medjourney", "medjourney-impression")
    }
    assert "data/tree" not in needs["medjourney"]
    assert "data/tree" in needs["medjourney-impression"]


def test_impressions_come_from_the_tree(tmp_path):
    folder = tmp_path / "data/tree/p10"
    folder.mkdir(parents=True)
    values = {"progression-description": "New edema.", "followup-report": {"impression": "Edema.", "findings": "x"}}
    (folder / "a.json").write_text(json.dumps(values | {"progemu": {"pair_id": "pair-a"}}))
    text_of = conditioning.prompt_reader(from_dict(Config, configs.phantom("medjourney-impression")), tmp_path)
    assert text_of({"pair_id": "pair-a", "prompt": "New edema."}) == "Edema."
    assert text_of({"text": "A report."}) == "A report."
    with pytest.raises(UserError, match="no report of pair-b"):
        text_of({"pair_id": "pair-b"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "gan"}, "config.system='gan'"),
        ({"sample": {"systems": ("progemu",)}}, "'progemu' is unknown; choose among medjourney"),
        ({"data": {"image_size": 66}}, "image_size=66"),
        ({"diffusion": {"stage2": {"batch_size": 0}}}, "config.diffusion.stage2: train.batch_size=0"),
        ({"diffusion": {"stage1": {"steps": 0}, "stage2": {"steps": 0}}}, "nothing would be trained"),
        ({"diffusion": {"weights": "nowhere"}}, "config.diffusion.weights=nowhere"),
        ({"diffusion": {"task": {"prompt": "text"}}}, "choose 'description' or 'impression'"),
        ({"diffusion": {"policy": {"solver": "euler"}}}, "choose 'ddim' or 'dpm\\+\\+'"),
        ({"text_encoder": {"model": {"kind": "t5"}}}, "choose 'bert' or 'clip'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_before_any_work(change, message):
    config = configs.phantom("medjourney")
    with config.unlocked():
        config.update(change)
    with pytest.raises(UserError, match=message):
        check(from_dict(Config, config))


def test_training_starts_from_the_named_weights(tmp_path):
    values = UNET_CONFIG | {"in_channels": 4, "encoder_hid_dim": None, "encoder_hid_dim_type": None}
    folder = component(tmp_path / "unet", values, dialect=Dialect())
    plain = diffusers_folder.open_folder(folder).parts["unet"]
    model = unet.UNetConfig(**{**plain.model.__dict__, "in_channels": 8, "text_dim": 24})
    config = from_dict(Config, {"diffusion": {"weights": str(folder), "model": to_dict(model)}})
    params = train.first_params(config, model)
    name = "down_blocks.0.resnets.0.conv1.weight"
    kernel = params["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    np.testing.assert_array_equal(np.asarray(kernel).transpose(3, 2, 0, 1), ref.weight(name, (32, 32, 3, 3)))
    assert not params["conv_in"]["kernel"][:, :, 4:].any()
    np.testing.assert_array_equal(params["encoder_hid_proj"]["kernel"], np.eye(24))
    other = unet.UNetConfig(**{**model.__dict__, "layers": 2})
    with pytest.raises(UserError, match=r"config\.diffusion\.model\.layers=2"):
        train.first_params(config, other)


def test_the_verdict_says_when_the_evaluation_cannot_be_right():
    def metrics(retention, changed):
        return {
            "systems": {
                "text_only": {"metrics": {"group_retention": {"value": retention, "high": retention + 0.1}}},
                "copy": {"metrics": {"finding_auroc_changed": {"value": changed, "high": changed + 0.1}}},
            }
        }

    assert "NO" not in verdict(metrics(0.1, 0.3))
    assert verdict(metrics(0.6, 0.3)).count("NO") == 1
    assert verdict({"systems": {}}).count("NO") == 2
