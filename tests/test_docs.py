"""What README, CONTRIBUTING and docs/ name exists: modules, flags, config keys, make targets, files, links; their form.

Modules and their attributes are looked up in the source files; only the config is imported, for its keys.
"""

import ast
import dataclasses
import functools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from progemu_jax.config import Config
from progemu_jax.errors import UserError
from progemu_jax.files.settings import known_key

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
MAPPED = ("data", "eval", "configs")  # folders beside the package that are imported as parts of it
WIDTH, README_LINES = 120, 150
# Words that only those who made the layout know.
PRIVATE = re.compile(r"\b(house|rooms?|doors?|lab book)\b", re.IGNORECASE)
# Folders whose paths are files of the project wherever a page names them; `data/` is also a folder of a run.
OURS = ("progemu_jax", "configs", "docs", "tests", "benchmarks", "launch", "notebooks", "data", "eval")


def page_problems(page, root=ROOT):
    """Everything that is wrong with a Markdown page, one line each."""
    text = page.read_text(encoding="utf-8")
    checks = (_modules, _flags, _dotted_names, _python, _config_keys, _targets, _paths, _links, _form)
    return [problem for check in checks for problem in check(text, page, root)]


def _modules(text, page, root):
    for name in re.findall(r"-m\s+(progemu_jax[\w.]*)", text):
        place = _place(name.rstrip("."), root)
        if not (place and (place.suffix == ".py" or (place / "__main__.py").is_file())):
            yield f"python -m {name}: no such module to run"


def _flags(text, page, root):
    """Flags of commands of ours, up to a pipe or a comment; `--config.key` is looked up as a key."""
    for code in _code(text):
        for line in re.split(r"\n|&&|[|;]| #", code.replace("\\\n", " ")):
            command = re.search(r"-m\s+(progemu_jax[\w.]*)|(benchmarks/\w+\.py)", line)
            place = command and (_place(command[1].rstrip("."), root) if command[1] else root / command[2])
            if place and place.is_dir():
                place /= "__main__.py"
            if place and place.is_file():
                source = place.read_text(encoding="utf-8")
                known = {*re.findall(r"\"--([a-z][\w-]*)\"", source), *re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source)}
                for flag in re.findall(r"(?<=\s)--([a-z][\w-]*)(?![\w.-])", line):
                    if flag not in known | {"help"}:
                        yield f"{command[0]} --{flag}: no such flag"


def _python(text, page, root):
    for code in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        try:
            ast.parse(code)
        except SyntaxError as error:
            yield f"a block of Python does not parse: {error}"


def _dotted_names(text, page, root):
    names = set(re.findall(r"(?<![\w/.-])progemu_jax(?:\.[A-Za-z_]\w*)+", text))
    for module, imported in re.findall(r"from\s+(progemu_jax[\w.]*)\s+import\s+([\w, ]+)", text):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",") if name.strip()}
    for name in sorted(names):
        if not _exists(name, root):
            yield f"{name}: no such module or attribute"


