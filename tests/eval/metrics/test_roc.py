"""AUROC against hand-computed values and brute force."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import roc

NAN = float("nan")


def brute_auroc(scores, labels, weights):
    wins = total = 0.0
    for sp, wp in zip(scores[labels == 1], weights[labels == 1], strict=True):
        for sn, wn in zip(scores[labels == 0], weights[labels == 0], strict=True):
            wins += wp * wn * ((sp > sn) + 0.5 * (sp == sn))
            total += wp * wn
    return wins / total if total else NAN


def brute_auprc(scores, labels, weights):
    if not (weights[labels == 1].sum() > 0 and weights[labels == 0].sum() > 0):
        return NAN
    area = recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        true = weights[above & (labels == 1)].sum()
        if weights[above].sum() > 0:
            new = true / weights[labels == 1].sum()
            area += (new - recall) * true / weights[above].sum()
            recall = new
    return area


class TestRoc:
    def test_by_hand(self):
        # Positives .9 .4, negatives .8 .1: of four pairs (.9, .8) (.9, .1) (.4, .1) are right.
        assert roc.auroc([0.9, 0.4, 0.8, 0.1], [1, 1, 0, 0]) == 0.75
        # Thresholds .9: recall 1/2 at precision 1; .4: recall 1 at precision 2/3.
        assert roc.auprc([0.9, 0.4, 0.8, 0.1], [1, 1, 0, 0]) == pytest.approx(0.5 + 0.5 * 2 / 3)

    def test_ties_by_hand(self):
        # Pairs: (.5, .5) one half, (.5, .2) right, twice.
        assert roc.auroc([0.5, 0.5, 0.5, 0.2], [1, 1, 0, 0]) == 0.75
        # One threshold holds 2 positives of 3 cases: precision 2/3 at full recall.
        assert roc.auprc([0.5, 0.5, 0.5, 0.2], [1, 1, 0, 0]) == pytest.approx(2 / 3)
        assert roc.auroc([0.3] * 6, [1, 0, 1, 0, 0, 0]) == 0.5
        assert roc.auprc([0.3] * 6, [1, 0, 1, 0, 0, 0]) == pytest.approx(1 / 3)

    @pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], [NAN, NAN, NAN], [NAN, 1, 1]])
    def test_one_class_is_undefined(self, labels):
        assert math.isnan(roc.auroc([0.1, 0.2, 0.3], labels))
        assert math.isnan(roc.auprc([0.1, 0.2, 0.3], labels))

    def test_empty_is_undefined(self):
        assert math.isnan(roc.auroc([], []))

    def test_unknown_labels_are_left_out(self):
        assert roc.auroc([0.9, 0.95, 0.1, NAN], [1, NAN, 0, 1]) == 1.0

    def test_other_labels_are_refused(self):
        with pytest.raises(ValueError, match="0, 1 or NaN"):
            roc.auroc([0.1, 0.2], [1, -1])

    @pytest.mark.parametrize("seed", range(30))
    def test_against_brute_force_with_weights_and_ties(self, seed):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 40))
        scores = np.round(rng.random(n), int(rng.integers(0, 3)))  # many ties
        labels = (rng.random(n) < rng.random()).astype(float)
        weights = rng.integers(0, 4, (5, n)).astype(float)
        ranking = roc.Ranking(scores, labels)
        for w, a, p in zip(weights, ranking.auroc(weights), ranking.auprc(weights), strict=True):
            np.testing.assert_allclose(a, brute_auroc(scores, labels, w), atol=1e-12)
            np.testing.assert_allclose(p, brute_auprc(scores, labels, w), atol=1e-12)

    def test_soft_labels_by_hand(self):
        # Scores .2 .8, labels p = .25 .75: pairs (1 positive, 0 negative) .75 * .75 right, (0, 1) .25 * .25 wrong.
        assert roc.soft_auroc([0.2, 0.8], [0.25, 0.75]) == pytest.approx(0.5625 / 0.625)
        assert roc.soft_auroc([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5)

    @pytest.mark.parametrize("seed", range(10))
    def test_soft_labels_against_all_pairs(self, seed):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 30))
        s, p, w = np.round(rng.random(n), 1), np.round(rng.random(n), 2), rng.integers(0, 3, n).astype(float)
        top = bottom = 0.0
        for i in range(n):
            for j in range(n):
                if i != j:
                    weight = w[i] * p[i] * w[j] * (1 - p[j])
                    top += weight * ((s[i] > s[j]) + 0.5 * (s[i] == s[j]))
                    bottom += weight
        expected = top / bottom if bottom > 1e-9 else NAN
        np.testing.assert_allclose(roc.SoftRanking(s, p).auroc(w[None])[0], expected, atol=1e-12)

    def test_soft_labels_of_zero_and_one_are_auroc(self):
        rng = np.random.default_rng(0)
        s, y = rng.random(50).round(1), (rng.random(50) < 0.3).astype(float)
        assert roc.soft_auroc(s, y) == pytest.approx(roc.auroc(s, y), abs=1e-12)
        assert math.isnan(roc.soft_auroc(s, np.zeros(50)))
        assert math.isnan(roc.soft_auroc(s, np.full(50, NAN)))
        with pytest.raises(ValueError, match="in \\[0, 1\\]"):
            roc.soft_auroc([0.1, 0.2], [0.5, 1.5])

    def test_reliable_needs_twenty_of_each(self):
        labels = np.r_[np.ones(20), np.zeros(20)]
        assert roc.Ranking(np.arange(40), labels).reliable
        assert not roc.Ranking(np.arange(39), labels[1:]).reliable
