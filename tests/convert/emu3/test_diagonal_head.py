"""The head of anti-diagonal decoding in Hugging Face folders: in a file of its own, all else as without it."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file
from support.emu3_folders import checkpoint_folder
from support.emu3_reference import CODES, write_run
from support.errors import fails

import progemu_jax
from progemu_jax.checkpoints import export, safetensors
from progemu_jax.convert.convert import convert
from progemu_jax.convert.emu3 import configs
from progemu_jax.convert.emu3.names import HEAD_FILE
from progemu_jax.models import diagonal_head
from progemu_jax.models.diagonal_head import NAME
from progemu_jax.models.transformer import ADDITIONS, TransformerConfig
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.text.vocabulary import load

M, F = 64, 96  # of the checkpoints' transformer


def shapes():
    maps = {"gate_proj": (F, 3 * M), "up_proj": (F, 3 * M), "down_proj": (M, F), "mix_proj": (M, 3 * M)}
    return {f"{NAME}.{name}.weight": shape for name, shape in {**maps, "prior_layernorm": (M,)}.items()}


def tensors():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}


def ours(tensors):
    """The head's parameters: linear maps lie the other way round."""
    flat = {name.split(".")[1]: np.ascontiguousarray(tensor.T) for name, tensor in tensors.items()}
    return {**flat, "prior_layernorm": {"scale": flat["prior_layernorm"]}}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".json")}


same = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.parametrize(("kind", "shards"), [("language_model", 3), ("both", 1)])
def test_in_and_out_again_is_bit_identical(tmp_path, kind, shards):
    source = checkpoint_folder(tmp_path / "source", kind, "BF16", shards)
    without = progemu_jax.load(source)
    assert not without.config.diagonal
    assert NAME not in without.params
    save_file(tensors(), source / HEAD_FILE)
    model = progemu_jax.load(source)
    assert model.config == dataclasses.replace(without.config, diagonal=True)
    same(model.params, {**without.params, NAME: ours(tensors())})
    assert model.hash != without.hash
    convert(source, tmp_path / "run")
    again = progemu_jax.load(tmp_path / "run/train/export")
    assert again.config == model.config
    same(again.params, model.params)
    assert "bit for bit" in convert(tmp_path / "run", tmp_path / "back")
    names = ["model.safetensors.index.json"] if shards > 1 else ["model.safetensors"]
    found = files_of(tmp_path / "back")
    assert {name: found[name] for name in names} == {name: files_of(source)[name] for name in names}
    same(load_file(tmp_path / "back" / HEAD_FILE), tensors())
    # The content's hash is of the head too.
    hashes = [export.read_export_config(tmp_path / "run/train/export")["source"]["content_hash"]]
    save_file({name: tensor + 1 for name, tensor in tensors().items()}, source / HEAD_FILE)
    convert(source, tmp_path / "other")
    hashes.append(export.read_export_config(tmp_path / "other/train/export")["source"]["content_hash"])
    assert hashes[0] != hashes[1]


def test_a_head_that_was_trained_leaves_the_folder_as_it_was_but_for_its_file(tmp_path):
    source = checkpoint_folder(tmp_path / "source", "language_model", "BF16", 3)
    convert(source, tmp_path / "run")
    params, config = export.load_export(tmp_path / "run/train/export")
    config["model"]["diagonal"] = True
    export.export({**params, NAME: ours(tensors())}, config, tmp_path / "trained")
    assert "bit for bit" not in convert(tmp_path / "trained", tmp_path / "back")
    convert(tmp_path / "run", tmp_path / "plain")
    found, plain = files_of(tmp_path / "back"), files_of(tmp_path / "plain")
    assert found.pop(HEAD_FILE)
    assert json.loads(found.pop("config.json")) == json.loads(plain.pop("config.json"))
    assert found == plain
    same(load_file(tmp_path / "back" / HEAD_FILE), tensors())


@pytest.mark.parametrize(("place", "limit"), [("", 5 * 10**9), ("train/export", 10**5)])
def test_models_of_our_own(tmp_path, monkeypatch, place, limit):
    """Alone, in several files, and beside a tokenizer in one."""
    share = safetensors.shard
    monkeypatch.setattr(safetensors, "shard", lambda tensors, stem: share(tensors, limit, stem))
    model = progemu_jax.load(checkpoint_folder(tmp_path / "source", "both"))
    layout = {"height": 4, "width": 4, "length": 300, "prompt_budget": 0}
    folders = {}
    for name in ("plain", "head"):
        write_run(tmp_path / name, model, load(None, CODES), layout, {"top_k": 5})
        convert(tmp_path / name / place, tmp_path / f"{name}-out")
        folders[name] = files_of(tmp_path / f"{name}-out")
        model.config = dataclasses.replace(model.config, diagonal=True)
        model.params = {**model.params, NAME: ours(tensors())}
    assert folders["head"].pop(HEAD_FILE)
    assert folders["head"] == folders["plain"]
    assert (safetensors.INDEX in folders["head"]) == (limit < 10**9)
    back = progemu_jax.load(tmp_path / "head-out")
    assert back.config.diagonal
    same(back.params, model.params)


