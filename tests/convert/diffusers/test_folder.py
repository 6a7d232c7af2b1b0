"""Diffusers folders and text encoders in and out: every tensor bit for bit, and what is refused and how."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import diffusion_reference as ref
from support import tiny_diffusion
from support.diffusion_models import BERT_CONFIG, CLIP_CONFIG, component, pipeline
from support.tiny_diffusion import MODEL

from progemu_jax.checkpoints import export, safetensors
from progemu_jax.convert import components
from progemu_jax.convert.convert import convert
from progemu_jax.convert.diffusers import configs as diffusers_configs
from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.convert.diffusers import names as diffusers_names
from progemu_jax.errors import UserError
from progemu_jax.models import text_encoder, unet
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.text import text_tokenizers


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return pipeline(tmp_path_factory.mktemp("sound") / "source")


def data_of(folder):
    return {
        (str(path.relative_to(folder)), name): (t.dtype, t.shape, t.read().tobytes())
        for path in sorted(folder.rglob("*.safetensors"))
        for name, t in safetensors.read_header(path).items()
    }


def test_a_pipeline_in_and_out_again_is_bit_identical(sound, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PART_BYTES", 1_000_000)
    source = sound
    assert "from Diffusers" in convert(source, tmp_path / "run")
    said = convert(tmp_path / "run", tmp_path / "back")
    assert "bit for bit" in said
    assert data_of(tmp_path / "back") == data_of(source)
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        assert (tmp_path / "back" / name).read_text() == (source / name).read_text()
    assert (tmp_path / "back/tokenizer/vocab.txt").read_text() == (source / "tokenizer/vocab.txt").read_text()
    index = json.loads((tmp_path / "back/model_index.json").read_text())
    assert index["safety_checker"] == [None, None]  # not carried
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "run"]


def test_what_a_pipeline_says_of_its_schedule_and_texts(sound):
    opened = diffusers_folder.open_folder(sound)
    assert opened.schedule == Schedule()
    assert opened.text_tokens().tokens == ref.wordpieces()
    assert opened.parts["unet"].model.conditioned
    assert opened.parts["unet"].model.dtype == "bfloat16"
    assert opened.parts["autoencoder"].model.scale == 0.18215
    assert "unused" not in opened.parts["text_encoder"].params()


@pytest.mark.parametrize("kind", ["clip", "bert", "biomedclip"])
def test_text_encoders_in_and_out_again(tmp_path, kind):
    source = tmp_path / "source"
    if kind == "biomedclip":
        extra = {"visual.trunk.cls_token": np.ones((1, 1, 8), np.float32), "logit_scale": np.float32(4.6)}
        extra |= {"text.proj.0.weight": np.ones((30, 40), np.float32)}
        extra = {k: np.asarray(v) for k, v in extra.items()}
        component(source, BERT_CONFIG, extra=extra, dialect=diffusers_names.Dialect("text.transformer."))
        (source / "config.json").unlink()
        text = {"hf_model_name": "x", "context_length": 20}
        (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}))
        model = diffusers_folder.open_folder(source).parts["text_encoder"].model
        assert (model.text_length, model.num_heads, model.num_layers) == (20, 1, 2)
    else:
        prefix = "text_model." if kind == "clip" else ""
        component(source, CLIP_CONFIG if kind == "clip" else BERT_CONFIG, dialect=diffusers_names.Dialect(prefix))
    text_tokenizers.WordPiece(ref.wordpieces()).save(source)
    convert(source, tmp_path / "run")
    assert "bit for bit" in convert(tmp_path / "run", tmp_path / "back")
    assert data_of(tmp_path / "back") == data_of(source)
    assert {p.name for p in (tmp_path / "back").iterdir()} == {p.name for p in source.iterdir()}


def test_configs_of_our_own_models_come_back():
    small = AutoencoderConfig(patch=1, channels=(64, 128), group_channels=1)
    cases = [
        (unet.sd15(), diffusers_configs.write_unet, diffusers_configs.unet),
        (unet.medjourney(heads=4), diffusers_configs.write_unet, diffusers_configs.unet),
        (small, diffusers_configs.write_autoencoder, diffusers_configs.autoencoder),
        (text_encoder.pubmedbert(), diffusers_configs.write_text_model, diffusers_configs.text_model),
        (text_encoder.clip_l(), diffusers_configs.write_text_model, diffusers_configs.text_model),
    ]
    for model, write, read in cases:
        assert read(Path("config.json"), write(model, "x"), "float32") == model
    schedule = Schedule(steps=100, offset=0, last_alpha_one=True)
    assert diffusers_configs.schedule(Path("x"), diffusers_configs.write_schedule(schedule)) == schedule
    with pytest.raises(UserError, match="patch=2 has no place"):
        diffusers_configs.write_autoencoder(AutoencoderConfig(), "run")


def edit(name, **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut(folder):
    path = next((folder / "unet").glob("*-0.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def pickle(folder):
    next((folder / "vae").glob("*.safetensors")).rename(folder / "vae/diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("unet/config.json", use_linear_projection=True), "unet/config.json: use_linear_projection=True"),
        (edit("unet/config.json", block_out_channels=[32, 64]), "down_block_types"),
        (edit("unet/config.json", norm_num_groups=7), "no multiple of groups"),
        (edit("unet/config.json", cross_attention_dim=25), "implies"),
        (edit("unet/config.json", encoder_hid_dim=20), "implies"),
        (edit("unet/config.json", in_channels=9), "in_channels=9"),
        (edit("vae/config.json", shift_factor=0.1), "vae/config.json: shift_factor=0.1"),
        (edit("vae/config.json", layers_per_block=2), "is missing"),
        (edit("text_encoder/config.json", hidden_act="relu"), "hidden_act='relu'"),
        (edit("text_encoder/config.json", num_hidden_layers=1), "belongs to no parameter"),
        (edit("scheduler/scheduler_config.json", prediction_type="v_prediction"), "prediction_type='v_prediction'"),
        (edit("scheduler/scheduler_config.json", beta_schedule="squaredcos_cap_v2"), "kind='squaredcos_cap_v2'"),
        (edit("model_index.json", unet=[None, None]), "names no UNet"),
        (lambda f: shutil.rmtree(f / "vae"), "vae: is not there"),
        (lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json: does not parse"),
        (cut, "truncated"),
        (pickle, "a pickle file"),
    ],
)
def test_what_is_refused_is_named_in_one_line(sound, tmp_path, change, message):
    source = shutil.copytree(sound, tmp_path / "source")
    change(source)
    with pytest.raises(UserError, match=message) as error:
        convert(source, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_dialect_is_refused(sound, tmp_path):
    with pytest.raises(UserError, match="--dialect=original"):
        convert(sound, tmp_path / "run", "original")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_diffusion.write(tmp_path_factory.mktemp("run"))


def test_a_run_becomes_a_diffusers_folder_unless_its_autoencoder_cannot(run, tmp_path):
    from progemu_jax.convert.convert import convert

    with pytest.raises(UserError, match="patch=4 has no place"):
        convert(run, tmp_path / "out")
    convert(run / "train/unet", tmp_path / "unet")
    part = diffusers_folder.open_folder(tmp_path / "unet").parts[components.UNET]
    assert part.model == MODEL
