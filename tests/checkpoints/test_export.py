"""Exports: what is written comes back, and what cannot be read says so."""

import asyncio
import gc
import json
import logging
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from support.errors import fails
from support.states import assert_same, largest, make

from progemu_jax.checkpoints import export, resume
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


def test_an_export_is_replaced_whole_wherever_that_is_killed(tmp_path, monkeypatch):
    """Killed while the old one goes, the next call makes it: half an export would be a folder that is none of ours."""

    class Killed(BaseException):
        pass

    folder, rmtree = tmp_path / "model", shutil.rmtree

    def killed(path, **options):
        if path.name != "model.tmp" and path.exists():
            (path / "export.json").unlink()
            raise Killed
        rmtree(path, **options)

    export.export(make(0)["params"], {"seed": 0}, folder)
    with monkeypatch.context() as patch:
        patch.setattr(export.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            export.export(make(1)["params"], {"seed": 1}, folder)
    export.export(make(2)["params"], {"seed": 2}, folder)
    assert export.read_export_config(folder) == {"seed": 2}
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


def other_shape(folder):
    record = json.loads((folder / "export.json").read_text())
    record["tree"]["dense.kernel"][0] = [64, 32]
    (folder / "export.json").write_text(json.dumps(record))


def cut(folder):
    path = largest(folder / "params")
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [cut, other_shape])
def test_a_damaged_array_is_one_line_without_orbax_tracebacks(tmp_path, monkeypatch, capfd, caplog, damage):
    """Its tasks log theirs; those left waiting print them when they are deleted."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    folder = tmp_path / "model"
    export.export(make()["params"], {}, folder)
    damage(folder)
    caplog.clear()
    for read in (export.load_export, lambda path: list(export.iterate_export(path))):
        fails("the export is damaged", read, folder)
        gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    assert ignored == []
    assert logging.getLogger().isEnabledFor(logging.WARNING)


def test_an_answer_that_comes_when_the_loop_is_closed_is_not_printed(tmp_path, monkeypatch):
    """TensorStore's threads call into the event loop that a damaged array left; what fails there has no object."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(str(unraisable.exc_value)))
    folder = tmp_path / "model"
    export.export(make()["params"], {}, folder)
    cut(folder)
    fails("the export is damaged", export.load_export, folder)
    seen.clear()
    loop = asyncio.new_event_loop()
    loop.close()
    for raised in (lambda: loop.call_soon_threadsafe(print), lambda: loop.call_soon(print), lambda: 1 / 0):
        try:
            raised()
        except Exception as error:
            trace = error.__traceback__.tb_next.tb_next  # as from C++, without our own frames
            sys.unraisablehook(SimpleNamespace(object=None, exc_value=error, exc_traceback=trace))
    assert seen == ["Event loop is closed", "division by zero"]


def test_a_folder_that_arrays_cannot_be_stored_under_is_refused_before_anything_is_written(tmp_path):
    for write in (export.ExportWriter, resume.Checkpoints):
        fails("holds a backslash", write, tmp_path / "a\\x")
    assert list(tmp_path.iterdir()) == []


def changed(record, **keys):
    return {k: v for k, v in {**record, **keys}.items() if v != "drop"}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: [], "format None"),
        (lambda r: None, "format None"),
        (lambda r: changed(r, format=7), "format 7"),
        (lambda r: changed(r, config="drop"), "'config' is missing"),
        (lambda r: changed(r, config=[1]), "'config' is missing"),
        (lambda r: changed(r, tree="drop"), "'tree' is missing"),
        (lambda r: changed(r, tree={**r["tree"], "x": 3}), "shape and dtype of array 'x'"),
        (lambda r: changed(r, tree={**r["tree"], "x": [[-1], "float32"]}), "shape and dtype of array 'x'"),
        (lambda r: changed(r, tree={**r["tree"], "x": [[2], "pickle"]}), "shape and dtype of array 'x'"),
        (lambda r: changed(r, tree={**r["tree"], "x": [[2], ","]}), "shape and dtype of array 'x'"),
        (lambda r: changed(r, tree={**r["tree"], "x": [[10**30], "float32"]}), "shape and dtype of array 'x'"),
        (lambda r: changed(r, tree={**r["tree"], "x": [[10**9], "float32"]}), "all rows of array 'x'"),
        (lambda r: changed(r, crc32="drop"), "'crc32' is missing"),
        (lambda r: changed(r, parts=3), "'parts' is no list"),
        (lambda r: changed(r, parts=[]), "all rows of array"),
        (lambda r: changed(r, parts=[*r["parts"], {"x": None}]), "array 'x', which 'tree' lacks"),
        (lambda r: changed(r, parts=[{"dense.kernel": [False, "x"]}]), "rows of array 'dense.kernel' in order"),
        (lambda r: changed(r, parts=[{k: [5, 1] for k in r["tree"]}]), "in order"),
    ],
)
def test_a_record_that_is_not_as_we_write_it_is_one_line(tmp_path, damage, words):
    folder = tmp_path / "model"
    export.export(make()["params"], {}, folder)
    record = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps(damage(record)))
    for read in (export.load_export, export.read_export_config, lambda path: list(export.iterate_export(path))):
        fails(words, read, folder)


def test_weights_that_are_no_numbers_are_not_loaded(tmp_path):
    params = make()["params"]
    params["dense"]["kernel"] = params["dense"]["kernel"].at[3, 4].set(jnp.nan)
    export.export(params, {}, tmp_path / "model")
    fails(r"array dense\.kernel holds numbers that are not finite", export.load_export, tmp_path / "model")
