"""FID and its like of a system: of all its images, finding by finding, and of real follow-ups against real ones."""

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.eval.metrics import fidelity, utility

FLOOR = "real_halves"
FLOOR_NOTE = (
    "Real follow-ups of one half of the patients against those of the other half, mean of random halves: what each "
    "metric reads when both sides are real. The sets are half as large: compare FID at half n."
)
PART_SUBSAMPLES = 20  # half-samples behind an interval of one finding


def measure_fidelity(candidate, truth, out, subsamples, seed):
    """Adds FID, KID, nearest neighbours and utility to a Measured, where there are features of one backbone.

    By finding, on the cases that truly have it after the progression, follow-ups and generated images alike, they go to
    `out.findings`. For a candidate of role "floor" the two sides are real follow-ups of other patients.
    """
    scores, real = candidate.features or candidate.scores, truth.followup_features
    if real is None or real.features is None:
        return
    refs, rows, patient = truth.references, candidate.rows, truth.patient
    followup = real.features[real.take(refs.pair_ids, np.zeros(len(refs.rows), int))]
    findings = (candidate.scores.findings if candidate.scores else ()) or refs.names
    have = np.stack([refs.present(finding, "after") for finding in findings], axis=1)
    if candidate.role == "floor":
        if got := fidelity.real_halves(followup, patient, subsamples, seed):
            out.distributions.update(got)
            _utility(out, followup, have, patient, followup, have, patient, subsamples, seed)
            half = followup[len(followup) // 2 :]  # about: a patient's films stay together
            _note(out, real, len(followup) - len(half), half, got)
        return
    if scores is None or scores.features is None or candidate.image_kind == "followup" or candidate.role == "control":
        return  # no features, the same images, or other prompts
    if (scores.backbone, scores.features.shape[1]) != (real.backbone, real.features.shape[1]):
        raise UserError(
            f"{scores.path}: features of {scores.backbone!r}, but {real.path} has {real.backbone!r}; use one network"
        )
    made = scores.features[scores.take([refs.pair_ids[i] for i in rows.case], rows.sample)]
    got = fidelity.fidelity(followup, made, patient, patient[rows.case], subsamples, seed)
    out.distributions.update(got)
    _note(out, real, len(followup), made, got)
    _utility(out, made, have[rows.case], patient[rows.case], followup, have, patient, subsamples, seed)
    for finding, there in zip(findings, (have == 1).T, strict=True):
        shown = there[rows.case]
        got = fidelity.fidelity(
            followup[there], made[shown], patient[there], patient[rows.case][shown],
            min(subsamples, PART_SUBSAMPLES), seed,
        )  # fmt: skip
        out.findings.setdefault(finding, {}).update({name: got[name] for name in fidelity.NAMES})
        out.counts.setdefault(finding, {})["images"] = int(shown.sum())


def _utility(out, *given):
    got = utility.utility(*given)
    if len(got) > 1:
        out.distributions["utility_auroc"] = got


def _note(out, real, count, made, got):
    out.features = {
        "backbone": real.backbone, "dimensions": int(made.shape[1]), "real": count, "generated": len(made),
        "neighbours": fidelity.NEIGHBOURS, "dense_neighbours": fidelity.DENSE_NEIGHBOURS,
        "subsamples": len(got["kid"]) - 1,
    }  # fmt: skip