@pytest.mark.parametrize("scan", [False, True])
def test_a_run_starts_from_it(tmp_path, scan):
    source = checkpoint_folder(tmp_path / "source", "language_model")
    own = TransformerConfig(diagonal=True, scan_layers=scan)
    fresh = open_folder(str(source), "language_model", own)  # without the file: a head as of a new model
    start = diagonal_head.init_params(fresh.model, jax.random.key(0))
    assert jax.tree.map(np.shape, fresh.variables()[NAME]) == jax.tree.map(np.shape, start)
    assert not fresh.variables()[NAME]["down_proj"].any()
    save_file(tensors(), source / HEAD_FILE)
    found = open_folder(str(source), "language_model", dataclasses.replace(own, diagonal=False))
    assert found.model.diagonal
    same(found.variables()[NAME], ours(tensors()))


def test_other_additions_have_no_place():
    for name in ADDITIONS:
        cfg = TransformerConfig(vocab_size=50, **{name: 8 if name == "learned_positions" else True})
        if name == "diagonal":
            assert name not in json.dumps(configs.write_language_model(cfg, "x", "original", {}))
            continue
        fails(f"x: {name} has no place", configs.write_language_model, cfg, "x", "original", {})


def changed(**changes):
    def spoil(path):
        values = {**tensors(), **{f"{NAME}.{name}.weight": value for name, value in changes.items()}}
        save_file({name: value for name, value in values.items() if value is not None}, path)

    return spoil


def link(path):
    (path.parents[1] / "secret.safetensors").write_bytes(save(tensors()))
    path.symlink_to(path.parents[1] / "secret.safetensors")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (changed(gate_proj=None), r"tensor diagonal_head\.gate_proj\.weight is missing.*or delete it"),
        (
            changed(up_proj=np.ones((3 * M, F), np.float32)),
            r"up_proj\.weight is \[192, 96\].*\[96, 192\].*or delete it",
        ),
        (changed(mix_proj=np.ones((M, 3 * M), np.int8)), r"mix_proj\.weight is I8; expected BF16"),
        (changed(more=np.ones(1, np.float32)), r"more\.weight belongs to no parameter .*or delete it"),
        (lambda path: save_file({}, path), r"tensor .* is missing.*or delete it"),
        (lambda path: path.write_bytes(save(tensors())[:-3]), "tensor .* is truncated.*fetch it again"),
        (lambda path: path.write_bytes(b""), "not a safetensors file"),
        (lambda path: path.mkdir(), "cannot be read"),
        (link, "link out of the folder"),
        (lambda path: path.symlink_to("gone"), "cannot be read"),
    ],
)
def test_bad_files_are_one_line_and_leave_nothing(tmp_path, spoil, words):
    source = checkpoint_folder(tmp_path / "source", "language_model")
    spoil(source / HEAD_FILE)
    for call in (progemu_jax.load, lambda folder: convert(folder, tmp_path / "run")):
        fails(rf"{HEAD_FILE}.*{words}", call, source)
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_none_and_tensors_in_the_wrong_file(tmp_path):
    source = checkpoint_folder(tmp_path / "source", "language_model")
    changed(down_proj=np.full((M, F), np.nan, np.float32))(source / HEAD_FILE)
    fails(r"down_proj\.weight holds numbers that are not finite", progemu_jax.load, source)
    (source / HEAD_FILE).unlink()
    save_file({**load_file(source / safetensors.WEIGHTS), **tensors()}, source / safetensors.WEIGHTS)
    fails(r"model\.safetensors: tensor diagonal_head\.\w+\.weight belongs to no parameter", progemu_jax.load, source)


def test_a_hostile_record_of_files_is_one_line(tmp_path):
    source = checkpoint_folder(tmp_path / "source", "language_model")
    save_file(tensors(), source / HEAD_FILE)
    convert(source, tmp_path / "run")
    path = tmp_path / "run/train/export/export.json"
    record = json.loads(path.read_text())
    record["config"]["source"]["files"]["model.norm.weight"] = HEAD_FILE
    path.write_text(json.dumps(record))
    fails("the index names some of its tensors and not others", convert, tmp_path / "run", tmp_path / "back")
