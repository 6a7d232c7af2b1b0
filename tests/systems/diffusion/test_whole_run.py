"""A diffusion run from the command line: all stages, and the public model on it."""

import json

import numpy as np
import pytest
from support.command_line import one_line, run, whole_run

import progemu_jax
from progemu_jax import provenance

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TOY = """
from progemu_jax.configs.diffusion import phantom

def get_config():
    config = phantom("medjourney", small=True)
    config.data.phantom.patients = 40
    config.data.processes = 1
    for part in (config.autoencoder.train, config.diffusion.stage1, config.diffusion.stage2):
        part.save_every = 2
    config.diffusion.stage2.show_every = 6
    config.sample.batch_size = 4
    config.sample.max_cases = 6
    return config
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("diffusion"), TOY)


def test_every_stage_leaves_what_it_promises(toy):
    workdir = toy / "run"
    assert "image" in (workdir / "report/index.html").read_text()
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert {"medjourney", "shuffled", "null_edit", "reconstruction", "copy"} <= metrics["systems"].keys()
    rows = [json.loads(s) for s in (workdir / "predictions/medjourney/predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["text"] is None for row in rows)
    assert list((workdir / "train/stage2").rglob("events.out.tfevents*"))


def test_the_public_model_loads_from_the_run_and_a_picture_says_where_it_came_from(toy):
    workdir = toy / "run"
    model = progemu_jax.load(workdir)
    prior = np.random.default_rng(0).integers(0, 255, (80, 70), np.uint8)
    out = model.counterfactual(prior, "New small left pleural effusion.", num_samples=2, seed=3)
    assert out.images.shape == (2, 64, 64)
    assert out.images.dtype == np.uint8
    assert out.texts == [None, None]
    said = provenance.read_png(next((workdir / "predictions/medjourney/images").glob("*.png")))
    assert said["progemu:model"] == model.hash
    assert "SYNTHETIC" in said["Comment"]


def test_another_budget_in_the_same_workdir_names_the_key(toy):
    one_line(run(toy, toy / "run", "--config.diffusion.stage2.steps=7"), "steps", "6", "7")
    one_line(run(toy, toy / "run", "--config.sample.systems=('progemu',)"), "progemu", "medjourney")
