"""A leaderboard: a file of rows of systems, to which an evaluation adds its own, and a page of tables beside it."""

from importlib.metadata import version
from pathlib import Path

from progemu_jax.errors import UserError
from progemu_jax.eval.compare import HEADLINE
from progemu_jax.eval.definitions import METRICS, cell
from progemu_jax.eval.tables import Table, markdown
from progemu_jax.files.records import read_rows, write_lines, write_text

COLUMNS = (*(key for key in HEADLINE if key != "fid"), "fid", "kid", "feature_coverage")
REMEDY = "give a leaderboard that this command made, or another file"


def add(path, result):
    """Adds every system of a metrics.json dict (not baselines, controls, ceilings) to the leaderboard `path` (.jsonl).

    A row is of one system on one set of cases, judged by features of one backbone; only such rows stand in one table.
    The tables are written beside it, with the ending .md. A row that is there already stays as it is.

    Raises:
      UserError: a file that is no leaderboard, or one with another row of this name on these cases.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"--leaderboard={path}: must end in .jsonl; its tables are written beside it, ending in .md")
    read = read_rows(path, "system", "references", remedy=REMEDY) if path.exists() else []
    rows = [_checked(path, row) for row in read]
    there = {(row["system"], row["references"]): row for row in rows}
    for row in _rows(result):
        old = there.get((row["system"], row["references"]))
        if old is None:
            rows.append(row)
        elif old["metrics"] != row["metrics"]:
            raise UserError(
                f"{path}: has another row of {row['system']!r} on these cases; give another NAME=DIR or delete its line"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, rows)
        write_text(path.with_suffix(".md"), page(rows))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be written ({error.strerror}); mend that") from None


def page(rows):
    """Markdown (str): a table for each set of cases and backbone, its rows in the order in which they were added."""
    groups = {}
    for row in rows:
        groups.setdefault((row["references"], row["backbone"]), []).append(row)
    out = ["# Leaderboard", ""]
    for (references, backbone), members in groups.items():
        keys = [k for k in COLUMNS if any(row["metrics"].get(k) for row in members)]
        one = members[0]
        title = f"{one['source']}, split {one['split']}: {one['cases']} cases of {one['patients']} patients"
        caption = f"Cases {references[:12]}; features: {backbone or 'none'}. 95 % intervals over patients."
        cells = [(row["system"], [cell(row["metrics"].get(k), METRICS[k].digits) for k in keys]) for row in members]
        out.append(markdown(Table(title, [METRICS[k].title for k in keys], cells, caption)))
    return "\n".join(out)


def _rows(result):
    for name, system in result["systems"].items():
        if system["role"] != "system":
            continue
        yield {
            "system": name, "references": result["references"], "source": ", ".join(result["sources"]),
            "split": ", ".join(result["splits"]), "cases": result["cases"], "patients": result["patients"],
            "backbone": system["features"].get("backbone", ""), "checkpoint": str(system["info"].get("checkpoint", "")),
            "version": version("progemu-jax"),
            "metrics": {k: system["metrics"][k] for k in COLUMNS if k in system["metrics"]},
        }  # fmt: skip


def _checked(path, row):
    """A row that was read, if it has what the tables need; UserError else."""
    number = lambda v: v is None or (isinstance(v, int | float) and not isinstance(v, bool))  # noqa: E731
    metrics = row.get("metrics")
    fine = isinstance(metrics, dict) and all(
        key in METRICS and isinstance(m, dict) and {"value", "low", "high", "flags"} <= set(m)
        and all(number(m[k]) for k in ("value", "low", "high")) and isinstance(m["flags"], list)
        for key, m in metrics.items()
    )  # fmt: skip
    if not fine or not all(isinstance(row.get(k), str) for k in ("source", "split", "backbone")):
        raise UserError(f"{path}: the row of {row['system'][:40]!r} is none of a leaderboard; {REMEDY}")
    if not all(isinstance(row.get(k), int) for k in ("cases", "patients")):
        raise UserError(f"{path}: the row of {row['system'][:40]!r} lacks numbers of cases and patients; {REMEDY}")
    return row
