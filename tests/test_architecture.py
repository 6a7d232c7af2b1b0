"""Who may import whom (the house's rules), read off the source files, and what an import must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"data": "progemu_jax.data", "eval": "progemu_jax.eval", "configs": "progemu_jax.configs"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
# Pure Python and NumPy, importable by every room.
PURE = {"controls", "errors", "records", "sequence", "vocab", "radtext", "radlex", "radparse", "stages"}


def _modules():
    """{dotted module name: path} of everything in the package."""
    found = {}
    for folder, package in {"progemu_jax": "progemu_jax", **ROOMS}.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


MODULES = _modules()


def _imports(source, name, is_package):
    """Every module that the source names in an import, at any depth, as absolute dotted names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = name.split(".") if is_package else name.split(".")[:-1]
                parent = parent[: len(parent) - (node.level - 1)]
                base = ".".join([*parent, *([base] if base else [])])
            found.add(base)
            # `from progemu_jax import data` names the module progemu_jax.data.
            found |= {f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES}
    return found


IMPORTS = {
    name: _imports(path.read_text(encoding="utf-8"), name, path.name == "__init__.py") for name, path in MODULES.items()
}


def _ours(name):
    """The rooms ("data", "models", "errors", ...) that a module imports from our package."""
    return {m.split(".")[1] for m in IMPORTS[name] if m.startswith("progemu_jax.")}


def _room(name):
    return name.split(".")[1] if "." in name else ""


def _in(*rooms):
    return [name for name in MODULES if _room(name) in rooms]


def _top(name):
    return {module.split(".")[0] for module in IMPORTS[name]}


def test_the_reader_of_imports_sees_all_forms():
    source = "import jax.numpy as jnp\nfrom . import b\nfrom ..errors import X\n"
    source += "def f():\n    from flax import linen"
    found = _imports(source, "progemu_jax.data.a", False)
    assert found == {"jax.numpy", "progemu_jax.data", "progemu_jax.errors", "flax"}
    assert "progemu_jax.data" in _imports("from progemu_jax import data", "x", False)
    assert {"progemu_jax.data", "progemu_jax.eval", "progemu_jax.training.loop"} <= set(MODULES)


@pytest.mark.parametrize("room", ["data", "eval"])
def test_data_and_eval_know_neither_jax_nor_each_other(room):
    for name in _in(room):
        assert not _top(name) & JAX, name
        assert _ours(name) <= {room} | PURE, name


def test_pure_modules_are_pure():
    for name in _in(*PURE):
        assert not _top(name) & JAX, name
        assert _ours(name) <= PURE, name


def test_models_know_only_sharding_and_products():
    for name in _in("models"):
        assert _ours(name) <= {"models", "products", "sharding", "errors"}, name


def test_the_loop_knows_no_task():
    loop = {"train", "optim", "losses", "checkpoint", "sharding", "hosts", "speed", "products"}
    for name in _in(*loop):
        assert _ours(name) <= loop | PURE, name


def test_tasks_and_sampling_do_not_reach_up():
    for name in _in("tasks", "sampling", "scorers"):
        assert not _ours(name) & {"main", "eval", "configs"}, name


def test_nobody_imports_main():
    for name in MODULES:
        assert "main" not in _ours(name), name


def test_rooms_are_only_called_by_their_package_name():
    files = [*MODULES.values(), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]
    for path in files:
        found = _imports(path.read_text(encoding="utf-8"), path.stem, False)
        assert not {module.split(".")[0] for module in found} & set(ROOMS), path


def _loaded(modules, watched):
    """Imports the modules in a fresh process; the watched ones that this loaded."""
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted(set({sorted(watched)!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_data_eval_and_pure_modules_load_no_jax():
    modules = [name for name in ["progemu_jax", *_in("data", "eval", *PURE)] if not name.endswith("__main__")]
    assert _loaded(modules, JAX) == []


def test_the_package_itself_loads_nothing_heavy():
    heavy = JAX | {
        "numpy",
        "PIL",
        "grain",
        "tensorflow",
        "torch",
        "tensorflow_datasets",
        "SimpleITK",
        "matplotlib",
    }
    assert _loaded(["progemu_jax"], heavy) == []


def test_tensorflow_and_torch_are_never_imported_by_the_core():
    for name in MODULES:
        assert "tensorflow" not in _top(name), name
        if _room(name) not in {"convert", "scorers"}:
            assert "torch" not in _top(name), name
