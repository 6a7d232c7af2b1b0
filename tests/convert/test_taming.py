"""VQGANs in taming-transformers' names: every name and shape, sizes read off them, and what is refused and how."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny_run, vqgan_reference
from support.emu3_folders import checkpoint_folder
from support.errors import fails
from support.vqgan_reference import F16, GRAY, RGB

import progemu_jax
from progemu_jax.checkpoints import arrays, export, safetensors
from progemu_jax.convert import taming
from progemu_jax.convert.__main__ import main
from progemu_jax.convert.convert import convert
from progemu_jax.errors import UserError
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.systems.progemu.initial_weights import open_folder

GRAY_CONFIG = VQGANConfig(
    ch_mult=(1, 2), attn_levels=(), z_channels=8, embed_dim=4, codebook_size=64, spatial_norm=False, group_channels=1
)


def headers_only(folder, shapes, dtype="F32"):
    """A folder whose weights have a header, and data that take no room on the disk."""
    folder.mkdir()
    safetensors.Writer(folder, {safetensors.WEIGHTS: {name: (dtype, shape) for name, shape in shapes.items()}})
    return folder


@pytest.fixture(scope="module")
def gray(tmp_path_factory):
    return vqgan_reference.write(tmp_path_factory.mktemp("gray") / safetensors.WEIGHTS, GRAY)


@pytest.mark.parametrize("codes", [1024, 16_384])
def test_every_name_and_shape_of_the_f16_model(tmp_path, codes):
    """`make parity-eval` compares the list with the library's own."""
    shapes = vqgan_reference.shapes(**F16 | {"codes": codes})
    losses = {"loss.logvar": (), "loss.perceptual_loss.net.slice1.0.weight": (64, 3, 3, 3)}
    part = taming.open_model(headers_only(tmp_path / "f16", shapes | losses))
    assert part.model == VQGANConfig(
        in_channels=3, out_channels=3, ch=128, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=2, attn_levels=(4,),
        z_channels=256, embed_dim=256, codebook_size=codes, spatial_norm=False, group_channels=1,
    )  # fmt: skip
    assert part.model.factor == 16
    assert {entry.name: entry.tensor_shape for entry in part.entries} == shapes
    some = {
        "encoder.conv_in.weight": (128, 3, 3, 3), "encoder.down.2.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.4.attn.1.proj_out.weight": (512, 512, 1, 1), "decoder.up.4.attn.2.norm.bias": (512,),
        "decoder.norm_out.weight": (128,), "quantize.embedding.weight": (codes, 256),
        "post_quant_conv.weight": (256, 256, 1, 1),
    }  # fmt: skip
    assert some.items() <= shapes.items()


@pytest.mark.parametrize(("sizes", "dtype"), [(GRAY, "F32"), (GRAY, "F16"), (RGB, "BF16")])
def test_sizes_are_read_off_the_tensors(tmp_path, sizes, dtype):
    model = taming.open_model(headers_only(tmp_path / "x", vqgan_reference.shapes(**sizes), dtype)).model
    assert (model.in_channels, model.out_channels) == (sizes["channels"],) * 2
    assert (model.ch, model.ch_mult, model.num_res_blocks) == (32, sizes["ch_mult"], sizes["blocks"])
    assert (model.attn_levels, model.z_channels, model.embed_dim) == (sizes["attention"], sizes["z"], sizes["embed"])
    wanted = {"F32": ("float32", "float32"), "F16": ("float32", "float16"), "BF16": ("bfloat16", "bfloat16")}
    assert (model.dtype, model.param_dtype) == wanted[dtype]


def test_every_entry_goes_in_and_out_of_our_layout():
    for entry in taming.entries_of(GRAY_CONFIG):
        tensor = vqgan_reference.weight(entry.name, entry.tensor_shape)
        assert entry.ours(tensor).shape == entry.shape
        np.testing.assert_array_equal(entry.theirs(entry.ours(tensor)), tensor)


