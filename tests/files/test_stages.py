"""Stages: skip what is complete, go on with what is not, refuse what was made otherwise."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from support.errors import fails

from progemu_jax.errors import UserError
from progemu_jax.files.stages import Stage, list_stages, run_stages, stage_record


class Recorder:
    """Two stages, `data` -> `train`, and the order in which they ran."""

    def __init__(self, root, *, seed=0, width=8):
        self.ran, self.said = [], []
        self.stages = [
            Stage("data", ("data/tree", "data/funnel.json"), (str(root),), {"seed": seed}, self._data),
            Stage("train", ("train",), ("data/tree/pairs",), {"model": {"width": width}}, self._train),
        ]

    def _data(self, workdir):
        self.ran.append("data")
        (workdir / "data" / "tree" / "pairs").mkdir(parents=True, exist_ok=True)
        (workdir / "data" / "funnel.json").write_text("{}")

    def _train(self, workdir):
        self.ran.append("train")
        (workdir / "train").mkdir(exist_ok=True)

    def run(self, workdir, selected=None):
        run_stages(self.stages, workdir, selected, say=self.said.append)
        return self.ran


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cohort"
    folder.mkdir()
    (folder / "metadata.csv").write_text("a,b\n")
    return folder


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def test_runs_in_order_once(root, workdir):
    assert Recorder(root).run(workdir) == ["data", "train"]
    assert stage_record(workdir / "train")["config"] == {"model": {"width": 8}}
    again = Recorder(root)
    assert again.run(workdir) == []
    assert [line.split(" ")[1] for line in again.said] == ["complete", "complete"]


def test_selected_stage_needs_its_inputs(root, workdir):
    with pytest.raises(UserError, match=r"data/tree/pairs.*--stages=data first"):
        Recorder(root).run(workdir, ["train"])
    assert Recorder(root).run(workdir, ["data"]) == ["data"]
    assert Recorder(root).run(workdir, ["train"]) == ["train"]
    with pytest.raises(UserError, match=r"'tran'.*data, train"):
        Recorder(root).run(workdir, ["tran"])


def test_other_config_is_refused_naming_key_and_remedy(root, workdir):
    Recorder(root).run(workdir)
    other = Recorder(root, width=16)
    with pytest.raises(UserError, match=r"run/train: .*model\.width=8.*16.*--workdir or delete .*run/train"):
        other.run(workdir)
    assert other.ran == []
    assert Recorder(root).run(workdir) == []


def test_change_upstream_reaches_downstream(root, workdir):
    Recorder(root).run(workdir)
    (root / "metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"data/tree.*made it from another external input 1"):
        Recorder(root).run(workdir)
    shutil.rmtree(workdir / "data")
    changed = Recorder(root)
    with pytest.raises(UserError, match=r"train.*made it from another data/tree/pairs"):
        changed.run(workdir)
    assert changed.ran == ["data"]


def test_moved_cohort_is_the_same_cohort(root, workdir):
    Recorder(root).run(workdir)
    moved = root.rename(root.with_name("elsewhere"))
    assert Recorder(moved).run(workdir) == []


def test_missing_cohort_is_named(tmp_path, workdir):
    with pytest.raises(UserError, match=r"nowhere: stage data needs it and it does not exist"):
        Recorder(tmp_path / "nowhere").run(workdir)


def test_complete_stage_does_not_need_its_inputs_any_more(root, workdir):
    Recorder(root).run(workdir)
    (root / "metadata.csv").unlink()
    root.rmdir()
    assert Recorder(root).run(workdir) == []


def test_deleted_output_is_made_again_and_the_rest_stays(root, workdir):
    Recorder(root).run(workdir)
    (workdir / "data" / "funnel.json").unlink()
    assert Recorder(root).run(workdir) == ["data"]


def test_what_an_output_must_hold_is_made_again_when_it_was_deleted(root, workdir):
    def stages():
        made = Recorder(root)
        made.stages[1] = dataclasses.replace(made.stages[1], run=lambda w: export(made, w), holds=("train/export",))
        return made

    def export(made, workdir):
        made._train(workdir)
        (workdir / "train/export").mkdir()

    assert stages().run(workdir) == ["data", "train"]
    assert stages().run(workdir) == []
    (workdir / "train/export").rmdir()
    assert "partial" in list_stages(stages().stages, workdir)
    assert stages().run(workdir) == ["train"]
    assert stages().run(workdir) == []


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"config": 1}', "{", '{"config": {}, "inputs": []}'])
def test_a_record_that_is_none_counts_as_absent(root, workdir, text):
    Recorder(root).run(workdir)
    (workdir / "train/stage.json").write_text(text)
    assert "partial" in list_stages(Recorder(root).stages, workdir)
    assert Recorder(root).run(workdir) == ["train"]


@pytest.mark.parametrize("name", [".lock", ".stages"])
def test_what_is_in_the_way_is_named(root, workdir, name):
    workdir.mkdir()
    (workdir / name).mkdir() if name == ".lock" else (workdir / name).write_text("")
    fails(rf"{name}: is none of ours", Recorder(root).run, workdir)


def test_failed_stage_is_partial_and_runs_again_but_not_under_another_config(root, workdir):
    broken = Recorder(root)

    def fail(workdir):
        (workdir / "train").mkdir()
        raise OSError("disk")

    object.__setattr__(broken.stages[1], "run", fail)
    with pytest.raises(OSError, match="disk"):
        broken.run(workdir)
    assert "train: partial" in list_stages(broken.stages, workdir)
    with pytest.raises(UserError, match=r"model\.width=8.*16"):
        Recorder(root, width=16).run(workdir)
    assert Recorder(root).run(workdir) == ["train"]
    assert not list((workdir / ".stages").iterdir())


def test_left_over_temporary_is_not_mixed_with_another_config(root, workdir):
    broken = Recorder(root)

    def fail(workdir):
        (workdir / "train.tmp").mkdir()
        raise OSError("disk")

    object.__setattr__(broken.stages[1], "run", fail)
    with pytest.raises(OSError, match="disk"):
        broken.run(workdir)
    with pytest.raises(UserError, match=r"width=8.*delete .*train\.tmp"):
        Recorder(root, width=16).run(workdir)
    (workdir / "train.tmp").rmdir()
    assert Recorder(root, width=16).run(workdir) == ["train"]


def test_stage_without_its_output_is_a_bug(root, workdir):
    recorder = Recorder(root)
    object.__setattr__(recorder.stages[0], "run", lambda workdir: None)
    with pytest.raises(RuntimeError, match="data ended without its output data/tree"):
        recorder.run(workdir)


def test_list_shows_state_and_files(root, workdir):
    recorder = Recorder(root)
    text = list_stages(recorder.stages, workdir)
    assert text.splitlines() == [
        "data: missing",
        f"  needs  {root}",
        f"  writes {workdir}/data/tree",
        f"  writes {workdir}/data/funnel.json",
        "train: missing",
        f"  needs  {workdir}/data/tree/pairs (from data) [missing]",
        f"  writes {workdir}/train",
    ]
    assert not workdir.exists()
    recorder.run(workdir)
    text = list_stages(Recorder(root, width=9).stages, workdir)
    assert "data: complete" in text
    assert "train: config differs: model.width" in text


def test_killed_process_leaves_a_partial_stage_and_no_lock(root, workdir):
    script = f"""
        import os, pathlib, signal
        from progemu_jax.files.stages import Stage, run_stages
        def run(workdir):
            (workdir / "train").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
        run_stages([Stage("train", ("train",), (), {{"a": 1}}, run)], {str(workdir)!r})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    stage = Stage("train", ("train",), (), {"a": 1}, lambda workdir: None)
    assert list_stages([stage], workdir).startswith("train: partial")
    run_stages([stage], workdir, say=lambda text: None)
    assert list_stages([stage], workdir).startswith("train: complete")


def test_two_processes_do_not_share_a_run_directory(workdir):
    def nested(workdir):
        script = f"from progemu_jax.files.stages import run_stages; run_stages([], {str(workdir)!r})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "another process is at work" in done.stderr
        os.mkdir(workdir / "out")

    run_stages([Stage("a", ("out",), (), {}, nested)], workdir, say=lambda text: None)


def test_listing_imports_nothing_heavy():
    script = "import sys, progemu_jax.files.stages; print([m for m in ('jax', 'orbax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_killed_write_left_is_removed(tmp_path):
    from progemu_jax.files import records

    records.write_bytes(tmp_path / "a/b.png", b"1")
    (tmp_path / "a/.b.png.123.tmp").write_bytes(b"half")
    (tmp_path / "a/.hidden").write_bytes(b"kept")
    records.remove_leftovers(tmp_path)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [".hidden", "b.png"]
