"""Bad requests: each is one line, before anything is drawn."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from support.cohorts import chest
from support.errors import fails
from support.tiny_run import CODES, GRID, PROMPT, SIZE

from progemu_jax.errors import PromptWarning
from progemu_jax.files.predictions import Case
from progemu_jax.inference import request


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
            (lambda folder: folder, "no regular file"),
            (text_file, "neither PNG nor JPEG"),
            (bomb, "pixels"),
            (np.full(GRID, CODES), "codes must lie"),
            (np.full(GRID, -1), "codes must lie"),
            (np.full(GRID, 3, np.uint8), "pixels"),  # of unsigned integers: an image, if a small one
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


class TestPrompts:
    @pytest.mark.parametrize(
        ("typed", "read"),
        [("NEW LEFT EFFUSION, 2 CM.", "new left effusion, 2 cm."), ("NEW left EFFUSION.", "NEW left EFFUSION."),
         ("New left effusion.", "New left effusion."), ("\u80f8\u6c34 2", "\u80f8\u6c34 2"), ("", "")],
    )  # fmt: skip
    def test_capitals_alone_are_read_in_lower_case(self, typed, read):
        assert request.prompt(typed, empty=True) == read

    @pytest.mark.parametrize(
        ("prompt", "words"),
        [
            ("Make it\nsunny.", "prompt 'Make it\\\\nsunny.': .*understood nothing.* Ask for pleural effusion, "),
            ("New left effusion and rib fracture.", "'New left effusion and rib fracture.': .* trained on fracture: "),
            ("sun " * 2000, "understood nothing"),
        ],
    )
    def test_what_is_not_understood_is_one_short_line_at_the_caller(self, prompt, words):
        def ask():
            request.warn_unread(prompt)

        with pytest.warns(PromptWarning, match=words) as caught:
            ask()
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert "\n" not in str(caught[0].message)
        assert len(str(caught[0].message)) < 400

    @pytest.mark.parametrize(
        "prompt",
        ["", " \n", "No significant change.", "NO SIGNIFICANT CHANGE.", "No change.", "New effusion.", PROMPT,
         "Larger left effusion. Smaller left effusion."],
    )  # fmt: skip
    def test_others_pass_in_silence(self, prompt):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            request.warn_unread(prompt)