def test_a_file_a_folder_and_shards_hold_the_same_tokenizer(tmp_path, gray):
    tensors, shards = load_file(gray), tmp_path / "shards"
    heads = {n: (safetensors.NAMES[str(t.dtype)], t.shape) for n, t in sorted(tensors.items())}
    shards.mkdir()
    writer = safetensors.Writer(shards, {f"{i}.safetensors": dict([*heads.items()][i::2]) for i in range(2)})
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.close()
    (shards / "config.json").write_text(json.dumps({"ddconfig": {"ch": 4}}))  # of nobody that we know: no matter
    shutil.copyfile(gray, tmp_path / "other.safetensors")
    first, *others = (
        arrays.flatten(taming.open_model(path).params())
        for path in (gray, gray.parent, shards, tmp_path / "other.safetensors")
    )
    assert len(first) == len(vqgan_reference.shapes(**GRAY))
    for other in others:
        assert other.keys() == first.keys()
        assert all(np.array_equal(other[name], first[name]) for name in first)


def test_a_converted_one_encodes_and_decodes_as_the_file_does(tmp_path, gray, capsys):
    assert main([f"--source={gray}", f"--target={tmp_path / 'run'}"]) == 0
    assert "64 codes of 2 x 2 pixels" in capsys.readouterr().out
    assert export.read_export_config(tmp_path / "run/tokenizer/export")["kind"] == "tokenizer"
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
    language_model = tiny_run.write(tmp_path / "lm")
    direct, converted, beside = (
        progemu_jax.load(*paths) for paths in ((gray,), (tmp_path / "run",), (language_model, tmp_path / "run"))
    )
    assert direct.tokenizer.config == converted.tokenizer.config == beside.tokenizer.config == GRAY_CONFIG
    codes = direct.tokenize(images)
    assert codes.shape == (2, 8, 8)
    assert len(np.unique(codes)) > 10
    for model in (converted, beside):
        np.testing.assert_array_equal(model.tokenize(images), codes)
        np.testing.assert_array_equal(model.detokenize(codes), direct.detokenize(codes))
    fails("no place in Emu3's format", convert, tmp_path / "run", tmp_path / "back")


