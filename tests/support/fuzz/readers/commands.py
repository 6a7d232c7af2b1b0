"""Readers of command lines, of what a run keeps of its stages, of lists of images, and of PNG text chunks."""

import json
from pathlib import Path

import numpy as np

from progemu_jax import provenance
from progemu_jax.convert import __main__ as conversion
from progemu_jax.data import leaks
from progemu_jax.eval import __main__ as evaluation
from progemu_jax.files.stages import Stage, list_stages, run_stages
from support import command_line
from support.fuzz.files import ARGUMENTS
from support.fuzz.readers import evaluation as evaluated
from support.fuzz.readers import models
from support.fuzz.readers.reader import Reader


def with_arguments(build, *arguments):
    """A sound folder with a command line in it."""

    def build_both(folder):
        build(folder)
        (folder / ARGUMENTS).write_text(json.dumps(arguments))

    return build_both


def arguments():
    """As a shell hands them over: no NUL, and bytes that are no text as Python gives them."""
    given = json.loads(Path(ARGUMENTS).read_text())
    return [
        text.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape") for text in given
    ]


def toy(folder):
    (folder / "toy.py").write_text(command_line.TOY)


def entered():
    """Only a list of the stages, whatever the arguments say."""
    return command_line.enter(["main", *arguments(), "--stages=list"])


def _stages():
    def make(name):
        return lambda workdir: (workdir / name).mkdir(parents=True, exist_ok=True)

    return [
        Stage("data", ("data/tree",), ("cohort.csv",), {"seed": 0, "root": "x"}, make("data/tree")),
        Stage("train", ("train",), ("data/tree",), {"model": {"width": 8}}, make("train")),
    ]


def staged(folder):
    """Two stages: one complete, one under way."""
    (folder / "run").mkdir(parents=True)
    (folder / "cohort.csv").write_text("a,b\n")
    stages = _stages()
    stages[0] = Stage("data", ("data/tree",), (str(folder / "cohort.csv"),), stages[0].config_slice, stages[0].run)
    run_stages(stages, folder / "run", say=str)
    record = folder / "run/train/stage.json"
    (folder / "run/.stages").mkdir(exist_ok=True)
    record.rename(folder / "run/.stages/train.json")


def go_on():
    print(list_stages(_stages(), "run"))
    run_stages(_stages(), "run")


def listed(folder):
    """A tree's list of images, one patient in two splits; and a list of patients."""
    same = {"source": "x", "study_id": "1", "image_id": "i"}
    rng = np.random.default_rng(0)
    rows = [
        same | {"patient_id": f"p{n % 5}", "split": split, "pixels": rng.bytes(16).hex(), "hash": rng.bytes(18).hex()}
        for n, split in enumerate(("train", "validation", "test") * 2)
    ]
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "subjects.txt").write_text("p1\np9\n")


def look_for_leaks():
    return leaks.main(["--tree=.", "--subjects=subjects.txt", "--write=out"])


def generated(folder):
    """A PNG as we write it."""
    facts = {
        "model": "ab" * 32,
        "checkpoint": "train/export",
        "prompt": "New edema.",
        "seed": 1,
        "sampling": {"top_k": 0},
    }
    provenance.write_png(folder / "image.png", np.zeros((16, 16), np.uint8), **facts)


READERS = (
    Reader("main_arguments", with_arguments(toy, "--config=toy.py", "--workdir=out", "--config.data.phantom.patients=9",
        "--config.data.source=phantom", "--config.sample.batch_size=4", "--config.progemu.stage1.learning_rate=0.1",
        "--config.data.image_size=32", "--config.sample.systems=('progemu',)", "--config.evaluate.bootstrap=10"),
        entered, (ARGUMENTS,), (".",), (0, 1, 2)),
    Reader("eval_arguments", with_arguments(evaluated.build, "--predictions=ours", "--references=references",
        "--out=out", "--bootstrap=0", "--subsamples=0", "--seed=0", "--cases=0", "--title=T", "--caveat=x"),
        lambda: evaluation.main(arguments()), (ARGUMENTS,), (".",)),
    Reader("convert_arguments", with_arguments(models.emu3_folder, "--source=source", "--target=out"),
        lambda: conversion.main(arguments()), (ARGUMENTS,), (".",)),
    Reader("stages", staged, go_on, ("run/**/*.json", "run/.made/*", "run/.stages/*"), ("run",)),
    Reader("leaks", listed, look_for_leaks, ("images.jsonl", "subjects.txt"), ("out",), (0, 1, 2)),
    Reader("provenance", generated, lambda: provenance.main(["image.png"]), ("image.png",), ()),
)  # fmt: skip
