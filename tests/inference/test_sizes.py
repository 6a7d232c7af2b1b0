"""Exports whose sizes do not fit their arrays: one line that names file and value, before anything is read or made."""

import json
import shutil

import pytest
from support.errors import fails

import progemu_jax
from progemu_jax.checkpoints import export

SIZES = [
    ("train", "model", "num_layers", 10**6, "model.num_layers=1000000"),
    ("train", "model", "num_layers", 2, "array layers_1"),
    ("train", "model", "num_layers", -1, "model.num_layers=-1"),
    ("train", "model", "hidden_size", 10**6, "array .* is .* want .*1000000"),
    ("train", "model", "hidden_size", -4, "export.json"),
    ("train", "model", "vocab_size", 10**12, "export.json"),
    ("train", "model", "intermediate_size", 49, "array layers_0.mlp.* is .* want .*49"),
    ("train", "layout", "height", -1, "layout.height=-1"),
    ("train", "layout", "width", 10**6, "layout.width=1000000"),
    ("train", "layout", "height", 40, "layout.length=112"),
    ("train", "layout", "length", 10**12, "layout.length=1000000000000"),
    ("train", "layout", "prompt_budget", -1, "layout.prompt_budget=-1"),
    ("tokenizer", "model", "num_res_blocks", 10**7, "model.num_res_blocks=10000000"),
    ("tokenizer", "model", "ch", 32, "array params"),
    ("tokenizer", "model", "patch", 0, "export.json"),
    ("tokenizer", "model", "codebook_size", 10**9, "array .* is .* want .*1000000000"),
]


@pytest.mark.parametrize(("part", "section", "key", "value", "words"), SIZES, ids=[f"{s[2]}={s[3]}" for s in SIZES])
def test_sizes_that_do_not_fit_are_one_line(tiny_folder, tmp_path, monkeypatch, part, section, key, value, words):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("train", "tokenizer"):
        (run / name / "export").mkdir(parents=True)
        for path in (tiny_folder / name / "export").iterdir():
            (shutil.copy if path.is_file() else shutil.copytree)(path, run / name / "export" / path.name)
    file = run / part / "export/export.json"
    record = json.loads(file.read_text())
    record["config"][section][key] = value
    file.write_text(json.dumps(record))
    if part == "train":  # no array is read first
        monkeypatch.setattr(export, "load_export", lambda *_: pytest.fail("an array was read"))
    fails(words, progemu_jax.load, run)
