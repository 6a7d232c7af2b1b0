"""Pictures of held-out patients: whose they are, what the page says, and what the files hold."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import packed_run

from progemu_jax import provenance
from progemu_jax.data.sources import phantom
from progemu_jax.eval.report import STANDING
from progemu_jax.gallery import cases
from progemu_jax.gallery.__main__ import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return packed_run.write(tmp_path_factory.mktemp("gallery") / "run")


@pytest.fixture(scope="module")
def made(run):
    out = run.parent / "try"
    assert main([f"--model={run}", f"--out={out}", "--patients=2"]) == 0
    return out


def test_it_shows_the_first_test_patients_of_any_training_cohort(tmp_path):
    found = cases.held_out(tmp_path / "held", 2, 64, 64)
    whole = phantom.write_cohort(
        tmp_path / "cohort", patients=25, studies_per_patient=4, size=64, seed=cases.COHORT_SEED, progress=False
    )
    split = {row["patient_id"]: row["split"] for row in phantom.read_truth(whole).values()}
    assert [split[case.patient] for case in found] == ["test", "test"]
    for case in found:
        assert case.prior.shape == case.truth.shape == (64, 64)
        assert bool(case.changes) == (not np.array_equal(case.prior, case.truth))


def test_everything_is_there_and_the_page_needs_nothing_else(made):
    rows = json.loads((made / "cases.json").read_text())
    assert len(rows) == 2
    page = (made / "index.html").read_text(encoding="utf-8")
    assert STANDING in page
    assert "not chosen" in page
    assert page.count("data:image/png;base64,") == 5 * len(rows)
    assert 'src="http' not in page
    for number, row in enumerate(rows, 1):
        assert row["prompt"] in page
        for name in ("prior", "edited", "truth", "difference"):
            with Image.open(made / f"{number}-{name}.png") as image:
                assert image.size == (32, 32)
        facts = provenance.read_png(made / f"{number}-edited.png")
        assert facts["progemu:prompt"] == row["prompt"]
        assert all(len(scores) == 3 for scores in row["scores_prior_edited_truth"].values())
    assert any(row["scores_prior_edited_truth"] for row in rows)
    assert Image.open(made / "try.png").width > 800


def test_the_same_seed_gives_the_same_pictures(run, made, tmp_path):
    assert main([f"--model={run}", f"--out={tmp_path}", "--patients=2"]) == 0
    for path in made.glob("*.png"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_model_without_a_scorer_has_no_scores(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(other / "scorer")
    assert main([f"--model={other}", f"--out={tmp_path / 'try'}", "--patients=1"]) == 0
    assert json.loads((tmp_path / "try/cases.json").read_text())[0]["scores_prior_edited_truth"] is None
    assert "Scorer:" not in (tmp_path / "try/index.html").read_text()


@pytest.mark.parametrize(
    ("flag", "says"),
    [("--patients=0", "--patients=0"), ("--seed=-1", "seed"), ("--model=/nowhere", "/nowhere"), ("--out=", "")],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, monkeypatch, flag, says):
    (tmp_path / "file").write_text("")
    flag = f"--out={tmp_path}/file" if flag == "--out=" else flag
    assert main([f"--model={run}", f"--out={tmp_path}/try", "--patients=1", flag]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert says in errors[0]


def test_a_model_of_patients_is_refused(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "run")
    (other / "config.json").write_text(json.dumps({"data": {"source": "mimic_cxr"}}))
    assert main([f"--model={other}", f"--out={tmp_path / 'try'}"]) == 2
    assert "mimic_cxr" in capsys.readouterr().err
