"""Diffusers folders with known weights, and our models run on what is read from them."""

import json

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from progemu_jax.checkpoints import safetensors
from progemu_jax.convert.diffusers import configs as diffusers_configs
from progemu_jax.convert.diffusers import names as diffusers_names
from progemu_jax.models.autoencoder import Autoencoder
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import TextEncoder
from progemu_jax.models.unet import UNet
from progemu_jax.sampling.diffusion import DiffusionSampling, generate
from progemu_jax.text import text_tokenizers
from support import diffusion_reference as ref

UNET_CONFIG = {"_class_name": "UNet2DConditionModel", **ref.PAIRS_UNET, "encoder_hid_dim": 40}
VAE_CONFIG = {"_class_name": "AutoencoderKL", **ref.VAE}
BERT_CONFIG = {"model_type": "bert", **ref.BERT}
CLIP_CONFIG = {"model_type": "clip_text_model", **ref.CLIP}


def component(folder, config, dtype=np.float32, shards=1, extra=None, dialect=None):
    """A component's folder with known weights."""
    folder.mkdir(parents=True)
    at = folder / "config.json"
    build = {"UNet2DConditionModel": diffusers_configs.unet, "AutoencoderKL": diffusers_configs.autoencoder}
    model = build.get(config.get("_class_name"), diffusers_configs.text_model)(at, config, "float32")
    entries = diffusers_names.entries_of(model, dialect or diffusers_names.Dialect())
    values = {e.name: ref.weight(e.name, e.tensor_shape).astype(dtype) for e in entries} | (extra or {})
    stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
    if shards == 1:
        save_file(values, folder / f"{stem}.safetensors")
    else:
        names = sorted(values)
        heads = {n: (safetensors.NAMES[str(values[n].dtype)], values[n].shape) for n in names}
        files = {f"{stem}-{i}.safetensors": {n: heads[n] for n in names[i::shards]} for i in range(shards)}
        writer = safetensors.Writer(folder, files, stem)
        for name, value in values.items():
            writer.write(name, value)
        writer.close()
    at.write_text(json.dumps(config))
    return folder


def pipeline(folder):
    """A whole pipeline: BERT, two shards of the UNet in bfloat16, old names in the autoencoder."""
    component(folder / "unet", UNET_CONFIG, ml_dtypes.bfloat16, 2)
    component(folder / "vae", VAE_CONFIG, dialect=diffusers_names.Dialect(old=True))
    extra = {
        "bert.pooler.dense.weight": np.ones((40, 40), np.float32),
        "bert.embeddings.position_ids": np.arange(32, dtype=np.int64)[None],
        "cls.predictions.bias": np.ones(90, np.float16),
    }
    component(folder / "text_encoder", BERT_CONFIG, extra=extra, dialect=diffusers_names.Dialect("bert.", old=True))
    (folder / "tokenizer").mkdir()
    text_tokenizers.WordPiece(ref.wordpieces()).save(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", **ref.SCHEDULE, "steps_offset": 1, "set_alpha_to_one": False}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_component(folder, outputs, name):
    """A folder with the names, shapes and config that PyTorch saved, and the known weights."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {n: ref.weight(n, tuple(shape)) for n, shape in outputs["saved"][name].items()}
    save_file(values, folder / outputs["file"][name])
    (folder / "config.json").write_text(json.dumps(outputs["config"][name]))
    return folder


def near(ours, theirs, tolerance=1e-4):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, error


def run_unet(part, masked):
    x = ref.inputs(part.model.in_channels, part.model.text_dim or part.model.cross_attention_dim)
    apply = jax.jit(lambda params, *args: UNet(part.model).apply({"params": params}, *args))
    return apply(part.params(), x["latents"], x["times"], x["text"], x["mask"] if masked else None)


def run_text(part):
    ids, mask = ref.tokens()
    apply = jax.jit(lambda params, *args: TextEncoder(part.model).apply({"params": params}, *args))
    return apply(part.params(), ids, mask)


def run_autoencoder(part, method, x):
    apply = jax.jit(lambda params, x: Autoencoder(part.model).apply({"params": params}, x, method=method))
    return apply(part.params(), x)


def run_sampler(part, solver):
    x = ref.trajectory()
    policy = DiffusionSampling(ref.STEPS[solver], solver, ref.GUIDANCE, ref.IMAGE_GUIDANCE)
    return generate(
        part.params(), part.model, Schedule(), policy, x["noise"], x["prior"], x["text"], x["null_text"]
    )  # fmt: skip
