"""python -m progemu_jax.eval --predictions=DIR [--predictions=DIR2 ...] --references=DIR --out=DIR

Scores predictions folders of any system. A folder is given as DIR or NAME=DIR; its scores are DIR/scores.npz (or
.csv) or, in a run directory, ../../scores/<folder name>.npz. The first folder is the system under test. Scores of
the reference images (prior, followup, counterfactual, mean, reconstruction .npz or .csv) are looked for in
--reference-scores, else in <references>/scores/ and beside the folders' scores. `python -m progemu_jax.scorers`
makes score files. DIR/memorisation.json (`python -m progemu_jax.data.memorisation`) is shown, or, in a run directory,
../../scores/<folder name>.memorisation.json. Names known as controls (contradicting-prompts, null-prompt;
NAME:contradicting for the control of system NAME) and baselines (shuffled-prompts, text-only) are judged as such.

--export=chexgenbench, m3, radmatch or teacsv judges nothing: it writes each folder as that evaluation reads it, to
DIR/PROTOCOL/NAME. --results=[NAME:]PROTOCOL=FILE reads what it then wrote, as a table of its own.
--features=FILE.npz: FID and its like by these features, of any network, in place of the score files'.
--leaderboard=FILE.jsonl adds the systems to a leaderboard, whose tables are then FILE.md.

Written to --out: metrics.json; tables and the papers' tables 1-4 (paper), each as .md, .tex and .html;
cases.csv, a row a sample with every metric that one image has; report/index.html.
"""

import sys
from dataclasses import replace
from pathlib import Path

from progemu_jax.errors import UserError, exit_status
from progemu_jax.eval.evaluate import REFERENCE_ROWS, System, evaluate
from progemu_jax.eval.export import EXPORTS, export
from progemu_jax.eval.leaderboard import add
from progemu_jax.eval.metrics.fidelity import SUBSAMPLES
from progemu_jax.eval.metrics.textmodels import MODELS
from progemu_jax.files.command_line import Parser
from progemu_jax.files.records import oddity

MOST = 100_000  # resamples


def _score_file(stem):
    """`stem`.npz or `stem`.csv if there is one; UserError when both are there."""
    found = [path for kind in ("npz", "csv") if (path := stem.with_name(f"{stem.name}.{kind}")).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]}: which one counts? remove one")
    return found[0] if found else None


def find_scores(folder):
    """The score file of a predictions folder, or None."""
    folder = Path(folder).resolve()
    return _score_file(folder / "scores") or _score_file(folder.parent.parent / "scores" / folder.name)


def find_memorisation(folder):
    """The audit of a predictions folder for copies of training images, or None."""
    folder = Path(folder).resolve()
    places = (folder / "memorisation.json", folder.parent.parent / "scores" / f"{folder.name}.memorisation.json")
    return next((path for path in places if path.is_file()), None)


def find_reference_scores(folders):
    """Score files of the references' images: name -> path, from the first of `folders` that has any."""
    for folder in folders:
        found = {n: path for n in REFERENCE_ROWS.values() if (path := _score_file(Path(folder) / n))}
        if found:
            return found
    return {}


def _results(given, systems):
    """{name: {protocol: file}} of the flags --results=[NAME:]PROTOCOL=FILE."""
    out = {}
    for flag in given:
        place, _, file = flag.partition("=")
        name, _, protocol = place.rpartition(":")
        name = name or (next(iter(systems)) if len(systems) == 1 else "")
        if protocol not in EXPORTS or not file:
            raise UserError(f"--results={flag}: give PROTOCOL=FILE with one of {', '.join(EXPORTS)}")
        if name not in systems:
            raise UserError(f"--results={flag}: of which system? give NAME:PROTOCOL=FILE, NAME of {', '.join(systems)}")
        out.setdefault(name, {})[protocol] = file
    return out


def _export(protocols, systems, references, out):
    """Writes every system for every protocol; returns the last folder."""
    for name, system in systems.items():
        if Path(name).name != name or name == "..":
            raise UserError(f"--predictions: {name} is no name of a folder; give NAME=DIR")
        for protocol in protocols:
            folder = export(protocol, system.predictions, references, Path(out) / protocol / name)
            print(f"export: {folder}", file=sys.stderr)
    return Path(out)


def main(argv=None):
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--predictions", action="append", required=True, metavar="[NAME=]DIR")
    parser.add_argument("--references", required=True, metavar="DIR")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--reference-scores", metavar="DIR")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of patients (default 1000; 0: none)")
    parser.add_argument("--subsamples", type=int, default=SUBSAMPLES, help="half-samples for FID, KID (at most 50)")
    parser.add_argument("--export", action="append", default=[], choices=sorted(EXPORTS), help="for that evaluation")
    parser.add_argument("--results", action="append", default=[], metavar="[NAME:]PROTOCOL=FILE")
    parser.add_argument("--features", metavar="FILE.npz", help="of any network, for FID and its like")
    parser.add_argument("--leaderboard", metavar="FILE.jsonl", help="add the systems to it; tables in FILE.md")
    parser.add_argument("--text-model", action="append", default=[], choices=sorted(MODELS), help="if installed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=12, help="cases shown on the page")
    parser.add_argument("--title", type=str, default="Counterfactual chest X-rays")
    parser.add_argument("--caveat", type=str, action="append", default=[], help="a sentence for the head of the page")
    args = parser.parse_args(argv)

    def work():
        if not 0 <= args.bootstrap <= MOST:
            raise UserError(f"--bootstrap={args.bootstrap}: must not be negative, nor over {MOST}")
        if not 0 <= args.subsamples <= SUBSAMPLES:
            raise UserError(f"--subsamples={args.subsamples}: give 0 to {SUBSAMPLES}")
        if args.cases < 0 or args.seed < 0:
            raise UserError("--cases and --seed must not be negative")
        for flag, given in (("--title", args.title), ("--caveat", args.caveat), ("--predictions", args.predictions),
                            ("--results", args.results)):  # fmt: skip
            if odd := oddity(given):
                raise UserError(f"{flag}: holds {odd}; give text")
        systems, places = {}, []
        for given in args.predictions:
            name, _, folder = given.rpartition("=")
            if not folder.strip():
                raise UserError(f"--predictions={given}: names no folder; give DIR or NAME=DIR")
            name = name or Path(folder).resolve().name
            if name in systems:
                raise UserError(f"--predictions: two folders are called {name}; give NAME=DIR")
            scores = find_scores(folder)
            systems[name] = System(folder, scores, memorisation=find_memorisation(folder))
            places += [scores.parent] if scores else []
        results = _results(args.results, systems)
        if args.export:
            return _export(args.export, systems, args.references, args.out)
        systems = {name: replace(system, results=results.get(name, {})) for name, system in systems.items()}
        if args.reference_scores and not find_reference_scores([args.reference_scores]):
            raise UserError(f"--reference-scores={args.reference_scores}: holds no prior.npz, followup.csv, ...")
        places = [args.reference_scores] if args.reference_scores else [Path(args.references) / "scores", *places]
        result = evaluate(
            systems,
            args.references,
            find_reference_scores(places),
            args.out,
            bootstrap=args.bootstrap,
            seed=args.seed,
            title=args.title,
            caveats=args.caveat,
            cases_shown=args.cases,
            subsamples=args.subsamples,
            text_models=args.text_model,
            features=args.features,
            log=lambda line: print(line, file=sys.stderr),
        )
        if args.leaderboard:
            add(args.leaderboard, result)
        return Path(args.out) / "report" / "index.html"

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
