"""Exports: what is written comes back, and what cannot be read says so."""

import json

import jax
import jax.numpy as jnp
import pytest
from support.states import assert_same, largest, make

from progemu_jax.checkpoints import export
from progemu_jax.errors import UserError


def test_export_round_trip_and_replacement(tmp_path):
    folder = tmp_path / "model"
    for seed in (0, 1):
        params = make(seed)["params"]
        export.export(params, {"width": 33, "seed": seed}, folder)
        assert export.read_export_config(folder) == {"width": 33, "seed": seed}
        back, config = export.load_export(folder)
        assert config["seed"] == seed
        assert_same(back, params)
        assert_same(export.load_export(folder, jax.eval_shape(lambda: make()["params"]))[0], params)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_exports_that_cannot_be_read_are_user_errors(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(UserError, match="is missing"):
        export.load_export(folder)
    export.export(make()["params"], {}, folder)
    other = {"dense": {"kernel": jnp.zeros((64, 32)), "half": jnp.zeros(3, jnp.bfloat16)}}
    with pytest.raises(UserError, match=r"dense\.kernel is float32\[64, 33\].*float32\[64, 32\]"):
        export.load_export(folder, other)
    path = largest(folder / "params")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        export.load_export(folder)
    (folder / "export.json").write_text("{")
    with pytest.raises(UserError, match="does not parse"):
        export.load_export(folder)
    (folder / "export.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match="other"):
        export.load_export(folder)
    precious = tmp_path / "precious"
    precious.mkdir()
    with pytest.raises(UserError, match="not an export"):
        export.export(make()["params"], {}, precious)
    assert precious.is_dir()
