"""A diffusion run with random weights: loads and samples in seconds, knows nothing."""

import numpy as np

from progemu_jax.checkpoints import arrays, export
from progemu_jax.convert import components
from progemu_jax.files.settings import to_dict
from progemu_jax.models import autoencoder, text_encoder, unet
from progemu_jax.models.autoencoder import AutoencoderConfig
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import TextEncoderConfig
from progemu_jax.models.unet import UNetConfig
from progemu_jax.sampling.diffusion import DiffusionSampling
from progemu_jax.text import text_tokenizers
from support.initial import initial

SIZE, LENGTH = 32, 12
CODEC = AutoencoderConfig(channels=(8,), patch=4, scale=0.8)
TEXT = TextEncoderConfig(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, text_length=LENGTH)
MODEL = UNetConfig(in_channels=8, channels=(16,), attention=(True,), heads=2, cross_attention_dim=16, text_dim=16)
WORDS = text_tokenizers.WordPiece.of_texts(["New small left pleural effusion.", "Resolved edema."])
POLICY = DiffusionSampling(steps=3, guidance=2.0, image_guidance=1.5)


def part(module, config, seed):
    return initial(lambda key: module.init_params(config, key), seed)


def normal(shape, seed=2):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def params():
    """Of all three parts; the UNet's zero-initialised layers are filled, else every sample is the same."""
    denoiser = part(unet, MODEL, 1)
    for name in ("conv_in", "conv_out"):
        kernel = denoiser[name]["kernel"]
        denoiser[name]["kernel"] = 0.1 * normal(kernel.shape)
    return {
        components.UNET: denoiser,
        components.AUTOENCODER: part(autoencoder, CODEC, 2),
        components.TEXT_ENCODER: part(text_encoder, TEXT, 3),
    }


def write(folder):
    """A run directory with the three exports, as the stages leave them."""
    values = params()
    configs = {
        components.UNET: {
            "model": to_dict(MODEL),
            "schedule": to_dict(Schedule()),
            "policy": to_dict(POLICY),
            "image_size": SIZE,
            "hash": "0" * 64,
        },
        components.AUTOENCODER: {"model": to_dict(CODEC)},
        components.TEXT_ENCODER: {"model": to_dict(TEXT)},
    }
    for kind, config in configs.items():
        with export.ExportWriter(folder / components.IN_RUN[kind]) as writer:
            for name, leaf in arrays.flatten(values[kind]).items():
                writer.add(name, leaf)
            if kind == components.TEXT_ENCODER:
                (writer.folder / "tokenizer").mkdir()
                WORDS.save(writer.folder / "tokenizer")
            writer.finish({"kind": kind, **config})
    return folder


def gray(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
