"""Checkpoints in and out: every tensor bit for bit, both dialects, shards, and what is refused and how."""

import json
import shutil
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from support.emu3_folders import CONFIGS, LM_CONFIG, checkpoint_folder
from support.emu3_reference import CODES, write_run
from support.errors import fails

import progemu_jax
from progemu_jax.checkpoints import arrays, export, safetensors
from progemu_jax.convert.__main__ import main
from progemu_jax.convert.convert import convert
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3.image_processor import ImageProcessor
from progemu_jax.convert.emu3.transfer import default_layout
from progemu_jax.errors import UserError
from progemu_jax.models import transformer, vqgan
from progemu_jax.text.text_tokenizers import byte_characters
from progemu_jax.text.vocabulary import VISION_FILE, load


def data_of(folder):
    return {n: (t.file.name, t.dtype, t.shape, t.read().tobytes()) for n, t in safetensors.open_folder(folder).items()}


@pytest.mark.parametrize(
    ("kind", "dtype", "shards", "newer"),
    [
        ("language_model", "BF16", 3, False),
        ("tokenizer", "F32", 1, False),
        ("both", "F16", 2, False),
        ("both", "BF16", 1, True),
    ],
)
def test_in_and_out_again_is_bit_identical(tmp_path, monkeypatch, kind, dtype, shards, newer):
    monkeypatch.setattr(export, "PART_BYTES", 100_000)  # several parts, and blocks of rows of the embeddings
    monkeypatch.setattr(safetensors, "BLOCK_BYTES", 50_000)
    source = checkpoint_folder(tmp_path / "source", kind, dtype, shards, newer)
    convert(source, tmp_path / "run")
    said = convert(tmp_path / "run", tmp_path / "back")
    assert "bit for bit" in said
    assert data_of(tmp_path / "back") == data_of(source)
    assert json.loads((tmp_path / "back/config.json").read_text()) == CONFIGS[kind]
    kept = {p.name for p in source.iterdir()} - {"modeling.py"}
    assert {p.name for p in (tmp_path / "back").iterdir()} == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "run", "source"]


