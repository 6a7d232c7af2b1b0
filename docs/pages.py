"""What the site has beside docs/*.md, for mkdocs (`make docs`): README, notebook, API; links as the site needs them.

Pages stay as GitHub shows them. Links to files outside docs/ lead to a page made here or to a copy of the file.
"""

import json
import posixpath
import re
import shutil
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
MADE = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "notebooks/sample.ipynb": "notebook.md",
}
API = {  # page -> title, what it is for, dotted names; a name ending in * with what it inherits
    "api/models.md": (
        "Models",
        "`progemu_jax.load` gives a `ProgEmu` or a `DiffusionModel`; both answer `counterfactual`.",
        (
            "progemu_jax.inference.load.load",
            "progemu_jax.inference.progemu.ProgEmu*",
            "progemu_jax.inference.diffusion.DiffusionModel",
            "progemu_jax.inference.counterfactual.Counterfactual",
            "progemu_jax.inference.counterfactual.CounterfactualModel",
            "progemu_jax.inference.counterfactual.Samples",
            "progemu_jax.inference.image_tokenizer.Tokenizer",
            "progemu_jax.files.predictions.Case",
            "progemu_jax.text.understood.Understood",
            "progemu_jax.text.understood.Read",
            "progemu_jax.errors.UserError",
            "progemu_jax.errors.PromptWarning",
        ),
    ),
    "api/sampling.md": (
        "Sampling policies",
        "Their fields are keyword arguments of `counterfactual`, and keys under `config.sample.policy`.",
        (
            "progemu_jax.sampling.policy.Sampling",
            "progemu_jax.sampling.diffusion.DiffusionSampling",
            "progemu_jax.sampling.queue.Request",
            "progemu_jax.sampling.queue.Result",
            "progemu_jax.sampling.queue.sample_queue",
            "progemu_jax.sampling.watch.Progress",
        ),
    ),
    "api/evaluation.md": (
        "Evaluation",
        "What `python -m progemu_jax.eval` and `python -m progemu_jax.scorers` are made of.",
        (
            "progemu_jax.eval.evaluate",
            "progemu_jax.files.predictions.write_predictions",
            "progemu_jax.files.predictions.Prediction",
            "progemu_jax.scorers.phantom.PhantomScorer",
            "progemu_jax.scorers.files.write_prediction_scores",
            "progemu_jax.scorers.files.write_reference_scores",
            "progemu_jax.eval.metrics.roc",
            "progemu_jax.eval.metrics.direction",
            "progemu_jax.eval.metrics.divergence",
            "progemu_jax.eval.metrics.retention",
            "progemu_jax.eval.metrics.cmig",
            "progemu_jax.eval.metrics.image",
            "progemu_jax.eval.metrics.fidelity",
            "progemu_jax.eval.metrics.identity",
            "progemu_jax.eval.metrics.text",
            "progemu_jax.eval.metrics.uncertainty",
        ),
    ),
    "api/data.md": (
        "Data sources",
        "A source gives studies; all that comes after is the same for all of them.",
        (
            "progemu_jax.data.sources.open_source",
            "progemu_jax.data.sources.needed_files",
            "progemu_jax.data.sources.Study",
            "progemu_jax.data.sources.State",
            "progemu_jax.data.sources.Given",
            "progemu_jax.data.sources.Rejected",
            "progemu_jax.data.phantom.patient",
            "progemu_jax.data.phantom.course",
            "progemu_jax.data.phantom.render",
            "progemu_jax.data.answers",
        ),
    ),
}
_LINK = re.compile(r"(\]\()(?![a-z]+:)([^)\s#]+)((?:#[^)\s]*)?\))")
_BLOCK = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]*)")
_TAGS = (
    "a article autoref blockquote br code del details div em h1 h2 h3 h4 h5 h6 hr img li ol p pre small span strong "
    "sub summary sup table tbody td th thead tr ul"
)
_UNREAD = re.compile(r"^(?:[-*] |\|.*\||```|#+ )", re.MULTILINE)  # Markdown that stayed as it was


def on_startup(command, dirty):
    """Copies the sources as they are imported (setup.py maps data, eval and configs), for the API pages.

    Before mkdocstrings is configured: it passes over a folder that is not there yet.
    """
    package = ROOT / "runs/docs/progemu_jax"
    shutil.rmtree(package, ignore_errors=True)
    for source, target in (("progemu_jax", "."), ("data", "data"), ("eval", "eval"), ("configs", "configs")):
        for path in (ROOT / source).rglob("*.py"):
            place = package / target / path.relative_to(ROOT / source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def on_files(files, config):
    """Adds the pages that are made here, and copies of the other files of the repository that a page links to."""
    for source, page in MADE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_notebook(text) if source.endswith(".ipynb") else text))
    for page, (title, text, names) in API.items():
        files.append(File.generated(config, page, content=_api(title, text, names)))
    for file in files.documentation_pages():
        for _, target, _ in _LINK.findall(_BLOCK.sub("", file.content_string)):
            path = _of_the_repository(file.src_uri, target)
            page = _of_the_site(path)
            if files.get_file_from_path(page) is None and (ROOT / path).is_file():
                files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as the site has them."""
    here = posixpath.dirname(page.file.src_uri)

    def moved(link):
        target = _of_the_site(_of_the_repository(page.file.src_uri, link[2]))
        return f"{link[1]}{posixpath.relpath(target, here or '.')}{link[3]}"

    parts = _BLOCK.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def on_page_content(html, page, config, files):
    """Refuses a page with Markdown that GitHub reads and mkdocs does not, and one on which a word in <> is lost."""
    if tags := {*re.findall(r"<([a-z][\w-]*)", html)} - {*_TAGS.split()}:
        raise PluginError(f"{page.file.src_uri}: <{min(tags)}> is no tag that is used here; write such a word as code")
    text = re.sub(r"<(pre|code)\b.*?</\1>", "", html, flags=re.DOTALL)
    if found := _UNREAD.search(re.sub(r"<[^>]+>", "", text)):
        raise PluginError(f"{page.file.src_uri}: {found[0]!r} was not understood; put an empty line in front of it")
    return html


def on_post_build(config):
    """Refuses a page that would fetch something from another host."""
    for path in Path(config.site_dir).rglob("*.html"):
        if found := _FETCHED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path}: fetches {found[1]}; the site holds all that it shows")


def _of_the_repository(page, target):
    """Path in the repository that a link of a page of the site means."""
    made = {site: source for source, site in MADE.items()}
    source = made.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _of_the_site(path):
    """Where the site has a file of the repository."""
    return MADE.get(path) or path.removeprefix("docs/")


def _notebook(text):
    """A notebook's cells as Markdown."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    return "\n\n".join(source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells)


def _api(title, text, names):
    """A page of docstrings."""
    blocks = []
    for name in names:
        inherited = "\n    options:\n      inherited_members: true" if name.endswith("*") else ""
        blocks.append(f"::: {name.rstrip('*')}{inherited}")
    return "\n\n".join([f"# {title}", text, *blocks])
