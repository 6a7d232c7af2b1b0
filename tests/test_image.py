"""The container image: what the Dockerfile names is in the tree, reaches the builder, and is what launch/ expects."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IMAGE = ROOT / "launch/image.sh"


def instructions():
    """(name, words) of each instruction of the Dockerfile."""
    lines = [line for line in DOCKERFILE.splitlines() if line.strip() and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, shlex.split(rest)) for name, rest in (line.split(maxsplit=1) for line in whole)]


def copied():
    return [source for name, words in instructions() if name == "COPY" for source in words[:-1]]


def test_what_is_copied_is_in_the_tree_and_reaches_the_builder():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines  # nothing else does: a run, a cohort, an environment
    assert len(copied()) > 5
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    assert set(copied()) == let_in


def test_the_image_has_all_that_the_package_is_made_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = re.search(r"_FOLDERS = (\(.*\))", (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    needed = {"pyproject.toml", "setup.py", "progemu_jax", *re.findall(r'"(\w+)"', folders)}
    needed |= {project["project"]["readme"], *project["project"]["license-files"]}
    assert needed <= set(copied())
    assert "cuda" in project["project"]["optional-dependencies"]
    assert any('".[cuda]"' in line for line in DOCKERFILE.splitlines())


def test_the_base_image_is_of_no_private_registry():
    (base,) = [words[0] for name, words in instructions() if name == "FROM"]
    first, colon, tag = base.partition("/")[0], *base.partition(":")[1:]
    assert "." not in first
    assert ":" not in first
    assert colon
    assert tag != "latest"


def test_the_launch_scripts_find_the_checkout_and_its_python_where_the_image_has_them():
    (folder,) = [words[0] for name, words in instructions() if name == "WORKDIR"]
    job = (ROOT / "launch/gke.yaml").read_text(encoding="utf-8")
    assert f"workingDir: {folder}" in job
    assert "- .venv/bin/python" in job
    assert any("python3 -m venv .venv" in " ".join(words) for name, words in instructions() if name == "RUN")


def test_the_image_is_built_from_this_checkout_and_then_pushed_by_the_name_given():
    done = subprocess.run(
        ["bash", IMAGE, "example.test/me/progemu:1"],
        capture_output=True,
        text=True,
        env={**os.environ, "ENGINE": "echo"},
    )
    assert done.returncode == 0, done.stderr
    build, push = done.stdout.splitlines()
    assert build.startswith("build --tag example.test/me/progemu:1 ")
    assert Path(build.split()[-1]).resolve() == ROOT
    assert push == "push example.test/me/progemu:1"


def test_an_image_without_a_name_is_not_built():
    done = subprocess.run(["bash", IMAGE], capture_output=True, text=True, env={**os.environ, "ENGINE": "echo"})
    assert done.returncode != 0
    assert "REGISTRY/NAME:TAG" in done.stderr
    assert done.stdout == ""


def test_the_command_is_a_list_so_that_signals_reach_it():
    (line,) = [line for line in DOCKERFILE.splitlines() if line.startswith("CMD")]
    assert line.startswith('CMD ["')
