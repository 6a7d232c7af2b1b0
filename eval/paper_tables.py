"""The tables of the two papers as templates, filled for the systems given: paper.md, paper.tex, paper.html.

1. MedJourney's comparison: pathology AUROC, group (there: race) AUROC, age r, CMIG.
2. The same AUROC finding by finding.
3. MedJourney's KL and organ Dice (with both references, for the paper does not say which; see docs/evaluation.md).
4. ProgEmu's: FID, finding F1, BLEU-3, METEOR, ROUGE-L.

And MedJourney's printed columns with the CMIG that follows from them, so that nobody sets ours beside the printed one.
"""

from progemu_jax.eval.definitions import METRICS, cell, features_line
from progemu_jax.eval.metrics.cmig import cmig
from progemu_jax.eval.tables import Table, write_forms

# System: pathology AUROC, race AUROC, age r, CMIG as printed; percent (MedJourney, Gu et al. 2023).
PRINTED = {
    "Stable Diffusion": (49.90, 77.13, 2.73, 18.14),
    "InstructPix2Pix": (58.10, 78.25, 17.82, 42.12),
    "RoentGen": (79.61, 84.71, 28.91, 66.08),
    "MedJourney": (80.54, 97.22, 79.38, 83.23),
}
CMIG_NOTE = (
    "CMIG is sqrt(geomean(accuracies) x geomean(retentions)), accuracies: finding AUROC, retentions: group AUROC, age "
    "r. The CMIG column that MedJourney prints does not follow from this formula: never compare with it."
)


def recomputed():
    """System -> CMIG in percent that follows from MedJourney's printed columns by its printed formula."""
    return {
        name: 100 * float(cmig([pathology / 100], [race / 100, age / 100])[0])
        for name, (pathology, race, age, _) in PRINTED.items()
    }


def _rows(result, keys):
    rows = []
    for s in result["systems"].values():
        if s["role"] == "control":
            continue
        cells = [cell(s["metrics"].get(k), METRICS[k].digits) for k in keys]
        if any(cells):
            rows.append((s["title"], cells))
    return rows


def _by_finding(result):
    findings = list(dict.fromkeys(f for s in result["systems"].values() for f in s["parts"]
                                  if "finding_auroc" in s["parts"][f]))  # fmt: skip
    rows = []
    for s in result["systems"].values():
        cells = [cell(s["parts"].get(f, {}).get("finding_auroc"), 3) for f in findings]
        if any(cells):
            rows.append((s["title"], cells))
    return findings, rows


def paper_tables(result):
    """The four templates as Tables, filled from a metrics.json dict, and the recomputed column."""

    def template(number, title, keys, caption=""):
        columns = [METRICS[k].title for k in keys]
        return Table(f"Table {number}. {title}", columns, _rows(result, keys), caption, f"paper{number}")

    findings, rows = _by_finding(result)
    computed = recomputed()
    printed = [(name, [f"{v:.2f}" for v in values] + [f"{computed[name]:.2f}"]) for name, values in PRINTED.items()]
    return [
        template(1, "Accuracy and retention", ("finding_auroc", "group_auroc", "age_r", "cmig"), CMIG_NOTE),
        Table("Table 2. AUROC by finding", findings, rows, "Not defined with one class only.", "paper2"),
        template(3, "Divergence and anatomy", ("kl_bernoulli", "kl_printed", "dice_prior", "dice_followup"),
                 "The printed form of KL is no divergence and may be negative; Dice is the mean of six organs."),
        template(4, "Images and texts", ("fid", "finding_f1", "bleu_3", "meteor_exact_stem", "rouge_l"),
                 features_line(result)),
        Table("MedJourney as printed, and the CMIG that follows", ["Pathology", "Race", "Age r", "CMIG printed",
              "CMIG by the formula"], printed, "Percent.", "paperprinted"),
    ]  # fmt: skip


def write_paper(result, folder):
    """Writes paper.md, paper.tex and paper.html."""
    about = [f"{result['cases']} cases of {result['patients']} patients.", *result["caveats"]]
    write_forms(folder, "paper", f"{result['title']}: the papers' tables", about, paper_tables(result))
