"""Exports in one 16-bit safetensors file: read as any other, and not read when anything of them has changed."""

import json

import ml_dtypes
import numpy as np
import pytest

from progemu_jax.checkpoints import export, packed, safetensors
from progemu_jax.errors import UserError

CONFIG = {"width": 80, "note": "x"}


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((80, 80)).astype(np.float32)
    return {
        "dense.kernel": wide,
        "dense.bias": rng.standard_normal(80).astype(np.float32),
        "table.far": wide * 1e5,  # beyond float16
        "table.places": np.arange(6000, dtype=np.int32),
    }


@pytest.fixture
def folder(arrays, tmp_path):
    packed.write(arrays, CONFIG, tmp_path / "packed")
    return tmp_path / "packed"


def test_large_arrays_are_in_16_bits_and_come_back_in_their_own(folder, arrays):
    kept = {name: tensor.dtype for name, tensor in safetensors.open_folder(folder, packed.STEM).items()}
    assert kept == {"dense.kernel": "F16", "dense.bias": "F32", "table.far": "F32", "table.places": "I32"}
    params, config = export.load_export(folder)
    assert config == CONFIG
    assert params["dense"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(params["dense"]["kernel"], arrays["dense.kernel"], rtol=1e-3, atol=1e-6)
    for name in ("dense.bias", "table.far", "table.places"):
        part, leaf = name.split(".")
        np.testing.assert_array_equal(params[part][leaf], arrays[name])
    assert export.read_export_config(folder) == CONFIG


def test_it_is_read_array_by_array_too(folder, arrays):
    found = {name: array for name, rows, array in export.iterate_export(folder) if rows is None}
    assert {name: (a.shape, a.dtype) for name, a in found.items()} == {n: (a.shape, a.dtype) for n, a in arrays.items()}


def test_in_blocks_every_number_stays_as_it_is(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        "half": rng.standard_normal((300, 40)).astype(ml_dtypes.bfloat16),
        "ids": np.arange(5000, dtype=np.int32),
        "none": np.zeros((0, 4), np.float32),
        "wide": rng.standard_normal((100, 90)).astype(np.float32),
    }
    with export.ExportWriter(tmp_path / "export") as writer:
        for name in ("half", "ids", "none"):
            writer.add(name, arrays[name])
        writer.add_rows("wide", (100, 90), np.float32, np.split(arrays["wide"], [30, 60]))
        writer.finish(CONFIG)
    blocks, tree = export.iterate_export(tmp_path / "export"), export.read_export_tree(tmp_path / "export")
    packed.write_blocks(blocks, tree, CONFIG, tmp_path / "packed")
    params, config = export.load_export(tmp_path / "packed")
    assert config == CONFIG
    for name, array in arrays.items():
        assert (params[name].shape, params[name].dtype) == (array.shape, array.dtype)
        assert np.asarray(params[name]).tobytes() == array.tobytes()


def _flip_a_bit(folder):
    path = folder / "params.safetensors"
    content = bytearray(path.read_bytes())
    content[-9000] ^= 1
    path.write_bytes(content)


def _cut(folder):
    path = folder / "params.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _other_config(folder):
    record = json.loads((folder / "export.json").read_text())
    record["config"]["width"] = 81
    (folder / "export.json").write_text(json.dumps(record))


def _no_weights(folder):
    (folder / "params.safetensors").unlink()


@pytest.mark.parametrize("damage", [_flip_a_bit, _cut, _other_config, _no_weights])
def test_damage_is_one_line(folder, damage):
    damage(folder)
    for read in (export.load_export, lambda place: list(export.iterate_export(place))):
        with pytest.raises(UserError, match="damaged") as caught:
            read(folder)
        assert "\n" not in str(caught.value)