def test_the_export_keeps_dtypes_config_and_content_hash(tmp_path):
    source = checkpoint_folder(tmp_path / "source", "language_model", "BF16", 2)
    convert(source, tmp_path / "run")
    params, config = export.load_export(tmp_path / "run/train/export")
    assert params["embed_tokens"].dtype == ml_dtypes.bfloat16
    assert params["norm"]["scale"].dtype == np.float32
    assert config["source"]["config"] == LM_CONFIG
    one = config["source"]["content_hash"]
    whole = checkpoint_folder(tmp_path / "whole", "language_model", "BF16", 1)
    convert(whole, tmp_path / "run2")
    assert export.read_export_config(tmp_path / "run2/train/export")["source"]["content_hash"] == one
    data = (whole / safetensors.WEIGHTS).read_bytes()
    (whole / safetensors.WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    convert(whole, tmp_path / "run3")
    assert export.read_export_config(tmp_path / "run3/train/export")["source"]["content_hash"] != one


def test_a_folder_and_what_it_converts_to_load_the_same(tmp_path):
    source = checkpoint_folder(tmp_path / "source", "both")
    convert(source, tmp_path / "run")
    direct, converted = progemu_jax.load(source), progemu_jax.load(tmp_path / "run")
    assert direct.config == converted.config
    assert direct.layout == converted.layout == default_layout(512)
    assert direct.grammar == converted.grammar
    assert direct.tokenizer.config == converted.tokenizer.config
    assert direct.tokenizer.processor == converted.tokenizer.processor == ImageProcessor(256, 4096, 2)
    flat = [arrays.flatten({"a": m.params, "b": m.tokenizer.variables}) for m in (direct, converted)]
    assert flat[0].keys() == flat[1].keys()
    for name, leaf in flat[0].items():
        np.testing.assert_array_equal(leaf, flat[1][name])


def test_models_of_our_own_become_checkpoints_of_either_dialect(tmp_path):
    """Names and shapes against those that PyTorch saved are in tests/parity/test_emu3.py; here, the way back."""
    import jax

    vocabulary = load(None, CODES)
    source = checkpoint_folder(tmp_path / "source", "both")
    model = progemu_jax.load(source)
    layout = {"height": 4, "width": 4, "length": 300, "prompt_budget": 0}
    write_run(tmp_path / "run", model, vocabulary, layout, {"top_k": 5})
    for target, place, dialect in (
        ("t", "", "transformers"),
        ("lm", "train/export", None),
        ("vq", "tokenizer/export", None),
    ):
        convert(tmp_path / "run" / place, tmp_path / target, dialect)
    with pytest.raises(UserError, match="one by one"):
        convert(tmp_path / "run", tmp_path / "no", "original")
    back = progemu_jax.load(tmp_path / "t"), progemu_jax.load(tmp_path / "lm", tokenizer=tmp_path / "vq")
    for other in back:
        assert other.layout.height == 4
        assert other.policy.top_k == 5
        assert other.grammar.stops == (vocabulary.eos,)
        jax.tree.map(np.testing.assert_array_equal, other.params, model.params)
        jax.tree.map(np.testing.assert_array_equal, other.tokenizer.variables, model.tokenizer.variables)


def test_what_emu3s_format_has_no_place_for_is_refused(tmp_path):
    for change, words in (({"prior_alignment": True}, "prior_alignment"), ({"head_dim": 8}, "head_dim")):
        cfg = transformer.TransformerConfig(**({"vocab_size": 50} | change))
        with pytest.raises(UserError, match=words):
            emu3_folder.configs.write_language_model(cfg, "x", "original", {})
    with pytest.raises(UserError, match="temporal"):
        emu3_folder.configs.write_tokenizer(vqgan.VQGANConfig(), "x", "original")


def test_parts_that_are_missing_are_named(tmp_path):
    lm = progemu_jax.load(checkpoint_folder(tmp_path / "lm", "language_model"))
    vq = progemu_jax.load(checkpoint_folder(tmp_path / "vq", "tokenizer"))
    for call, words in (
        (lambda: lm.tokenize(np.zeros((1, 8, 8), np.uint8)), r"tokenizer=DIR2"),
        (lambda: lm.counterfactual(np.zeros((8, 8), np.uint8), "x"), r"tokenizer=DIR2"),
        (lambda: vq.logits(np.zeros((1, 2), np.int32)), "no language model"),
        (lambda: vq.counterfactual(np.zeros((8, 8), np.uint8), "x"), "no language model"),
        (lambda: progemu_jax.load(tmp_path / "lm", tokenizer=tmp_path / "lm"), "no image tokenizer"),
        (lambda: progemu_jax.load(tmp_path / "vq", tokenizer=tmp_path / "absent"), "no such folder"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def edit_json(path, **changes):
    values = json.loads(path.read_text())
    for key, value in changes.items():
        place = values
        *way, last = key.split("__")
        for part in way:
            place = place[part]
        place[last] = value
    path.write_text(json.dumps(values))


def edit_header(path, change):
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])


def index_entry(folder, name, file):
    index = json.loads((folder / safetensors.INDEX).read_text())
    index["weight_map"][name] = file
    (folder / safetensors.INDEX).write_text(json.dumps(index))


NORM = "model.norm.weight"


def rename(old, new):
    return lambda folder: edit_header(folder / safetensors.WEIGHTS, lambda h: h.__setitem__(new, h.pop(old)))


def entry(**changes):
    return lambda folder: edit_header(folder / safetensors.WEIGHTS, lambda h: h[NORM].update(changes))


def cut(folder):
    path = folder / safetensors.WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def overlap(folder):
    def change(header):
        two = [n for n in header if n != "__metadata__"][1]
        start, end = header[two]["data_offsets"]
        header[two]["data_offsets"] = [start - 4, end - 4]

    edit_header(folder / safetensors.WEIGHTS, change)


def only_pickle(folder):
    (folder / safetensors.WEIGHTS).rename(folder / "pytorch_model.bin")


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def poison(folder, name="pytorch_model.bin"):
    only_pickle(folder)
    (folder / name).write_bytes(b"\x80\x04cposix\nsystem\n(S'touch executed'\ntR.")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (rename(NORM, "other.weight"), [f"tensor {NORM} is missing", "model.safetensors"]),
        (
            lambda f: edit_header(f / safetensors.WEIGHTS, _add_empty),
            ["tensor extra", "model.safetensors", "no parameter"],
        ),
        (entry(shape=[8, 8]), [NORM, "[8, 8]", "[64]", "model.safetensors"]),
        (cut, ["is truncated", "tensor", "model.safetensors"]),
        (overlap, ["does not begin where", "model.safetensors"]),
        (lambda f: (f / safetensors.WEIGHTS).write_bytes(b"\xff" * 100), ["not a safetensors file"]),
        (lambda f: (f / safetensors.WEIGHTS).write_bytes(b""), ["not a safetensors file"]),
        (lambda f: (f / safetensors.WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"[[[["), ["header does not parse"]),
        (lambda f: (f / safetensors.WEIGHTS).write_bytes(struct.pack("<Q", 3) + b"[1]"), ["header does not parse"]),
        (lambda f: (f / safetensors.WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"null"), ["header does not parse"]),
        (entry(dtype="F8_E5M2"), [NORM, "F8_E5M2"]),
        (entry(shape=[-64]), [NORM, "damaged"]),
        (entry(shape=[2**62]), [NORM, "needs"]),
        (only_pickle, ["pytorch_model.bin", "pickle", "weights_only=True"]),
        (poison, ["pytorch_model.bin", "pickle"]),
        (lambda f: (f / safetensors.WEIGHTS).unlink(), ["neither", "model.safetensors"]),
        (lambda f: (f / "config.json").unlink(), ["config.json"]),
        (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
        (lambda f: (f / "config.json").write_text("[1]"), ["config.json", "JSON"]),
        (config(model_type="llama"), ["model_type='llama'"]),
        (config(hidden_act="gelu"), ["hidden_act='gelu'", "silu"]),
        (config(rope_scaling={"type": "linear", "factor": 2.0}), ["rope_scaling", "linear"]),
        (config(rope_parameters={"rope_type": "yarn"}), ["rope_parameters", "yarn"]),
        (config(rope_parameters={"rope_type": "default", "factor": 2}), ["rope_parameters", "factor"]),
        (config(attention_bias=True), ["attention_bias"]),
        (config(num_attention_heads=5), ["num_attention_heads"]),
        (config(num_hidden_layers=4), ["num_hidden_layers=4", "have 3"]),
        (config(num_hidden_layers=10**7), ["num_hidden_layers=10000000", "have 3"]),  # at once
        (config(num_hidden_layers="3"), ["num_hidden_layers='3'"]),
        (config(hidden_size=-1), ["hidden_size=-1"]),
        (lambda f: (f / VISION_FILE).unlink(), [VISION_FILE]),
    ],
)
def test_bad_folders_end_in_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, spoil, words):
    monkeypatch.chdir(tmp_path)
    source = checkpoint_folder(tmp_path / "source", "language_model")
    spoil(source)
    assert main([f"--source={source}", f"--target={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("error: ")
    for word in words:
        assert word in err
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    with pytest.raises(UserError):
        progemu_jax.load(source)


def test_weights_that_are_no_numbers_are_not_loaded(tmp_path):
    """They would give a flat image, as if it were one."""
    source = checkpoint_folder(tmp_path / "source", "language_model")
    tensor = safetensors.open_folder(source)[NORM]
    with open(tensor.file, "r+b") as file:
        file.seek(tensor.offset)
        file.write(np.full(1, np.nan, safetensors.DTYPES[tensor.dtype]).tobytes())
    fails(f"tensor {NORM} holds numbers that are not finite", progemu_jax.load, source)


def _add_empty(header):
    end = max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__")
    header["extra"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("gone.safetensors", ["gone.safetensors", "not there"]),
        ("../secret.safetensors", ["outside the folder"]),
        ("/etc/passwd", ["outside the folder"]),
        ("sub/x.safetensors", ["outside the folder"]),
        ("..", ["outside the folder"]),
        ("part-1.safetensors", ["part-1.safetensors", "is missing"]),
        (3, ["outside the folder"]),
    ],
)
def test_an_index_may_not_leave_the_folder(tmp_path, file, words):
    source = checkpoint_folder(tmp_path / "source", "language_model", shards=2)
    shutil.copyfile(source / "part-0.safetensors", tmp_path / "secret.safetensors")
    name = next(iter(safetensors.read_header(source / "part-0.safetensors")))
    index_entry(source, name, file)
    with pytest.raises(UserError) as caught:
        convert(source, tmp_path / "run")
    text = str(caught.value)
    assert "\n" not in text
    for word in (name, *words):
        assert word in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ch": 48}, "32 groups"),
        ({"double_z": True}, "double_z"),
        ({"temporal_downsample_factor": 3}, "power of two"),
        ({"ch_mult": []}, "ch_mult"),
        ({"embed_dim": 8}, "embed_dim"),
        ({"attn_resolutions": "x"}, "attn_resolutions"),
        ({"codebook_size": 65}, "quantize.embedding.weight"),
    ],
)
def test_bad_tokenizer_configs(tmp_path, changes, words):
    source = checkpoint_folder(tmp_path / "source", "tokenizer")
    edit_json(source / "config.json", **changes)
    with pytest.raises(UserError, match=words):
        progemu_jax.load(source)


