"""The data stage on Apache Beam (extra [beam]), for cohorts that outgrow a machine: the same work, the same bytes.

`config.data.beam`, or `build.build(..., beam=ARGUMENTS)`, holds Beam's arguments, such as `--runner=FlinkRunner`.
Patients become pairs on the workers, and pairs become shards; reading the tables, the texts of a language model,
references and the funnel are the driver's. Root and work directory must be one file system that driver and workers
share. A cut run goes on behind the last batch of patients.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from progemu_jax.errors import UserError
from progemu_jax.files import records

BATCH = 20_000  # patients a pipeline: what a killed driver loses at most


def require():
    """Apache Beam, or one clear line."""
    try:
        import apache_beam
    except ImportError:
        raise UserError('config.data.beam needs Apache Beam: pip install -e ".[beam]"') from None
    return apache_beam


def map_on_beam(function: Callable, items: Sequence, *, arguments: Sequence[str], batch: int = BATCH) -> Iterator:
    """function(item) of all items in any order, by one pipeline a batch; each result is JSON-able.

    function: a `functools.partial` whose `work.root` is a folder that driver and workers share.
    """
    beam = require()
    from apache_beam.options.pipeline_options import PipelineOptions

    for start in range(0, len(items), batch):
        # Results go through files: runners hand nothing back to the driver.
        with tempfile.TemporaryDirectory(dir=function.keywords["work"].root, prefix=".beam-") as folder:
            with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
                made = pipeline | beam.Create(items[start : start + batch]) | beam.Reshuffle() | beam.Map(function)
                made | beam.Map(json.dumps) | beam.io.WriteToText(str(Path(folder) / "results"))
            for path in sorted(Path(folder).glob("results-*")):
                yield from (row for _, row in records.read_lines(path))