def _exists(name, root):
    """Whether a dotted name is a module, a name at its top level, or an attribute of a class there."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = _place(".".join(parts[:length]), root)
        if place:
            break
    else:
        return False
    attributes = parts[length:]
    source = place if place.suffix == ".py" else place / "__init__.py"
    if not attributes:
        return True
    body = ast.parse(source.read_text(encoding="utf-8")).body if source.is_file() else []
    for attribute in attributes:
        defined = _defined(body)
        if attribute not in defined:
            return False
        body = defined[attribute]
    return True


def _defined(body):
    """{name: body of the class, else []} of what a module or class defines."""
    found = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node.body
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = []
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: [] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: [] for target in targets if isinstance(target, ast.Name)}
    return found


def _place(name, root):
    """The file or package folder of a dotted module name, or None."""
    first, *rest = name.split(".")
    if first != "progemu_jax":
        return None
    base = root if rest and rest[0] in MAPPED else root / "progemu_jax"
    path = base.joinpath(*rest)
    if path.is_dir():
        return path
    file = path.with_name(f"{path.name}.py")
    return file if file.is_file() else None


@functools.cache
def _every_key():
    return dataclasses.asdict(Config())


def _config_keys(text, page, root):
    sections = {field.name for field in dataclasses.fields(Config)}
    for flag, keys in re.findall(r"(?<![\w/.])(--)?config((?:\.[a-z_]\w*)+)", text):
        # Without dashes "config.json" and "config.kind" may be a file, or an entry of one.
        if flag or keys.split(".")[1] in sections:
            try:
                known_key(_every_key(), f"config{keys}")
            except UserError as error:
                yield str(error)


def _targets(text, page, root):
    known = set(re.findall(r"^([a-z][\w-]*):(?!=)", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for code in _code(text):
        for words in re.findall(r"(?:^|&&|;)\s*make((?:[ ]+[a-z][\w-]*)+)(?![\w=])", code, re.MULTILINE):
            for target in words.split():
                if target not in known:
                    yield f"make {target}: no such target"


def _paths(text, page, root):
    starts = "|".join(OURS)
    for code in _code(text):
        for path in re.findall(rf"(?<![\w./-])(?:{starts})/[\w./{{}},*-]*", code):
            path = path.rstrip(".,")
            if path.split("/")[0] in ("data", "eval") and not path.endswith(".py"):
                continue
            if re.search(r"/[A-Z]+\.\w+$", path):  # NAME.py: to be written
                continue
            for one in _braces(path):
                if not any(root.glob(one.rstrip("/"))):
                    yield f"{one}: no such file"


def _braces(path):
    """a/{b,c}.py -> a/b.py, a/c.py"""
    found = re.search(r"\{([^{}]*)\}", path)
    if not found:
        return [path]
    return [one for word in found[1].split(",") for one in _braces(path[: found.start()] + word + path[found.end() :])]


def _links(text, page, root):
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_blocks(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        if not place.exists():
            yield f"{target}: the link leads nowhere"
        elif anchor and anchor not in _anchors(place.read_text(encoding="utf-8")):
            yield f"{target}: no such heading"


def _anchors(text):
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", _without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _code(text):
    """Blocks and spans of code, without fences and ticks."""
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"`([^`]+)`", _without_blocks(text))


def _form(text, page, root):
    for number, line in enumerate(text.splitlines(), 1):
        if found := PRIVATE.search(line):
            yield f"line {number}: {found[0]!r} is a private word"
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif len(line) > WIDTH and not inside and not line.startswith("|"):
            yield f"line {number}: {len(line)} characters, more than {WIDTH}"
    if page.name == "README.md" and len(text.splitlines()) > README_LINES:
        yield f"{len(text.splitlines())} lines, more than {README_LINES}"


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_what_a_page_names_exists(page):
    assert page_problems(page) == []


def test_every_page_is_found_from_the_readme():
    readme = PAGES[0].read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"{page.relative_to(ROOT).as_posix()})" not in readme] == []


def test_the_site_has_every_page_and_names_what_exists():
    """`make docs` builds it in an environment of its own; what needs none is held here."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert [name for name in pages if f": {name}\n" not in navigation] == []
    hook = ROOT / "docs/pages.py"
    assert [*_dotted_names(hook.read_text(encoding="utf-8"), hook, ROOT)] == []


