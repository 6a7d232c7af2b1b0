"""Masks, dial, roll-out, uncertainty, parts of a request, provenance and bad requests, on random weights."""

import dataclasses
import itertools
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support import tiny_run
from support.cohorts import chest
from support.tiny_run import CODES, GRID, SIZE

import progemu_jax
from progemu_jax import provenance
from progemu_jax import run as run_
from progemu_jax.errors import UserError
from progemu_jax.files import predictions
from progemu_jax.files.predictions import Case, Prediction
from progemu_jax.inference import change_map, request
from progemu_jax.inference.counterfactual import _feathered
from progemu_jax.text import findings, rules

PROMPT = "New small left pleural effusion."
SIDE = SIZE // GRID[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(run):
    return progemu_jax.load(run)


@pytest.fixture(scope="module")
def prior():
    return chest(0, SIZE)


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(0).integers(0, CODES, GRID).astype(np.int32)


@pytest.fixture(scope="module")
def futures(model, prior):
    return model.counterfactual(prior, PROMPT, num_samples=3, seed=4)


class TestFutures:
    def test_shapes_and_what_belongs_together(self, model, prior, futures):
        assert futures.images.shape == (3, SIZE, SIZE)
        assert futures.mask.all()
        np.testing.assert_array_equal(futures.given, prior)
        np.testing.assert_array_equal(futures.prior_codes, model.tokenize(prior))
        np.testing.assert_array_equal(futures.images, model.detokenize(futures.codes))
        np.testing.assert_array_equal(futures.prior + futures.difference, futures.images)

    def test_uncertainty_and_entropy_are_their_definitions(self, futures):
        gray = np.asarray([[0, 10], [4, 10], [8, 40]], np.uint8)[:, None]
        drawn = np.asarray([[1, 1, 5, 5], [1, 2, 5, 5], [1, 3, 6, 5], [1, 4, 6, 6]], np.int32)[:, None]
        known = dataclasses.replace(futures, images=gray, codes=drawn)
        np.testing.assert_allclose(known.uncertainty, [[4.0, 300**0.5]], rtol=1e-6)
        np.testing.assert_allclose(known.entropy, [[0, 2, 1, 0.8112781]], rtol=1e-6)
        assert known.entropy.dtype == known.uncertainty.dtype == np.float32

    def test_one_future_has_no_uncertainty(self, futures):
        one = dataclasses.replace(futures, images=futures.images[:1], codes=futures.codes[:1])
        for name in ("uncertainty", "entropy"):
            with pytest.raises(UserError, match="num_samples"):
                getattr(one, name)

    def test_image_alone(self, model, prior, futures):
        alone = model.counterfactual(prior, PROMPT, num_samples=3, seed=4, text=False)
        assert alone.texts is None
        np.testing.assert_array_equal(alone.codes, futures.codes)

    def test_no_prior_is_the_constant_gray_one(self, model):
        out = model.counterfactual(None, PROMPT, num_samples=3)
        np.testing.assert_array_equal(out.prior_codes, model.tokenize(np.full((SIZE, SIZE), 128, np.uint8)))
        assert out.given is None


