"""Points of identity as a scorer makes them."""

import jax
import numpy as np
import pytest
from support.errors import fails

from progemu_jax.checkpoints import export
from progemu_jax.files.settings import to_dict
from progemu_jax.models.reidentification import ReidentificationConfig, init_params
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.reidentification import Reidentifier, Together

NET = ReidentificationConfig(widths=(8, 8), dimensions=4)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity") / "export"
    params = init_params(NET, jax.random.key(0), 32)
    export.export(params, {"kind": "identity", "net": to_dict(NET), "image_size": 32, "caveat": "Said."}, folder)
    return folder


def test_points_lie_on_the_sphere_and_do_not_depend_on_their_companions(place, tmp_path):
    network = Reidentifier.load(place)
    assert network.caveat == "Said."
    out = network(IMAGES, "any", batch_size=4)["identity"]
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(network(IMAGES[3:4], "any", batch_size=4)["identity"][0], out[3])
    both = Together([network, lambda_scorer()])
    assert set(both(IMAGES, "any")) == {"identity", "age"}
    kept = Cached(both, tmp_path)
    np.testing.assert_array_equal(kept(IMAGES, "any")["identity"], kept(IMAGES, "any")["identity"])
    assert kept.scored == 5


def lambda_scorer():
    """A scorer of ages."""

    def ages(images, source):
        return {"age": np.full(len(images), 50, np.float32)}

    ages.caveat, ages.identity = "", "ages"
    return ages


def test_another_size_and_a_damaged_export_are_one_line(place, tmp_path):
    network = Reidentifier.load(place)
    fails("wants 32x32", network, IMAGES[:, :16, :16], "any")
    export.export(init_params(NET, jax.random.key(0), 32), {"kind": "identity", "net": {}}, tmp_path / "export")
    fails("image_size", Reidentifier.load, tmp_path / "export")