BAD = {
    "`python -m progemu_jax.sampling`": "python -m progemu_jax.sampling",
    "`python -m progemu_jax.eval --predictions=DIR --truth=DIR`": "--truth",
    "`python -m progemu_jax.main --config=X --out DIR`": "--out",
    "`benchmarks/control.py --nothing=DIR`": "--nothing",
    "```python\nmodel.counterfactual(prior,\n```": "does not parse",
    "`progemu_jax.nowhere`": "progemu_jax.nowhere",
    "`progemu_jax.sampling.policy.Sampling.heat`": "Sampling.heat",
    "`from progemu_jax.configs import nothing`": "progemu_jax.configs.nothing",
    "`--config.data.rooot=DIR`": "config.data.rooot",
    "`config.progemu.stage9`": "config.progemu.stage9",
    "`make nonsense`": "make nonsense",
    "`configs/{demo,nothing}.py`": "configs/nothing.py",
    "`data/nothing.py`": "data/nothing.py",
    "[there](nothing.md)": "nothing.md",
    "[there](#nothing)": "#nothing",
    "The doors of the project.": "doors",
    "wide " * 30: "more than 120",
}
GOOD = """# A title, with `code`

`make demo`, [itself](#a-title-with-code), `progemu_jax.sampling.policy.Sampling.temperature`, `config.json`,
`python -m progemu_jax.eval --out=DIR && other --flag`, `--config.data.root=DIR`, `configs/{demo,phantom}.py`,
`data/tree/`, make sure.

```python
from progemu_jax.configs import demo
```
"""


@pytest.mark.parametrize(("line", "problem"), BAD.items(), ids=BAD.values())
def test_a_page_that_is_wrong_is_found_out(line, problem, tmp_path):
    page = tmp_path / "bad.md"
    page.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    found = page_problems(page)
    assert len(found) == 1, found
    assert problem in found[0]


def test_a_page_that_is_right_has_no_problem(tmp_path):
    page = tmp_path / "good.md"
    page.write_text(GOOD, encoding="utf-8")
    assert page_problems(page) == []


def test_a_readme_that_is_too_long_is_found_out(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("\n" * (README_LINES + 1), encoding="utf-8")
    assert len(page_problems(page)) == 1


def test_extras_are_installed_from_the_checkout():
    """The package's name is nobody's yet: whoever registers it would be installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    folders = ("progemu_jax", "data", "eval", "configs", "benchmarks", "docs", "notebooks")
    paths = [p for name in folders for kind in ("py", "md", "ipynb") for p in (ROOT / name).rglob(f"*.{kind}")]
    for path in [*paths, *PAGES]:
        text = path.read_text(encoding="utf-8")
        assert "progemu-jax[" not in text, path
        assert set(re.findall(r'-e "\.\[([\w-]+)\]"', text)) <= set(extras), path


def test_every_lock_has_hashes_and_no_address():
    for path in ROOT.glob("requirements*.lock"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path
        for entry in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[\w.-]+==\S+ ", entry), entry[:80]
            assert "--hash=sha256:" in entry, entry[:80]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in makefile.splitlines():
        if re.search(r"\$\((PIP|LOCKED)\)|pip install", line) and not line.startswith(("PIP :=", "LOCKED :=")):
            assert re.search(r"\$\(LOCKED\)|--no-deps|call torch", line), line


@pytest.mark.parametrize(("status", "found", "log", "expected"), [
    (0, "", "No known vulnerabilities found", (0, "No known", "")),
    (1, "numpy 1.0 PYSEC-1", "Found 1 known vulnerability", (1, "PYSEC-1", "")),
    (1, "", "Traceback", (2, "", "error: requirements.lock was not audited")),
])  # fmt: skip
def test_the_audit_tells_what_is_found_from_what_goes_wrong(tmp_path, status, found, log, expected):
    tool = tmp_path / "bin/pip-audit"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{found}' | grep . ; echo '{log}' >&2; exit {status}\n")
    tool.chmod(0o755)
    (tmp_path / ".installed").touch()
    command = ["make", "-s", "audit", f"AUDIT_VENV={tmp_path}", "-o", f"{tmp_path}/.installed"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    code, printed, error = expected
    assert (out.returncode != 0) == (code != 0)
    assert printed in out.stdout
    assert error in out.stderr
    if code == 2:
        assert "Error 2" in out.stderr
