"""python -m progemu_jax.eval --predictions=DIR [--predictions=DIR2 ...] --references=DIR --out=DIR

Scores predictions folders of any system. A folder is given as DIR or NAME=DIR; its scores are DIR/scores.npz
or, in a run directory, ../../scores/<folder name>.npz. The first folder is the system under test. Scores of
the reference images (prior, followup, counterfactual, reconstruction .npz) are looked for in
--reference-scores, else in <references>/scores/ and beside the folders' scores.
"""

import argparse
import sys
from pathlib import Path

from progemu_jax.errors import UserError
from progemu_jax.eval.evaluate import REFERENCE_ROWS, System, evaluate


def find_scores(folder):
    """The score file of a predictions folder, or None."""
    folder = Path(folder).resolve()
    for path in (folder / "scores.npz", folder.parent.parent / "scores" / f"{folder.name}.npz"):
        if path.is_file():
            return path
    return None


def find_reference_scores(folders):
    """Score files of the references' images: name -> path, from the first of `folders` that has any."""
    for folder in folders:
        found = {n: Path(folder) / f"{n}.npz" for n in REFERENCE_ROWS.values() if (Path(folder) / f"{n}.npz").is_file()}
        if found:
            return found
    return {}


def main(argv=None):
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = argparse.ArgumentParser(
        prog="python -m progemu_jax.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predictions", action="append", required=True, metavar="[NAME=]DIR")
    parser.add_argument("--references", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--reference-scores", metavar="DIR")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of patients (default 1000; 0: none)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=12, help="cases shown on the page")
    parser.add_argument("--title", default="Counterfactual chest X-rays")
    parser.add_argument("--caveat", action="append", default=[], help="a sentence for the head of the page")
    args = parser.parse_args(argv)
    try:
        if args.bootstrap < 0:
            raise UserError(f"--bootstrap={args.bootstrap}: must not be negative")
        systems, places = {}, []
        for given in args.predictions:
            name, _, folder = given.rpartition("=")
            name = name or Path(folder).resolve().name
            if name in systems:
                raise UserError(f"--predictions: two folders are called {name}; give NAME=DIR")
            scores = find_scores(folder)
            systems[name] = System(folder, scores)
            places += [scores.parent] if scores else []
        if args.reference_scores and not find_reference_scores([args.reference_scores]):
            raise UserError(f"--reference-scores={args.reference_scores}: holds none of prior.npz, followup.npz, ...")
        places = [args.reference_scores] if args.reference_scores else [Path(args.references) / "scores", *places]
        evaluate(
            systems,
            args.references,
            find_reference_scores(places),
            args.out,
            bootstrap=args.bootstrap,
            seed=args.seed,
            title=args.title,
            caveats=args.caveat,
            cases_shown=args.cases,
            log=lambda line: print(line, file=sys.stderr),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(Path(args.out) / "report" / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
