"""The report: one HTML file that needs no other, images inlined as PNG data URIs, plots as SVG."""

from html import escape
from pathlib import Path
from string import Template

from progemu_jax.eval.definitions import METRICS, SECTIONS, features_line, number, shown
from progemu_jax.eval.external import external_tables
from progemu_jax.eval.page_images import (
    COLD,
    DIFFERENCE,
    WARM,
    difference_map,
    drawn_cases,
    figure,
    first_rows,
)
from progemu_jax.eval.plots import forest
from progemu_jax.eval.saliency import saliency_section
from progemu_jax.eval.tables import fidelity_tables, html, memorisation_table
from progemu_jax.text import findings

STANDING = (
    "Generated images and texts are synthetic and may be wrong. For research only; not for diagnosis or any "
    "clinical use."
)
TILES = (
    "finding_auroc",
    "finding_auroc_changed",
    "directional_accuracy",
    "cmig",
    "text_right",
    "ssim_followup",
)
PLOTTED = ("finding_auroc", "finding_auroc_changed", "directional_accuracy", "cmig")


def write_report(result, candidates, measured, refs, *, cases_shown=12, seed=0):
    """The page (str) of a metrics.json dict, with a sheet of cases drawn from the system under test."""
    first = candidates[0]
    body = [
        _head(result, first),
        _tiles(result, first),
        _plot(result),
        *(_section(result, heading, keys, first.key) for heading, keys in SECTIONS),
        _per_finding(result, first.key),
        *map(html, fidelity_tables(result)),
        _memorisation(result),
        *map(html, external_tables(result)),
        _tests(result),
        saliency_section(candidates, refs, seed),
        _sheet(first, measured[first.key], refs, cases_shown, seed),
        _foot(result),
    ]
    return whole_page(result["title"], "\n".join(body))


def whole_page(title, body):
    """A page (str) in the report's style. title: text; body: HTML."""
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        body=body,
        cold="rgb({},{},{})".format(*COLD),
        warm="rgb({},{},{})".format(*WARM),
    )


def _head(result, first):
    b = result["bootstrap"]
    intervals = f"95 % intervals from {b['resamples']:,} resamples of patients" if b["resamples"] else "no intervals"
    height, width = result["image_size"]
    info = "".join(f" · {escape(k)}: {escape(_plain(v))}" for k, v in first.rows.info.items() if k != "seed")
    items = "".join(f"<li>{escape(str(c))}</li>" for c in [*result["caveats"], *result["warnings"]])
    return (
        f"<h1>{escape(result['title'])}</h1>"
        f'<p class="soft">{result["cases"]:,} cases of {result["patients"]:,} patients · '
        f"{escape(', '.join(result['sources']))}, split {escape(', '.join(result['splits']))} · "
        f"{width} × {height} pixels · {intervals}{info}</p>"
        f'<div class="banner"><b>{STANDING}</b>{f"<ul>{items}</ul>" if items else ""}</div>'
    )


def _plain(value):
    """A value of the predictions' record in words: {"top_k": 1} -> 'top_k 1'."""
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _tiles(result, first):
    ours, out = result["systems"][first.key]["metrics"], []
    for key in TILES:
        if key not in ours or ours[key]["value"] is None:
            continue
        m, e = METRICS[key], ours[key]
        interval = ""
        if e["low"] is not None:
            interval = f" <small>[{number(e['low'], m.digits)}, {number(e['high'], m.digits)}]</small>"
        lines = []
        for other in ("copy", "shuffled", "echo", "reconstruction", "followup"):
            theirs = result["systems"].get(other, {}).get("metrics", {}).get(key)
            if theirs is None or theirs["value"] is None or (key == "ssim_followup" and other == "followup"):
                continue
            gap = result["differences"].get(other, {}).get(key, {})
            clear = gap.get("low") is not None and (gap["low"] > 0 or gap["high"] < 0)
            # Ceilings are there to be missed, and the echo repeats the prompt by construction.
            clear &= result["systems"][other]["role"] == "baseline" and other != "echo"
            style = "" if not clear else "good" if gap["value"] * m.better > 0 else "bad"
            title = escape(result["systems"][other]["title"])
            lines.append(f'<div>{title} <span class="{style}">{number(theirs["value"], m.digits)}</span></div>')
        out.append(
            f'<div class="tile"><div class="label">{escape(m.title)}</div>'
            f'<div class="value">{number(e["value"], m.digits)}{interval}</div>'
            f'<div class="versus soft">{"".join(lines)}</div></div>'
        )
    if not out:
        return ""
    legend = (
        f"{escape(first.title)}, and below it baselines and ceilings. A baseline is "
        '<span class="good">green</span> where it is behind and <span class="bad">red</span> where it is '
        "ahead by a paired difference whose interval excludes zero."
    )
    return f'<div class="tiles">{"".join(out[:5])}</div><p class="note">{legend}</p>'


