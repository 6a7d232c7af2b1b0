"""One system -> the bootstrap distribution of every metric that its outputs allow.

A metric whose inputs are missing (no images, no scores, no text, no truth) is simply not in the result; one
that is there but undefined is NaN.
"""

from dataclasses import dataclass, field

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.eval.image_metrics import image_metrics
from progemu_jax.eval.metrics import (
    amplification,
    direction,
    divergence,
    identity,
    retention,
    text,
    textmodels,
    words,
)
from progemu_jax.eval.metrics.image import Region, dilate
from progemu_jax.eval.metrics.retention import Correlation
from progemu_jax.eval.metrics.roc import Ranking, SoftRanking
from progemu_jax.eval.predictions import Rows, read_image
from progemu_jax.eval.scores import Scores, pack
from progemu_jax.text import rules
from progemu_jax.text.findings import ORGANS, PRESENT, columns_of

# Means over findings of what each finding has.
OVER_FINDINGS = ("finding_auroc", "finding_auprc", "finding_auroc_changed", "finding_auroc_soft", "finding_f1")
SAME = 4  # gray levels between prior and true counterfactual that are no change: less than a film's noise
REACH = 16  # a changed organ is widened by a sixteenth of the side: disease does not stop at a mask's edge


@dataclass
class Candidate:
    """One row of the table: a system's outputs, or reference images for a baseline or ceiling; scores."""

    key: str
    title: str
    role: str  # "system", "baseline", "ceiling", "floor", or "control" (given other prompts than the references')
    rows: Rows
    scores: Scores | None = None
    image_kind: str | None = None  # "prior", "followup", "counterfactual", "mean": the references' own images
    note: str = ""
    features: Scores | None = None  # where FID and its like take features from
    answers: list | None = None  # of a control, per row: the rendered true answer to its prompt (a path), or None

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

    def answer(self, references, r):
        """uint8 [H, W]: the true answer to the prompt of row r; None without one."""
        if self.answers is None or self.answers[r] is None:
            return None
        return read_image(self.answers[r], references.shape, f" (case {references.pair_ids[int(self.rows.case[r])]})")


@dataclass
class Measured:
    """Distributions float [1 + B] by metric; per finding; counts and flags beside them."""

    distributions: dict = field(default_factory=dict)
    findings: dict = field(default_factory=dict)  # finding -> {metric: distribution}
    counts: dict = field(default_factory=dict)  # finding -> {"positives": int, ...}
    flags: dict = field(default_factory=dict)  # metric -> list of str
    notes: list = field(default_factory=list)
    case_values: dict = field(default_factory=dict)  # per row, for the sheet of cases
    per_case: dict = field(default_factory=dict)  # metric -> (numerator [R], denominator [R]) of each row
    features: dict = field(default_factory=dict)  # backbone and numbers of images behind FID and its like


