"""Image metrics of one system: one task a case, on threads; NumPy and Pillow release the lock while they work."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from progemu_jax.eval.metrics import image, uncertainty
from progemu_jax.eval.metrics.image import Pyramid

PRIOR = ("ssim_prior", "mae_prior")
FOLLOWUP = ("ssim_followup", "ms_ssim_followup", "psnr_followup")
UNCHANGED = ("ssim_unchanged", "ms_ssim_unchanged", "psnr_unchanged")
TRUTH = ("ssim_counterfactual", "psnr_counterfactual", "mae_counterfactual")
SAMPLES = ("diversity", "uncertainty_error_r")


def _threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_metrics(candidate, truth, out):
    """(ratios, functions) of the image metrics of a Candidate; notes and flags go into the Measured `out`.

    A case with several samples is judged sample by sample; diversity and calibration belong to the case and stand
    in the row of its first sample.
    """
    rows = candidate.rows
    keys = PRIOR if candidate.role == "control" else (*PRIOR, *FOLLOWUP, *UNCHANGED, *TRUTH, *SAMPLES)
    values = {k: np.full(len(rows), np.nan) for k in keys}
    sums = np.zeros((len(rows), 3, uncertainty.BINS + 1))
    starts = np.flatnonzero(np.r_[True, np.diff(rows.case) != 0]) if len(rows) else np.array([], int)
    tasks = [np.arange(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
    sources = set()
    with ThreadPoolExecutor(_threads()) as pool:
        judge = partial(_case, candidate, truth)
        for members, (found, calibration, source) in zip(tasks, pool.map(judge, tasks), strict=True):
            for key, column in found.items():
                values[key][members[: len(column)]] = column
            if calibration is not None:
                sums[members[0]] = calibration
            sources.add(source)
    return _collect(values, sums, sources - {None}, truth, out)


def _collect(values, sums, sources, truth, out):
    ratios, functions = {}, {}
    for key, column in values.items():
        if np.isnan(column).all():
            continue
        finite = np.isfinite(column)
        ratios[key] = (np.where(finite, column, 0.0), finite.astype(np.float64))
        same = int(np.isinf(column).sum())
        if same:
            out.flags.setdefault(key, []).append(f"{same} of {len(column)} images identical: infinite, left out")
    if sums.any():
        flat = sums.reshape(len(sums), -1)
        functions["uncertainty_ence"] = lambda w: uncertainty.ence((w @ flat).reshape(len(w), *sums.shape[1:]))
    fit = image.scales(truth.references.shape)
    if "ms_ssim_followup" in ratios and fit < len(image.SCALES):
        out.notes.append(f"ms_ssim: {fit} of 5 scales fit images of this size")
    for source in sorted(sources):
        out.notes.append(f"outside the changed region: {source}")
    return ratios, functions


def _case(candidate, truth, members):
    """(metric -> values of the case's rows, calibration sums or None, source of the changed region) of one case."""
    refs = truth.references
    case = int(candidate.rows.case[members[0]])
    prior_image = refs.image(case, "prior")
    prior = Pyramid(prior_image)
    made = [candidate.image(refs, int(r)) for r in members]
    out = {k: [] for k in PRIOR}
    if candidate.role == "control":
        for picture in made:
            out["ssim_prior"].append(Pyramid(picture).similarities(prior, multi=False)[0])
            out["mae_prior"].append(image.mean_absolute_error(picture, prior_image))
        return out, None, None
    followup_image, true_image = refs.image(case, "followup"), refs.image(case, "counterfactual")
    followup = Pyramid(followup_image)
    true = None if true_image is None else Pyramid(true_image)
    region, source = truth.region(case, prior_image, true_image)
    out.update({k: [] for k in (*FOLLOWUP, *(UNCHANGED if region else ()), *(TRUTH if true else ()))})
    pyramids = [Pyramid(picture) for picture in made]
    for picture, pyramid in zip(made, pyramids, strict=True):
        out["ssim_prior"].append(pyramid.similarities(prior, multi=False)[0])
        out["mae_prior"].append(image.mean_absolute_error(picture, prior_image))
        single, multi = pyramid.similarities(followup)
        out["ssim_followup"].append(single)
        out["ms_ssim_followup"].append(multi)
        out["psnr_followup"].append(image.psnr(picture, followup_image))
        if region:
            single, multi = pyramid.similarities(prior, region)
            out["ssim_unchanged"].append(single)
            out["ms_ssim_unchanged"].append(multi)
            out["psnr_unchanged"].append(image.psnr(picture, prior_image, region))
        if true:
            out["ssim_counterfactual"].append(pyramid.similarities(true, multi=False)[0])
            out["psnr_counterfactual"].append(image.psnr(picture, true_image))
            out["mae_counterfactual"].append(image.mean_absolute_error(picture, true_image))
    if len(made) < 2:
        return out, None, source
    target = followup_image if true_image is None else true_image
    out["diversity"] = [uncertainty.diversity(pyramids)]
    out["uncertainty_error_r"] = [uncertainty.error_correlation(made, target)]
    return out, uncertainty.calibration_sums(made, target), source
