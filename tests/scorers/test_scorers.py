"""Scorers: saliency against a network whose answer is known, the cache by content, XRV on stand-in modules, files."""

import sys
import types

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from support.eval_cohort import Cohort

from progemu_jax.errors import UserError
from progemu_jax.eval.scores import read_scores
from progemu_jax.models.scorer import ScorerNet, ScorerNetConfig
from progemu_jax.scorers import xrv
from progemu_jax.scorers.__main__ import main
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.files import source_of, write_prediction_scores, write_reference_scores
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.scorers.saliency import score_and_explain
from progemu_jax.text.findings import FINDINGS, ORGANS

SMALL = ScorerNetConfig(widths=(8, 8, 8))


class Known(nn.Module):
    """Trunk: the image and its negative. Finding 0 is the mean of channel 0, finding 1 minus that of channel 1."""

    @nn.compact
    def __call__(self, images):
        x = jnp.stack([images, -images], axis=-1)
        self.sow("intermediates", "trunk", x)
        x = self.perturb("trunk", x)
        return {"findings": jnp.stack([x[..., 0].mean((1, 2)), -(x[..., 1].mean((1, 2)) ** 3)], axis=1)}


class TestSaliency:
    def test_by_hand(self):
        images = jnp.array([[[0.0, 1.0], [4.0, 3.0]]])
        out = score_and_explain(Known(), {}, images)
        # Finding 0: only channel 0 counts, equally everywhere: the image itself, scaled to its peak.
        np.testing.assert_allclose(out["saliency"][0, 0], [[0, 0.25], [1, 0.75]])
        # Finding 1: the derivative to channel 1 is negative, the channel too: again the image.
        np.testing.assert_allclose(out["saliency"][0, 1], [[0, 0.25], [1, 0.75]], rtol=1e-6)
        np.testing.assert_allclose(out["findings"], [[2, 8]])

    def test_nothing_for_the_finding_is_a_map_of_zeros(self):
        out = score_and_explain(Known(), {}, -jnp.ones((1, 2, 2)))
        np.testing.assert_array_equal(out["saliency"][0, 0], 0)

    def test_explaining_changes_no_score(self, phantom):
        import jax

        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
        plain = jax.jit(lambda x: ScorerNet(SMALL).apply({"params": phantom.params}, x))(images / np.float32(255))
        explained = phantom(images, "phantom", batch_size=2)
        np.testing.assert_allclose(explained["finding_prob"], jax.nn.sigmoid(plain["findings"]), atol=1e-6)
        np.testing.assert_allclose(explained["features"], plain["features"], atol=1e-5)
        assert explained["saliency"].shape == (2, 8, 4, 4)
        assert explained["saliency"].max() == 1


@pytest.fixture(scope="module")
def phantom():
    import jax

    params = jax.jit(ScorerNet(SMALL).init)(jax.random.key(0), jnp.zeros((1, 32, 32)))["params"]
    return PhantomScorer(params, SMALL, 32)


class Counting:
    """A scorer that counts; its answer is the image's mean."""

    caveat, identity = "none", "counting 1"

    def __init__(self):
        self.calls = []

    def __call__(self, images, source):
        self.calls.append(len(images))
        masks = np.repeat((images > 128)[:, None], 6, axis=1)
        return {
            "findings": np.array(["Edema"]), "finding_prob": images.mean((1, 2), keepdims=True)[:, 0] / 255,
            "age": images.mean((1, 2)), "organs": np.array(ORGANS), "masks": np.packbits(masks, axis=-1),
            "mask_shape": np.array(masks.shape),
        }  # fmt: skip


