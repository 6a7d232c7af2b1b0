"""TorchXRayVision's models, on stand-ins for the library."""

import sys
import types

import numpy as np
import pytest
from support.eval_cohort import Cohort

from progemu_jax.errors import UserError
from progemu_jax.eval.scores import read_scores
from progemu_jax.scorers import xrv
from progemu_jax.scorers.__main__ import main
from progemu_jax.text.findings import ORGANS


class Tensor:
    """As much of a tensor as the wrapper uses, over a NumPy array."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __getitem__(self, index):
        return Tensor(self.array[index])

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array


class Model:
    """A stand-in for one of XRV's models: `answer` of the batch float [B, 1, S, S]."""

    def __init__(self, targets, answer):
        self.targets, self.answer, self.seen = targets, answer, []

    def __call__(self, x):
        self.seen.append(x.array)
        return Tensor(self.answer(x.array))

    def features2(self, x):
        return Tensor(x.array.mean((2, 3)).repeat(1024, axis=1))


@pytest.fixture
def library(monkeypatch):
    """Stand-ins for torch and torchxrayvision; returns the models of a scorer."""
    import contextlib

    torch = types.ModuleType("torch")
    torch.from_numpy, torch.no_grad = Tensor, contextlib.nullcontext
    nearest = lambda x, size, mode: Tensor(x.array[:, :, : size[0], : size[1]])  # noqa: E731
    torch.nn = types.SimpleNamespace(functional=types.SimpleNamespace(interpolate=nearest))
    module = types.ModuleType("torchxrayvision")
    module.__version__ = "9.9"
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torchxrayvision", module)
    bright = lambda x: (x.mean((1, 2, 3)) + 1024) / 2048  # noqa: E731
    anatomy = ["Left Clavicle", *(o.title() for o in ORGANS[::-1])]
    return module, {
        "findings": Model(
            ["Effusion", "", "Edema", "Hernia"], lambda x: np.stack([bright(x) * k for k in (1, 9, 0.5, 0)], axis=1)
        ),
        "race": Model(["Asian", "Black", "White"], lambda x: np.log(np.array([[0.2, 0.3, 0.5]] * len(x)))),
        "age": Model(["Age"], lambda x: 100 * bright(x)[:, None]),
        "organs": Model(anatomy, lambda x: np.stack([x[:, 0] - 100 * k for k in range(7)], axis=1)),
    }  # fmt: skip


class TestXrv:
    images = np.stack([np.full((16, 16), 51, np.uint8), np.full((16, 16), 204, np.uint8)])

    def test_range_is_the_librarys(self):
        np.testing.assert_allclose(xrv.normalise(np.array([[[0, 255]]], np.uint8)), [[[-1024, 1024]]])

    def test_what_the_models_say_becomes_a_score_file(self, library, tmp_path):
        models = library[1]
        out = xrv.XRVScorer(models, batch_size=1)(self.images, "mimic_cxr")
        assert out["findings"].tolist() == ["Pleural Effusion", "Edema"]  # unnamed and non-CheXpert ones are dropped
        np.testing.assert_allclose(out["finding_prob"], [[0.2, 0.1], [0.8, 0.4]], rtol=1e-5)
        assert out["groups"].tolist() == ["ASIAN", "BLACK", "WHITE"]
        np.testing.assert_allclose(out["group_prob"].sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(out["age"], [20, 80], rtol=1e-5)
        assert [x.shape for x in models["age"].seen] == [(1, 1, 16, 16)] * 2
        np.savez(tmp_path / "a.npz", pair_id=np.array(["a", "b"]), **out)
        scores = read_scores(tmp_path / "a.npz")
        assert scores.organs == ORGANS
        assert scores.features.shape == (2, 1024)
        # Level 204 is 614 in the library's range: the map of anatomy k is positive while 100 k stays below.
        lit = np.unpackbits(scores.masks[1], axis=-1).any(-1)
        order = ["left clavicle", *ORGANS[::-1]]
        assert lit.tolist() == [614 - 100 * order.index(o) > 0 for o in ORGANS]
        assert not scores.masks[0].any()

    def test_a_missing_model_leaves_its_part_out(self, library):
        out = xrv.XRVScorer({"age": library[1]["age"]})(self.images, "mimic_cxr")
        assert set(out) == {"age"}

    def test_identity_names_what_made_the_scores(self, library):
        some = xrv.XRVScorer({"age": library[1]["age"]}).identity
        assert some != xrv.XRVScorer(library[1]).identity
        assert "9.9" in some

    def test_phantom_and_oblong_images_are_refused(self, library):
        scorer = xrv.XRVScorer(library[1])
        with pytest.raises(UserError, match="real radiographs only"):
            scorer(self.images, "phantom")
        with pytest.raises(UserError, match="square"):
            scorer(self.images[:, :8], "mimic_cxr")

    def test_caveat_is_printed(self, library, tmp_path, monkeypatch, capsys):
        cohort = Cohort(patients=2, pairs=1)
        cohort.write_references(tmp_path)
        for row in cohort.rows:
            row["counterfactual"], row["source"] = None, "mimic_cxr"
        cohort.write_rows(tmp_path)
        monkeypatch.setattr(xrv, "load_models", lambda: library[1])
        assert main(["--scorer=xrv", f"--references={tmp_path}"]) == 0
        assert "test patients of these cohorts may have been in their training" in capsys.readouterr().err

    def test_without_the_library_it_is_one_line(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(UserError, match=r'-e "\.\[xrv\]"'):
            xrv.XRVScorer()

    def test_weights_that_cannot_be_had_are_one_line(self, library):
        module = library[0]

        def fail(**_):
            raise OSError("no route to host\nmore")

        module.models = types.SimpleNamespace(DenseNet=fail)
        base = types.ModuleType("torchxrayvision.baseline_models")
        parts = ("", ".emory_hiti", ".riken", ".chestx_det")
        sys.modules.update({f"torchxrayvision.baseline_models{n}": base for n in parts})
        module.__path__, base.__path__ = [], []
        try:
            with pytest.raises(UserError, match=r"findings model cannot be loaded.*no route") as caught:
                xrv.load_models()
        finally:
            for name in [n for n in sys.modules if n.startswith("torchxrayvision.baseline_models")]:
                del sys.modules[name]
        assert "\n" not in str(caught.value)
