"""`make parity-eval`: the comparisons of test_vqgan.py with PyTorch and torchxrayvision beside."""

import subprocess
import sys

import numpy as np
import pytest
from support import vqgan_reference as ref

from progemu_jax.convert import folders, taming
from progemu_jax.errors import UserError

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    if ref.model_class() is None:
        pytest.skip("needs torch and torchxrayvision")
    return pytest.importorskip("torch")


def test_stored_outputs_are_those_of_this_library(torch):
    found = ref.reference()
    with np.load(ref.OUTPUTS) as stored:
        assert stored.files == list(found)
        for name, value in found.items():
            np.testing.assert_allclose(stored[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [ref.GRAY, ref.RGB, ref.F16, ref.F16 | {"codes": 1024}])
def test_names_and_shapes_are_the_librarys(torch, sizes):
    with torch.device("meta"):
        state = ref.build(sizes).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == ref.shapes(**sizes)


def test_the_command_that_a_refusal_gives_saves_a_training_checkpoint_anew(torch, tmp_path):
    state = {n: torch.from_numpy(x) for n, x in ref.values(ref.GRAY).items()}
    torch.save({"epoch": 3, "state_dict": state | {"loss.logvar": torch.zeros(())}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError) as caught:
        folders.detect(tmp_path / "last.ckpt")
    program = str(caught.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    part = taming.open_model(tmp_path)
    assert {n: t.shape for n, t in part.tensors.items()} == ref.shapes(**ref.GRAY)
