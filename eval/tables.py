"""What is measured: each metric's key, short title, format, chance level and definition, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A column of the tables. `better`: +1 higher, -1 lower, 0 neither. `chance`: value of no information."""

    title: str
    definition: str
    better: int = 1
    digits: int = 3
    chance: float | None = None


METRICS = {
    # Accuracy: does the image show what the prompt says?
    "finding_auroc": Metric(
        "Finding AUROC",
        "Mean over findings of the AUROC of the scorer's probability on the generated image against the true "
        "state after progression. Many findings persist, so copying the prior scores well above 0.5.",
        chance=0.5,
    ),
    "finding_auroc_changed": Metric(
        "AUROC, changed",
        "The same, each finding on the cases in which it truly changed. Copying the prior scores below 0.5.",
        chance=0.5,
    ),
    "finding_auprc": Metric("Finding AUPRC", "Mean over findings of average precision; chance is the prevalence."),
    "gap_closed": Metric(
        "Gap closed",
        "Mean over findings of (system - copy) / (tokenizer-reconstructed follow-up - copy), AUROC on "
        "changed cases: 0 is copying the prior, 1 is all that the tokenizer can carry.",
        digits=2,
    ),
    "directional_accuracy": Metric(
        "Direction",
        "Share of findings named in the prompt whose probability moved the stated way relative to the prior "
        "image; no movement is wrong. An edit that ignores the prompt scores about 0.5, an exact copy 0.",
    ),
    "directional_accuracy_margin": Metric(
        "Direction, by 0.05",
        "The same, moved by more than 0.05: noise around the prior counts as no movement.",
    ),
    "specificity": Metric(
        "Others kept",
        "Share of findings that neither the prompt names nor the truth changed, read rightly on the prior, "
        "that stay on their side of 0.5. An exact copy scores 1.",
    ),
    "edit_success": Metric(
        "Edit success",
        "Share of prompts with a change in which every named finding moved and no other was lost.",
    ),
    "kl_bernoulli": Metric(
        "KL",
        "Bernoulli KL (nats a finding) of the scorer on the real follow-up from the generated image.",
        -1,
    ),
    "kl_printed": Metric(
        "KL, printed form",
        "Sum over findings of p ln(p/q) as MedJourney prints it; no divergence, may be negative.",
        0,
    ),
    # Retention: is it still the same person?
    "group_auroc": Metric("Group AUROC", "One-vs-rest AUROC of the group attribute, macro mean.", chance=0.5),
    "age_r": Metric("Age r", "Pearson correlation of the scorer's age with the true age.", chance=0.0),
    "sex_auroc": Metric("Sex AUROC", "AUROC of the scorer's P(female).", chance=0.5),
    "dice_prior": Metric("Dice, prior", "Mean Dice of six organs, segmented on the generated image, with the prior's."),
    "dice_followup": Metric("Dice, follow-up", "The same with the real follow-up's organs."),
    "group_retention": Metric("Group, of ceiling", "(system - 0.5) / (real follow-up - 0.5).", digits=2),
    "age_retention": Metric("Age, of ceiling", "Age r of the system / of the real follow-up.", digits=2),
    "sex_retention": Metric("Sex, of ceiling", "(system - 0.5) / (real follow-up - 0.5).", digits=2),
    "cmig": Metric(
        "CMIG",
        "sqrt(geomean(accuracies) x geomean(retentions)) with accuracies = finding AUROC and retentions = "
        "group AUROC, age r. Undefined where a term is not above 0.",
    ),
    # Image
    "ssim_prior": Metric("SSIM, prior", "Structural similarity to the prior image (a copy scores 1).", 0),
    "ssim_unchanged": Metric(
        "SSIM, unchanged",
        "Structural similarity to the prior over windows in which prior and true counterfactual agree.",
    ),
    "mae_prior": Metric("MAE, prior", "Mean absolute difference to the prior, gray levels: 0 is no edit.", 0, 2),
    "ssim_followup": Metric("SSIM, follow-up", "Structural similarity to the real, registered follow-up."),
    "ms_ssim_followup": Metric("MS-SSIM, follow-up", "Multi-scale structural similarity to the real follow-up."),
    "psnr_followup": Metric("PSNR, follow-up", "Peak signal-to-noise ratio to the real follow-up, dB.", digits=2),
    "ssim_counterfactual": Metric("SSIM, truth", "Structural similarity to the true counterfactual."),
    "psnr_counterfactual": Metric(
        "PSNR, truth", "Peak signal-to-noise ratio to the true counterfactual, dB.", digits=2
    ),
    "mae_counterfactual": Metric(
        "MAE, truth", "Mean absolute difference to the true counterfactual, gray levels.", -1, 2
    ),
    # Text
    "text_right": Metric(
        "Right finding and side",
        "Share of prompts with a change of which the text states every change with side and direction and "
        "none on the wrong side. Repeating the prompt scores 1.",
    ),
    "text_change_precision": Metric("Change precision", "Precision of the changes that the text claims, all findings."),
    "text_change_recall": Metric("Change recall", "Recall of the true changes, all findings."),
    "text_change_f1": Metric("Change F1", "F1 of the changes that the text claims, all findings."),
    "text_omitted_change_f1": Metric(
        "Change F1, omitted", "Change F1 over findings that the prompt omits: repeating the prompt scores 0."
    ),
    "text_omitted_state_f1": Metric(
        "State F1, omitted", "F1 of the findings stated as present, over findings that the prompt omits."
    ),
    "text_image_agreement": Metric(
        "Agrees with image",
        "Share of states claimed by the text that the scorer sees on the generated image.",
    ),
    "text_image_agreement_omitted": Metric("Agrees, omitted", "The same over findings that the prompt omits."),
}

