"""Who may import whom, read off the source files; docs/architecture.md says why."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("data", "eval", "configs")  # top-level folders that setup.py maps into the package
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}

# Folder (or file of the top level): what it may import beside itself. Whatever is not named here, nobody may import.
BASE = {"errors", "files", "text"}  # no jax: anyone may import them
MAY_IMPORT = {
    "errors": set(),
    "text": {"errors"},
    "files": {"errors", "text", "provenance"},
    "provenance": {"errors", "files"},
    "hub": {"errors"},
    "commands": {"errors"},
    "data": BASE,
    "eval": BASE,
    "configs": {"models"},
    "devices": {"errors"},
    "kernels": {"devices"},
    "models": {"kernels", "devices", "errors"},
    "checkpoints": {"devices", "files", "errors"},
    "training": {"checkpoints", "devices", "files", "errors"},
    "tasks": {"models", "kernels", "devices", "training", "checkpoints", "data", *BASE},
    "sampling": {"models", "kernels", "devices", *BASE},
    "pretrained": {"convert", "checkpoints", *BASE},
    "scorers": {
        "pretrained",
        "tasks",
        "sampling",
        "models",
        "kernels",
        "devices",
        "training",
        "checkpoints",
        "data",
        *BASE,
    },
}
MAY_IMPORT["convert"] = {*MAY_IMPORT["scorers"], "provenance"} - {"pretrained"}
MAY_IMPORT["inference"] = {*MAY_IMPORT["convert"], "convert", "pretrained", "hub", "scorers"}
MAY_IMPORT["config"] = MAY_IMPORT["convert"]
MAY_IMPORT["publish"] = {*MAY_IMPORT["inference"], "inference", "eval"}
MAY_IMPORT["gallery"] = {*MAY_IMPORT["inference"], "inference", "scorers", "eval"}
MAY_IMPORT["app"] = {*MAY_IMPORT["gallery"], "gallery"}
MAY_IMPORT["systems"] = {*MAY_IMPORT["inference"], "inference", "scorers", "config", "eval"}
MAY_IMPORT["plan"] = {*MAY_IMPORT["systems"], "systems"}
MAY_IMPORT["run"] = {*MAY_IMPORT["plan"], "plan"}
MAY_IMPORT["main"] = {*MAY_IMPORT["run"], "run", "configs"}
MAY_IMPORT["tables"] = {*MAY_IMPORT["run"], "run", "configs"}
MAY_IMPORT[""] = {"inference"}  # progemu_jax.load

# Imported inside functions: extras, and libraries that are slow to import or absent on a bare GPU machine.
LAZY = {
    "torch", "torchxrayvision", "pydicom", "gdcm", "openai", "apache_beam", "nltk", "rouge_score", "sacrebleu",
    "f1chexbert", "radgraph", "green_score", "radeval", "transformers", "libtpu", "huggingface_hub", "httpx2", "gradio",
    "starlette",
    "tensorflow_datasets", "grain", "SimpleITK", "tensorboardX", "matplotlib",
}  # fmt: skip
TFDS_BUILDER = "progemu_jax.data.icg_cxr.icg_cxr_dataset_builder"
TPU_KERNELS = "jax.experimental.pallas.ops.tpu"
SYSTEMS = ("progemu", "diffusion")  # siblings in every folder: neither knows the other
SIBLINGS = {"progemu": ("progemu", "emu3"), "diffusion": ("diffusion", "diffusers")}


def _modules():
    """{dotted module name: path} of everything in the package."""
    found = {}
    for folder in ("progemu_jax", *MAPPED):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts if folder == "progemu_jax" else ("progemu_jax", *parts))] = path
    return found


MODULES = _modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _named(node, name="", is_package=False):
    """The modules that one import statement names, as absolute dotted names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        parent = name.split(".") if is_package else name.split(".")[:-1]
        parent = parent[: len(parent) - (node.level - 1)]
        base = ".".join([*parent, *([base] if base else [])])
    below = {f"{base}.{alias.name}" for alias in node.names}
    modules = below & set(MODULES)
    return modules if modules == below else modules | {base}  # `from progemu_jax.files import records`: records alone


def _imports(tree, name="", is_package=False):
    """Every module that the source names in an import, at any depth."""
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    return set().union(*(_named(n, name, is_package) for n in nodes))


IMPORTS = {name: _imports(tree, name, MODULES[name].name == "__init__.py") for name, tree in TREES.items()}


def _folder(name):
    return (name.split(".") + [""])[1]


def _ours(name):
    return {m for m in IMPORTS[name] if m.split(".")[0] == "progemu_jax"}


