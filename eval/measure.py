"""One system -> the bootstrap distribution of every metric that its outputs allow.

A metric whose inputs are missing (no images, no scores, no text, no truth) is simply not in the result; one
that is there but undefined is NaN.
"""

from dataclasses import dataclass, field

import numpy as np

from progemu_jax import radtext
from progemu_jax.errors import UserError
from progemu_jax.eval.metrics import direction, divergence, image, text
from progemu_jax.eval.metrics.retention import Correlation
from progemu_jax.eval.metrics.roc import Ranking
from progemu_jax.eval.predictions import Rows, Scores, pack, read_image


@dataclass
class Candidate:
    """One row of the table: a system's outputs, or reference images for a baseline or ceiling; scores."""

    key: str
    title: str
    role: str  # "system", "baseline" or "ceiling"
    rows: Rows
    scores: Scores | None = None
    image_kind: str | None = None  # "prior", "followup", "counterfactual": images are the references' own
    note: str = ""

    @property
    def has_images(self):
        """Whether image metrics can be computed."""
        return self.image_kind is not None or self.rows.images is not None

    def image(self, references, r):
        """uint8 [H, W] of row r."""
        if self.image_kind is not None:
            return references.image(int(self.rows.case[r]), self.image_kind)
        case = references.pair_ids[int(self.rows.case[r])]
        return read_image(self.rows.images[r], references.shape, f" (case {case})")


@dataclass
class Measured:
    """Distributions float [1 + B] by metric; per finding; counts and flags beside them."""

    distributions: dict = field(default_factory=dict)
    findings: dict = field(default_factory=dict)  # finding -> {metric: distribution}
    counts: dict = field(default_factory=dict)  # finding -> {"positives": int, ...}
    flags: dict = field(default_factory=dict)  # metric -> list of str
    notes: list = field(default_factory=list)
    case_values: dict = field(default_factory=dict)  # per row, for the sheet of cases


class Truth:
    """What is known of the cases, computed once for all systems."""

    def __init__(self, references, prior_scores=None, followup_scores=None):
        self.references = references
        self.prior_scores, self.followup_scores = prior_scores, followup_scores
        ids = [row["patient_id"] for row in references.rows]
        names = {p: i for i, p in enumerate(dict.fromkeys(ids))}
        self.patient = np.array([names[p] for p in ids])
        self.patients = len(names)
        self.true_changes = references.true_changes()
        self.named = np.array(
            [[_sign((row.get("prompt_changes") or {}).get(f)) for f in radtext.FINDINGS] for row in references.rows]
        ).reshape(len(references.rows), len(radtext.FINDINGS))
        # What the prompt speaks of at all: a text that only repeats it earns nothing on the other findings.
        spoken = [{*(row.get("prompt_changes") or {}), *radtext.states(row["prompt"])} for row in references.rows]
        self.mentioned = np.array([[f in s for f in radtext.FINDINGS] for s in spoken])
        self.states = np.stack([references.present(f, "after") for f in radtext.FINDINGS], axis=1)
        self.age = references.column("age")
        self.sex = np.array([{"F": 1.0, "M": 0.0}.get(row.get("sex"), np.nan) for row in references.rows])
        self.group = [row.get("group") for row in references.rows]
        self._masks, self._images = {}, {}

    def named_columns(self, columns):
        """float [N, F]: the prompt's direction for each scorer column; NaN where its parts contradict."""
        columns = list(columns)
        out = np.zeros((len(self.named), len(columns)))
        for j, name in enumerate(columns):
            members = [
                i for i, f in enumerate(radtext.FINDINGS)
                if f == name or (f not in columns and radtext.CHEXPERT_OF[f] == name)
            ]  # fmt: skip
            if members:
                up, down = (self.named[:, members] > 0).any(1), (self.named[:, members] < 0).any(1)
                out[:, j] = np.where(up & down, np.nan, up * 1.0 - down)
        return out

    def masks(self, which, organs, shape):
        """Packed masks of the prior or follow-up: (uint8 [N, organs, bytes], source) or (None, '').

        The truth where the references have it, else the scorer's masks of the reference images.
        """
        key = (which, tuple(organs), shape)
        if key in self._masks:
            return self._masks[key]
        scores = self.prior_scores if which == "prior" else self.followup_scores
        refs = self.references
        out = (None, "")
        if all(row.get(f"masks_{which}") for row in refs.rows) and set(organs) <= set(radtext.ORGANS):
            order = [radtext.ORGANS.index(o) for o in organs]
            packed = []
            for i in range(len(refs.rows)):
                masks = refs.masks(i, which)[order]
                if masks.shape[-2:] != shape:
                    raise UserError(
                        f"{refs.root}: masks of case {refs.pair_ids[i]} are {masks.shape[-2:]}, "
                        f"the scorer's {shape}; score at the size of the references"
                    )
                packed.append(pack(masks))
            out = (np.stack(packed), "truth")
        elif scores is not None and (scores.mask_shape, scores.organs) == (shape, organs):
            take = scores.take(refs.pair_ids, np.zeros(len(refs.rows), int))
            out = (scores.masks[take], "scorer")
        self._masks[key] = out
        return out


