"""Readers of models: exports, packed exports, Hugging Face and Diffusers folders, in and out; VQGANs, in."""

import json
import warnings

import numpy as np

import progemu_jax
from progemu_jax.convert import __main__ as conversion
from support import tiny_diffusion, tiny_run, vqgan_reference
from support.diffusion_models import pipeline
from support.emu3_folders import checkpoint_folder
from support.fuzz.readers.reader import Reader

PRIOR = np.random.default_rng(0).integers(0, 256, (tiny_run.SIZE, tiny_run.SIZE)).astype(np.uint8)


def run(folder):
    """A run directory of ProgEmu."""
    tiny_run.write(folder)
    config = {"data": {"source": "phantom", "image_size": tiny_run.SIZE}, "sample": {"policy": tiny_run.POLICY}}
    (folder / "config.json").write_text(json.dumps(config))


def diffusion_run(folder):
    tiny_diffusion.write(folder)
    (folder / "config.json").write_text(json.dumps({"system": "diffusion", "sample": {"policy": {}}}))


def sample():
    """Loads the folder and asks for one image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        progemu_jax.load(".").counterfactual(PRIOR, tiny_run.PROMPT)


def emu3_folder(folder):
    checkpoint_folder(folder / "source", "both", shards=2)


def diffusers_folder(folder):
    pipeline(folder / "source")


def convert():
    return conversion.main(["--source=source", "--target=out"])


def vqgan_folder(folder):
    sizes = vqgan_reference.GRAY | {"ch_mult": (1,), "codes": 8}
    vqgan_reference.write(folder / "source/model.safetensors", sizes)
    (folder / "source/config.json").write_text(json.dumps({"ddconfig": {"ch": 32}, "n_embed": 8}))


def convert_and_load():
    """Loading reads the numbers too."""
    status = convert()
    if status == 0:
        progemu_jax.load("source")
    return status


def converted(make):
    """What a conversion gives, as the source of the way back."""

    def build(folder):
        make(folder)
        progemu_jax_convert(folder / "source", folder / "run")

    return build


def progemu_jax_convert(source, target):
    assert conversion.main([f"--source={source}", f"--target={target}"]) == 0


def convert_out():
    return conversion.main(["--source=run", "--target=out"])


OUT = ("out", "out.tmp")
JSON = ("**/export.json", "config.json")
READERS = (
    Reader("export", run, sample, JSON),
    Reader("diffusion_export", diffusion_run, sample, (*JSON, "**/tokenizer/*")),
    Reader("emu3_folder", emu3_folder, convert, ("source/*.json", "source/*.s*", "source/*.t*"), OUT),
    Reader("diffusers_folder", diffusers_folder, convert, ("source/**/*",), OUT),
    Reader("vqgan", vqgan_folder, convert_and_load, ("source/*",), OUT),
    Reader("emu3_run", converted(emu3_folder), convert_out, ("run/**/*.json", "run/**/vocabulary/*"), OUT),
    Reader("diffusers_run", converted(diffusers_folder), convert_out, ("run/**/export.json", "run/**/source/*"), OUT),
)  # fmt: skip
