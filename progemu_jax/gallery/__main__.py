"""python -m progemu_jax.gallery [--model=MODEL] [--scorer=phantom|DIR] [--out=DIR] [--patients=5] [--seed=0]

Pictures of the first held-out phantom patients (`make try`): prior, prompt, edited image, true answer, difference,
text, what was understood, and the scorer's probabilities. DIR gets PNG files, cases.json, index.html, which needs no
other file, and try.png. --model is the one in the package (phantom), or a model of the phantom in a run directory or
on the Hub (hf:owner/name); --scorer that of the model, if it has one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from progemu_jax import pretrained
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser
from progemu_jax.gallery import cases, page
from progemu_jax.inference.load import find, load
from progemu_jax.inference.request import seed as checked_seed
from progemu_jax.scorers.phantom import PhantomScorer

MOST = 100  # patients


def gallery(model: str, scorer: str | None, out: Path, patients: int = 5, seed: int = 0) -> Path:
    """Writes the pictures into `out`; returns the page's path.

    model, scorer: "phantom" for those in the package, or folders; scorer None: the model's own, if it has one.

    Raises:
      UserError: nothing to load, a model of real patients, a number out of range.
    """
    if not 1 <= patients <= MOST:
        raise UserError(f"--patients={patients}: expected 1 to {MOST}")
    seed, place = checked_seed(seed), find(model)
    origin = cases.origin(place)
    out.mkdir(parents=True, exist_ok=True)
    if origin.cohort != "phantom":
        raise UserError(f"{model}: a model of {origin.cohort}; these pictures are of the phantom's patients")
    loaded = load(place)
    scorer = origin.scorer if scorer is None else scorer
    judge = None if scorer is None else PhantomScorer.load(scorer)
    with tempfile.TemporaryDirectory() as work:
        found = cases.held_out(Path(work), patients, origin.film, origin.tree)
    edited = list(cases.edit(loaded, judge, found, seed))
    facts = {
        "Model": f"{loaded.name}, weights {loaded.hash[:12]}",
        "Patients": f"of the phantom's seed {cases.COHORT_SEED}: {', '.join(case.patient for case in found)}",
        "Seed of the futures": str(seed),
        "Command": f"python -m progemu_jax.gallery --model={model} --patients={patients} --seed={seed}",
    }
    return page.write(out, edited, facts)


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--model", default=pretrained.NAME, metavar="phantom|RUN|hf:owner/name")
    parser.add_argument("--scorer", metavar="phantom|DIR", help="default: the model's own")
    parser.add_argument("--out", default="runs/try", metavar="DIR")
    parser.add_argument("--patients", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the futures")
    args = parser.parse_args(argv)
    return exit_status(lambda: gallery(args.model, args.scorer, Path(args.out), args.patients, args.seed))


if __name__ == "__main__":
    sys.exit(main())
