"""Runs a notebook's cells in this Python, in order, as `make notebook` does.

    python tests/support/run_notebook.py notebooks/sample.ipynb [--refuse-bfloat16]

`%pip` is this Python's pip. Only the standard library is imported: the rest is what the notebook installs. With
--refuse-bfloat16 no program may hold a bfloat16, as if the device knew none.
"""

import importlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path


def code_cells(path, install=True):
    """(id, source) of each cell of code; install: also of those that install."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    wanted = [cell for cell in cells if cell["cell_type"] == "code"]
    return [(cell["id"], "".join(cell["source"])) for cell in wanted if install or not is_install(cell)]


def is_install(cell):
    return "install" in cell["metadata"].get("tags", ())


def run(path, install=True, before=None):
    """Runs the cells and returns their names. before: called once what the notebook needs is installed."""
    space = {"__name__": "__main__", "_pip": _pip}
    for name, source in code_cells(path, install):
        source = re.sub(r"^%pip (.*)$", r'_pip(f"\1")', source, flags=re.MULTILINE)
        if before and "_pip(" not in source:
            before, _ = None, before()
        started = time.monotonic()
        exec(compile(source, name, "exec"), space)
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    return space


def _pip(arguments):
    subprocess.run([sys.executable, "-m", "pip", *arguments.split()], check=True)
    importlib.invalidate_caches()


def refuse_bfloat16(put=dict.__setitem__):
    """From now on no program with a bfloat16 in it can be made. put: sets a key of a dict."""
    import jax.numpy as jnp
    from jax._src.interpreters import mlir

    def refuse():
        raise TypeError("bfloat16: this device has none")

    put(mlir._dtype_to_ir_type, jnp.dtype(jnp.bfloat16), refuse)


if __name__ == "__main__":
    run(sys.argv[1], before=refuse_bfloat16 if "--refuse-bfloat16" in sys.argv[2:] else None)