def _sign(value):
    return float(np.sign(value)) if value else 0.0


def packed_dice(a, b):
    """Dice of packed masks uint8 [N, organs, bytes] -> float [N, organs]; NaN where both are empty."""
    count = lambda x: np.bitwise_count(x).sum(-1, dtype=np.int64)  # noqa: E731
    total = count(a) + count(b)
    return np.divide(2.0 * count(a & b), total, out=np.full(total.shape, np.nan), where=total > 0)


def _mean(values):
    """Ratio columns of the mean over finite values [N] (or [N, K], pooled over K)."""
    values = np.asarray(values, np.float64)
    ok = np.isfinite(values)
    top, bottom = np.where(ok, values, 0.0), ok.astype(np.float64)
    return (top.sum(1), bottom.sum(1)) if values.ndim == 2 else (top, bottom)


def measure(candidate, truth, bootstrap):
    """All metrics of a Candidate -> Measured."""
    out = Measured()
    rows = candidate.rows
    ratios, functions = {}, {}
    if candidate.scores is not None:
        _score_metrics(candidate, truth, ratios, functions, out)
    if rows.texts is not None:
        _text_metrics(candidate, truth, ratios, out)
    if candidate.has_images:
        _image_metrics(candidate, truth, ratios, out)
    got = bootstrap.distributions(truth.patient[rows.case], ratios, functions)
    for name, values in got.items():
        if isinstance(name, tuple):
            out.findings.setdefault(name[1], {})[name[0]] = values
        else:
            out.distributions[name] = values
    _means_over_findings(out)
    return out


def _score_metrics(candidate, truth, ratios, functions, out):
    rows, scores, refs = candidate.rows, candidate.scores, truth.references
    take = scores.take([refs.pair_ids[i] for i in rows.case], rows.sample)
    if scores.finding_prob is not None:
        _finding_metrics(scores, scores.finding_prob[take].astype(np.float64), rows, truth, ratios, functions, out)
    if scores.group_prob is not None:
        _group_metrics(scores.groups, scores.group_prob[take], rows, truth, functions, out)
    if scores.age is not None:
        correlation = Correlation(scores.age[take], truth.age[rows.case])
        if correlation.count:
            functions["age_r"] = correlation
    if scores.sex_prob is not None:
        ranking = Ranking(scores.sex_prob[take], truth.sex[rows.case])
        functions["sex_auroc"] = ranking.auroc
        _flag(out, "sex_auroc", ranking)
    if scores.masks is not None:
        masks = scores.masks[take]
        for which in ("prior", "followup"):
            target, source = truth.masks(which, scores.organs, scores.mask_shape)
            if target is not None:
                values = packed_dice(masks, target[rows.case])
                ratios[f"dice_{which}"] = _mean(values)
                for k, organ in enumerate(scores.organs):
                    ratios[f"dice_{which}", organ] = _mean(values[:, k])
                out.notes.append(f"dice_{which}: against the {source}'s masks")