def test_a_run_starts_from_it(tmp_path, gray):
    convert(gray, tmp_path / "run")
    own = VQGANConfig(dropout=0.1, param_dtype="bfloat16", ch=16, patch=4)
    first, other = (open_folder(str(path), "tokenizer", own) for path in (gray, tmp_path / "run"))
    assert first.model == other.model
    assert (first.model.ch, first.model.patch, first.model.dropout, first.model.spatial_norm) == (32, 1, 0.1, False)
    first, other = (arrays.flatten(start.variables()) for start in (first, other))
    assert {leaf.dtype for leaf in first.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all(np.array_equal(first[name], other[name]) for name in {**first, **other})
    fails("holds no language model", open_folder, str(gray), "language_model", own)


def changed(**changes):
    """{name: shape, or None for a tensor that is gone} to the small model's headers."""
    return {name.replace("__", "."): shape for name, shape in changes.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (changed(decoder__conv_in__bias=None), "tensor decoder.conv_in.bias is missing"),
        (changed(quant_conv__weight=None), "tensor quant_conv.weight is missing"),
        (changed(quantize__embedding__weight=None), "quantize.embedding.weight is missing"),  # a KL autoencoder
        (changed(quantize__embed__weight=(64, 4)), "is a GumbelVQ"),
        (changed(quantize__embedding__weight=None, quantize__proj__weight=(64, 8, 1, 1)), "is a GumbelVQ"),
        (changed(extra=(3,)), "tensor extra belongs to no parameter"),
        (changed(model_ema__decay=()), "tensor model_ema.decay belongs to no parameter"),
        (changed(encoder__mid__attn_1__q__weight=(64, 64)), r"\[64, 64\], .* \[64, 64, 1, 1\]"),
        (changed(encoder__conv_out__weight=(16, 64, 3, 3)), r"encoder.conv_out.weight is \[16, 64, 3, 3\]"),  # double_z
        (changed(encoder__conv_in__weight=(32, 1, 3)), r"encoder.conv_in.weight is \[32, 1, 3\]; expected 4 sizes"),
        (changed(encoder__conv_in__weight=(2**31, 0, 3, 3)), "expected 4 sizes from 1"),
        (changed(encoder__conv_in__weight=(32, 182, 3, 3)), "encoder.conv_in has 182 channels"),
        (changed(decoder__conv_out__weight=(4, 32, 3, 3)), "decoder.conv_out has 4 channels"),
        (changed(encoder__conv_in__weight=(48, 1, 3, 3)), "a width of 48"),
        (changed(encoder__down__0__attn__0__q__weight=(32, 32, 1, 1)), "tensor decoder.up.0.attn.0.k.bias is missing"),
        (changed(encoder__down__1__block__1__norm1__weight=(64,)), "encoder.down.1.block.1.norm1.weight belongs"),
        (changed(encoder__down__2__block__0__conv1__weight=(64, 64, 3, 3)), "decoder.up.2.block.0.conv1.bias is miss"),
        ({f"encoder.down.{n}.x": (1,) for n in range(2, 5000)}, "has 5000 levels"),
        ({f"encoder.down.0.block.{n}.x": (1,) for n in range(1, 5000)}, "has 5000 blocks"),
        (changed(encoder__down__99999999999999__block__0__x=(1,)), "belongs to no parameter"),
        (changed(quantize__embedding__weight=(2**33, 4)), r"holds 34,\d{3},\d{3},\d{3} numbers"),
    ],
)  # fmt: skip
def test_what_is_no_such_model_is_one_line(tmp_path, changes, words):
    shapes = {n: s for n, s in (vqgan_reference.shapes(**GRAY) | changes).items() if s is not None}
    folder = headers_only(tmp_path / "x", shapes)
    for ask, *more in ((convert, tmp_path / "run"), (progemu_jax.load,)):
        fails(words, ask, folder, *more)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_arrays_that_are_no_floats_or_not_finite_are_refused(tmp_path, gray):
    tensors = load_file(gray)
    name = "decoder.mid.attn_1.k.weight"
    save_file(tensors | {name: tensors[name].astype(np.int32)}, tmp_path / "ints.safetensors")
    fails(f"tensor {name} is I32", progemu_jax.load, tmp_path / "ints.safetensors")
    tensors[name].flat[3] = np.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    fails(f"tensor {name} holds numbers that are not finite", progemu_jax.load, tmp_path / "nan.safetensors")
    convert(tmp_path / "nan.safetensors", tmp_path / "run")
    fails("not finite", progemu_jax.load, tmp_path / "run")


def test_files_that_are_cut_or_lead_elsewhere_are_refused(tmp_path, gray):
    data = gray.read_bytes()
    for content, words in ((data[:-7], "is truncated"), (b"\xff" * 64, "not a safetensors file"), (b"", "not a safe")):
        (tmp_path / "x.safetensors").write_bytes(content)
        fails(words, convert, tmp_path / "x.safetensors", tmp_path / "run")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / safetensors.WEIGHTS).symlink_to(gray)
    fails("link out of the folder", convert, folder, tmp_path / "run")
    fails("dialect", convert, gray, tmp_path / "run", "original")
    save_file({"x": np.zeros(2, np.float32)}, tmp_path / "x.safetensors")
    fails("is a file", convert, tmp_path / "x.safetensors", tmp_path / "run")
    os.mkfifo(tmp_path / "pipe.safetensors")
    fails("cannot be read", convert, tmp_path / "pipe.safetensors", tmp_path / "run")


def test_a_pickle_is_refused_with_the_command_that_saves_it_anew(tmp_path):
    """taming-transformers' checkpoints hold the state dict under a key of its own."""
    (tmp_path / "last.ckpt").write_bytes(b"\x80\x04.")
    for path in (tmp_path / "last.ckpt", tmp_path):
        with pytest.raises(UserError, match=r"last\.ckpt: a pickle file") as caught:
            convert(path, tmp_path / "run")
        assert "d.get('state_dict', d)" in str(caught.value)


def test_an_emu3_tokenizer_is_not_taken_for_one(tmp_path):
    folder = checkpoint_folder(tmp_path / "vq", "tokenizer")
    assert not taming.is_model(folder)
    (folder / "config.json").unlink()
    assert not taming.is_model(folder)
    fails(r"config\.json: cannot be read", convert, folder, tmp_path / "run")
