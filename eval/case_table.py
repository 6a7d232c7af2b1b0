"""cases.csv: every metric that a single image has, a row for each sample of each case of each system."""

import csv
import io

import numpy as np

from progemu_jax.eval.definitions import METRICS
from progemu_jax.files.records import write_text

HEAD = ("system", "pair_id", "patient_id", "sample")


def case_rows(candidates, measured, refs):
    """(columns, rows) of cases.csv: text and numbers, None where a case has no value.

    A share or mean over several findings or words of one case has a column `NAME:n` beside it, over how many: the value
    in metrics.json is sum(value * n) / sum(n). Metrics of a set of images alone (AUROC, FID, CMIG, age r, BLEU, ...)
    have no column.
    """
    found = {key for c in candidates for key in measured[c.key].per_case}
    keys = [key for key in METRICS if key in found]
    counted = [
        key
        for key in keys
        if any(not np.isin(m.per_case[key][1], (0, 1)).all() for m in measured.values() if key in m.per_case)
    ]
    columns = [*HEAD, *(name for key in keys for name in ((key, f"{key}:n") if key in counted else (key,)))]
    rows = []
    for c in candidates:
        per_case = measured[c.key].per_case
        parts = []
        for key in keys:
            top, bottom = per_case.get(key, (np.zeros(len(c.rows)),) * 2)
            parts.append(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0))
            if key in counted:
                parts.append(bottom)
        if not any(key in per_case for key in keys):
            continue
        for r, values in enumerate(np.stack(parts, axis=1).tolist()):
            row = refs.rows[int(c.rows.case[r])]
            values = [None if np.isnan(v) else v for v in values]
            rows.append([c.key, row["pair_id"], row["patient_id"], int(c.rows.sample[r]), *values])
    return columns, rows


def write_case_table(path, candidates, measured, refs):
    """Writes cases.csv (UTF-8, a comma between cells, an empty cell where a case has no value)."""
    columns, rows = case_rows(candidates, measured, refs)
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    out.writerows(["" if v is None else f"{v:.10g}" if isinstance(v, float) else v for v in row] for row in rows)
    write_text(path, text.getvalue())
