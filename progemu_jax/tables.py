"""Tables 1 and 2 of MedJourney on the phantom, from nothing to one page; goes on where it was stopped.

    python -m progemu_jax.tables --workdir=runs/tables [--size=64] [--steps=1200] [--small]

Table 1: ProgEmu, MedJourney, InstructPix2Pix, text-only diffusion, copy-the-prior, the real follow-up. Table 2:
MedJourney with impression or description as the prompt, with and without registration of the pairs, in one stage or
two. Every diffusion model has the same budget of steps. InstructPix2Pix is the recipe without MedJourney's parts, so it
is a row of table 2: pairs as they lie, the description, one stage. --size=64 suits a CPU, --size=256 a GPU.

Table 1 is made first and has its page as soon as its systems are there; table 2's rows are added to it.
Each system is a run directory of its own below --workdir (`progemu_jax.main`, one process each); cohort, autoencoder,
text encoder and scorer are made once a cohort and linked. All are judged by the registered references.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from progemu_jax import eval as evaluation
from progemu_jax.configs.diffusion import STEPS
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser
from progemu_jax.files.records import write_text

SHARED = ("data", "autoencoder", "text_encoder", "scorer")  # also the stages that make them
TABLE_1 = ("medjourney", "instructpix2pix", "text-only")
# run -> (system of configs.diffusion, pairs registered, title)
RUNS = {
    "medjourney": ("medjourney", True, "MedJourney"),
    "instructpix2pix": ("instructpix2pix", False, "InstructPix2Pix (description, unregistered, one stage)"),
    "text-only": ("text-only", True, "Text-only diffusion"),
    "impression": ("medjourney-impression", True, "Impression, registered, two stages"),
    "one-stage": ("medjourney-one-stage", True, "Description, registered, one stage"),
    "impression-one-stage": ("medjourney-impression-one-stage", True, "Impression, registered, one stage"),
    "unregistered": ("medjourney", False, "Description, unregistered, two stages"),
    "impression-unregistered": ("medjourney-impression", False, "Impression, unregistered, two stages"),
    "impression-unregistered-one-stage": (
        "medjourney-impression-one-stage", False, "Impression, unregistered, one stage",
    ),
}  # fmt: skip
_CONFIG = """from progemu_jax.configs.diffusion import for_tables


def get_config():
    return for_tables({system!r}, registered={registered}, **{budget!r})
"""


def tables(workdir: Path, budget: dict) -> str:
    """Makes all runs that are not complete, then the page; returns a sentence saying where it is.

    budget: {"size", "steps", "small"} of `configs.diffusion.for_tables`.
    """
    _run(workdir / _base(True), "medjourney", True, budget, SHARED)
    _link(workdir / _base(True), workdir / _base(False), ("scorer",))  # one judge for all
    _run(workdir / _base(False), "medjourney", False, budget, SHARED[:-1])
    for name in TABLE_1:
        _system(workdir, name, budget)
    _link(workdir / _base(True), workdir / "progemu", ("data", "scorer"))
    _run(workdir / "progemu", "progemu", True, budget, ("tokenizer", "tokens", "train", "sample", "score"))
    others = [name for name in RUNS if name not in TABLE_1]
    if not any(_scores(workdir, name, RUNS[name][0]).exists() for name in others):
        print(f"table 1: {page(workdir)}", flush=True)
    for name in others:
        _system(workdir, name, budget)
    return page(workdir)


def _system(workdir: Path, name: str, budget: dict) -> None:
    system, registered, _ = RUNS[name]
    _link(workdir / _base(registered), workdir / name, SHARED)
    _run(workdir / name, system, registered, budget, ("train", "sample", "score"))


def _scores(workdir: Path, run: str, predictions: str) -> Path:
    return workdir / run / "scores" / f"{predictions}.npz"


def _base(registered: bool) -> str:
    return "registered" if registered else "unregistered"


def _link(base: Path, run: Path, names: tuple[str, ...]) -> None:
    """What the runs of a cohort share is linked, not copied."""
    run.mkdir(parents=True, exist_ok=True)
    for name in names:
        link = run / name
        if not link.exists():
            link.symlink_to(os.path.relpath(base / name, run))


def _run(run: Path, system: str, registered: bool, budget: dict, stages: tuple[str, ...]) -> None:
    """The stages of one run, in a process of its own: what one leaves behind in memory costs no other anything."""
    config = run.with_name(f"{run.name}.py")
    write_text(config, _CONFIG.format(system=system, registered=registered, budget=budget))
    command = [sys.executable, "-m", "progemu_jax.main", f"--config={config}", f"--workdir={run}"]
    print(f"{run.name}: {', '.join(stages)}", flush=True)
    done = subprocess.run([*command, f"--stages={','.join(stages)}"])
    if done.returncode:
        raise UserError(f"{run}: ended with status {done.returncode}; the same command goes on from there")


def page(workdir: Path) -> str:
    """metrics.json, tables and report/index.html over the runs that have been scored."""
    rows = {"progemu": ("progemu", "progemu", "ProgEmu"), "reconstruction": ("progemu", "reconstruction", None)}
    rows |= {name.replace("-", "_"): (name, system, title) for name, (system, _, title) in RUNS.items()}
    # Ours is the system under test, first in the tables.
    order = ["medjourney", *(name for name in rows if name not in ("medjourney", "reconstruction")), "reconstruction"]
    systems = {}
    for key in order:
        run, predictions, title = rows[key]
        scores = _scores(workdir, run, predictions)
        if scores.exists():
            systems[key] = evaluation.System(workdir / run / "predictions" / predictions, scores, title=title)
    kinds = ("prior", "followup", "counterfactual", "mean")
    scores = {name: _scores(workdir, "progemu", name) for name in kinds}
    which = "Tables 1 and 2" if len(systems) == len(rows) else "Table 1"
    evaluation.evaluate(
        systems,
        workdir / "registered/data/references",
        {name: path for name, path in scores.items() if path.exists()},
        workdir,
        title=f"{which} of MedJourney, on the phantom",
        caveats=("A phantom: a result here says that a method can work, not that it works on patients.",),
    )
    return f"{workdir / 'report/index.html'}\n{verdict(json.loads((workdir / 'metrics.json').read_text()))}"


def verdict(metrics: dict) -> str:
    """Two lines: whether text-only fails retention and copy-the-prior accuracy, as any sound evaluation must find."""
    lines = []
    for system, metric, most, what in (
        ("text_only", "group_retention", 0.5, "text-only loses the patient"),
        ("copy", "finding_auroc_changed", 0.5, "copy-the-prior misses what changed"),
    ):
        found = metrics["systems"].get(system, {}).get("metrics", {}).get(metric) or {}
        value, high = found.get("value"), found.get("high")
        shown = "undefined" if value is None else f"{value:.2f}, up to {high if high is None else round(high, 2)}"
        holds = value is not None and high is not None and high < most
        lines.append(f"{what} ({metric} {shown}): {'yes' if holds else 'NO: look before you believe the page'}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--size", type=int, choices=(64, 256), default=64, help="side of the images")
    parser.add_argument("--steps", type=int, help="of each diffusion model, over both stages")
    parser.add_argument("--small", action="store_true", help="every run at a size that says nothing about quality")
    args = parser.parse_args(argv)

    def work():
        steps = STEPS[args.size] if args.steps is None else args.steps
        if steps < 4:
            raise UserError(f"--steps={steps}: expected 4 or more")
        return tables(Path(args.workdir), {"size": args.size, "steps": steps, "small": args.small})

    return exit_status(work, "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
