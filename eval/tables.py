"""One table, three forms: Markdown, LaTeX (booktabs) and HTML."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from progemu_jax.eval.definitions import METRICS, SECTIONS, cell, features_line, shown
from progemu_jax.files.records import write_text

FOOT = "* few positives or undefined resamples: see the flags in metrics.json. Brackets: 95 % intervals over patients."
_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
          "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
          ">": r"\textgreater{}", "|": r"\textbar{}"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text: `rows` is a list of (name, cells)."""

    title: str
    columns: list
    rows: list
    caption: str = ""
    label: str = ""


def section_tables(result):
    """A Table for each section of a metrics.json dict that has any value."""
    out = []
    for heading, wanted in SECTIONS:
        keys, systems = shown(result, wanted)
        if not keys:
            continue
        rows = [(s["title"], [cell(s["metrics"].get(k), METRICS[k].digits) for k in keys]) for s in systems.values()]
        caption = features_line(result) if "fid" in keys else ""
        out.append(Table(heading, [METRICS[k].title for k in keys], rows, caption, heading.split(":")[0].lower()))
    return out


def fidelity_tables(result):
    """FID, KID and coverage finding by finding: a Table each of a metrics.json dict; none without features."""
    first = next(iter(result["systems"].values()))["parts"]
    findings = [f for f, p in first.items() if p.get("kid", {}).get("value") is not None]
    out = []
    for key in ("fid", "kid", "feature_coverage") if findings else ():
        parts = {s["title"]: s["parts"] for s in result["systems"].values()}
        rows = [
            (title, [cell(p.get(f, {}).get(key), METRICS[key].digits) for f in findings]) for title, p in parts.items()
        ]
        columns = [f"{f} ({first[f]['counts']['images']})" for f in findings]
        caption = "Cases that truly have the finding after the progression; generated images in brackets."
        caption += " Of so few images FID is mostly bias: compare within a column alone." * (key == "fid")
        title = f"{METRICS[key].title} by finding"
        out.append(Table(title, columns, [r for r in rows if any(r[1])], caption, title))
    return out


def memorisation_table(result):
    """A Table of a metrics.json dict: each system that was audited, below it the real follow-ups; None without any."""
    rows, found = [], None
    for system in result["systems"].values():
        if "memorisation" in system:
            found = system["memorisation"]
            rows.append((system["title"], _audited(found["generated"])))
    if not rows:
        return None
    rows.append(("Real follow-up (not trained on)", _audited(found["real"])))
    columns = ["images", "nearest, median", "nearest, greatest", "copies"]
    if "identity" in found["real"]:
        columns += ["nearest patient, median", "nearer than 99 % of real"]
    caption = (
        f"Correlation of each image with the nearest of {found['training_images']:,} training images, both shrunk to "
        f"32 x 32; from {found['same']} on it counts as a copy. A system that copies lies above the real follow-ups."
        + (" Nearest patient: cosine of the re-identification network." if "identity" in found["real"] else "")
    )
    return Table("Copies of training images", columns, rows, caption, "memorisation")


def _audited(row):
    out = [f"{row['images']:,}", f"{row['median']:.3f}", f"{row['greatest']:.3f}", f"{row['copies']:,}"]
    if seen := row.get("identity"):
        out += [f"{seen['median']:.3f}", f"{seen['beyond']:.1%}"]
    return out


def markdown(table):
    """A Markdown section; bars and HTML in a name are escaped."""
    clean = lambda text: _plain(text).replace("|", "\\|")  # noqa: E731
    lines = [f"## {table.title}", "", "| system | " + " | ".join(map(clean, table.columns)) + " |"]
    lines.append("| --- |" + " --- |" * len(table.columns))
    lines += [f"| {clean(name)} | " + " | ".join(map(clean, cells)) + " |" for name, cells in table.rows]
    return "\n".join([*lines, *(["", table.caption] if table.caption else []), ""])


def _plain(text):
    """One line of text for Markdown, in which HTML would be live."""
    return escape(" ".join(text.split()), quote=False)


def tex(text):
    """Text for LaTeX, special characters escaped."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def latex(table):
    """A LaTeX table (package booktabs; graphicx for the width)."""
    lines = [
        r"\begin{table}[t]", r"\centering", rf"\caption{{{tex(f'{table.title}. {table.caption}'.strip())}}}",
        rf"\label{{tab:{''.join(c for c in table.label if c.isalnum())}}}", r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}", r"\toprule",
        " & ".join(["", *map(tex, table.columns)]) + r" \\", r"\midrule",
    ]  # fmt: skip
    lines += [" & ".join([tex(name), *map(tex, cells)]) + r" \\" for name, cells in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def html(table):
    """An HTML section."""
    head = "".join(f"<th>{escape(c)}</th>" for c in table.columns)
    body = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
        for name, cells in table.rows
    )
    caption = f"<p>{escape(table.caption)}</p>" if table.caption else ""
    return (
        f"<h2>{escape(table.title)}</h2><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{caption}"
    )


def write_forms(folder, name, title, intro, tables):
    """Writes `folder`/`name`.md, .tex and .html; `intro` is a list of sentences."""
    folder = Path(folder)
    head = [f"# {_plain(title)}", "", *[f"{_plain(line)}\n" for line in intro]]
    lines = [*head, *map(markdown, tables), FOOT.replace("*", "\\*"), ""]
    write_text(folder / f"{name}.md", "\n".join(lines))
    head = [f"% {line}" for line in ["\\usepackage{booktabs,graphicx}", title, *intro, FOOT]]
    write_text(folder / f"{name}.tex", "\n".join([*(" ".join(h.split()) for h in head), "", *map(latex, tables)]))
    style = (
        "body{font:14px sans-serif}table{border-collapse:collapse}td,th{padding:3px 8px;border-bottom:1px solid #ccc}"
    )
    page = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{style}</style></head><body><h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in intro), *map(html, tables), f"<p>{escape(FOOT)}</p></body></html>", "",
    ]  # fmt: skip
    write_text(folder / f"{name}.html", "\n".join(page))


def write_tables(result, folder, more=()):
    """Writes tables.md, tables.tex and tables.html of a metrics.json dict; `more`: Tables that stand below its own."""
    counts = f"{result['cases']} cases of {result['patients']} patients; 95 % intervals over patients."
    copies = memorisation_table(result)
    tables = [*section_tables(result), *fidelity_tables(result), *([copies] if copies else []), *more]
    write_forms(folder, "tables", result["title"], [counts, *result["caveats"]], tables)
