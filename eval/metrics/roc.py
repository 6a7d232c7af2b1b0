"""AUROC and AUPRC with ties and with weights, one row of weights a bootstrap resample.

AUROC is the Mann-Whitney statistic (Hanley & McNeil 1982, eq. 1): P(s+ > s-) + P(s+ = s-) / 2.
AUPRC is average precision: the sum over thresholds of (R_k - R_{k-1}) P_k; equal scores share a threshold.
Soft-label AUROC: the label of a case is itself a probability, a classifier's on the real image (MedJourney, appendix
A.2); the share of right pairs expected when each label is drawn by its probability:
sum_{i != j} p_i (1 - p_j) [s_i > s_j, ties one half] / sum_{i != j} p_i (1 - p_j). With labels 0 and 1 it is AUROC.
Scores are sorted once; a resample only re-weights the sorted cases, so its cost is linear in cases.
"""

import numpy as np

# Fewer positives or negatives than this and the number is flagged unreliable (normal theory breaks down).
RELIABLE = 20


class Ranking:
    """Scores of one binary question, sorted once: weights -> AUROC or AUPRC.

    Args:
      scores: float [N], higher means more likely positive; NaN where there is no score.
      labels: float [N], 1 positive, 0 negative, NaN unknown (such cases are left out).
    """

    def __init__(self, scores, labels):
        scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
        if scores.shape != labels.shape or scores.ndim != 1:
            raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [N]")
        usable = ~np.isnan(scores) & ~np.isnan(labels)
        if not np.isin(labels[usable], (0.0, 1.0)).all():
            raise ValueError("labels must be 0, 1 or NaN")
        positive, negative = np.flatnonzero(usable & (labels == 1)), np.flatnonzero(usable & (labels == 0))
        # Descending, so that a cumulative sum up to `hi` counts the cases at or above a threshold.
        self._positive = positive[np.argsort(-scores[positive], kind="stable")]
        self._negative = negative[np.argsort(-scores[negative], kind="stable")]
        sp, sn = -scores[self._positive], -scores[self._negative]
        self._negatives_above = np.searchsorted(sn, sp, "left")
        self._negatives_at_or_above = np.searchsorted(sn, sp, "right")
        self._positives_at_or_above = np.searchsorted(sp, sp, "right")

    @property
    def positives(self):
        """Number of positive cases."""
        return len(self._positive)

    @property
    def negatives(self):
        """Number of negative cases."""
        return len(self._negative)

    @property
    def reliable(self):
        """Whether there are at least 20 positives and 20 negatives."""
        return min(self.positives, self.negatives) >= RELIABLE

    def _sums(self, weights):
        wp = np.take(weights, self._positive, axis=1)
        cumulative = np.zeros((len(weights), len(self._negative) + 1))
        np.cumsum(np.take(weights, self._negative, axis=1), axis=1, out=cumulative[:, 1:])
        return wp, cumulative

    def auroc(self, weights):
        """float [B, N] weights -> float [B]; NaN where positives or negatives weigh nothing."""
        wp, negatives = self._sums(weights)
        above = np.take(negatives, self._negatives_above, axis=1)
        tied_or_above = np.take(negatives, self._negatives_at_or_above, axis=1)
        total = negatives[:, -1]
        # A positive beats the negatives that are not above it; a tie counts one half.
        wins = total[:, None] - 0.5 * (above + tied_or_above)
        pairs = wp.sum(1) * total
        return _divide(np.einsum("bp,bp->b", wp, wins), pairs)

    def auprc(self, weights):
        """float [B, N] weights -> float [B]; NaN where positives or negatives weigh nothing."""
        wp, negatives = self._sums(weights)
        true = np.cumsum(wp, axis=1)
        if self.positives:
            true = np.take(true, self._positives_at_or_above - 1, axis=1)
        false = np.take(negatives, self._negatives_at_or_above, axis=1)
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
        total = wp.sum(1)
        value = _divide(np.einsum("bp,bp->b", wp, precision), total)
        # All positive: average precision would be 1 whatever the scores are, which says nothing.
        return np.where(negatives[:, -1] > 0, value, np.nan)


class SoftRanking:
    """Scores float [N] against soft labels float [N] in [0, 1] (NaN: left out), sorted once: weights -> AUROC."""

    def __init__(self, scores, labels):
        scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
        if scores.shape != labels.shape or scores.ndim != 1:
            raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [N]")
        usable = np.flatnonzero(~np.isnan(scores) & ~np.isnan(labels))
        if ((labels[usable] < 0) | (labels[usable] > 1)).any():
            raise ValueError("soft labels must be in [0, 1] or NaN")
        self._index = usable[np.argsort(scores[usable], kind="stable")]
        s = scores[self._index]
        self._label = labels[self._index]
        self._below, self._at_or_below = np.searchsorted(s, s, "left"), np.searchsorted(s, s, "right")

    def auroc(self, weights):
        """float [B, N] weights -> float [B]; NaN where no pair of two cases has any weight."""
        w = np.take(weights, self._index, axis=1)
        positive, negative = w * self._label, w * (1 - self._label)
        below = np.zeros((len(w), len(self._index) + 1))
        np.cumsum(negative, axis=1, out=below[:, 1:])
        wins = 0.5 * (np.take(below, self._below, axis=1) + np.take(below, self._at_or_below, axis=1))
        own = np.einsum("bn,bn->b", positive, negative)  # a case is no pair with itself; it would tie
        pairs = positive.sum(1) * below[:, -1] - own
        right = np.einsum("bn,bn->b", positive, wins) - 0.5 * own
        # Sums of products: below rounding there is nothing to divide.
        return _divide(right, np.where(pairs > 1e-12 * np.maximum(w.sum(1) ** 2, 1), pairs, 0.0))


def _divide(numerator, denominator):
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def auroc(scores, labels):
    """Area under the ROC curve of scores [N] against labels [N] (0, 1 or NaN unknown); NaN if one class."""
    return float(Ranking(scores, labels).auroc(np.ones((1, len(labels))))[0])


def auprc(scores, labels):
    """Average precision of scores [N] against labels [N] (0, 1 or NaN unknown); NaN if one class."""
    return float(Ranking(scores, labels).auprc(np.ones((1, len(labels))))[0])


def soft_auroc(scores, labels):
    """AUROC of scores [N] against soft labels [N] in [0, 1] (or NaN unknown); NaN where no pair can be ordered."""
    return float(SoftRanking(scores, labels).auroc(np.ones((1, len(labels))))[0])
