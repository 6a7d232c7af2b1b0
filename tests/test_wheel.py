"""The wheel, made of the sdist, installed where no source tree lies: everything that a user types works from it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from support import eval_cohort, packed_run, tiny_run

from progemu_jax import pretrained
from progemu_jax.pretrained import __main__ as packing

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"progemu_jax": "progemu_jax", **{f"progemu_jax/{name}": name for name in ("configs", "data", "eval")}}
EXTRAS = (
    "torch", "transformers", "pydicom", "openai", "apache_beam", "nltk", "torchxrayvision", "huggingface_hub", "pytest",
    "ruff",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, with a packed model whether or not the checkout has one."""
    source = tmp_path_factory.mktemp("source")
    for name in FOLDERS.values():
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests/support", source / "tests/support")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    if not pretrained.is_there():
        run = packed_run.write(tmp_path_factory.mktemp("packed") / "run")
        packing.pack(run, source / "progemu_jax/pretrained")
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """Built of the sdist, and that of a copy: `build/` of a checkout may hold modules that are gone."""
    out = tmp_path_factory.mktemp("wheel")
    script = f"import setuptools.build_meta as build; build.build_sdist({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [sdist] = out.glob("*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", str(sdist), "--no-deps", "--no-build-isolation", "-w", str(out)]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """What pip makes of it: its files, unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def python(installed, folder, *arguments):
    """Python in an empty folder: the wheel, then the dependencies. -S: no .pth file, so no editable install."""
    paths = os.pathsep.join([str(installed), sysconfig.get_paths()["purelib"]])
    env = {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel, source):
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    wanted = {
        f"{place}/{path.relative_to(source / folder).as_posix()}"
        for place, folder in FOLDERS.items()
        for path in (source / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == wanted
    assert {Path(name).suffix for name in inside} >= {".py", ".txt", ".tiktoken", ".html", ".safetensors"}


def test_it_loads_and_samples_without_extras(installed, tmp_path):
    run = tiny_run.write(tmp_path / "run")
    empty = tmp_path / "empty"
    empty.mkdir()
    script = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None  # importing it fails, as where it is not installed
import importlib.metadata, pathlib
import numpy as np
import progemu_jax
from progemu_jax import provenance
at = pathlib.Path(progemu_jax.__file__)
assert at.is_relative_to({str(installed)!r}), at
assert progemu_jax.__version__ == importlib.metadata.version("progemu-jax"), progemu_jax.__version__
assert progemu_jax.__version__ in provenance.SOFTWARE
model = progemu_jax.load({str(run)!r})
image = np.arange(1024, dtype=np.uint8).reshape(32, 32)
out = model.counterfactual(image, "New small left pleural effusion.", num_samples=1, seed=0)
print(np.shape(out.images), type(out.texts[0]).__name__)
"""
    done = python(installed, empty, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].endswith("str")


def test_it_holds_the_pretrained_model_and_its_scorer(installed, tmp_path):
    script = """
import progemu_jax
from progemu_jax.scorers.phantom import PhantomScorer
print(progemu_jax.load("phantom").name, PhantomScorer.load("phantom").image_size)
"""
    done = python(installed, tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].startswith("phantom@")


def test_it_evaluates(installed, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    shown = python(installed, empty, "-m", "progemu_jax.eval", "--help")
    assert shown.returncode == 0, shown.stderr
    assert "--references" in shown.stdout
    cohort = eval_cohort.Cohort(patients=6, pairs=1)
    references = cohort.write_references(tmp_path / "references")
    predictions = cohort.write_predictions(tmp_path / "ours", cohort.after)
    places = (f"--predictions={predictions}", f"--references={references}", f"--out={tmp_path / 'out'}")
    done = python(installed, empty, "-m", "progemu_jax.eval", *places, "--bootstrap=0", "--subsamples=0", "--cases=1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/metrics.json").stat().st_size
    assert "<html" in (tmp_path / "out/report/index.html").read_text(encoding="utf-8")


def test_its_script_is_every_command(installed, tmp_path):
    [about] = installed.glob("*.dist-info")
    assert "progemu-jax = progemu_jax.commands:main" in (about / "entry_points.txt").read_text()
    script = "import sys; from progemu_jax.commands import main; sys.exit(main())"
    done = python(installed, tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "run", "try", "eval", "convert", "publish"):
        assert f"  {command} " in done.stdout
    done = python(installed, tmp_path, "-c", script, "demo", "--stages=list")
    assert done.returncode == 0, done.stderr
    assert "tokenizer: missing" in done.stdout
    assert not list(tmp_path.iterdir())


def test_it_runs_a_config_by_its_name(installed, tmp_path):
    at = tmp_path / "W"
    done = python(installed, tmp_path, "-m", "progemu_jax.main", "--config=demo", f"--workdir={at}", "--stages=list")
    assert done.returncode == 0, done.stderr
    assert "tokenizer: missing" in done.stdout
    assert not at.exists()
    wrong = python(installed, tmp_path, "-m", "progemu_jax.main", "--config=dmeo", f"--workdir={at}")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    for name in ("dmeo", "demo", "demo_quick", "phantom", "open_cxr"):
        assert name in wrong.stderr
    assert "common" not in wrong.stderr
    (tmp_path / "demo").write_text("def get_config():\n    return {'nmae': 1}\n")  # a file of that path wins
    own = python(installed, tmp_path, "-m", "progemu_jax.main", "--config=demo", f"--workdir={at}", "--stages=list")
    assert "config.nmae: unknown key" in own.stderr
