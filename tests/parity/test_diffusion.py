"""Diffusion models against stored outputs of Diffusers and transformers (`diffusion_reference.py` makes both sides)."""

import json
import zlib

import jax
import numpy as np
import pytest
from support import diffusion_reference as ref
from support.diffusion_models import near, run_autoencoder, run_sampler, run_text, run_unet, write_component

from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.models import autoencoder, text_encoder, unet


@pytest.fixture(scope="module")
def outputs():
    with np.load(ref.OUTPUTS) as file:
        values = dict(file)
    return values | json.loads(zlib.decompress(values["record"].tobytes()))


@pytest.fixture(scope="module")
def parts(outputs, tmp_path_factory):
    out = {}
    for name in ref.KINDS:
        folder = write_component(tmp_path_factory.mktemp(name), outputs, name)
        (out[name],) = diffusers_folder.open_folder(folder).parts.values()
    return out


@pytest.mark.parametrize("name", ["unet", "pairs_unet"])
@pytest.mark.parametrize("masked", [False, True])
def test_unet(parts, outputs, name, masked):
    near(run_unet(parts[name], masked), outputs[f"{name}_masked" if masked else name])


def test_autoencoder_both_ways(parts, outputs):
    mean, logvar = run_autoencoder(parts["vae"], "moments", ref.images())
    near(mean, outputs["mean"])
    near(logvar, outputs["logvar"])
    near(run_autoencoder(parts["vae"], "decode", ref.normals("z", (2, 6, 8, 4))), outputs["decoded"])


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_text_encoder(parts, outputs, name):
    near(run_text(parts[name]), outputs[name])


@pytest.mark.parametrize("solver", ref.STEPS)
def test_samples_from_the_same_noise(parts, outputs, solver):
    near(run_sampler(parts["pairs_unet"], solver), outputs[f"sampled_{solver}"], 1e-3)


def test_parameter_counts_of_the_full_shapes(outputs):
    full = {
        "unet": (unet, unet.sd15()),
        "medjourney": (unet, unet.medjourney()),
        "vae": (autoencoder, autoencoder.sd15()),
        "clip": (text_encoder, text_encoder.clip_l()),
        "bert": (text_encoder, text_encoder.pubmedbert()),
    }
    for name, (module, cfg) in full.items():
        tree = jax.eval_shape(lambda m=module, c=cfg: m.init_params(c, jax.random.key(0)))
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == outputs["counts"][name], name
    assert outputs["counts"]["unet"] == 859_520_964
