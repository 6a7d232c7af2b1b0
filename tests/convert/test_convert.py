"""What conversion says of what it cannot take along."""

import contextlib
import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from support.errors import fails

from progemu_jax.checkpoints import export, safetensors
from progemu_jax.convert.components import IN_RUN, PRIOR_DECODER, TOKENIZER
from progemu_jax.convert.convert import UNFINISHED, convert
from progemu_jax.files.settings import to_dict
from progemu_jax.models import prior_decoder, vqgan
from progemu_jax.models.prior_decoder import PriorDecoderConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run directory of a tokenizer that has a decoder that sees the prior."""
    folder, config = tmp_path_factory.mktemp("run"), PriorDecoderConfig(widths=(4, 8))
    coder = vqgan.emu3_vq(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_levels=(), codebook_size=16)
    parts = {
        TOKENIZER: (coder, lambda key: vqgan.init_variables(coder, key)),
        PRIOR_DECODER: (config, lambda key: prior_decoder.init_params(config, key)),
    }
    for kind, (model, init) in parts.items():
        params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(init, jax.random.key(0)))
        export.export(params, {"kind": kind, "model": to_dict(model)}, folder / IN_RUN[kind])
    return folder


def said(caplog, source, target):
    caplog.clear()
    with caplog.at_level(logging.INFO, "progemu_jax"):
        convert(source, target)
    return [record.getMessage() for record in caplog.records if record.name.startswith("progemu_jax.convert")]


def test_the_decoder_that_sees_the_prior_is_not_left_out_in_silence(run, tmp_path, caplog):
    for number, source in enumerate((run, run / IN_RUN[TOKENIZER])):
        (line,) = said(caplog, source, tmp_path / f"with{number}")
        assert line.startswith(f"{run / IN_RUN[PRIOR_DECODER]}: left out")
        assert line.endswith(f"load {run} for the prior's own detail")
        assert "\n" not in line
    shutil.copytree(run / IN_RUN[TOKENIZER], tmp_path / "without" / IN_RUN[TOKENIZER])
    assert said(caplog, tmp_path / "without", tmp_path / "out") == []
    assert said(caplog, tmp_path / "out", tmp_path / "back") == []


def test_that_decoder_alone_is_one_line(run, tmp_path):
    fails(
        "no folder of others has a place for the prior decoder", convert, run / IN_RUN[PRIOR_DECODER], tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file", ["../victim.safetensors", "/tmp/victim.safetensors", "x.pth", "..", "a\nb.safetensors"]
)
def test_names_in_a_hostile_export_do_not_leave_the_folder(tmp_path, file):
    """They come from `export.json`; a file that Python runs, beside the folder, would be code from a checkpoint."""
    (tmp_path / "out").mkdir()
    shards = {"model.safetensors": {"a": ("F32", (2,))}, file: {"b": ("F32", (2,))}}
    fails("is no name of a safetensors file", safetensors.Writer, tmp_path / "out", shards)
    fails("is no name of a safetensors file", safetensors.Writer, tmp_path / "out", {}, "../model")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_a_folder_that_no_conversion_made_is_left_alone(run, tmp_path):
    target, theirs = tmp_path / "m", tmp_path / "m.tmp"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("keep")
    fails("no conversion made it", convert, run, target)
    assert (theirs / "thesis.txt").read_text() == "keep"
    assert not target.exists()
    # What a killed conversion left is ours.
    (theirs / "thesis.txt").rename(theirs / UNFINISHED)
    convert(run, target)
    assert target.is_dir()
    assert not theirs.exists()
    assert not (target / UNFINISHED).exists()


@pytest.mark.parametrize("moment", range(4))
def test_killed_at_the_end_or_while_it_cleans_up_a_conversion_goes_on(run, tmp_path, monkeypatch, moment):
    """The same command is never told that what its killed forerunner left is another's."""

    class Killed(BaseException):
        pass

    target, calls = tmp_path / "m", []

    def deadly(function):
        def call(*args, **options):
            calls.append(function.__name__)
            if len(calls) > moment:  # nor is there any clean-up
                raise Killed
            return function(*args, **options)

        return call

    for name in ("rename", "rmdir", "unlink"):
        monkeypatch.setattr(Path, name, deadly(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", deadly(shutil.rmtree))
    with contextlib.suppress(Killed):
        convert(run, target)
    monkeypatch.undo()
    if not target.exists():
        convert(run, target)
    assert (target / "config.json").is_file()