def _inner_imports(tree):
    """Import statements inside functions."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))
    return {n for f in functions for n in ast.walk(f) if isinstance(n, ast.Import | ast.ImportFrom)}


def _circles(graph):
    """Sets of nodes that reach each other (Tarjan's strongly connected components of more than one node)."""
    index, low, stack, on, out = {}, {}, [], set(), []

    def visit(v):
        index[v] = low[v] = len(index)
        stack.append(v)
        on.add(v)
        for w in sorted(graph[v]):
            if w not in index:
                visit(w)
                low[v] = min(low[v], low[w])
            elif w in on:
                low[v] = min(low[v], index[w])
        if low[v] == index[v]:
            part = set()
            while not part or w != v:
                w = stack.pop()
                on.discard(w)
                part.add(w)
            if len(part) > 1:
                out.append(sorted(part))

    for v in sorted(graph):
        if v not in index:
            visit(v)
    return out


def test_the_reader_of_imports_sees_all_forms():
    source = "import jax.numpy as jnp\nfrom . import b\nfrom ..errors import X\ndef f():\n    from flax import linen"
    tree = ast.parse(source)
    assert _imports(tree, "progemu_jax.data.a") == {"jax.numpy", "progemu_jax.data", "progemu_jax.errors", "flax"}
    assert _imports(ast.parse("from progemu_jax.files import records")) == {"progemu_jax.files.records"}
    assert [n.module for n in _inner_imports(tree)] == ["flax"]
    assert {"progemu_jax.data", "progemu_jax.eval", "progemu_jax.training.loop"} <= set(MODULES)
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_a_folder_imports_what_the_table_allows(folder):
    mine = [name for name in MODULES if _folder(name) == folder]
    assert mine, f"the table names {folder!r}, which is not there"
    wrong = {(n, m) for n in mine for m in _ours(n) if _folder(m) not in {folder, *MAY_IMPORT[folder]}}
    assert not wrong


def test_the_table_names_every_folder():
    assert {_folder(name) for name in MODULES} == set(MAY_IMPORT)


def test_no_circle_of_files_lazy_imports_counted():
    graph = {name: (_ours(name) & set(MODULES)) - {name} for name in MODULES}
    # `progemu_jax.load` is what the package is for; nothing inside takes it from there.
    assert not [name for name in MODULES if "progemu_jax" in _ours(name)]
    assert _circles(graph) == []


def test_no_circle_of_folders():
    graph = {folder: set() for folder in MAY_IMPORT}
    for name in MODULES:
        graph[_folder(name)] |= {_folder(m) for m in _ours(name)} - {_folder(name)}
    assert _circles(graph) == []


def test_the_two_systems_do_not_know_each_other():
    """`*/progemu*` (and convert/emu3) imports no `*/diffusion*` (nor convert/diffusers), nor the reverse."""

    def of(name, system):
        return any(part.startswith(SIBLINGS[system]) for part in name.split(".")[1:])

    for ours, theirs in (SYSTEMS, SYSTEMS[::-1]):
        wrong = {(n, m) for n in MODULES if of(n, ours) for m in _ours(n) if of(m, theirs)}
        assert not wrong


def test_imports_are_at_the_top_but_for_what_is_slow_or_extra():
    lazy = []
    for name, tree in TREES.items():
        if name == "progemu_jax":  # `load` waits for its first call
            continue
        for node in _inner_imports(tree):
            modules = _named(node, name)
            if not all(m.split(".")[0] in LAZY or m.startswith((TPU_KERNELS, TFDS_BUILDER)) for m in modules):
                lazy.append((name, node.lineno, modules))
    assert not lazy
    assert not [name for name, path in MODULES.items() if "TYPE_CHECKING" in path.read_text(encoding="utf-8")]


def test_no_file_is_over_500_lines():
    long = {n: k for n, p in MODULES.items() if (k := len(p.read_text(encoding="utf-8").splitlines())) > 500}
    assert not long


def test_nobody_imports_main():
    assert not [name for name in MODULES if "progemu_jax.main" in IMPORTS[name]]


def test_mapped_folders_are_only_called_by_their_package_name():
    trees = {
        **TREES,
        **{p: ast.parse(p.read_text()) for d in ("tests", "benchmarks") for p in (ROOT / d).rglob("*.py")},
    }
    for place, tree in trees.items():
        assert not {module.split(".")[0] for module in _imports(tree)} & set(MAPPED), place


def test_pure_folders_name_no_jax():
    for name in MODULES:
        if _folder(name) in {"data", "eval", "provenance", *BASE}:
            assert not {module.split(".")[0] for module in IMPORTS[name]} & JAX, name


def _loaded(modules, watched, blocked=()):
    """The watched modules that importing `modules` loads, in a fresh process in which the blocked ones are absent."""
    script = (
        "import importlib, sys\n"
        f"for name in {sorted(blocked)!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted(name for name in {sorted(watched)!r} if sys.modules.get(name)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_pure_folders_load_no_jax():
    pure = {"data", "eval", "provenance", *BASE}
    names = ["progemu_jax", *(n for n in MODULES if _folder(n) in pure and not n.endswith("__main__"))]
    assert _loaded(names, JAX) == []


def test_the_package_itself_loads_nothing_heavy():
    heavy = JAX | {"numpy", "PIL", "grain", "tensorflow", "torch", "tensorflow_datasets", "SimpleITK", "matplotlib"}
    assert _loaded(["progemu_jax"], heavy) == []


def test_a_bare_gpu_machine_can_load_sample_and_train():
    bare = {"tensorflow_datasets", "grain", "SimpleITK", "ml_collections", "tensorboardX", "matplotlib", "pydicom"}
    folders = ("inference", "sampling", "training", "tasks", "models", "kernels", "checkpoints", "convert")
    names = [name for name in MODULES if _folder(name) in folders and not name.endswith("__main__")]
    assert _loaded(names, {"tensorflow", "torch"}, bare) == []


def test_tensorflow_and_torch_are_never_imported_by_the_core():
    for name in MODULES:
        top = {module.split(".")[0] for module in IMPORTS[name]}
        assert "tensorflow" not in top, name
        assert "torch" not in top or _folder(name) in {"convert", "scorers"}, name
