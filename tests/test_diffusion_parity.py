"""Diffusion models against stored outputs of Diffusers and transformers (`diffusion_reference.py` makes both sides)."""

import json
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import diffusion_reference as ref

from progemu_jax.convert.diffusers import folder as diffusers_folder
from progemu_jax.models import autoencoder, text_encoder, unet
from progemu_jax.models.autoencoder import Autoencoder
from progemu_jax.models.noise_schedule import Schedule
from progemu_jax.models.text_encoder import TextEncoder
from progemu_jax.models.unet import UNet
from progemu_jax.sampling.diffusion import DiffusionSampling, generate


@pytest.fixture(scope="module")
def outputs():
    with np.load(ref.OUTPUTS) as file:
        values = dict(file)
    return values | json.loads(zlib.decompress(values["record"].tobytes()))


def write_component(folder, outputs, name):
    """A folder with the names, shapes and config that PyTorch saved, and the known weights."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {n: ref.weight(n, tuple(shape)) for n, shape in outputs["saved"][name].items()}
    save_file(values, folder / outputs["file"][name])
    (folder / "config.json").write_text(json.dumps(outputs["config"][name]))
    return folder


@pytest.fixture(scope="module")
def parts(outputs, tmp_path_factory):
    out = {}
    for name in ref.KINDS:
        folder = write_component(tmp_path_factory.mktemp(name), outputs, name)
        (out[name],) = diffusers_folder.open_folder(folder).parts.values()
    return out


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
