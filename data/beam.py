"""The data stage on Apache Beam (extra [beam]), for cohorts that outgrow a machine: the same work, the same bytes.

    python -m progemu_jax.data.beam --source=mimic_cxr --root=DIR --workdir=DIR [--size=512] [--image_size=512]
        [--options='{"views": ["PA"]}'] [--exclude=FILE] [flags of Beam, such as --runner=FlinkRunner]

Patients become pairs on the workers, and pairs become shards; reading the tables, references and the funnel are the
driver's. Root and work directory must be one file system that driver and workers share. The result stands where
`progemu_jax.main` looks for it, and a cut run goes on behind the last batch of patients.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from progemu_jax.data import build, icg_cxr, journeys
from progemu_jax.data.references import build_references
from progemu_jax.errors import UserError, exit_status

BATCH = 20_000  # patients a pipeline: what a killed driver loses at most


def require():
    """Apache Beam, or one clear line."""
    try:
        import apache_beam
    except ImportError:
        raise UserError('this needs Apache Beam: pip install -e ".[beam]"') from None
    return apache_beam


def build_on_beam(
    source: str,
    root: str | Path,
    workdir: str | Path,
    *,
    size: int = 512,
    image_size: int | None = None,
    options: journeys.Options | dict | None = None,
    exclude: str | Path | None = None,
    source_options: dict | None = None,
    arguments: list[str] = (),
    batch: int = BATCH,
) -> dict:
    """As `build.build`, by pipelines with the given Beam arguments. Raises UserError as it does."""
    require()
    workdir = Path(workdir)
    mapper = partial(map_on_beam, arguments=list(arguments), batch=batch)
    funnel = build.build_tree(
        source, root, workdir / "tree", size=size, options=options, exclude=exclude, source_options=source_options,
        mapper=mapper,
    )  # fmt: skip
    build_references(workdir / "tree", workdir / "references", size=image_size or size)
    icg_cxr.build_shards(workdir / "tree", workdir / "shards", image_size or size, beam=list(arguments))
    return {"funnel": funnel, **{name: workdir / name for name in ("tree", "references", "shards")}}


def map_on_beam(function, items: list, *, arguments: list[str], batch: int = BATCH):
    """function(item) of all items, by one pipeline a batch; each result is JSON-able."""
    import tempfile

    beam = require()
    from apache_beam.options.pipeline_options import PipelineOptions

    for start in range(0, len(items), batch):
        # Results go through files: runners hand nothing back to the driver.
        with tempfile.TemporaryDirectory(dir=function.keywords["work"].root, prefix=".beam-") as folder:
            with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
                made = pipeline | beam.Create(items[start : start + batch]) | beam.Reshuffle() | beam.Map(function)
                made | beam.Map(json.dumps) | beam.io.WriteToText(str(Path(folder) / "results"))
            for path in sorted(Path(folder).glob("results-*")):
                with open(path, encoding="utf-8") as file:
                    yield from map(json.loads, file)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--workdir", required=True, help="data/ of a run directory, e.g. runs/mimic/data")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--options", type=json.loads, default={}, help="JSON of journeys.Options")
    parser.add_argument("--exclude")
    args, rest = parser.parse_known_args(argv)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in args.options.items()}

    def work():
        made = build_on_beam(
            args.source, args.root, args.workdir, size=args.size, image_size=args.image_size, options=options,
            exclude=args.exclude, arguments=rest,
        )  # fmt: skip
        return f"{made['shards']}: {made['funnel']['pairs kept']} pairs"

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
