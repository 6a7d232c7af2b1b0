"""notebooks/sample.ipynb: a clean file, and every cell runs on a run directory with random weights."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks/sample.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def is_install(cell):
    return "install" in cell["metadata"].get("tags", ())


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
    assert not re.search(r"git\+|://|@ |OWNER", "".join(map(source, code)))


def test_every_cell_runs(notebook, tiny_folder, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROGEMU_RUN", str(tiny_folder))
    space = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and not is_install(cell):
            exec(compile(source(cell), cell["id"], "exec"), space)
    from matplotlib import pyplot

    assert len(pyplot.get_fignums()) >= 10
    pyplot.close("all")
    assert len(space["dial"]) == len(space["course"]) == 3
    assert (tmp_path / "counterfactual/predictions.jsonl").exists()