def test_targets_are_never_overwritten(tmp_path):
    source = checkpoint_folder(tmp_path / "source", "tokenizer")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").write_text("x")
    with pytest.raises(UserError, match="exists"):
        convert(source, tmp_path / "run")
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(UserError, match=r"exists|cannot be written"):
            convert(source, target)
    assert (tmp_path / "run/precious").read_text() == "x"
    with pytest.raises(UserError, match="dialect"):
        convert(source, tmp_path / "other", "original")
    with pytest.raises(UserError, match="no model here"):
        convert(tmp_path / "run", tmp_path / "other")


def test_links_out_of_the_folder_are_refused_and_those_of_the_hub_cache_followed(tmp_path):
    source = checkpoint_folder(tmp_path / "snapshots/rev", "tokenizer")
    for place, allowed in (("blobs", True), ("elsewhere", False)):
        (tmp_path / place).mkdir()
        for name in ("config.json", safetensors.WEIGHTS):
            (source / name).resolve().rename(tmp_path / place / name)
            (source / name).unlink(missing_ok=True)
            (source / name).symlink_to(tmp_path / place / name)
        if allowed:
            emu3_folder.open_folder(source)
            continue
        with pytest.raises(UserError, match="link out of the folder"):
            emu3_folder.open_folder(source)