SECTIONS = (
    (
        "Accuracy: does the image show what the prompt says?",
        ("finding_auroc", "finding_auroc_changed", "gap_closed", "directional_accuracy",
         "directional_accuracy_margin", "specificity", "edit_success", "kl_bernoulli"),
    ),
    (
        "Retention: is it still the same person?",
        ("group_auroc", "age_r", "sex_auroc", "dice_prior", "dice_followup", "group_retention",
         "age_retention", "cmig"),
    ),
    (
        "Text: does the interpretation say what happened, and what the image shows?",
        ("text_right", "text_change_f1", "text_omitted_change_f1", "text_omitted_state_f1",
         "text_image_agreement", "text_image_agreement_omitted"),
    ),
    (
        "Image: how near is it to prior, follow-up and true counterfactual?",
        ("ssim_prior", "ssim_unchanged", "mae_prior", "ssim_followup", "ms_ssim_followup", "psnr_followup",
         "ssim_counterfactual", "psnr_counterfactual", "mae_counterfactual"),
    ),
)  # fmt: skip


def number(value, digits=3):
    """'0.812', or 'undefined' for None."""
    return "undefined" if value is None else f"{value:.{digits}f}"


def cell(estimate, digits=3):
    """'0.812 [0.790, 0.835]', 'undefined', or '' for a metric that does not apply (None)."""
    if estimate is None:
        return ""
    text = number(estimate["value"], digits)
    if estimate["low"] is not None:
        text += f" [{number(estimate['low'], digits)}, {number(estimate['high'], digits)}]"
    return text + ("*" if estimate["flags"] else "")


def write_markdown(result):
    """The tables of a metrics.json dict as Markdown."""
    lines = [f"# {result['title']}", ""]
    lines += [f"{result['cases']} cases of {result['patients']} patients; 95 % intervals over patients.", ""]
    lines += [f"> {c}" for c in result["caveats"]] + ([""] if result["caveats"] else [])
    for heading, keys in SECTIONS:
        keys = [k for k in keys if any(k in s["metrics"] for s in result["systems"].values())]
        if not keys:
            continue
        lines += [f"## {heading}", "", "| system | " + " | ".join(METRICS[k].title for k in keys) + " |"]
        lines.append("| --- |" + " --- |" * len(keys))
        for s in result["systems"].values():
            cells = [cell(s["metrics"].get(k), METRICS[k].digits) for k in keys]
            if any(cells):
                lines.append(f"| {s['title']} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines + ["\\* see the flags in metrics.json (few positives, undefined resamples).", ""])
