"""python -m progemu_jax.scorers --scorer=xrv --references=DIR [--predictions=DIR ...] [--cache=DIR]

Writes score files where `python -m progemu_jax.eval` looks for them: DIR/scores/{prior,followup,counterfactual,
mean}.npz of the references, scores.npz in each predictions folder. --scorer is `xrv` (real radiographs), `phantom`
(the one in the package) or `phantom:DIR`, the export of a run's scorer stage. Scores are kept in --cache by the content
of the image.
"""

from __future__ import annotations

import sys
from pathlib import Path

from progemu_jax.devices import compilation
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files import records
from progemu_jax.files.command_line import Parser
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.files import source_of, write_prediction_scores, write_reference_scores
from progemu_jax.scorers.phantom import PhantomScorer
from progemu_jax.scorers.xrv import XRVScorer


def load(name: str):
    """The scorer of a --scorer value."""
    kind, _, place = name.partition(":")
    if kind == "xrv" and not place:
        return XRVScorer()
    if kind == "phantom" and (place or name == kind):
        return PhantomScorer.load(Path(place) if place else name)
    raise UserError(f"--scorer={name}: give xrv, phantom or phantom:DIR (the export of a run's scorer)")


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--scorer", required=True, metavar="xrv|phantom[:DIR]")
    parser.add_argument("--references", required=True, metavar="DIR")
    parser.add_argument("--predictions", action="append", default=[], metavar="DIR")
    parser.add_argument("--cache", metavar="DIR", help="default: <references>/scores/cache")
    args = parser.parse_args(argv)
    references = Path(args.references)
    compilation.keep_programs()

    def work():
        source = source_of(records.read_rows(references / "references.jsonl", "pair_id"))
        scorer = Cached(load(args.scorer), args.cache or references / "scores" / "cache")
        print(f"note: {scorer.caveat}", file=sys.stderr)
        write_reference_scores(scorer, references, references / "scores", source)
        for folder in map(Path, args.predictions):
            write_prediction_scores(scorer, folder, folder / "scores.npz", source)
        return references / "scores"

    return exit_status(work, "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
