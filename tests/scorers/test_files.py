"""Score files of references and predictions, and the command that writes them."""

import os

import numpy as np
import pytest
from PIL import EpsImagePlugin
from support.errors import fails
from support.eval_cohort import Cohort

from progemu_jax.eval.predictions import read_image
from progemu_jax.eval.scores import read_scores
from progemu_jax.scorers.__main__ import main
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.files import read_images, source_of, write_prediction_scores, write_reference_scores
from progemu_jax.text.findings import FINDINGS

POSTSCRIPT = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 32 32
%%EndComments
showpage
%%EOF
"""


@pytest.mark.parametrize("reader", [read_image, lambda path: read_images(path.parent, [path.name])])
def test_no_other_program_sees_an_image_of_a_stranger(tmp_path, monkeypatch, reader):
    """PIL hands a PostScript file of any name to Ghostscript, where it is installed."""
    program, ran = tmp_path / "bin/gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # as if it had not looked for the program yet
    (tmp_path / "x.png").write_text(POSTSCRIPT)
    fails("x.png: cannot be read as an image", reader, tmp_path / "x.png")
    assert not ran.exists()


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
        ("scorer", "says"), [("nobody", "phantom:DIR"), ("phantom:", "give xrv"), ("phantom:/nowhere", "")]
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
