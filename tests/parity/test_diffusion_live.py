"""`make parity`: the comparisons of test_diffusion.py with PyTorch beside; and its libraries read what we write."""

import json

import numpy as np
import pytest
from support import diffusion_reference as ref
from support.diffusion_models import near, run_autoencoder, run_sampler, run_text, run_unet

from progemu_jax.convert.convert import convert
from progemu_jax.convert.diffusers import folder as diffusers_folder

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def modules():
    pytest.importorskip("diffusers")
    return ref.models()


@pytest.fixture(scope="module")
def theirs(modules):
    return ref.reference(modules)


@pytest.fixture(scope="module")
def folders(modules, tmp_path_factory):
    out = {}
    for name, module in modules.items():
        out[name] = tmp_path_factory.mktemp(name)
        ref.save(module, out[name])
    return out


@pytest.fixture(scope="module")
def parts(folders):
    return {name: next(iter(diffusers_folder.open_folder(folder).parts.values())) for name, folder in folders.items()}


def test_every_model(parts, theirs):
    for name in ("unet", "pairs_unet"):
        near(run_unet(parts[name], False), theirs[name])
        near(run_unet(parts[name], True), theirs[f"{name}_masked"])
    mean, logvar = run_autoencoder(parts["vae"], "moments", ref.images())
    near(mean, theirs["mean"])
    near(logvar, theirs["logvar"])
    near(run_autoencoder(parts["vae"], "decode", ref.normals("z", (2, 6, 8, 4))), theirs["decoded"])
    for name in ("bert", "clip"):
        near(run_text(parts[name]), theirs[name])
    for solver in ref.STEPS:
        near(run_sampler(parts["pairs_unet"], solver), theirs[f"sampled_{solver}"], 1e-3)


def test_stored_outputs_are_those_of_this_torch(theirs):
    with np.load(ref.OUTPUTS) as stored:
        for name, value in theirs.items():
            near(stored[name], value, 1e-4 if not name.startswith("sampled") else 1e-3)
        import zlib

        record = json.loads(zlib.decompress(stored["record"].tobytes()))
    assert record["counts"] == ref.full_counts()


def test_the_libraries_read_what_we_write(folders, theirs, tmp_path):
    """Through a run directory and back, with the names that we choose: our own record of the source is dropped."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import BertModel, CLIPTextModel

    classes = {"pairs_unet": UNet2DConditionModel, "vae": AutoencoderKL, "bert": BertModel, "clip": CLIPTextModel}
    for name, cls in classes.items():
        convert(folders[name], tmp_path / f"{name}-run")
        for record in (tmp_path / f"{name}-run").rglob("export.json"):
            values = json.loads(record.read_text())
            del values["config"]["source"]
            record.write_text(json.dumps(values))
        back = tmp_path / f"{name}-back"
        convert(tmp_path / f"{name}-run", back)
        place = back / "unet" if name == "pairs_unet" else back
        module = cls.from_pretrained(place).eval()
        with torch.inference_mode():
            if name == "pairs_unet":
                x = ref.inputs(8, 20)
                call = (ref.channels_first(x["latents"]), torch.from_numpy(x["times"]), torch.from_numpy(x["text"]))
                np.testing.assert_array_equal(ref.channels_last(module(*call).sample), theirs[name])
            elif name == "vae":
                found = module.decode(ref.channels_first(ref.normals("z", (2, 6, 8, 4)))).sample
                np.testing.assert_array_equal(ref.channels_last(found), theirs["decoded"])
            else:
                ids, mask = (torch.from_numpy(x) for x in ref.tokens())
                extra = {"attention_mask": mask} if name == "bert" else {}
                np.testing.assert_array_equal(module(ids, **extra).last_hidden_state.numpy(), theirs[name])