class TestMask:
    @pytest.mark.parametrize("seed", range(3))
    def test_outside_codes_are_the_priors_always(self, model, codes, seed):
        mask = np.random.default_rng(seed).random(GRID) < 0.4
        out = model.counterfactual(codes, PROMPT, num_samples=3, seed=seed, mask=mask)
        assert (out.codes[:, ~mask] == codes[~mask]).all()
        assert (out.codes[:, mask] != codes[mask]).any()
        np.testing.assert_array_equal(out.mask, mask)

    def test_a_place_is_inside_as_soon_as_one_pixel_is(self, model, codes):
        pixels = np.zeros((SIZE, SIZE), bool)
        pixels[SIDE, 2 * SIDE - 1] = True  # of place (1, 1)
        out = model.counterfactual(codes, PROMPT, num_samples=3, mask=pixels)
        assert np.argwhere(out.mask).tolist() == [[1, 1]]

    def test_everything_marked_is_no_mask(self, model, prior, futures):
        out = model.counterfactual(prior, PROMPT, num_samples=3, seed=4, mask=np.ones((SIZE, SIZE), bool))
        np.testing.assert_array_equal(out.codes, futures.codes)
        assert out.texts == futures.texts

    @pytest.mark.parametrize("prompt", ["No significant change.", "Unchanged.", "Stable small left pleural effusion."])
    def test_no_change_under_the_automatic_mask_is_the_prior(self, model, prior, prompt):
        out = model.counterfactual(prior, prompt, num_samples=3, mask="auto")
        assert not out.mask.any()
        assert (out.codes == out.prior_codes).all()
        assert (out.images == out.prior).all()
        assert (out.composite() == prior).all()
        assert len(out.texts) == 3

    def test_the_automatic_mask_is_the_map_above_its_threshold(self, model, prior):
        found = model.change_map(prior, PROMPT)
        assert found.shape == GRID
        assert found.min() >= 0
        assert found.max() <= 1
        out = model.counterfactual(prior, PROMPT, num_samples=3, mask="auto")
        assert 0 < out.mask.sum() < out.mask.size
        np.testing.assert_array_equal(out.mask, found >= change_map.CHANGE_THRESHOLD)
        assert (out.codes[:, ~out.mask] == out.prior_codes[~out.mask]).all()
        assert (model.change_mask(prior, PROMPT, threshold=1.1) == np.zeros(GRID, bool)).all()

    def test_the_map_is_the_distance_of_next_code_distributions(self, model, codes):
        """By whole rows of logits of the public API: no padding is cut, no row is batched with another."""
        from progemu_jax.models import transformer
        from progemu_jax.text import sequence
        from progemu_jax.text.findings import NO_CHANGE

        start, stop = model.vocabulary.visual_start, model.vocabulary.visual_start + CODES
        shares = []
        for text in (PROMPT, NO_CHANGE):
            row = sequence.pack(model.vocabulary, model.layout, codes, text, codes, "")
            tokens, positions, aligned = (row[k][None] for k in ("tokens", "positions", "aligned"))
            hidden, _ = transformer.Transformer(model.config).apply(
                {"params": model.params}, tokens, positions, aligned=aligned
            )
            at = np.flatnonzero(row["kinds"] == sequence.Kind.VISUAL) - 1
            scores = np.asarray(transformer.logits(model.params, hidden, (start, stop)))[0, at].astype(np.float64)
            shares.append(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
        expected = np.maximum(shares[0] - shares[1], 0).sum(1).reshape(GRID)
        np.testing.assert_allclose(model.change_map(codes, PROMPT), expected, atol=1e-5)


class TestComposite:
    def test_outside_pixels_are_the_priors_and_deep_inside_the_models(self, model, prior):
        mask = np.zeros(GRID, bool)
        mask[1:3, 1:3] = True
        out = model.counterfactual(prior, PROMPT, num_samples=3, mask=mask)
        made = out.composite()
        outside = ~mask.repeat(SIDE, 0).repeat(SIDE, 1)
        assert (made[:, outside] == prior[outside]).all()
        inside = (slice(None), slice(12, 20), slice(12, 20))
        np.testing.assert_array_equal(made[inside], out.images[inside])
        np.testing.assert_array_equal(out.composite(feather=0)[:, ~outside], out.images[:, ~outside])

    def test_weights_rise_from_the_border_and_not_from_the_images_edge(self):
        mask = np.zeros((1, 6), bool)
        mask[0, 2:] = True
        np.testing.assert_allclose(_feathered(mask, 2), [[0, 0, 1 / 3, 2 / 3, 1, 1]])


class TestDialAndRollout:
    def test_the_dial_is_three_requests_with_one_seed(self, model, prior):
        dial = model.dial(prior, "New left pleural effusion.", seed=1)
        assert list(dial) == list(findings.GRADES)
        for word, out in zip(("small", "moderate", "large"), dial.values(), strict=True):
            assert out.prompt == f"New {word} left pleural effusion."
        batch = [Case("request", dial["mild"].prior_codes, out.prompt) for out in dial.values()]
        again = model.sample(batch, seed=1)
        np.testing.assert_array_equal(np.concatenate([out.codes for out in dial.values()]), again.codes)

    @pytest.mark.parametrize("prompt", ["Resolved left pleural effusion.", "No significant change.", "x"])
    def test_a_prompt_without_a_grade_is_refused(self, model, prior, prompt):
        with pytest.raises(UserError, match="grade"):
            model.dial(prior, prompt)

    def test_each_step_starts_from_the_images_before(self, model, prior):
        prompts = ["New edema.", "Worsening edema.", "Resolved edema."]
        steps = model.rollout(prior, prompts, num_samples=3, seed=5)
        first = model.counterfactual(prior, prompts[0], num_samples=3, seed=5)
        np.testing.assert_array_equal(steps[0].codes, first.codes)
        for before, after in itertools.pairwise(steps):
            np.testing.assert_array_equal(after.prior_codes, before.codes)
            np.testing.assert_array_equal(after.prior, before.images)
        assert [step.prompt for step in steps] == prompts

    def test_a_still_step_under_the_automatic_mask_keeps_every_trajectory(self, model, prior):
        steps = model.rollout(prior, ["New edema.", "No significant change."], num_samples=3, mask="auto")
        np.testing.assert_array_equal(steps[1].codes, steps[0].codes)
        np.testing.assert_array_equal(steps[1].composite(), steps[0].images)

    @pytest.mark.parametrize("prompts", ["New edema.", [], None, ["New edema.", ""], ["New edema.", "a " * 300]])
    def test_bad_prompts_are_refused_before_the_first_step(self, model, prior, prompts):
        with pytest.raises(UserError, match="prompt"):
            model.rollout(prior, prompts)


def test_text_of_a_pair_is_the_text_of_those_codes(model, codes):
    """What the text is when the image happens to come out as given, is the text of the given pair."""
    made = model.counterfactual(codes, PROMPT, num_samples=3, seed=2)
    again = [model.explain(codes, made.codes[s], PROMPT, num_samples=3, seed=2)[s] for s in range(3)]
    assert again == made.texts
    assert len(model.explain(codes, codes, num_samples=3)) == 3


class TestGrades:
    @pytest.mark.parametrize(
        ("text", "mild", "severe"),
        [
            ("New left pleural effusion.", "New small left pleural effusion.", "New large left pleural effusion."),
            ("New moderate edema.", "New mild edema.", "New severe edema."),
            ("Worsening cardiomegaly.", "Worsening cardiomegaly, now mild.", "Worsening cardiomegaly, now severe."),
            ("Increased edema, now mild.", "Increased edema, now mild.", "Increased edema, now severe."),
            ("There is an effusion on the left.", "There is a small effusion on the left.",
             "There is a large effusion on the left."),
            ("New edema. Unchanged mild cardiomegaly.", "New mild edema. Unchanged mild cardiomegaly.",
             "New severe edema. Unchanged mild cardiomegaly."),
            ("New edema. Resolved left pneumothorax.", "New mild edema. Resolved left pneumothorax.",
             "New severe edema. Resolved left pneumothorax."),
            ("Decreased right effusion, now moderate.", "Decreased right effusion, now small.",
             "Decreased right effusion, now large."),
        ],
    )  # fmt: skip
    def test_a_grade_is_set_and_nothing_else(self, text, mild, severe):
        assert rules.with_grade(text, "mild") == mild
        assert rules.with_grade(text, "severe") == severe

    @pytest.mark.parametrize(
        "text",
        ["Resolved edema.", "No pneumothorax.", "Unchanged edema.", "Possible edema.", "Lines are in place.", ""],
    )
    def test_what_is_not_there_has_no_grade(self, text):
        assert rules.with_grade(text, "mild") is None

    @pytest.mark.parametrize(
        "text", ["No significant interval change.", "Unchanged. Stable edema.", "No worsening of edema."]
    )
    def test_no_change(self, text):
        assert rules.says_no_change(text)

    @pytest.mark.parametrize(
        "text", ["New edema.", "Unchanged edema. New effusion.", "No pneumothorax.", "x", "", "Edema is not stable.",
                 "Stable effusion, worsening edema.", "Continued improvement of edema."],
    )  # fmt: skip
    def test_change_or_no_word_of_it(self, text):
        assert not rules.says_no_change(text)


class TestProvenance:
    def test_saved_futures_carry_theirs(self, model, futures, tmp_path, capsys):
        path = futures.save(tmp_path / "out", "case-7")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["sample"] for row in rows] == [0, 1, 2]
        for row, image, text in zip(rows, futures.images, futures.texts, strict=True):
            assert row["text"] == text
            assert row["pair_id"] == "case-7"
            file = path.parent / row["image"]
            with Image.open(file) as opened:
                np.testing.assert_array_equal(np.asarray(opened), image)
                chunks = opened.text
            assert "SYNTHETIC" in chunks["Comment"]
            assert chunks["Software"] == f"progemu_jax {progemu_jax.__version__}"
            assert chunks["progemu:model"] == model.hash
            assert len(model.hash) == 64
            assert chunks["progemu:prompt"] == PROMPT
            assert (chunks["progemu:seed"], chunks["progemu:sample"]) == ("4", str(row["sample"]))
            settings = json.loads(chunks["progemu:sampling"])
            assert settings["guidance"] == 2.0
            assert settings["free_codes"] == [GRID[0] * GRID[1]] * 3
            assert provenance.read_png(file) == chunks
        assert provenance.main([str(file)]) == 0
        assert "progemu:prompt: New small left" in capsys.readouterr().out
        with pytest.raises(UserError, match="already"):
            futures.save(tmp_path / "out")

    def test_any_text_survives(self, tmp_path):
        prompt = 'Ergüsse "beidseits" – 胸水\nnew'
        provenance.write_png(tmp_path / "x.png", np.zeros((4, 4), np.uint8), prompt=prompt, checkpoint="röntgen@1")
        found = provenance.read_png(tmp_path / "x.png")
        assert (found["progemu:prompt"], found["progemu:checkpoint"]) == (prompt, "röntgen@1")

    def test_the_evaluation_reads_the_same_pixels(self, futures, tmp_path):
        from progemu_jax.eval.predictions import read_image

        futures.save(tmp_path)
        np.testing.assert_array_equal(read_image(tmp_path / "images/request-2.png"), futures.images[2])

    def test_other_files_are_one_line(self, tmp_path, capsys):
        Image.new("L", (4, 4)).save(tmp_path / "plain.png")
        (tmp_path / "no.png").write_text("x")
        for name in ("plain.png", "no.png", "absent.png"):
            assert provenance.main([str(tmp_path / name)]) == 2
            assert capsys.readouterr().err.count("\n") == 1

    def test_the_hash_is_of_the_weights_alone(self):
        one = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.int32)}
        assert provenance.weights_hash(one) == provenance.weights_hash(dict(reversed(one.items())))
        changed = [one | {"a": np.ones(3, np.float64)}, one | {"b": np.zeros((4, 1), np.int32)}, {"c": one["a"]}]
        assert len({provenance.weights_hash(x) for x in (one, *changed)}) == 4