class TestCache:
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 12), dtype=np.uint8)

    def test_scores_are_the_scorers_and_are_made_once(self, tmp_path):
        scorer = Counting()
        cached = Cached(scorer, tmp_path, batch_size=3)
        first, want = cached(self.images, "x"), Counting()(self.images, "x")
        assert scorer.calls == [3, 3, 1]
        again = Cached(scorer, tmp_path)(self.images[::-1], "x")
        assert scorer.calls == [3, 3, 1]
        assert set(first) == set(want)
        for key in want:
            np.testing.assert_array_equal(first[key], want[key], err_msg=key)
            turned = want[key] if key in ("findings", "organs", "mask_shape") else want[key][::-1]
            np.testing.assert_array_equal(again[key], turned, err_msg=key)

    def test_equal_images_are_one(self, tmp_path):
        scorer = Counting()
        Cached(scorer, tmp_path)(np.repeat(self.images[:2], 3, axis=0), "x")
        assert scorer.calls == [2]

    def test_other_weights_never_meet(self, tmp_path):
        a, b = Counting(), Counting()
        b.identity = "counting 2"
        Cached(a, tmp_path)(self.images, "x")
        Cached(b, tmp_path)(self.images, "x")
        assert sum(b.calls) == 7

    def test_one_pixel_or_the_shape_makes_another_image(self, tmp_path):
        scorer = Counting()
        cached = Cached(scorer, tmp_path)
        changed = self.images[:1].copy()
        changed[0, 3, 3] ^= 1
        for images in (self.images[:1], changed, self.images[:1].reshape(1, 9, 16)):
            cached(images, "x")
        assert cached.scored == 3

    def test_a_damaged_file_is_scored_again(self, tmp_path):
        scorer = Counting()
        cached = Cached(scorer, tmp_path)
        want = cached(self.images, "x")
        files = sorted(tmp_path.rglob("*.npz"))
        files[0].write_bytes(b"")
        files[1].write_bytes(files[1].read_bytes()[:40])
        got = cached(self.images, "x")
        assert cached.scored == 9
        np.testing.assert_array_equal(got["age"], want["age"])


class TestFiles:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory, phantom):
        root, cohort = tmp_path_factory.mktemp("files"), Cohort(patients=3, pairs=1)
        cohort.write_references(root / "references")
        cohort.write_predictions(root / "ours", cohort.after, samples=2)
        scorer = Cached(phantom, root / "cache")
        write_reference_scores(scorer, root / "references", root / "references/scores", "phantom")
        write_prediction_scores(scorer, root / "ours", root / "ours/scores.npz", "phantom")
        return root, cohort

    def test_what_is_written_is_what_evaluation_reads(self, run):
        root, cohort = run
        scores = read_scores(root / "ours/scores.npz")
        assert scores.findings == FINDINGS
        assert len(scores.keys) == 6
        assert scores.mask_shape == (32, 32)
        assert scores.saliency.shape == (6, 8, 4, 4)
        assert scores.features.shape[0] == 6
        assert "phantom scorer" in scores.backbone
        for name in ("prior", "followup", "counterfactual", "mean"):
            assert set(read_scores(root / f"references/scores/{name}.npz").keys) == {
                (r["pair_id"], 0) for r in cohort.rows
            }

    def test_the_true_counterfactual_scores_as_the_image_that_equals_it(self, run):
        root, cohort = run
        ours, true = read_scores(root / "ours/scores.npz"), read_scores(root / "references/scores/counterfactual.npz")
        pair = cohort.rows[0]["pair_id"]
        np.testing.assert_array_equal(ours.finding_prob[ours.keys[pair, 1]], true.finding_prob[true.keys[pair, 0]])

    def test_the_mean_image_scores_the_same_for_every_case(self, run):
        prob = read_scores(run[0] / "references/scores/mean.npz").finding_prob
        np.testing.assert_array_equal(prob, np.repeat(prob[:1], 3, axis=0))

    def test_source(self):
        assert source_of([{"source": "mimic_cxr", "counterfactual": "a"}]) == "phantom"
        assert source_of([{"source": "mimic_cxr", "counterfactual": None}]) == "mimic_cxr"

    @pytest.mark.parametrize(
        ("scorer", "says"), [("nobody", "give xrv or phantom:DIR"), ("phantom", "give xrv"), ("phantom:/nowhere", "")]
    )
    def test_bad_command_lines_are_one_line(self, run, capsys, scorer, says):
        assert main([f"--scorer={scorer}", f"--references={run[0] / 'references'}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert says in error
        assert error.count("\n") == 1

    def test_missing_and_broken_references(self, tmp_path, capsys):
        assert main(["--scorer=xrv", f"--references={tmp_path}"]) == 2
        (tmp_path / "references.jsonl").write_text('{"pair_id": "a"}\n{"pair')
        assert main(["--scorer=xrv", f"--references={tmp_path}"]) == 2
        assert "line 2" in capsys.readouterr().err


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
        with pytest.raises(UserError, match=r"progemu-jax\[xrv\]"):
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
