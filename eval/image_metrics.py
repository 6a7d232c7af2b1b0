"""Image metrics of all systems: one task a case, on threads; NumPy and Pillow release the lock while they work."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from progemu_jax.eval.metrics import image, uncertainty
from progemu_jax.eval.metrics.image import Pyramid

PRIOR = ("ssim_prior", "mae_prior")
ASKED = ("mae_asked", "mae_asked_copy")
FOLLOWUP = ("ssim_followup", "ms_ssim_followup", "psnr_followup")
UNCHANGED = ("ssim_unchanged", "ms_ssim_unchanged", "psnr_unchanged")
TRUTH = ("ssim_counterfactual", "psnr_counterfactual", "mae_counterfactual", "tea_effectiveness", "tea_amplification")
SAMPLES = ("diversity", "uncertainty_error_r")


def _threads():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def image_metrics(candidates, truth, outs):
    """(ratios, functions) of the image metrics of each Candidate; notes and flags go into its Measured in `outs`.

    All systems are judged case by case, so that a case's reference images are read and filtered once. A case with
    several samples is judged sample by sample; diversity and calibration belong to the case and stand in the row of
    its first sample.
    """
    plans = []
    for candidate in candidates:
        rows = candidate.rows
        other = () if candidate.role == "control" else (*FOLLOWUP, *UNCHANGED, *TRUTH, *SAMPLES)
        values = {k: np.full(len(rows), np.nan) for k in (*PRIOR, *ASKED, *other)}
        sums = np.zeros((len(rows), 3, uncertainty.BINS + 1))
        starts = np.flatnonzero(np.r_[True, np.diff(rows.case) != 0]) if len(rows) else np.array([], int)
        members = {int(rows.case[a]): np.arange(a, b) for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)}
        plans.append((candidate, members, values, sums))
    cases = sorted(set().union(*(members for _, members, _, _ in plans)))
    sources = set()
    with ThreadPoolExecutor(_threads()) as pool:
        judge = partial(_case, [(c, members) for c, members, _, _ in plans], truth)
        for case, (found, source) in zip(cases, pool.map(judge, cases), strict=True):
            sources.add(source)
            for (_, members, values, sums), judged in zip(plans, found, strict=True):
                if judged is None:
                    continue
                columns, calibration = judged
                for key, column in columns.items():
                    values[key][members[case][: len(column)]] = column
                if calibration is not None:
                    sums[members[case][0]] = calibration
    return [
        _collect(values, sums, sources - {None}, truth, out)
        for (_, _, values, sums), out in zip(plans, outs, strict=True)
    ]


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


class _Known:
    """A case's reference images and what follows from them; each made when it is first asked for."""

    def __init__(self, truth, case):
        self.refs, self.case = truth.references, case
        self.images = {k: self.refs.image(case, k) for k in ("prior", "followup", "counterfactual")}
        self.pyramids = {}
        self.region, self.source = truth.region(case, self.images["prior"], self.images["counterfactual"])

    def image(self, kind):
        """uint8 [H, W] of kind prior, followup, counterfactual or mean."""
        return self.images[kind] if kind in self.images else self.refs.image(self.case, kind)

    def pyramid(self, kind):
        """Its Pyramid, shared by all that is compared with it."""
        if kind not in self.pyramids:
            self.pyramids[kind] = Pyramid(self.image(kind))
        return self.pyramids[kind]


def _case(candidates, truth, case):
    """([per candidate: (metric -> values of the case's rows, calibration sums or None), or None], region's source)."""
    known = _Known(truth, case)
    out = [_judge(c, known, members[case]) if case in members else None for c, members in candidates]
    return out, known.source


def _judge(candidate, known, members):
    if candidate.image_kind is not None:
        made, pyramids = [known.image(candidate.image_kind)], [known.pyramid(candidate.image_kind)]
    else:
        made = [candidate.image(known.refs, int(r)) for r in members]
        pyramids = [Pyramid(picture) for picture in made]
    prior_image, prior = known.image("prior"), known.pyramid("prior")
    region = None if candidate.role == "control" else known.region
    kept = [p.compare(prior, (None, region), multi=region is not None) for p in pyramids]
    out = {
        "ssim_prior": [everywhere[0] for everywhere, _ in kept],
        "mae_prior": [image.mean_absolute_error(picture, prior_image) for picture in made],
    }
    if candidate.answers is not None:
        answers = [candidate.answer(known.refs, int(r)) for r in members]
        for key, pictures in zip(ASKED, (made, [prior_image] * len(made)), strict=True):
            pairs = zip(pictures, answers, strict=True)
            out[key] = [np.nan if a is None else image.mean_absolute_error(picture, a) for picture, a in pairs]
    if candidate.role == "control":
        return out, None
    followup_image, true_image = known.image("followup"), known.image("counterfactual")
    both = [p.similarities(known.pyramid("followup")) for p in pyramids]
    out["ssim_followup"], out["ms_ssim_followup"] = map(list, zip(*both, strict=True))
    out["psnr_followup"] = [image.psnr(picture, followup_image) for picture in made]
    if region is not None:
        out["ssim_unchanged"], out["ms_ssim_unchanged"] = map(list, zip(*(pair[1] for pair in kept), strict=True))
        out["psnr_unchanged"] = [image.psnr(picture, prior_image, region) for picture in made]
    if true_image is not None:
        true = known.pyramid("counterfactual")
        out["ssim_counterfactual"] = [p.similarities(true, multi=False)[0] for p in pyramids]
        out["psnr_counterfactual"] = [image.psnr(picture, true_image) for picture in made]
        out["mae_counterfactual"] = [image.mean_absolute_error(picture, true_image) for picture in made]
        edits = [image.tea(picture, prior_image, true_image) for picture in made]
        out["tea_effectiveness"], out["tea_amplification"] = map(list, zip(*edits, strict=True))
    if len(made) < 2:
        return out, None
    target = followup_image if true_image is None else true_image
    out["diversity"] = [uncertainty.diversity(pyramids)]
    out["uncertainty_error_r"] = [uncertainty.error_correlation(made, target)]
    return out, uncertainty.calibration_sums(made, target)