class TestPolicy:
    def test_a_runs_config_goes_before_the_export(self, run, model, tmp_path):
        folder = shutil.copytree(run, tmp_path / "run")
        assert progemu_jax.load(folder).policy.guidance == 2.0
        (folder / "config.json").write_text(json.dumps({"sample": {"policy": {"guidance": 1.5, "top_k": 7}}}))
        assert (progemu_jax.load(folder).policy.guidance, progemu_jax.load(folder).policy.top_k) == (1.5, 7)
        assert progemu_jax.load(folder / "train/export", tokenizer=folder).policy.guidance == 2.0
        assert progemu_jax.load(folder).hash == model.hash
        (folder / "config.json").write_text(json.dumps({"sample": {"policy": {"guidence": 1.5}}}))
        with pytest.raises(UserError, match=r"config\.json.*guidence.*guidance"):
            progemu_jax.load(folder)
        (folder / "config.json").write_text("{")
        with pytest.raises(UserError, match=r"config\.json"):
            progemu_jax.load(folder)


def bomb(folder):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return folder / "bomb.png"


def text_file(folder):
    (folder / "text.png").write_text("hello")
    return folder / "text.png"


CHEST = chest(1, SIZE)


class TestBadRequests:
    @pytest.mark.parametrize(
        ("prior", "words"),
        [
            (np.full((SIZE, SIZE), np.nan), "finite"),
            (np.full((SIZE, SIZE), np.inf, np.float32), "finite"),
            (CHEST * 1.0, r"\[0, 1\]"),
            (np.full((SIZE, SIZE), 77, np.uint8), "blank, every pixel is 77"),
            (CHEST[:1, :1], "1 x 1 pixels"),
            (CHEST[:0], "shape"),
            (CHEST.astype(np.uint16), "uint16.*scale"),
            (CHEST > 9, "bool"),
            (CHEST.astype(complex), "complex"),
            (np.dstack([CHEST] * 4), "alpha"),
            (CHEST[None, None], "shape"),
            ("absent.png", "absent.png: the image file is missing"),
            (lambda folder: folder, "cannot be read"),
            (text_file, "neither PNG nor JPEG"),
            (bomb, "pixels"),
            (np.full(GRID, CODES), "codes must lie"),
            (np.full(GRID, -1), "codes must lie"),
            (Image.new("L", (SIZE, SIZE)), "blank"),
            (3, "shape"),
            (["a"], "shape"),
        ],
    )
    def test_of_images(self, model, prior, words, tmp_path):
        prior = prior(tmp_path) if callable(prior) else prior
        fails(words, model.counterfactual, prior, PROMPT)
        fails("followup: .*" + words, model.explain, CHEST, prior)

    def test_deep_and_colour_images_are_taken(self, model, tmp_path):
        Image.fromarray(CHEST.astype(np.uint16) * 200).save(tmp_path / "deep.png")
        deep = model.prior_codes(tmp_path / "deep.png")
        rgba = Image.merge("RGBA", [Image.fromarray(CHEST)] * 3 + [Image.new("L", (SIZE, SIZE), 9)])
        assert deep.shape == GRID
        np.testing.assert_array_equal(model.prior_codes(rgba), model.tokenize(CHEST))

    @pytest.mark.parametrize(
        ("prompt", "words"),
        [("", "empty"), (" \n", "empty"), (None, "NoneType"), (b"x", "bytes"), ("a" * 10_001, "10001 characters"),
         ("effusion " * 60, "tokens"), ("new\x00edema", r"U\+0000"), ("new\x1b[0m", r"U\+001B"),
         ("new \ud800", r"U\+D800")],
    )  # fmt: skip
    def test_of_prompts(self, model, prompt, words):
        fails(words, model.counterfactual, CHEST, prompt)

    @pytest.mark.parametrize(
        ("mask", "words"),
        [(np.ones((5, 5), bool), r"\[5, 5\]"), (np.ones(GRID, np.uint8), "uint8.*mask > 0"),
         (np.zeros(GRID, bool), "no place"), (np.ones((SIZE, SIZE + 1), bool), "resize"), (True, r"\[\]"),
         ("everything", "auto"), (np.zeros((0, 0), bool), "shape")],
    )  # fmt: skip
    def test_of_masks(self, model, mask, words):
        fails("mask.*" + words, model.counterfactual, CHEST, PROMPT, mask=mask)

    @pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, None, "1", float("nan"), np.bool_(True)])
    def test_of_seeds(self, model, seed):
        fails("seed=", model.counterfactual, CHEST, PROMPT, seed=seed)

    @pytest.mark.parametrize("count", [0, -3, 10**6, 2.0, True, None])
    def test_of_sample_counts(self, model, count):
        for ask in (model.counterfactual, model.dial):
            fails("num_samples=", ask, CHEST, PROMPT, num_samples=count)

    def test_more_than_memory_holds_is_refused_with_what_fits(self, model, monkeypatch):
        from progemu_jax.sampling import memory

        monkeypatch.setattr(memory, "available", lambda: 2**21)
        fails("num_samples: 1000 samples .*ask for at most", model.counterfactual, CHEST, PROMPT, num_samples=1000)
        fails("num_samples: 1200 samples", model.dial, CHEST, PROMPT, num_samples=400)

    @pytest.mark.parametrize(
        ("field", "words"),
        [({"guidence": 3.0}, "guidance"), ({"temperature": "hot"}, "hot"), ({"top_k": -1}, "top_k"),
         ({"guidance": float("nan")}, "guidance"), ({"max_text": True}, "max_text")],
    )  # fmt: skip
    def test_of_sampling_fields(self, model, field, words):
        fails(words, model.counterfactual, CHEST, PROMPT, **field)

    def test_any_integer_type_is_a_seed(self):
        assert request.seed(np.uint32(2**32 - 1)) == 2**32 - 1
        assert request.num_samples(np.int64(4)) == 4

    def test_a_case_is_named(self, model, codes):
        fails("case b: prompt", model.sample, [Case("a", codes, PROMPT), Case("b", codes, "a " * 300)])


