"""Edited patients as PNG files, one self-contained page, and one picture for a README."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from progemu_jax import provenance
from progemu_jax.data import images
from progemu_jax.eval.case_sheet import wrapped
from progemu_jax.eval.page_images import DIFFERENCE, difference_map, figure
from progemu_jax.eval.report import STANDING, whole_page
from progemu_jax.files.records import write_bytes, write_json, write_text
from progemu_jax.gallery.cases import Edited

TITLE = "Held-out phantom patients, edited"
COLUMNS = ("Prior", "Edited", "True answer", "Edited − prior")
PAGE, PICTURE, ROWS = "index.html", "try.png", "cases.json"
_ABOUT = (
    "These patients are drawn by a program, and no training of the model has seen them. They are the first of the test "
    "split, each with the first pair of films that it has: not chosen. Prior and prompt go in, edited image and text "
    "come out; the true answer is the same patient and film with the later disease, rendered."
)


def write(folder: Path, edited: Sequence[Edited], facts: dict[str, str]) -> Path:
    """Writes PNG files, cases.json, the page and the picture into `folder`; returns the page's path.

    facts: what the page says of its making, {name: value}.
    """
    rows = []
    for number, one in enumerate(edited, 1):
        out, name = one.out, str(folder / f"{number}")
        made = {"model": out.model_hash(), "prompt": one.case.prompt, "sample": 0, **out.settings}
        provenance.write_png(f"{name}-edited.png", one.image, **made)
        write_bytes(f"{name}-prior.png", images.png(one.prior))
        write_bytes(f"{name}-truth.png", images.png(one.truth))
        write_bytes(f"{name}-difference.png", images.png(_differences(one)[0]))
        row = {"pair_id": one.case.pair_id, "prompt": one.case.prompt, "text": one.text}
        rows.append({**row, "understood": one.read.to_dict(), "scores_prior_edited_truth": one.scores})
    write_json(folder / ROWS, rows)
    draw(folder / PICTURE, edited)
    told = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    body = (
        f'<h1>{TITLE}</h1><div class="banner"><b>{STANDING}</b></div><p>{_ABOUT}</p><p class="soft">Difference maps: '
        f'darker <span class="scale"></span> brighter than the prior, full colour at {DIFFERENCE} gray levels.</p>'
        f"{''.join(_card(number, one) for number, one in enumerate(edited, 1))}<h2>How it was made</h2><dl>{told}</dl>"
    )
    write_text(folder / PAGE, whole_page(TITLE, body))
    return folder / PAGE


def _card(number: int, one: Edited) -> str:
    shown = zip((*_images(one), *_differences(one)), (*COLUMNS, f"{COLUMNS[2]} − prior"), strict=True)
    words = {"Prompt": one.case.prompt, "Understood": one.read.in_words()}
    if one.out.texts:
        words["Generated text"] = one.text
    told = "".join(f"<div><b>{key}</b>{escape(value) or '<i>empty</i>'}</div>" for key, value in words.items())
    return (
        f'<div class="case"><div class="note">Patient {number} · {escape(one.case.pair_id)}</div>'
        f'<div class="images">{"".join(figure(*pair) for pair in shown)}</div><div class="words">{told}</div>'
        f"{_chips(one)}</div>"
    )


def _images(one: Edited) -> tuple[np.ndarray, ...]:
    """Of the first three `COLUMNS`."""
    return one.prior, one.image, one.truth


def _differences(one: Edited) -> tuple[np.ndarray, np.ndarray]:
    """Of the edited image and of the true answer to the prior, uint8 [H, W, 3]."""
    return difference_map(one.image, one.prior), difference_map(one.truth, one.prior)


def _chips(one: Edited) -> str:
    """The scorer's probabilities of the findings that the prompt names."""
    chips = []
    for finding, (before, after, true) in (one.scores or {}).items():
        way = one.case.changes[finding]
        mark = '<span class="good">✓</span>' if way * (after - before) > 0 else '<span class="bad">✗</span>'
        asked = f"asked {'up' if way > 0 else 'down'}"
        shown = f"{escape(finding)} {before:.2f} → {after:.2f} {mark} {asked}, true answer {true:.2f}"
        chips.append(f'<span class="chip">{shown}</span>')
    return f'<div class="chips">Scorer:{"".join(chips)}</div>' if chips else ""


def draw(path: Path, edited: Sequence[Edited]) -> None:
    """Writes one PNG, a row a patient: prior, edited, true answer, difference, and prompt and text beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.85 * len(edited) + 0.6), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(edited), 5, squeeze=False, width_ratios=(1, 1, 1, 1, 2))
    for axis, label in zip(axes[0], (*COLUMNS, "Prompt and generated text"), strict=True):
        axis.set_title(label, fontsize=12, loc="left" if axis is axes[0, -1] else "center")
    for row, one in zip(axes, edited, strict=True):
        for axis, image in zip(row[:-1], (*_images(one), _differences(one)[0]), strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
        row[-1].axis("off")
        style = {"fontsize": 11, "parse_math": False, "transform": row[-1].transAxes}  # a text may hold a dollar sign
        prompt = wrapped(one.case.prompt, 33)
        row[-1].text(0, 1, prompt, va="top", weight="bold", **style)
        below = 1 - 0.13 * (prompt.count("\n") + 1) - 0.04
        row[-1].text(0, below, wrapped(one.text, 38), va="top", **style)
    figure.text(0.01, 0.008, STANDING, fontsize=9, color="#8a5a00")
    edge = 0.35 / figure.get_figheight()
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - edge, bottom=edge, wspace=0.04, hspace=0.05)
    figure.savefig(path, dpi=110, metadata={"Comment": "SYNTHETIC images; research only"})