def test_a_pickle_given_as_the_source_is_refused(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    for path in (tmp_path / "model.pth", tmp_path):
        with pytest.raises(UserError, match="pickle"):
            convert(path, tmp_path / "run")


def test_a_vocabulary_of_other_codes_is_refused(tmp_path):
    vq = checkpoint_folder(tmp_path / "vq", "tokenizer")
    for codes, words in ((CODES // 2, "32 visual tokens"), (2 * CODES, "128 visual tokens")):
        source = checkpoint_folder(tmp_path / f"lm{codes}", "language_model")
        load(None, codes).save(source)
        with pytest.raises(UserError, match=words):
            progemu_jax.load(source, tokenizer=vq)
    with pytest.raises(UserError, match="ids, the model"):
        progemu_jax.load(source)


def test_the_vocabulary_of_a_tokenizer_json(tmp_path):
    """The form that transformers stores: bytes as printable characters, special tokens apart."""
    want = load(None, CODES)
    alphabet = byte_characters()
    assert len(alphabet) == 256
    assert (alphabet[ord("A")], alphabet[ord(" ")], alphabet[10]) == ("A", "Ġ", "Ċ")
    text = {"".join(alphabet[b] for b in token): i for token, i in want._ranks.items()}
    special = emu3_folder.vocabulary_map(want)
    values = {
        "added_tokens": [{"id": i, "content": token} for token, i in special.items()],
        "model": {"vocab": {**text, **special}, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    found = emu3_folder.read_vocabulary(tmp_path)
    assert found.hash == want.hash
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"Ġ": 0}}}))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        emu3_folder.read_vocabulary(tmp_path)


def test_importing_the_converter_loads_no_torch():
    script = "import sys, progemu_jax.convert.convert; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