def _flag(out, metric, ranking, what=""):
    if not ranking.reliable:
        text = f"{ranking.positives} positives, {ranking.negatives} negatives: fewer than 20"
        out.flags.setdefault(metric, []).append(f"{what}: {text}" if what else text)


def _finding_metrics(scores, prob, rows, truth, ratios, functions, out):
    refs, columns = truth.references, scores.findings
    after = np.stack([refs.present(f, "after") for f in columns], axis=1)[rows.case]
    before = np.stack([refs.present(f, "before") for f in columns], axis=1)[rows.case]
    changed = np.stack([refs.changed(f) for f in columns], axis=1)[rows.case]
    for j, finding in enumerate(columns):
        every = Ranking(prob[:, j], after[:, j])
        some = Ranking(prob[:, j], np.where(np.abs(changed[:, j]) == 1, after[:, j], np.nan))
        out.counts[finding] = {
            "positives": every.positives, "negatives": every.negatives,
            "changed_positives": some.positives, "changed_negatives": some.negatives,
        }  # fmt: skip
        functions["finding_auroc", finding] = every.auroc
        functions["finding_auprc", finding] = every.auprc
        functions["finding_auroc_changed", finding] = some.auroc
        _flag(out, "finding_auroc", every, finding)
        _flag(out, "finding_auprc", every, finding)
        _flag(out, "finding_auroc_changed", some, finding)
    if truth.prior_scores is not None and truth.prior_scores.findings == columns:
        take = truth.prior_scores.take([refs.pair_ids[i] for i in rows.case], np.zeros(len(rows), int))
        prior = truth.prior_scores.finding_prob[take].astype(np.float64)
        named = truth.named_columns(columns)[rows.case]
        strict = direction.moved(prior, prob, named)
        clear = direction.moved(prior, prob, named, direction.MARGIN)
        stay = direction.kept(prior, prob, named, before, after)
        ratios["directional_accuracy"] = _mean(strict)
        ratios["directional_accuracy_margin"] = _mean(clear)
        ratios["specificity"] = _mean(stay)
        ratios["edit_success"] = _mean(direction.success(strict, stay))
        for j, finding in enumerate(columns):
            ratios["directional_accuracy", finding] = _mean(strict[:, j])
            ratios["directional_accuracy_margin", finding] = _mean(clear[:, j])
            ratios["specificity", finding] = _mean(stay[:, j])
            out.counts[finding]["named"] = int(np.isfinite(strict[:, j]).sum())
        out.case_values.update(prior_prob=prior, prob=prob, named=named, columns=columns)
    if truth.followup_scores is not None and truth.followup_scores.findings == columns:
        take = truth.followup_scores.take([refs.pair_ids[i] for i in rows.case], np.zeros(len(rows), int))
        real = truth.followup_scores.finding_prob[take]
        ratios["kl_bernoulli"] = _mean(divergence.bernoulli_kl(real, prob).mean(1))
        ratios["kl_printed"] = _mean(divergence.printed_kl(real, prob).sum(1))


def _group_metrics(groups, prob, rows, truth, functions, out):
    names = [truth.group[i] for i in rows.case]
    known = np.array([n in groups for n in names])
    if any(n is not None and n not in groups for n in names):
        lost = sorted({str(n) for n in names if n is not None and n not in groups})
        out.notes.append(f"group_auroc: the scorer has no group {', '.join(lost)}; those cases are left out")
    rankings = []
    for g, group in enumerate(groups):
        labels = np.where(known, np.array([n == group for n in names], np.float64), np.nan)
        ranking = Ranking(prob[:, g], labels)
        if ranking.positives and ranking.negatives:
            rankings.append(ranking)
            _flag(out, "group_auroc", ranking, group)
    if known.any():  # of one group only: undefined
        functions["group_auroc"] = (
            (lambda w: np.mean([r.auroc(w) for r in rankings], axis=0))
            if rankings
            else (lambda w: np.full(len(w), np.nan))
        )