def _plot(result):
    keys = [
        k
        for k in PLOTTED
        if sum(s["metrics"].get(k, {}).get("value") is not None for s in result["systems"].values()) > 1
    ]
    if not keys:
        return ""
    return (
        f'<figure class="plot">{forest(result, keys)}<figcaption>Point and 95 % interval; dashed: chance. '
        "Filled: the system under test; gray: baselines; hollow: ceilings.</figcaption></figure>"
    )


def _cell(e, digits):
    if e is None:
        return '<td class="none">–</td>'
    if e["value"] is None:
        return '<td class="none">undefined</td>'
    flag = f' <span class="flag" title="{escape("; ".join(e["flags"]))}">*</span>' if e["flags"] else ""
    ci = ""
    if e["low"] is not None:
        ci = f'<span class="ci">{number(e["low"], digits)} – {number(e["high"], digits)}</span>'
    return f"<td>{number(e['value'], digits)}{flag}{ci}</td>"


def _section(result, heading, keys, first):
    keys, systems = shown(result, keys)
    if not keys:
        return ""
    head = "".join(f'<th title="{escape(METRICS[k].definition)}">{escape(METRICS[k].title)}</th>' for k in keys)
    body, role = [], None
    for key, s in systems.items():
        style = ["first"] if key == first else [s["role"]]
        if role is not None and s["role"] != role:
            style.append("edge")
        role = s["role"]
        name = f"{escape(s['title'])}" + (f'<span class="ci">{escape(s["note"])}</span>' if s["note"] else "")
        cells = "".join(_cell(s["metrics"].get(k), METRICS[k].digits) for k in keys)
        body.append(f'<tr class="{" ".join(style)}"><td>{name}</td>{cells}</tr>')
    terms = "".join(f"<dt>{escape(METRICS[k].title)}</dt><dd>{escape(METRICS[k].definition)}</dd>" for k in keys)
    note = f'<p class="note">{escape(features_line(result))}</p>' if "fid" in keys else ""
    return (
        f"<h2>{escape(heading)}</h2>"
        f'<div class="scroll"><table class="dense"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{note}"
        f"<details><summary>What the columns mean</summary><dl>{terms}</dl></details>"
    )


def _memorisation(result):
    table = memorisation_table(result)
    return html(table) if table else ""


def _tests(result):
    """Paired tests of the systems given: a table of differences with p-values."""
    blocks = []
    for test in result["tests"]:
        rows = [
            f"<tr><td>{escape(METRICS[k].title)}</td>{_cell(m, METRICS[k].digits)}<td>{m['p']:.2g}</td>"
            f"<td>{m['p_holm']:.2g}</td></tr>"
            for k, m in test["metrics"].items() if "p_holm" in m
        ]  # fmt: skip
        if rows:
            names = " − ".join(escape(result["systems"][test[k]]["title"]) for k in "ab")
            blocks.append(
                f'<h3>{names}</h3><div class="scroll"><table class="dense"><thead><tr><th></th><th>difference</th>'
                f"<th>p</th><th>p, Holm</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
            )
    if not blocks:
        return ""
    note = "Paired by patient; two-sided bootstrap p, and adjusted by Holm's procedure over the rows of one table."
    return f'<h2>Paired tests</h2><p class="note">{note}</p>{"".join(blocks)}'


