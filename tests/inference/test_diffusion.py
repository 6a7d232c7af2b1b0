"""How users meet the diffusion model: its results, and what is refused."""

import json

import jax
import numpy as np
import pytest
from support import tiny_diffusion
from support.tiny_diffusion import SIZE, gray

import progemu_jax
from progemu_jax import provenance
from progemu_jax.devices.sharding import make_mesh
from progemu_jax.errors import PromptWarning, UserError
from progemu_jax.files.predictions import Case
from progemu_jax.inference.counterfactual import CounterfactualModel
from progemu_jax.inference.diffusion import TextStates
from progemu_jax.sampling import watch
from progemu_jax.sampling.watch import Progress


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_diffusion.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run):
    return progemu_jax.load(run)


def test_a_case_does_not_depend_on_its_companions(model):
    cases = [Case(f"pair{i}", gray(i), "New small left pleural effusion.") for i in range(3)]
    alone = [Case("pair0", gray(0), cases[0].prompt), Case("x", gray(7), "Resolved edema."), Case("y", gray(8), "a")]
    both = [model.sample(c, seed=3).images for c in (cases, alone)]
    np.testing.assert_array_equal(both[0][0], both[1][0])
    assert not np.array_equal(both[0][1], both[1][1])
    assert not np.array_equal(both[0][0], model.sample(cases, seed=4).images[0])


def test_counterfactual_has_images_and_says_that_there_is_no_text(model):
    out = model.counterfactual(gray(0), "New small left pleural effusion.", num_samples=2, seed=1)
    assert out.images.shape == (2, SIZE, SIZE)
    assert out.images.dtype == np.uint8
    assert out.texts is out.codes is out.mask is None
    np.testing.assert_array_equal(out.prior + out.difference, out.images)
    assert out.uncertainty.any()
    assert not np.array_equal(*out.images)
    again = model.counterfactual(gray(0), "New small left pleural effusion.", num_samples=2, seed=1)
    np.testing.assert_array_equal(again.images, out.images)


def test_a_watched_request_is_the_same_in_steps(model, monkeypatch):
    monkeypatch.setattr(watch, "BLOCK", 0)
    told, asked = [], (gray(0), "New small left pleural effusion.", 2)
    for solver in ("ddim", "dpm++"):
        alone, watched = (model.counterfactual(*asked, solver=solver, watch=one).images for one in (None, told.append))
        np.testing.assert_array_equal(alone, watched)
    assert told == 2 * [Progress("steps", 1, 3), Progress("steps", 2, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": " "}, "prompt: empty"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"seed": -1}, "seed=-1"),
        ({"steps": 0}, "steps=0"),
        ({"temperature": 1.0}, "unknown key"),
        ({"prior": None}, "needs a prior image"),
        ({"mask": np.ones((SIZE, SIZE), bool)}, "a diffusion model takes no mask"),
        ({"mask": "auto"}, "a diffusion model takes no mask"),
        ({"text": True}, "a diffusion model writes no text"),
        ({"prior": np.zeros((4, 4, 4), np.uint8)}, "expected \\[H, W\\]"),
    ],
)
def test_bad_requests_end_in_one_line(model, arguments, message):
    values = {"prior": gray(0), "prompt": "Resolved edema."} | arguments
    with pytest.raises(UserError, match=message):
        model.counterfactual(**values)


def test_what_needs_codes_or_a_mask_says_so_and_the_futures_are_saved(model, tmp_path):
    out = model.counterfactual(gray(0), "Resolved edema.", num_samples=2, mask=None, text=False)
    for ask, message in ((lambda: out.entropy, "no codes"), (out.composite, "takes no mask")):
        with pytest.raises(UserError, match=message):
            ask()
    rows = [json.loads(line) for line in out.save(tmp_path / "out").read_text().splitlines()]
    assert [row["text"] for row in rows] == [None, None]
    assert provenance.read_png(tmp_path / "out" / rows[1]["image"])["progemu:model"] == model.hash


def test_it_says_what_it_understood_and_keeps_the_words_as_typed(model, monkeypatch):
    read = []
    encode = TextStates.__call__
    monkeypatch.setattr(TextStates, "__call__", lambda self, texts: read.append(texts) or encode(self, texts))
    with pytest.warns(PromptWarning, match="'NEW RIB FRACTURE.'.*fracture") as caught:
        out = model.counterfactual(gray(0), "NEW RIB FRACTURE.", seed=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert out.prompt == "NEW RIB FRACTURE."
    assert out.understood.unknown == ("fracture",)
    assert read == [["new rib fracture.", ""]]
    np.testing.assert_array_equal(out.images, model.sample([Case("request", gray(0), "new rib fracture.")], 1).images)


def test_it_is_a_counterfactual_model(model):
    assert isinstance(model, CounterfactualModel)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("a", None, "x"), "needs a prior image"),
        (Case("a", np.zeros((4, 4), np.int32), "x"), r"expected an image, uint8 \[32, 32\], got int32 \[4, 4\]"),
        (Case("a", np.zeros((SIZE, SIZE), np.uint8), "new\x00edema"), r"U\+0000"),
    ],
)
def test_a_case_is_checked_before_any_work_and_named(model, case, message):
    model.check(Case("a", gray(0), ""))
    with pytest.raises(UserError, match=message):
        model.check(case)
    with pytest.raises(UserError, match="case a: .*" + message):
        model.sample([case])


def test_eight_devices_sample_as_one(run, model):
    cases = [Case(f"p{i}", gray(i), ["New small left pleural effusion.", "Resolved edema."][i % 2]) for i in range(8)]
    many = progemu_jax.load(run)
    assert many.on(make_mesh(data=4, tensor=2)) is many
    assert len(jax.tree.leaves(many.params)[0].sharding.device_set) == 8
    for part in (cases[:7], cases[:1]):  # seven are filled up to eight; one does not divide over four: unsplit
        expected, found = (m.sample(part, 5).images for m in (model, many))
        assert abs(found.astype(int) - expected).max() <= 1
        assert len({image.tobytes() for image in found}) == len(part)


def test_a_run_without_all_parts_says_what_is_missing(run, tmp_path):
    import shutil

    shutil.copytree(run / "train", tmp_path / "part/train")
    with pytest.raises(UserError, match="holds no autoencoder"):
        progemu_jax.load(tmp_path / "part")
    with pytest.raises(UserError, match="autoencoder of its own"):
        progemu_jax.load(run, tokenizer=run)
