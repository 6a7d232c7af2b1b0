"""The model card, README.md of a repository: data, metrics, hash, limits and licence, made of a run's own records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any

from progemu_jax import hub, provenance
from progemu_jax.data.sources import SOURCES
from progemu_jax.eval.definitions import METRICS, cell
from progemu_jax.eval.tables import FOOT, Table, markdown
from progemu_jax.inference.diffusion import DiffusionModel
from progemu_jax.inference.progemu import ProgEmu

COLUMNS = ("directional_accuracy", "others_still", "finding_auroc_changed", "group_retention", "text_change_f1")
ROWS = ("system", "copy", "followup")  # the system under test, and what it stands between
_OF_SOURCE = {
    "phantom": "The built-in chest phantom: drawn radiographs with known changes and written reports. No patient.",
    "nih_cxr14": "NIH ChestX-ray14, provided by the NIH Clinical Center (Wang et al., arXiv 1705.02315).",
}


@dataclass(frozen=True)
class Origin:
    """What a model was trained on. source: of `data.sources.SOURCES`, or ""; begun: names of weights that it began
    from; restricted: why its weights may not be published unasked, "" where they may."""

    source: str
    begun: tuple[str, ...] = ()
    restricted: str = ""


@dataclass(frozen=True)
class Facts:
    """What a card is made of. size: bytes of the weights' files; metrics: the run's metrics.json, or None."""

    repo: str
    licence: str
    origin: Origin
    model: ProgEmu | DiffusionModel
    size: int
    metrics: dict[str, Any] | None


def text(facts: Facts) -> str:
    """The card, Markdown with the Hub's YAML head."""
    title = facts.repo.split("/")[1]
    sections = (
        _head(facts), f"# {title}", _what(facts.model), _use(facts), "## Data", _data(facts),
        "## Metrics", _metrics(facts), "## Weights", _weights(facts),
        "## Limits", _limits(facts), "## Licence", _licence(facts),
    )  # fmt: skip
    return "\n\n".join(sections) + "\n"


def _head(facts: Facts) -> str:
    tags = "\n".join(f"- {tag}" for tag in ("chest-x-ray", "counterfactual", "jax", "synthetic"))
    licence = json.dumps(facts.licence)
    return f"---\nlicense: {licence}\nlibrary_name: progemu-jax\npipeline_tag: image-to-image\ntags:\n{tags}\n---"


def _what(model: ProgEmu | DiffusionModel) -> str:
    if isinstance(model, ProgEmu):
        out = "the counterfactual subsequent radiograph and the text that explains it come out, of one transformer"
        kind = "[ProgEmu](https://arxiv.org/abs/2503.23149)"
    else:
        out = "the counterfactual subsequent radiograph comes out, of latent diffusion"
        kind = "[MedJourney](https://arxiv.org/abs/2310.10765)'s kind"
    return (
        f"A prior chest radiograph and a progression prompt go in, {out}: {kind} in JAX.\n\n"
        "**For research only. Its images and texts are synthetic and may be wrong; not for diagnosis or clinical use.**"
    )


def _use(facts: Facts) -> str:
    return (
        "```python\nimport progemu_jax  # with the extra [hub]\n\n"
        f'model = progemu_jax.load("{hub.PREFIX}{facts.repo}")  # "...@COMMIT" pins it\n'
        'out = model.counterfactual("prior.png", "New small left pleural effusion.", num_samples=4, seed=0)\n```'
    )


def _data(facts: Facts) -> str:
    origin = facts.origin
    said = _OF_SOURCE.get(origin.source)
    if said is None and origin.source:
        said = f"{SOURCES[origin.source].what}."
        if SOURCES[origin.source].credentialed:
            said += " It comes under an agreement of its own, which stands above this card."
    lines = [f"- Trained on: {said or 'not known; no config.json was there.'}"]
    lines += [f"- Began from the weights {_plain(name)!r}; see their own card." for name in origin.begun]
    model = facts.model
    if isinstance(model, ProgEmu):
        assert model.tokenizer is not None  # publish takes whole models
        assert model.layout is not None
        factor = model.tokenizer.config.factor
        height, width = model.layout.height * factor, model.layout.width * factor
    else:
        height = width = model.image_size
    return "\n".join([*lines, f"- Images: {height} x {width} pixels, gray."])


def _metrics(facts: Facts) -> str:
    result = facts.metrics
    if not result:
        return "Not evaluated: its run has no metrics.json."
    under_test = next((name for name, s in result["systems"].items() if s["role"] == "system"), None)
    wanted = [under_test if name == "system" else name for name in ROWS]
    systems = [result["systems"][name] for name in wanted if name in result["systems"]]
    keys = [key for key in COLUMNS if any(key in system["metrics"] for system in systems)]
    rows = [(s["title"], [cell(s["metrics"].get(key), METRICS[key].digits) for key in keys]) for s in systems]
    table = markdown(Table("", [METRICS[key].title for key in keys], rows)).removeprefix("## \n\n").rstrip()
    counts = f"{result['cases']} held-out cases of {result['patients']} patients, judged by `progemu_jax.eval`."
    means = "\n".join(f"- *{METRICS[key].title}*: {METRICS[key].definition}" for key in keys)
    return "\n\n".join((counts, table, _plain(FOOT).replace("*", "\\*"), means))


def _weights(facts: Facts) -> str:
    return (
        f"{facts.size / 1e6:,.1f} MB, safetensors. SHA-256 of all weights, `progemu:model` in each PNG that the model "
        f"makes:\n\n```\n{facts.model.hash}\n```\n\nEach `export.json` has the SHA-256 of its weights and config, "
        f"which loading compares. Written by {provenance.SOFTWARE}."
    )


def _limits(facts: Facts) -> str:
    lines = [
        "An edit may miss what its prompt asks for, change what it does not name, or lose the person.",
        "A text may contradict the image that it stands beside, or repeat its prompt."
        if isinstance(facts.model, ProgEmu)
        else "It writes no text, and no region can be kept.",
    ]
    if facts.origin.source == "phantom" and not facts.origin.begun:
        lines.append("It knows drawings alone: of a patient's radiograph it makes nothing that means anything.")
    else:
        lines.append("It knows the kind of radiographs that it was trained on, and may have memorised some of them.")
        lines.append("Treat what it makes as the data that it came from: images keep a patient's anatomy.")
    if not facts.metrics:
        lines.append("Nothing was measured.")
    return "\n".join(f"- {line}" for line in lines)


def _licence(facts: Facts) -> str:
    terms = f"Weights: `{facts.licence}`."
    if facts.origin.restricted:
        terms += " The publisher has acknowledged that the agreements of the data allow this."
    return f"{terms} Cite the papers whose methods it uses, and the data."


def _plain(words: str) -> str:
    return escape(" ".join(words.split()), quote=False)