class Truth:
    """What is known of the cases, computed once for all systems."""

    def __init__(self, references, prior_scores=None, followup_scores=None, followup_features=None):
        self.references, self.findings = references, references.findings
        self.prior_scores, self.followup_scores = prior_scores, followup_scores
        self.followup_features = followup_features or followup_scores
        ids = [row["patient_id"] for row in references.rows]
        names = {p: i for i, p in enumerate(dict.fromkeys(ids))}
        self.patient = np.array([names[p] for p in ids])
        self.patients = len(names)
        self.true_changes = references.true_changes()
        self.named = np.array(
            [[_sign((row.get("prompt_changes") or {}).get(f)) for f in references.names] for row in references.rows]
        ).reshape(len(references.rows), len(references.names))
        # What the prompt speaks of at all: a text that only repeats it earns nothing on the other findings.
        spoken = [
            {*(row.get("prompt_changes") or {}), *rules.states(row["prompt"], self.findings)} for row in references.rows
        ]
        self.mentioned = np.array([[f in s for f in references.names] for s in spoken])
        self.states = np.stack([references.present(f, "after") for f in references.names], axis=1)
        self.age = references.column("age")
        self.sex = np.array([{"F": 1.0, "M": 0.0}.get(row.get("sex"), np.nan) for row in references.rows])
        self.group = [row.get("group") for row in references.rows]
        self._masks, self._images = {}, {}
        self.strangers = self._strangers()

    def _strangers(self):
        """Similarities of real films of two patients, float [K]; None without points of identity, or of too few."""
        scores = (self.prior_scores, self.followup_scores)
        if any(s is None or s.identity is None for s in scores):
            return None
        _same_network(*scores)
        ids = self.references.pair_ids
        points = [s.identity[s.take(ids, np.zeros(len(ids), int))] for s in scores]
        found = identity.strangers(*points, self.patient, self.sex)
        return found if identity.threshold(found) is not None else None

    def own_prompts(self, rows):
        """float [R, F]: the direction that each row's own prompt states; 0 where it states none."""
        out, seen = self.named[rows.case].copy(), {}
        for r, (case, prompt) in enumerate(zip(rows.case, rows.prompts, strict=True)):
            row = self.references.rows[int(case)]
            if prompt == row["prompt"]:
                continue
            if (case, prompt) not in seen:
                before = {f: v >= PRESENT for f, v in (row.get("states_before") or {}).items() if v is not None}
                said = rules.changes(prompt, before, self.findings)
                seen[case, prompt] = [_sign(said.get(f)) for f in self.references.names]
            out[r] = seen[case, prompt]
        return out

    def region(self, case, prior, counterfactual):
        """(Region outside which the image should be the prior's, or None if unknown; where that is known from).

        With a true counterfactual, the pixels in which it differs from the prior by more than SAME. Else the organs
        in which a finding that is named or truly changed may show, by the masks of prior and follow-up.
        """
        if counterfactual is not None:
            step = np.abs(prior.astype(np.int16) - counterfactual)
            return Region(step > SAME), f"pixels in which the true counterfactual is within {SAME} of the prior"
        changed = (self.named[case] != 0) | (self.true_changes[case] != 0)
        organs = list(ORGANS)
        masks = [self.masks(which, ORGANS, prior.shape)[0] for which in ("prior", "followup")]
        if any(m is None for m in masks):
            return None, None
        if any(on and not f.organs for f, on in zip(self.findings, changed, strict=True)):
            return None, None  # it may show anywhere
        allowed = {o for f, on in zip(self.findings, changed, strict=True) if on for o in f.organs}
        out = np.zeros(prior.shape, bool)
        for packed in masks:
            for organ in allowed:
                bits = np.unpackbits(packed[case, organs.index(organ)], count=prior.size)
                out |= bits.reshape(prior.shape).astype(bool)
        if allowed:
            out = dilate(out, min(prior.shape) // REACH)
        return Region(out), "the organs of findings that are named or changed are left out"

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
        if all(row.get(f"masks_{which}") for row in refs.rows) and set(organs) <= set(ORGANS):
            order = [ORGANS.index(o) for o in organs]
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


def by_column(named, columns, findings):
    """float [N, C]: directions float [N, F] for each scorer column; NaN where a column's parts contradict."""
    columns = list(columns)
    out = np.zeros((len(named), len(columns)))
    for j, name in enumerate(columns):
        members = columns_of(name, columns, findings)
        if members:
            up, down = (named[:, members] > 0).any(1), (named[:, members] < 0).any(1)
            out[:, j] = np.where(up & down, np.nan, up * 1.0 - down)
    return out


def _sign(value):
    return float(np.sign(value)) if value else 0.0


def _mean(values):
    """Ratio columns of the mean over finite values [N] (or [N, K], pooled over K)."""
    values = np.asarray(values, np.float64)
    ok = np.isfinite(values)
    top, bottom = np.where(ok, values, 0.0), ok.astype(np.float64)
    return (top.sum(1), bottom.sum(1)) if values.ndim == 2 else (top, bottom)


def measure(candidates, truth, bootstrap, text_models=()):
    """All metrics of the Candidates -> {key: Measured}. text_models: names of `textmodels.MODELS` to ask for."""
    measured = {c.key: Measured() for c in candidates}
    pictured = [c for c in candidates if c.has_images]
    images = image_metrics(pictured, truth, [measured[c.key] for c in pictured])
    images = {c.key: found for c, found in zip(pictured, images, strict=True)}
    for candidate in candidates:
        ratios, functions = images.get(candidate.key, ({}, {}))
        _measure(candidate, truth, bootstrap, text_models, ratios, functions, measured[candidate.key])
    return measured


def _measure(candidate, truth, bootstrap, text_models, ratios, functions, out):
    rows = candidate.rows
    if candidate.scores is not None:
        _score_metrics(candidate, truth, ratios, functions, out)
    if rows.texts is not None:
        _text_metrics(candidate, truth, ratios, functions, out, text_models)
    out.per_case = {name: value for name, value in ratios.items() if not isinstance(name, tuple)}
    got = bootstrap.distributions(truth.patient[rows.case], ratios, functions)
    for name, values in got.items():
        if isinstance(name, tuple):
            out.findings.setdefault(name[1], {})[name[0]] = values
        else:
            out.distributions[name] = values
    _means_over_findings(out)


def _score_metrics(candidate, truth, ratios, functions, out):
    rows, scores, refs = candidate.rows, candidate.scores, truth.references
    control = candidate.role == "control"
    pairs = [refs.pair_ids[i] for i in rows.case]
    take = scores.take(pairs, rows.sample)
    prior, before = truth.prior_scores, None
    if prior is not None:
        before = prior.take(pairs, np.zeros(len(rows), int))
    if scores.finding_prob is not None:
        prob = scores.finding_prob[take].astype(np.float64)
        if not control:
            _finding_metrics(scores.findings, prob, rows, truth, ratios, functions, out)
        if prior is not None and prior.findings == scores.findings:
            was = prior.finding_prob[before].astype(np.float64)
            _direction_metrics(scores.findings, was, prob, candidate, truth, ratios, out)
            if scores.finding_severity is not None and prior.finding_severity is not None:
                was, now = prior.finding_severity[before], scores.finding_severity[take]
                _severity_metrics(scores.findings, was, now, candidate, truth, ratios)
    if before is not None:
        _amplification_metrics(scores, take, prior, before, ratios)
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
    if scores.identity is not None and truth.strangers is not None:
        _same_network(prior, scores)
        same, below = identity.verified(scores.identity[take], prior.identity[before], truth.strangers)
        ratios["verified"], ratios["identity_auroc"] = _mean(same), _mean(below)
    if scores.masks is not None:
        _organ_metrics(scores, scores.masks[take], rows, truth, ratios, out)
    followup = truth.followup_scores
    if not control and scores.saliency is not None and followup is not None and followup.saliency is not None:
        there = followup.take(pairs, np.zeros(len(rows), int))
        _saliency_metrics(candidate, scores.saliency[take], followup.saliency[there], truth, ratios)


def _same_network(one, other):
    if one.identity.shape[1] != other.identity.shape[1]:
        raise UserError(f"{other.path}: identity of other dimensions than {one.path}; use one network")


def _organ_metrics(scores, masks, rows, truth, ratios, out):
    for which in ("prior", "followup"):
        target, source = truth.masks(which, scores.organs, scores.mask_shape)
        if target is not None:
            values = retention.packed_dice(masks, target[rows.case])
            ratios[f"dice_{which}"] = _mean(values)
            for k, organ in enumerate(scores.organs):
                ratios[f"dice_{which}", organ] = _mean(values[:, k])
            out.notes.append(f"dice_{which}: against the {source}'s masks")


def _amplification_metrics(scores, take, prior, before, ratios):
    if scores.group_prob is not None and prior.groups == scores.groups:
        was, is_ = prior.group_prob[before], scores.group_prob[take]
        ratios["group_flip"] = _mean(amplification.group_flip(was, is_))
        ratios["group_shift"] = _mean(amplification.group_shift(was, is_))
    if scores.age is not None and prior.age is not None:
        shift = amplification.age_shift(prior.age[before], scores.age[take])
        ratios["age_shift"], ratios["age_shift_abs"] = _mean(shift), _mean(np.abs(shift))
    if scores.sex_prob is not None and prior.sex_prob is not None:
        ratios["sex_flip"] = _mean(amplification.sex_flip(prior.sex_prob[before], scores.sex_prob[take]))


def _saliency_metrics(candidate, made, real, truth, ratios):
    """Correlation of Grad-CAM maps on generated and real image, findings that the prompt names."""
    if made.shape[1:] != real.shape[1:]:
        raise UserError(f"{candidate.scores.path}: saliency maps {made.shape[1:]}, the follow-up's {real.shape[1:]}")
    named = np.abs(by_column(truth.named[candidate.rows.case], candidate.scores.findings, truth.findings)) == 1
    ratios["saliency_r"] = _mean(np.where(named, retention.map_correlation(made, real), np.nan))


def _flag(out, metric, ranking, what=""):
    if not ranking.reliable:
        text = f"{ranking.positives} positives, {ranking.negatives} negatives: fewer than 20"
        out.flags.setdefault(metric, []).append(f"{what}: {text}" if what else text)


def _finding_metrics(columns, prob, rows, truth, ratios, functions, out):
    refs = truth.references
    after = np.stack([refs.present(f, "after") for f in columns], axis=1)[rows.case]
    changed = np.stack([refs.changed(f) for f in columns], axis=1)[rows.case]
    real, followup = None, truth.followup_scores
    if followup is not None and followup.findings == columns:
        take = followup.take([refs.pair_ids[i] for i in rows.case], np.zeros(len(rows), int))
        real = followup.finding_prob[take]
        ratios["kl_bernoulli"] = _mean(divergence.bernoulli_kl(real, prob).mean(1))
        ratios["kl_printed"] = _mean(divergence.printed_kl(real, prob).sum(1))
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
        if real is not None:
            functions["finding_auroc_soft", finding] = SoftRanking(prob[:, j], real[:, j]).auroc
        # Without a positive case there is nothing to find: undefined, not 0.
        tp, fp, fn = (x * float(every.positives > 0) for x in direction.confusion(prob[:, j], after[:, j]))
        ratios["finding_f1", finding] = (2 * tp, 2 * tp + fp + fn)
        for key, ranking in (("finding_auroc", every), ("finding_auprc", every), ("finding_f1", every),
                             ("finding_auroc_changed", some)):  # fmt: skip
            _flag(out, key, ranking, finding)


def _direction_metrics(columns, was, prob, candidate, truth, ratios, out):
    refs, rows = truth.references, candidate.rows
    own = by_column(truth.own_prompts(rows), columns, truth.findings)
    ratios["own_direction"] = _mean(direction.moved(was, prob, own))
    ratios["own_direction_margin"] = _mean(direction.moved(was, prob, own, direction.MARGIN))
    if candidate.role == "control":  # another prompt than the real course: nothing else may move
        ratios["others_still"] = _mean(direction.still(was, prob, own, np.ones(own.shape, bool)))
        return
    after = np.stack([refs.present(f, "after") for f in columns], axis=1)[rows.case]
    before = np.stack([refs.present(f, "before") for f in columns], axis=1)[rows.case]
    unchanged = np.stack([refs.changed(f) for f in columns], axis=1)[rows.case] == 0
    named = by_column(truth.named[rows.case], columns, truth.findings)
    strict = direction.moved(was, prob, named)
    clear = direction.moved(was, prob, named, direction.MARGIN)
    stay = direction.kept(was, prob, named, before, after)
    ratios["directional_accuracy"] = _mean(strict)
    ratios["directional_accuracy_margin"] = _mean(clear)
    ratios["specificity"] = _mean(stay)
    ratios["others_still"] = _mean(direction.still(was, prob, named, unchanged))
    ratios["edit_success"] = _mean(direction.success(strict, stay))
    ratios["effect"] = _mean(direction.effect(was, prob, named))
    ratios["flip_rate"] = _mean(direction.flipped(was, prob, named))
    ratios["finding_shift"] = _mean(direction.amplified(was, prob, named, unchanged))
    for j, finding in enumerate(columns):
        ratios["directional_accuracy", finding] = _mean(strict[:, j])
        ratios["directional_accuracy_margin", finding] = _mean(clear[:, j])
        ratios["specificity", finding] = _mean(stay[:, j])
        out.counts[finding]["named"] = int(np.isfinite(strict[:, j]).sum())
    out.case_values.update(prior_prob=was, prob=prob, named=named, columns=columns)


def _severity_metrics(columns, was, now, candidate, truth, ratios):
    rows = candidate.rows
    own = by_column(truth.own_prompts(rows), columns, truth.findings)
    ratios["severity_own_direction"] = _mean(direction.moved(was, now, own, direction.MARGIN))
    if candidate.role == "control":
        ratios["severity_still"] = _mean(direction.still(was, now, own, np.ones(own.shape, bool)))
        return
    changed = by_column(truth.true_changes[rows.case], columns, truth.findings)
    named = by_column(truth.named[rows.case], columns, truth.findings)
    clear = direction.moved(was, now, changed, direction.MARGIN)
    error = np.abs(now - np.stack([truth.references.severity(f) for f in columns], axis=1)[rows.case])
    ratios["severity_direction"], ratios["severity_mae"] = _mean(clear), _mean(error)
    ratios["severity_still"] = _mean(direction.still(was, now, named, changed == 0))
    for j, finding in enumerate(columns):
        ratios["severity_direction", finding], ratios["severity_mae", finding] = _mean(clear[:, j]), _mean(error[:, j])


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


def _text_metrics(candidate, truth, ratios, functions, out, text_models):
    rows = candidate.rows
    changes, states = text.claims(rows.texts, truth.references.findings)
    everything, omitted = np.ones(states.shape, bool), ~truth.mentioned[rows.case]
    if candidate.scores is not None and candidate.scores.finding_prob is not None:
        scores = candidate.scores
        take = scores.take([truth.references.pair_ids[i] for i in rows.case], rows.sample)
        for suffix, where in (("", everything), ("_omitted", omitted)):
            ratios[f"text_image_agreement{suffix}"] = text.agreement_counts(
                states, scores.finding_prob[take], scores.findings, where, truth.findings
            )
    if candidate.role == "control":
        return
    true, named, real = truth.true_changes[rows.case], truth.named[rows.case], truth.states[rows.case]
    ratios["text_right"] = _mean(text.right_finding_and_side(changes, named, true, truth.findings))
    tp, fp, fn = text.change_counts(changes, true, everything)
    ratios["text_change_precision"] = (tp, tp + fp)
    ratios["text_change_recall"] = (tp, tp + fn)
    ratios["text_change_f1"] = (2 * tp, 2 * tp + fp + fn)
    tp, fp, fn = text.change_counts(changes, true, omitted)
    ratios["text_omitted_change_f1"] = (2 * tp, 2 * tp + fp + fn)
    if np.isfinite(real).any():
        tp, fp, fn = text.state_counts(states, real, omitted)
        ratios["text_omitted_state_f1"] = (2 * tp, 2 * tp + fp + fn)
    references = [truth.references.rows[int(i)]["interpretation"] for i in rows.case]
    ratios.update(textmodels.ratios(text_models, rows.texts, references))
    missing = words.available()
    if missing:
        out.notes.append(missing)
        return
    counts, rouge, meteor = words.overlap(rows.texts, references)
    for order in range(1, words.ORDERS + 1):
        functions[f"bleu_{order}"] = lambda w, order=order: words.bleu(w @ counts, order)
    ratios["rouge_l"], ratios["meteor_exact_stem"] = _mean(rouge), _mean(meteor)


def _means_over_findings(out):
    for key in OVER_FINDINGS:
        parts = [m[key] for m in out.findings.values() if key in m and np.isfinite(m[key][0])]
        if parts:
            out.distributions[key] = np.mean(parts, axis=0)
        elif any(key in m for m in out.findings.values()):
            one = next(m[key] for m in out.findings.values() if key in m)
            out.distributions[key] = np.full_like(one, np.nan)
