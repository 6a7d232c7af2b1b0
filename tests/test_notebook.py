"""notebooks/sample.ipynb: a clean file, and every cell runs on a run directory with random weights, without bfloat16.

`make notebook` runs it in a Python that holds nothing yet, with the model in the package.
"""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import pytest
from support import run_notebook
from support.run_notebook import is_install

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks/sample.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def test_the_file_is_clean(notebook):
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert {"cells", "metadata", "nbformat", "nbformat_minor"} == notebook.keys()
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", cell["id"])
        assert isinstance(cell["source"], list)
        common = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "markdown":
            assert cell.keys() == common
        else:
            assert cell.keys() == common | {"execution_count", "outputs"}
            assert (cell["execution_count"], cell["outputs"]) == (None, [])
    assert not re.search(r"(?<![\w/.])/(?:work|home|root|tmp|Users|content)\b", NOTEBOOK.read_text())


def test_it_installs_first_from_its_own_checkout_what_the_lock_has(notebook):
    """No name and no address that anyone could own, and nothing without a hash."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [is_install(cell) for cell in code] == [True] + [False] * (len(code) - 1)
    lock, package = [line for line in source(code[0]).splitlines() if line.startswith("%")]
    assert lock == "%pip install --quiet --require-hashes -r {checkout}/requirements.lock"
    assert package == "%pip install --quiet --no-deps --no-build-isolation {checkout}"
    folders = re.search(r'^checkout = "(.*)" if .* else "(.*)"$', source(code[0]), re.MULTILINE).groups()
    assert all(folder.startswith(".") for folder in folders)  # else pip takes it for a name, and asks the registry
    assert not re.search(r"git\+|://|@ |OWNER", "".join(map(source, code)))


def test_bfloat16_can_be_refused(monkeypatch):
    run_notebook.refuse_bfloat16(monkeypatch.setitem)
    assert jax.jit(lambda x: x + 1.5)(jnp.float16(1)) == 2.5
    with pytest.raises(TypeError, match="bfloat16: this device has none"):
        jax.jit(lambda x: x.astype(jnp.bfloat16) + 1.5)(jnp.float32(1))


def test_every_cell_runs_where_there_is_no_bfloat16(tiny_folder, tmp_path, monkeypatch):
    """A T4, as on Colab, has none; no program of the notebook may ask for it."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROGEMU_RUN", str(tiny_folder))
    run_notebook.refuse_bfloat16(monkeypatch.setitem)
    space = run_notebook.run(NOTEBOOK, install=False)
    from matplotlib import pyplot

    assert len(pyplot.get_fignums()) >= 10
    pyplot.close("all")
    assert len(space["dial"]) == len(space["course"]) == 3
    assert (tmp_path / "counterfactual/predictions.jsonl").exists()
