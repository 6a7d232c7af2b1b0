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
    "finding_auroc_soft": Metric(
        "AUROC, soft labels",
        "Mean over findings of the AUROC against the scorer's own probability on the real follow-up as a soft label.",
        chance=0.5,
    ),
    "finding_f1": Metric("Finding F1", "Mean over findings of F1 of the scorer at 0.5 on the generated image."),
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
    "others_still": Metric(
        "Others still, by 0.05",
        "Share of findings that neither the prompt names nor the truth changed whose probability stayed within 0.05 "
        "of the prior's. An exact copy scores 1.",
    ),
    "edit_success": Metric(
        "Edit success",
        "Share of prompts with a change in which every named finding moved and no other was lost.",
    ),
    "effect": Metric(
        "Effect",
        "Mean change, in the stated direction, of the probability of findings named in the prompt. A copy scores 0,"
        " the real follow-up what the scorer can see.",
    ),
    "flip_rate": Metric(
        "Flipped",
        "Share of findings named in the prompt, seen on the prior on the side of 0.5 that the prompt leads away from, "
        "that are seen on the other side. A copy scores 0.",
    ),
    "finding_shift": Metric(
        "Others amplified",
        "Mean change of the probability of findings that neither the prompt names nor the truth changed, towards the "
        "side of 0.5 that they were on: above 0 amplified, below washed out.",
        0,
    ),
    "severity_direction": Metric(
        "Direction, by severity",
        "Share of truly changed findings, named or not, whose severity, as the scorer sees it, moved the true way from "
        "the prior's by more than 0.05. A copy scores 0. Unlike a probability, a severity does not saturate.",
    ),
    "severity_mae": Metric(
        "Severity error", "Mean absolute error of the severity, 0 to 1, that the scorer sees, to the true one.", -1
    ),
    "severity_still": Metric(
        "Others still, by severity",
        "Share of findings that neither the prompt names nor the truth changed whose severity stayed within 0.05 of "
        "the prior's. An exact copy scores 1.",
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
    "verified": Metric(
        "Verified",
        "Share of images that a re-identification network takes for the prior's patient, at a threshold that 1 % of "
        "strangers' real films of the same sex pass. A copy scores 1; the real follow-up says what another day's film "
        "of the patient reaches.",
        chance=0.01,
    ),
    "identity_auroc": Metric(
        "Identity AUROC",
        "Share of those strangers that are less alike to the prior than the image is.",
        chance=0.5,
    ),
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
    # Honesty: judged by the prompt that the system was really given
    "own_direction": Metric(
        "Own prompt's direction",
        "Share of findings named in the prompt that the system was given (contradicting, shuffled, ...) that moved "
        "as that prompt says. About 0.5 where the prompt is ignored.",
    ),
    "own_direction_margin": Metric("Own direction, by 0.05", "The same, moved by more than 0.05."),
    "severity_own_direction": Metric(
        "Own direction, by severity", "The same by severity: moved as that prompt says by more than 0.05."
    ),
    "mae_asked": Metric(
        "MAE, asked",
        "Mean absolute difference to the rendered true answer to the prompt that the system was given (same patient "
        "and acquisition, the state that the prompt asks for), gray levels.",
        -1,
        2,
    ),
    "mae_asked_copy": Metric(
        "MAE, asked, of the prior",
        "The prior's own difference to that answer, same cases: what no edit at all would have.",
        0,
        2,
    ),
    "group_flip": Metric("Group flipped", "Share of images whose most probable group is another than the prior's.", -1),
    "group_shift": Metric(
        "Group shift",
        "Mean change of the probability of the prior's most probable group: above 0 amplified, below washed out.",
        0,
    ),
    "age_shift": Metric("Age shift", "Mean age seen on the image minus age seen on the prior, years.", 0, 2),
    "age_shift_abs": Metric("|Age shift|", "Mean absolute difference of the two ages, years.", -1, 2),
    "sex_flip": Metric("Sex flipped", "Share of images whose P(female) crossed 0.5 from the prior.", -1),
    "saliency_r": Metric(
        "Saliency r",
        "Pearson r of the scorer's Grad-CAM map on the generated image with that on the real follow-up, findings "
        "that the prompt names.",
    ),
    # Fidelity and diversity
    "fid": Metric("FID", "Frechet distance of features from the real follow-ups'; compare equal n only.", -1, 2),
    "fid_half": Metric(
        "FID at half n",
        "The same, mean of half-samples of the patients: compare this with the row of real against real follow-ups.",
        -1,
        2,
    ),
    "kid": Metric("KID", "Unbiased squared MMD of features, cubic kernel.", -1, 4),
    "feature_precision": Metric("Precision", "Share of generated images within reach of real ones (k = 3)."),
    "feature_recall": Metric(
        "Recall",
        "Share of real images within reach of generated ones (k = 3). It can rise as diversity falls: the reach of a "
        "few generated images that lie far apart is large. Read it beside coverage.",
    ),
    "feature_density": Metric(
        "Density",
        "Mean number of real images that a generated one is within reach of, over k = 5; about 1 for real images, and "
        "above 1 for images that crowd where real ones are common.",
    ),
    "feature_coverage": Metric(
        "Coverage",
        "Share of real images with a generated one within their reach (k = 5); of as many real images about 0.97.",
    ),
    "utility_auroc": Metric(
        "Utility AUROC",
        "AUROC, on real follow-ups, of a linear classifier of the features that was fitted to the images of other "
        "patients, mean over findings and over 20 random halves. The row of real against real was fitted to real ones.",
        chance=0.5,
    ),
    "diversity": Metric("Diversity", "1 - MS-SSIM of two futures of one case, mean over pairs.", 0),
    "uncertainty_ence": Metric(
        "Calibration error",
        "Expected normalised calibration error of the uncertainty map (spread of the samples): 0 is calibrated.",
        -1,
    ),
    "uncertainty_error_r": Metric(
        "Spread-error r", "Pearson r over pixels of the samples' spread with the error of their mean."
    ),
    # Image
    "ssim_prior": Metric("SSIM, prior", "Structural similarity to the prior image (a copy scores 1).", 0),
    "ssim_unchanged": Metric(
        "SSIM, unchanged",
        "Structural similarity to the prior outside the changed region: windows in which prior and true "
        "counterfactual agree within 4 gray levels, else outside the organs that the prompt or the truth concerns.",
    ),
    "ms_ssim_unchanged": Metric("MS-SSIM, unchanged", "Multi-scale structural similarity to the prior there."),
    "psnr_unchanged": Metric("PSNR, unchanged", "Peak signal-to-noise ratio to the prior there, dB.", digits=2),
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
    "tea_effectiveness": Metric(
        "TEA effectiveness",
        "How much of the change of pixels from prior to true counterfactual the image makes: 0 a copy, 1 all of it, "
        "above 1 too much.",
        0,
    ),
    "tea_amplification": Metric(
        "TEA amplification",
        "Length of the image's other changes of pixels from the prior (intensities from 0 to 1, so it grows with the "
        "number of pixels): 0 a copy or the true counterfactual.",
        -1,
        2,
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
    "bleu_1": Metric("BLEU-1", "Corpus BLEU of single words (sacrebleu, 13a, lower case, no smoothing), 0 to 1."),
    "bleu_2": Metric("BLEU-2", "Up to two words."),
    "bleu_3": Metric("BLEU-3", "Up to three words."),
    "bleu_4": Metric("BLEU-4", "Up to four words."),
    "meteor_exact_stem": Metric(
        "METEOR, exact+stem", "NLTK's METEOR without synonyms (no WordNet): not comparable with METEOR proper."
    ),
    "rouge_l": Metric("ROUGE-L", "F of the longest common subsequence (rouge-score, no stemming)."),
    "chexbert_f1": Metric("CheXbert F1", "Micro F1 of the 14 CheXbert labels (f1chexbert)."),
    "radgraph_f1": Metric("RadGraph F1", "Mean F1 of entities and relations, partial (radgraph)."),
    "green": Metric("GREEN", "Mean GREEN score (green_score)."),
    "ratescore": Metric("RaTEScore", "Mean RaTEScore (radeval): entities, with synonyms."),
    "radcliq_v1": Metric("RadCliQ", "Mean RadCliQ-v1 (radeval): about how many errors a radiologist would find.", -1),
    "temporal_f1": Metric("Temporal F1", "Mean F1 of words of change and time (radeval)."),
    "srrbert_weighted_f1": Metric("SRR-BERT F1", "Mean F1 of the labels of structured reports (radeval)."),
}

SECTIONS = (
    (
        "Accuracy: does the image show what is there?",
        ("finding_auroc", "finding_auroc_changed", "gap_closed", "finding_auprc", "finding_f1", "finding_auroc_soft",
         "kl_bernoulli", "saliency_r"),
    ),
    (
        "Direction: did what the prompt names move, and nothing else?",
        ("directional_accuracy", "directional_accuracy_margin", "effect", "flip_rate", "specificity", "others_still",
         "finding_shift", "edit_success", "severity_direction", "severity_mae", "severity_still"),
    ),
    (
        "Retention: is it still the same person?",
        ("group_auroc", "age_r", "sex_auroc", "verified", "identity_auroc", "dice_prior", "dice_followup",
         "group_retention", "age_retention", "cmig"),
    ),
    (
        "Honesty: does it follow the prompt it was given, and what else did it change?",
        ("own_direction", "own_direction_margin", "others_still", "severity_own_direction", "severity_still",
         "mae_asked", "mae_asked_copy", "group_flip", "group_shift", "age_shift", "age_shift_abs", "sex_flip",
         "mae_prior"),
    ),
    (
        "Text: does the interpretation say what happened, and what the image shows?",
        ("text_right", "text_change_precision", "text_change_recall", "text_change_f1", "text_omitted_change_f1",
         "text_omitted_state_f1", "text_image_agreement", "text_image_agreement_omitted"),
    ),
    (
        "Words: overlap with the reference interpretation",
        ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor_exact_stem", "rouge_l", "chexbert_f1", "radgraph_f1", "green",
         "ratescore", "radcliq_v1", "temporal_f1", "srrbert_weighted_f1"),
    ),
    (
        "Image: how near is it to prior, follow-up and true counterfactual?",
        ("ssim_prior", "ssim_unchanged", "ms_ssim_unchanged", "psnr_unchanged", "ssim_followup", "ms_ssim_followup",
         "psnr_followup", "ssim_counterfactual", "psnr_counterfactual", "mae_counterfactual", "tea_effectiveness",
         "tea_amplification"),
    ),
    (
        "Fidelity and diversity of the images",
        ("fid", "fid_half", "kid", "feature_precision", "feature_recall", "feature_density", "feature_coverage",
         "utility_auroc", "diversity", "uncertainty_ence", "uncertainty_error_r"),
    ),
)  # fmt: skip


def shown(result, keys):
    """(keys that any system has, systems that have any of them) of a metrics.json dict."""
    keys = [k for k in keys if any(k in s["metrics"] for s in result["systems"].values())]
    return keys, {name: s for name, s in result["systems"].items() if any(k in s["metrics"] for k in keys)}


def features_line(result):
    """What FID and its like were computed on, '' without any: backbone and n stand beside the numbers, always."""
    seen = {}
    for s in result["systems"].values():
        if s.get("features"):
            f = s["features"]
            text = (
                f"{f['real']} real follow-ups, {f['backbone']} ({f['dimensions']} features), k = {f['neighbours']}, "
                f"of the last two {f['dense_neighbours']}"
            )
            seen.setdefault(text, []).append(f"{s['title']} {f['generated']}")
    return "; ".join(
        f"FID, KID, precision, recall, density and coverage against {k}; n generated: {', '.join(v)}"
        for k, v in seen.items()
    )


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
