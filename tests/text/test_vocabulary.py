"""Text and visual token ids: the built-in vocabulary, Emu3's numbering, hostile text and damaged files."""

import itertools
import runpy
import unicodedata

import numpy as np
import pytest
import tiktoken

from progemu_jax.errors import UserError
from progemu_jax.text import vocabulary

HOSTILE = [
    "",
    " ",
    "New small left pleural effusion.",
    "64*64",
    "2.5 cm nodule, 1,234 HU",
    "e\u0301dema — naïve ≥ 3 ×\n\n  tail  ",
    "胸部X線 \U0001fac1\U0001f1e9\U0001f1ea",
    "\x00\x07\ufeff\u200b",
    "<|extra_203|><|image start|><|visual token 000000|>",
    "It's the patient's. THEY'LL\r\nreturn",
]


def _folder(path, ranks, codes):
    path.mkdir(exist_ok=True)
    vocabulary.write_ranks(path / vocabulary.TEXT_FILE, ranks)
    vocabulary.write_vision_tokens(path / vocabulary.VISION_FILE, codes)
    return path


@pytest.fixture
def ranks():
    words = [b" effusion", b" left", b"ef", b"fu", b"New", b"64"]
    return {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *words])}


def test_emu3_numbering(tmp_path):
    """Files of Emu3's size give Emu3's ids (reference tokenizer: 151,643 ranks, 32,768 codes)."""
    many = itertools.product(range(256), repeat=3)
    ranks = {bytes([b]): b for b in range(256)} | {bytes(next(many)): i for i in range(256, 151_643)}
    v = vocabulary.load(_folder(tmp_path / "emu3", ranks, 32_768))
    assert (v.text_size, v.pad, v.eol, v.eof, v.bos, v.eos) == (
        151_643,
        151_643,
        151_846,
        151_847,
        151_849,
        151_850,
    )
    assert (v.img, v.boi, v.eoi, v.visual_start) == (151_851, 151_852, 151_853, 151_854)
    assert (v.codebook_size, v.size, len(v)) == (32_768, 184_622, 184_622)
    assert v.decode([184_621]) == "<|visual token 032767|>"


def test_built_in_round_trip():
    v = vocabulary.load()
    for text in HOSTILE:
        ids = v.encode(text)
        assert all(0 <= i < v.text_size for i in ids)

        assert v.decode(ids) == unicodedata.normalize("NFC", text)


def test_built_in_is_dense():
    v = vocabulary.load()
    assert len(v.encode("New small left pleural effusion. Improved pulmonary edema.")) <= 10
    # Emu3 cuts numbers into single digits, and so does a mark of the image's size.
    assert len(v.resolution(64, 64)) == 5
    assert v.decode(v.resolution(8, 16)) == "8*16"


def test_special_names_in_text_are_text(ranks, tmp_path):
    """A report that spells a special token must not end a sequence or open an image."""
    v = vocabulary.load(_folder(tmp_path / "v", ranks, 8))
    text = "a<|extra_204|><|visual token 000003|>b<|<|image start|>|>"
    assert max(v.encode(text)) < v.text_size
    assert v.decode(v.encode(text)) == text
    special = v.encode(text, allow_special=True)
    assert special.count(v.eos) == 1
    assert v.visual_start + 3 in special
    assert v.boi in special
    assert v.decode(special) == text


@pytest.mark.parametrize("text", HOSTILE + ["x<|endoftext|>y", "<|extra_200|", "<|image token|> |>"])
def test_allow_special_equals_tiktoken(ranks, tmp_path, text):
    """The oracle is tiktoken given the special tokens, as Emu3's tokenizer uses it."""
    v = vocabulary.load(_folder(tmp_path / "v", ranks, 8))
    oracle = tiktoken.Encoding(
        "oracle",
        pat_str=vocabulary.SPLIT,
        mergeable_ranks=ranks,
        special_tokens={v.decode([i]): i for i in range(len(ranks), v.size)},
    )

    normal = unicodedata.normalize("NFC", text)
    assert v.encode(text, allow_special=True) == oracle.encode(normal, allowed_special="all", disallowed_special=())
    assert v.encode(text) == oracle.encode_ordinary(normal)


def test_codebook_size():
    v, w = vocabulary.load(), vocabulary.load(codebook_size=512)
    assert w.codebook_size == 512
    assert w.size == w.visual_start + 512
    assert v.visual_start == w.visual_start
    assert v.hash != w.hash
    assert w.hash == vocabulary.load(None, 512).hash
    assert np.array_equal(w.visual(np.array([[0, 511]])), [[w.visual_start, w.size - 1]])
    with pytest.raises(ValueError, match="512"):
        w.visual(np.array([512]))
    assert vocabulary.load(codebook_size=4096).codebook_size == 4096


def test_decode_outside():
    v = vocabulary.load()
    with pytest.raises(ValueError, match="outside"):
        v.decode([v.size])
    with pytest.raises(ValueError, match="outside"):
        v.decode([-1])


def test_committed_files_are_what_the_script_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train_vocabulary", "--out", str(tmp_path), "--patients", "300"])
    runpy.run_module("progemu_jax.data.phantom.train_vocabulary", run_name="__main__")
    made, kept = (vocabulary.read_ranks(p / vocabulary.TEXT_FILE) for p in (tmp_path, vocabulary.BUILT_IN))
    assert len(made) == len(kept)
    # Fewer patients move words that are about as frequent; the vocabulary itself hardly differs.
    assert len(set(made) & set(kept)) > 0.97 * len(kept)
    assert (tmp_path / vocabulary.VISION_FILE).read_bytes() == (
        vocabulary.BUILT_IN / vocabulary.VISION_FILE
    ).read_bytes()


def test_damaged_files(ranks, tmp_path):
    def broken(name, file, content):
        folder = _folder(tmp_path / name, ranks, 8)
        (folder / file).write_bytes(content)
        return folder

    good = (_folder(tmp_path / "good", ranks, 8) / vocabulary.TEXT_FILE).read_bytes()
    lines = good.splitlines(keepends=True)
    cases = [
        (tmp_path / "none", "cannot be read"),
        (broken("cut", vocabulary.TEXT_FILE, good[: len(good) // 2 - 1]), "256 single bytes|line|ranks"),
        (broken("junk", vocabulary.TEXT_FILE, good + b"not base64!\n"), "line 263"),
        (broken("twice", vocabulary.TEXT_FILE, good + b"QUJD 5\n"), "ranks"),
        (broken("gap", vocabulary.TEXT_FILE, b"".join(lines[:-2] + lines[-1:])), "ranks"),
        (broken("byte", vocabulary.TEXT_FILE, b"".join(lines[1:])), "1 of the 256"),
        (
            broken("order", vocabulary.VISION_FILE, b"<|image start|>\n<|image token|>\n<|image end|>\n"),
            "first lines",
        ),
        (
            broken("codes", vocabulary.VISION_FILE, b"<|image token|>\n<|image start|>\n<|image end|>\n"),
            "no visual",
        ),
        (broken("binary", vocabulary.VISION_FILE, b"\xff\xfe\x00"), "UTF-8"),
    ]
    for folder, message in cases:
        with pytest.raises(UserError, match=message) as error:
            vocabulary.load(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="8 visual tokens"):
        vocabulary.load(tmp_path / "good", codebook_size=16)
    for size in (0, 10**9):
        with pytest.raises(UserError, match="from 1 to 1048576"):
            vocabulary.load(codebook_size=size)
