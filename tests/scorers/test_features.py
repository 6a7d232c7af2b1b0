"""One file of a vision transformer's features: rows of every image, read by the evaluation; hostile folders."""

import json

import numpy as np
import pytest
from support.eval_cohort import Cohort, one_line

from progemu_jax.eval.scores import read_features
from progemu_jax.scorers import features
from progemu_jax.scorers.cache import Cached


class Mean:
    """Stands in for a network: the mean and the spread of an image's pixels."""

    caveat, identity, backbone = "", "stand-in", "stand-in"

    def __call__(self, images, source):
        flat = images.reshape(len(images), -1).astype(np.float32)
        return {"features": np.stack([flat.mean(1), flat.std(1)], axis=1), "backbone": np.asarray(self.backbone)}


@pytest.fixture
def cohort(tmp_path):
    made = Cohort(patients=3, pairs=1)
    made.write_references(tmp_path / "references")
    made.write_predictions(tmp_path / "ours", made.after, samples=2, noise=9)
    return made


def test_every_image_has_a_row_that_the_evaluation_reads(cohort, tmp_path):
    scorer = Cached(Mean(), tmp_path / "cache")
    features.write_features(scorer, tmp_path / "references", {"ours": tmp_path / "ours"}, tmp_path / "f.npz")
    found = read_features(tmp_path / "f.npz")
    assert set(found) == {"prior", "followup", "counterfactual", "mean", "ours"}
    ours = found["ours"]
    assert len(ours.features) == 6
    row = ours.take(["p002-0"], [1])[0]
    image = features.read_images(tmp_path / "ours", ["images/p002-0-1.png"])
    np.testing.assert_allclose(ours.features[row], Mean()(image, "")["features"][0])
    assert (found["mean"].features == found["mean"].features[0]).all()
    assert {scores.backbone for scores in found.values()} == {"stand-in"}


def test_a_second_run_computes_nothing(cohort, tmp_path):
    for scored in (True, False):
        scorer = Cached(Mean(), tmp_path / "cache")
        features.write_features(scorer, tmp_path / "references", {"ours": tmp_path / "ours"}, tmp_path / "f.npz")
        assert bool(scorer.scored) == scored


def test_folders_that_are_no_weights_are_one_line(tmp_path):
    one_line("no config.json, preprocessor_config.json, model.safetensors", features.VisionTransformer, tmp_path)


class TestCommand:
    @pytest.fixture
    def given(self, cohort, tmp_path, monkeypatch):
        monkeypatch.setattr(features, "VisionTransformer", lambda folder: Mean())
        return ["--weights=w", f"--references={tmp_path / 'references'}", f"--out={tmp_path / 'f.npz'}"]

    def test_names_systems_by_their_folders_or_as_told(self, given, tmp_path, capsys):
        more = [f"--predictions={tmp_path / 'ours'}", f"--predictions=again={tmp_path / 'ours'}"]
        assert features.main([*given, *more]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "f.npz")
        assert {"ours", "again"} < set(read_features(tmp_path / "f.npz"))

    @pytest.mark.parametrize(
        ("flags", "match"),
        [
            (["--predictions=DIR/ours", "--predictions=ours=DIR/ours"], "two are called ours"),
            (["--predictions=prior=DIR/ours"], "two are called prior"),
            (["--predictions=DIR/nowhere"], "no such file"),
            (["--out=features.csv"], "must end in .npz"),
        ],
    )
    def test_bad_input_is_one_line(self, given, tmp_path, capsys, flags, match):
        assert features.main([*given, *(flag.replace("DIR", str(tmp_path)) for flag in flags)]) == 2
        assert match in capsys.readouterr().err.splitlines()[-1]

    def test_a_link_out_of_the_folder_is_refused(self, given, cohort, tmp_path, capsys):
        row = {"pair_id": "p000-0", "sample": 0, "image": "../references/images/p000-0-prior.png"}
        (tmp_path / "ours/predictions.jsonl").write_text(json.dumps(row) + "\n")
        assert features.main([*given, f"--predictions={tmp_path / 'ours'}"]) == 2
        assert "is no file in the folder" in capsys.readouterr().err
