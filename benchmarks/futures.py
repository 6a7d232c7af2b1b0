"""Draws docs/futures.png: futures, uncertainty, masks, dial and roll-out of one held-out phantom patient.

.venv/bin/python benchmarks/futures.py --run=runs/phantom --out=docs/futures.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import progemu_jax
from progemu_jax.eval.report import STANDING
from progemu_jax.files import records
from progemu_jax.text.findings import PRESENT

PROMPT = "New moderate left pleural effusion."
COURSE = (
    "New small left pleural effusion.",
    "Increased left pleural effusion, now large.",
    "Resolved left pleural effusion.",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, folder = progemu_jax.load(args.run), args.run / "data/references"
    # The first patient without any finding: what is seen is the edit.
    row = next(r for r in records.read_rows(folder / "references.jsonl") if max(r["states_before"].values()) < PRESENT)
    prior = folder / row["prior"]
    out = model.counterfactual(prior, PROMPT, num_samples=8)
    auto = model.counterfactual(prior, PROMPT, num_samples=8, mask="auto")
    half = np.zeros(out.prior.shape, bool)
    half[half.shape[0] // 2 :, half.shape[1] // 2 :] = True
    region = model.counterfactual(prior, PROMPT, num_samples=8, mask=half)
    dial = model.dial(prior, "New left pleural effusion.")
    course = model.rollout(prior, COURSE)
    gray, heat = {"cmap": "gray", "vmin": 0, "vmax": 255}, {"cmap": "magma", "vmin": 0}
    change = {"cmap": "RdBu_r", "vmin": -100, "vmax": 100}
    rows = [
        [("Prior", out.given, gray), *((f"Future {s + 1}", out.images[s], gray) for s in range(3)),
         ("Standard deviation\nof 8 futures", out.uncertainty, heat), ("Entropy of codes", out.entropy, heat)],
        [("Where the prompt\nmoves the model", model.change_map(prior, PROMPT), heat),
         ("Automatic mask", auto.mask * 255, {**gray}), ("Under it", auto.images[0], gray),
         ("Change", auto.difference[0], change), ("Lower left alone", region.images[0], gray),
         ("Change", region.difference[0], change)],
        [*((step.prompt, step.images[0], gray) for step in dial.values()),
         *((step.prompt, step.images[0], gray) for step in course)],
    ]  # fmt: skip
    figure = Figure(figsize=(11, 6.6), facecolor="white")
    FigureCanvasAgg(figure)
    for axes, panels in zip(figure.subplots(len(rows), 6), rows, strict=True):
        for axis, (title, image, options) in zip(axes, panels, strict=True):
            axis.imshow(image, interpolation="bicubic" if options is gray else "nearest", **options)
            axis.set(xticks=[], yticks=[])
            axis.set_title("\n".join(title.replace("left ", "left\n", 1).split("\n")[:2]), fontsize=8)
    figure.text(
        0.01,
        0.03,
        f'Prompt of the first two rows: "{PROMPT}" Last row: the dial, and a course of three steps.',
        fontsize=8,
    )
    figure.text(0.01, 0.006, STANDING, fontsize=7, color="#8a5a00")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(args.out, dpi=90, metadata={"Comment": "SYNTHETIC images; research only"})


if __name__ == "__main__":
    main()