def fails(words, ask, *arguments, **options):
    with pytest.raises(UserError, match=words) as caught:
        ask(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class TestQueue:
    """One bad case among good ones, in a predictions folder."""

    CASES = tuple(
        Case(f"c{i}", np.zeros(GRID, np.int32), p) for i, p in enumerate((PROMPT, "a " * 300, "b\x00", "New edema."))
    )

    def write(self, model, folder, cases, stop_after=None):
        done = []

        def predict(batch):
            if len(done) == stop_after:
                raise KeyboardInterrupt
            done.extend(batch)
            return [Prediction(np.full((8, 8), 7, np.uint8), "text") for _ in batch]

        return predictions.write_predictions(
            folder, cases, predict, batch_size=1, seed=0, checkpoint="x", sampling={}, check=model.check
        )

    def test_the_others_are_there_and_it_is_named(self, model, tmp_path):
        path = self.write(model, tmp_path / "progemu", self.CASES)
        assert [json.loads(line)["pair_id"] for line in path.read_text().splitlines()] == ["c0", "c3"]
        rejected = [json.loads(line) for line in (tmp_path / "progemu/rejected.jsonl").read_text().splitlines()]
        assert [row["pair_id"] for row in rejected] == ["c1", "c2"]
        assert "tokens" in rejected[0]["reason"]
        line = predictions.rejections(tmp_path)
        assert "2 cases" in line
        assert "c1" in line
        assert "\n" not in line
        self.write(model, tmp_path / "progemu", self.CASES[:1])
        assert predictions.rejections(tmp_path) is None

    def test_a_cut_call_goes_on_to_the_same_folder(self, model, tmp_path):
        whole = self.write(model, tmp_path / "whole", self.CASES)
        with pytest.raises(KeyboardInterrupt):
            self.write(model, tmp_path / "cut", self.CASES, stop_after=1)
        assert self.write(model, tmp_path / "cut", self.CASES).read_text() == whole.read_text()

    def test_no_case_left_is_one_line(self, model, tmp_path):
        fails("no case can be predicted", self.write, model, tmp_path, self.CASES[1:3])

    def test_the_command_ends_with_the_line(self, model, tmp_path, monkeypatch):
        from progemu_jax.configs import demo
        from progemu_jax.files import stages

        self.write(model, tmp_path / "predictions/progemu", self.CASES)
        monkeypatch.setattr(stages, "run_stages", lambda *_: None)
        with pytest.raises(UserError, match="2 cases could not be predicted"):
            run_.run(demo.get_config(), tmp_path, None)
        assert (tmp_path / "config.json").exists()
        run_.run(demo.get_config(), tmp_path, ["data"])