def _per_finding(result, first):
    systems = result["systems"]
    parts = {f: p for f, p in systems[first]["parts"].items() if "finding_auroc" in p}
    if not parts:
        return ""

    def of(system, finding, key):
        return _cell(systems.get(system, {}).get("parts", {}).get(finding, {}).get(key), METRICS[key].digits)

    rows = []
    for finding, p in parts.items():
        c = p["counts"]
        rows.append(
            f"<tr><td>{escape(finding)}</td><td>{c['positives']} / {c['negatives']}</td>"
            + "".join(of(s, finding, "finding_auroc") for s in (first, "copy", "reconstruction"))
            + f"<td>{c['changed_positives']} / {c['changed_negatives']}</td>"
            + "".join(of(s, finding, "finding_auroc_changed") for s in (first, "copy", "reconstruction"))
            + of(first, finding, "gap_closed")
            + f"<td>{c.get('named', '–')}</td>"
            + of(first, finding, "directional_accuracy")
            + "</tr>"
        )
    ours = escape(systems[first]["title"])
    return (
        "<h2>Finding by finding</h2>"
        '<p class="note">Changed: cases in which the finding truly changed. Gap closed = (system − copy) / '
        "(reconstructed follow-up − copy) there. Fewer than 20 on either side makes an AUROC unreliable.</p>"
        '<div class="scroll"><table class="dense"><thead>'
        f"<tr><th></th><th>present / absent</th><th>AUROC {ours}</th><th>copy</th><th>recon&shy;structed</th>"
        f"<th>changed: present / absent</th><th>AUROC {ours}</th><th>copy</th><th>recon&shy;structed</th>"
        "<th>gap closed</th><th>named in prompt</th><th>direction</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sheet(first, measured, refs, shown, seed):
    order = drawn_cases(first.rows, shown, seed)
    if not len(order):
        return ""
    cards = [_case(first, measured, refs, int(r)) for r in order]
    return (
        f"<h2>Cases</h2><p>{len(order)} of {len(first_rows(first.rows))} cases, drawn at random (seed {seed}), "
        f"not by result."
        f' Difference maps: darker <span class="scale"></span> brighter than the prior, full colour at '
        f"{DIFFERENCE} gray levels.</p>" + "".join(cards)
    )


def _case(first, measured, refs, r):
    case = int(first.rows.case[r])
    row = refs.rows[case]
    prior, true = refs.image(case, "prior"), refs.image(case, "counterfactual")
    name = "True counterfactual"
    if true is None:
        true, name = refs.image(case, "followup"), "Real follow-up"
    images = [figure(prior, "Prior")]
    if first.has_images:
        made = first.image(refs, r)
        images += [figure(made, "Generated"), figure(true, name)]
        images += [figure(difference_map(made, prior), "Generated − prior")]
    else:
        images += [figure(true, name)]
    images.append(figure(difference_map(true, prior), f"{name.split()[-1].capitalize()} − prior"))
    words = [("Prompt", first.rows.prompts[r])]
    if first.rows.prompts[r] != row["prompt"]:
        words.append(("Prompt of the references", row["prompt"]))
    if first.rows.texts is not None:
        words.append(("Generated text", first.rows.texts[r]))
    words.append(("Reference interpretation", row["interpretation"]))
    told = "".join(f"<div><b>{escape(k)}</b>{escape(v) or '<i>empty</i>'}</div>" for k, v in words)
    return (
        f'<div class="case"><div class="note">{escape(str(row["pair_id"]))}</div>'
        f'<div class="images">{"".join(images)}</div><div class="words">{told}</div>'
        f"{_chips(measured.case_values, r)}</div>"
    )


def _chips(values, r):
    """The scorer's probability before and after, for findings that the prompt names or that crossed 0.5."""
    if not values:
        return ""
    chips = []
    for j, finding in enumerate(values["columns"]):
        before, after, way = values["prior_prob"][r, j], values["prob"][r, j], values["named"][r, j]
        if abs(way) == 1:
            good = way * (after - before) > 0
            mark = '<span class="good">✓</span>' if good else '<span class="bad">✗</span>'
            mark += f" asked {'up' if way > 0 else 'down'}"
        elif (before >= 0.5) != (after >= 0.5):
            mark = "not asked"
        else:
            continue
        chips.append(f'<span class="chip">{escape(finding)} {before:.2f} → {after:.2f} {mark}</span>')
    return f'<div class="chips">Scorer:{"".join(chips)}</div>' if chips else ""


def _foot(result):
    notes = {f"{s['title']}: {n}" for s in result["systems"].values() for n in s["notes"]}
    items = "".join(f"<li>{escape(n)}</li>" for n in sorted(notes))
    organs = ", ".join(findings.ORGANS)
    terms = result["cmig_terms"]
    right, kept = (", ".join(METRICS[k].title for k in terms[half]) for half in ("accuracies", "retentions"))
    text = (
        "* flags a number to distrust (hover for the reason): fewer than 20 positives or negatives, or "
        "undefined in some resamples. “undefined” is not zero: the metric has no value on these cases. "
        f"“–”: does not apply. CMIG terms: accuracies {right}; retentions {kept}. The CMIG column printed in "
        f"the MedJourney paper does not follow from its formula; this one does. Organs: {organs}. All "
        "numbers with intervals and paired differences: metrics.json."
    )
    page = f'<h2>How to read this</h2><p class="soft">{text}</p>'
    if items:
        page += f'<details><summary>Notes</summary><ul class="soft">{items}</ul></details>'
    return page
