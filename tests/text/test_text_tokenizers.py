"""Text tokenizers of the diffusion models against stored ids of transformers' (`diffusion_reference.py`)."""

import json
import zlib

import numpy as np
import pytest
from support import diffusion_reference as ref

from progemu_jax.errors import UserError
from progemu_jax.text import text_tokenizers

SPECIAL = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "clip": ("<|startoftext|>", "<|endoftext|>")}


@pytest.fixture(scope="module")
def ids():
    with np.load(ref.OUTPUTS) as file:
        return json.loads(zlib.decompress(file["record"].tobytes()))["ids"]


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_every_id_is_the_librarys(ids, tmp_path, name):
    made = (
        text_tokenizers.WordPiece(ref.wordpieces())
        if name == "bert"
        else text_tokenizers.ClipBPE(*ref.clip_vocabulary())
    )
    made.save(tmp_path)
    tokens, mask = text_tokenizers.load(tmp_path)(ref.LINES, 24)
    for line, ours, theirs in zip(ref.LINES, tokens.tolist(), ids[name], strict=True):
        if not any(token in line for token in SPECIAL[name]):
            assert ours == theirs, line
    assert all(row[m][-1] == made.last and m[: m.sum()].all() for row, m in zip(tokens, mask, strict=True))


@pytest.mark.parametrize("name", ["bert", "clip"])
def test_the_name_of_a_special_token_in_a_prompt_is_text(name):
    bert = name == "bert"
    made = text_tokenizers.WordPiece(ref.wordpieces()) if bert else text_tokenizers.ClipBPE(*ref.clip_vocabulary())
    known = made.rank if bert else made.vocabulary
    for token in SPECIAL[name]:
        ids = made.ids(f"left {token} effusion{token}")
        assert ids
        assert known.get(token) not in ids or token == "[UNK]"
        tokens, mask = made([f"{token} left"], 16)
        row = tokens[0][mask[0]].tolist()
        assert row[0] == made.first
        assert row.count(made.last) == 1  # the end comes once, and last
        assert row[-1] == made.last


def test_a_vocabulary_of_texts_knows_their_words_and_spells_others():
    tokenizer = text_tokenizers.WordPiece.of_texts(["New small left pleural effusion.", "Heart is larger."])
    assert len(tokenizer.ids("SMALL LEFT effusion.")) == 4
    assert len(tokenizer.ids("right")) == 5
    assert tokenizer.unknown not in tokenizer.ids("Right-sided opacity, 3 cm?")
    tokens, mask = tokenizer(["", "left " * 50], 8)
    assert tokens[0].tolist() == [tokenizer.first, tokenizer.last] + [tokenizer.pad] * 6
    assert tokens[1, -1] == tokenizer.last
    assert mask.sum(1).tolist() == [2, 8]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab.txt": "a\nb\n"}, "has no \\[PAD\\]"),
        ({"vocab.txt": b"\xff\xfe"}, "vocab.txt: does not read"),
        ({"vocab.json": "{", "merges.txt": ""}, "vocab.json: does not read"),
        ({"vocab.json": "{}", "merges.txt": ""}, "startoftext"),
        ({"vocab.json": '{"a": 1}'}, "merges.txt: does not read"),
        ({"vocab.json": '{"a": 1}', "merges.txt": "a b c\n"}, "merges.txt: does not read"),
    ],
)
def test_damaged_files_end_in_one_line(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        text_tokenizers.load(tmp_path)
    assert "\n" not in str(error.value)
