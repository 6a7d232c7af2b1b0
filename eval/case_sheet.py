"""The cases of the page as one PNG, for a README or a slide."""

import textwrap

from progemu_jax.eval.page_images import difference_map, drawn_cases
from progemu_jax.eval.report import STANDING

COLUMNS = 5
MOST = 400  # characters of a text that are drawn


def write_sheet(path, first, refs, *, seed=0, columns=COLUMNS):
    """Writes prior, generated image, truth, difference and texts of the page's first cases to `path`.

    Args:
      path: PNG file.
      first: the system under test, as `evaluate` holds it; nothing is written when it has no images.
      refs: the references.
      seed: of the draw of cases, as on the page.
      columns: cases, one a column.
    """
    rows = drawn_cases(first.rows, columns, seed)
    if not first.has_images or not len(rows):
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.3 * len(rows), 10.4), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(4, len(rows), squeeze=False)
    for column, r in enumerate(map(int, rows)):
        case = int(first.rows.case[r])
        prior, made = refs.image(case, "prior"), first.image(refs, r)
        true, name = refs.image(case, "counterfactual"), "True counterfactual"
        if true is None:
            true, name = refs.image(case, "followup"), "Real follow-up"
        shown = [
            ("Prior", prior),
            ("Generated", made),
            ("Generated − prior", difference_map(made, prior)),
            (name, true),
        ]
        for axis, (label, image) in zip(axes[:, column], shown, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
            if column == 0:
                axis.set_ylabel(label, fontsize=10)
        label = {"fontsize": 8, "parse_math": False}  # a generated text may hold a dollar sign
        axes[0, column].set_title(wrapped(first.rows.prompts[r], 30), loc="left", weight="bold", **label)
        text = first.rows.texts[r] if first.rows.texts is not None else ""
        axes[3, column].set_xlabel(wrapped(f"Generated text: {text or ''}", 30), ha="left", x=0, **label)
    figure.text(0.01, 0.006, STANDING, fontsize=7, color="#8a5a00")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Comment": "SYNTHETIC images; research only"})


def wrapped(text, width):
    """Wrapped text without the control characters that an untrained model writes."""
    shown = "".join(c if c.isprintable() else " " for c in text[:MOST])
    return textwrap.fill(shown + "..." * (len(text) > MOST), width)