def _text_metrics(candidate, truth, ratios, out):
    rows = candidate.rows
    changes, states = text.claims(rows.texts)
    true, named, real = truth.true_changes[rows.case], truth.named[rows.case], truth.states[rows.case]
    everything, omitted = np.ones(named.shape, bool), ~truth.mentioned[rows.case]
    ratios["text_right"] = _mean(text.right_finding_and_side(changes, named, true))
    tp, fp, fn = text.change_counts(changes, true, everything)
    ratios["text_change_precision"] = (tp, tp + fp)
    ratios["text_change_recall"] = (tp, tp + fn)
    ratios["text_change_f1"] = (2 * tp, 2 * tp + fp + fn)
    tp, fp, fn = text.change_counts(changes, true, omitted)
    ratios["text_omitted_change_f1"] = (2 * tp, 2 * tp + fp + fn)
    if np.isfinite(real).any():
        tp, fp, fn = text.state_counts(states, real, omitted)
        ratios["text_omitted_state_f1"] = (2 * tp, 2 * tp + fp + fn)
    if candidate.scores is not None and candidate.scores.finding_prob is not None:
        scores = candidate.scores
        take = scores.take([truth.references.pair_ids[i] for i in rows.case], rows.sample)
        for suffix, where in (("", everything), ("_omitted", omitted)):
            ratios[f"text_image_agreement{suffix}"] = text.agreement_counts(
                states, scores.finding_prob[take], scores.findings, where
            )


def _image_metrics(candidate, truth, ratios, out):
    refs, rows = truth.references, candidate.rows
    keys = ("ssim_prior", "mae_prior", "ssim_followup", "ms_ssim_followup", "psnr_followup", "ssim_unchanged",
            "ssim_counterfactual", "psnr_counterfactual", "mae_counterfactual")  # fmt: skip
    values = {k: np.full(len(rows), np.nan) for k in keys}
    for r in range(len(rows)):
        case = int(rows.case[r])
        made = candidate.image(refs, r)
        prior, followup = refs.image(case, "prior"), refs.image(case, "followup")
        true = refs.image(case, "counterfactual")
        values["ssim_prior"][r] = image.ssim(made, prior)
        values["mae_prior"][r] = image.mean_absolute_error(made, prior)
        values["ssim_followup"][r], values["ms_ssim_followup"][r] = image.similarities(made, followup)
        values["psnr_followup"][r] = image.psnr(made, followup)
        if true is not None:
            values["ssim_unchanged"][r] = image.ssim(made, prior, image.unchanged(prior, true))
            values["ssim_counterfactual"][r] = image.ssim(made, true)
            values["psnr_counterfactual"][r] = image.psnr(made, true)
            values["mae_counterfactual"][r] = image.mean_absolute_error(made, true)
    for key, column in values.items():
        if not np.isnan(column).all():
            ratios[key] = _mean(column)
            same = int(np.isinf(column).sum())
            if same:
                out.flags.setdefault(key, []).append(f"{same} of {len(column)} images identical: infinite, left out")
    if "ms_ssim_followup" in ratios and image.scales(refs.shape) < len(image.SCALES):
        out.notes.append(f"ms_ssim: {image.scales(refs.shape)} of 5 scales fit images of this size")


def _means_over_findings(out):
    for key in ("finding_auroc", "finding_auprc", "finding_auroc_changed"):
        parts = [m[key] for m in out.findings.values() if key in m and np.isfinite(m[key][0])]
        if parts:
            out.distributions[key] = np.mean(parts, axis=0)
        elif any(key in m for m in out.findings.values()):
            out.distributions[key] = np.full_like(next(iter(out.findings.values()))[key], np.nan)
