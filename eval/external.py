"""What other evaluations found (CheXGenBench, M3-Score, RadMatch, TEA): numbers to stand beside ours."""

import csv
import math
from pathlib import Path

from progemu_jax.errors import UserError
from progemu_jax.eval.tables import Table
from progemu_jax.files.records import oddity, read_json, read_text

# Columns of the tables, where a file has many numbers.
SHOWN = {
    "m3": ("fidelity", "fidelity_floor", "memorization", "coverage", "n_real", "n_gen"),
    "radmatch": ("actionable_errors_per_report", "clinical_safety_summary.triage_recall",
                 "clinical_safety_summary.actionable_recall", "clinical_safety_summary.triage_precision",
                 "clinical_safety_summary.actionable_precision", "metadata.n_reports"),
}  # fmt: skip
DEEPEST = 4  # nested objects that are read
TITLES = {"chexgenbench": "CheXGenBench", "m3": "M3-Score", "radmatch": "RadMatch", "teacsv": "TEA"}
NAMES = ("Extra Info", "Caption Type", "Pathology")  # columns of CheXGenBench that are no metric


def read_results(protocol, path, system):
    """{name: number} of a result file of `protocol` (of TITLES).

    chexgenbench: its CSV, of whose rows the last with `system` as "Extra Info" counts, one of each "Pathology" (its
    names get it behind a comma). m3: what `m3score --json` writes. radmatch: metrics_summary.json, names of nested
    objects joined by dots. teacsv: the mean of each column of numbers.

    Raises:
      UserError: a file that does not read so, or holds no number.
    """
    path = Path(path)
    if protocol in ("m3", "radmatch"):
        found = read_json(path)
        if found is None:
            raise UserError(f"{path}: no such file, or no JSON; give what {TITLES[protocol]} wrote")
        if odd := oddity(found):
            raise UserError(f"{path}: holds {odd}; give what {TITLES[protocol]} wrote")
        out = dict(_flat(found))
    else:
        out = _benchmark(path, system) if protocol == "chexgenbench" else _means(path)
    if not out:
        raise UserError(f"{path}: holds no number of {TITLES[protocol]}; give what it wrote")
    return out


def external_tables(result):
    """A Table for each protocol of a metrics.json dict whose results were read."""
    out = []
    for protocol, title in TITLES.items():
        found = {k: r[protocol] for k, r in result.get("external", {}).items() if protocol in r}
        names = dict.fromkeys(name for numbers in found.values() for name in numbers)
        names = [n for n in SHOWN.get(protocol, names) if n in names]
        rows = [
            (result["systems"][k]["title"], [f"{v[n]:.4g}" if n in v else "" for n in names]) for k, v in found.items()
        ]
        if names:
            caption = "As its own code printed it; not computed here."
            out.append(Table(f"As measured by {title}", [n.rpartition(".")[2] for n in names], rows, caption, protocol))
    return out


def _flat(value, prefix="", depth=DEEPEST):
    if isinstance(value, dict) and depth:
        for key, part in value.items():
            yield from _flat(part, f"{prefix}.{key}" if prefix else key, depth - 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, float(value)


def _rows(path):
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV of results ({type(error).__name__})") from None
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path}: a row has another number of cells than the header; mend it")
    return rows


def _number(cell):
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _benchmark(path, system):
    rows, out = _rows(path), {}
    own = {row.get("Pathology"): row for row in rows if row.get("Extra Info") == system}  # the last of each
    if not own:
        names = ", ".join(sorted({str(row.get("Extra Info"))[:40] for row in rows})[:5])
        raise UserError(f'{path}: no row has "{system}" as Extra Info, but {names}; give NAME=DIR one of these names')
    for pathology, row in own.items():
        behind = f", {pathology}" if pathology else ""
        for name, cell in row.items():
            if name not in NAMES and (value := _number(cell)) is not None:
                out[f"{name}{behind}"] = value
    return out


def _means(path):
    columns = {}
    for row in _rows(path):
        for name, cell in row.items():
            columns.setdefault(name, []).append(_number(cell) if cell.strip() else math.nan)
    out = {}
    for name, values in columns.items():
        known = [v for v in values if v is not None and not math.isnan(v)]
        if known and None not in values:
            out[name] = sum(known) / len(known)
    return out
