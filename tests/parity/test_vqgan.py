"""VQGANs in taming-transformers' names against what torchxrayvision's `VQModel` made of the same known weights."""

import jax
import numpy as np
import pytest
from support import vqgan_reference as ref

import progemu_jax
from progemu_jax.convert import taming
from progemu_jax.models.vqgan import VQGAN

TOLERANCE = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def outputs():
    with np.load(ref.OUTPUTS) as file:
        return dict(file)


@pytest.mark.parametrize("name", ref.MODELS)
def test_latents_codes_and_decoded_images(tmp_path, outputs, name):
    sizes = ref.MODELS[name]
    part = taming.open_model(ref.write(tmp_path / "model.safetensors", sizes))
    net, variables = VQGAN(part.model), part.params()

    @jax.jit
    def run(images, codes):
        z = net.apply(variables, images, method="encode")
        vectors = net.apply(variables, method="table")[codes]
        return z, net.apply(variables, z, method="quantize")[1], net.apply(variables, vectors, method="decode")

    latents, codes, decoded = (np.asarray(x) for x in run(ref.images(sizes), ref.some_codes(sizes)))
    np.testing.assert_allclose(latents, outputs[f"{name}_latents"], **TOLERANCE)
    np.testing.assert_allclose(decoded, outputs[f"{name}_decoded"], **TOLERANCE)
    table = ref.values(sizes)["quantize.embedding.weight"]
    nearest, second = np.sort(np.square(latents[..., None, :] - table).sum(-1))[..., :2].transpose(3, 0, 1, 2)
    clear = second - nearest > 1e-3  # rounding may decide a tie either way
    assert clear.mean() > 0.9
    assert len(np.unique(codes)) > 10
    np.testing.assert_array_equal(codes[clear], outputs[f"{name}_codes"][clear])


def test_a_radiograph_is_repeated_over_the_channels_and_scaled_as_in_the_library(tmp_path, outputs):
    """Its own range, +-1024, is divided by 1024 on the way in; of what comes out it keeps the first channel."""
    model = progemu_jax.load(ref.write(tmp_path / "rgb.safetensors", ref.RGB))
    np.testing.assert_array_equal(model.tokenize(ref.radiographs()), outputs["radiograph_codes"])
    painted = model.detokenize(ref.some_codes(ref.RGB), rgb=True)
    theirs = np.clip(outputs["rgb_decoded"], -1, 1)[..., 0]
    assert np.abs((painted[..., 0] / 127.5 - 1) - theirs).max() < 1 / 127
    gray = model.detokenize(ref.some_codes(ref.RGB))
    luminance = np.clip(outputs["rgb_decoded"], -1, 1) @ [0.299, 0.587, 0.114]
    assert np.abs((gray / 127.5 - 1) - luminance).max() < 2 / 127
