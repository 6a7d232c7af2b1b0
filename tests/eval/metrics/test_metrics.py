"""Metrics against hand-computed values, brute force and degenerate inputs."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import cmig, direction, divergence, image, retention, roc, text
from progemu_jax.text import findings

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


class TestCmig:
    @pytest.mark.parametrize(
        ("pathology", "race", "age", "expected"),
        [
            (49.90, 77.13, 2.73, 26.91),
            (58.10, 78.25, 17.82, 46.58),
            (79.61, 84.71, 28.91, 62.77),
            (80.54, 97.22, 79.38, 84.11),
        ],
    )
    def test_the_papers_inputs_give_the_recomputed_column(self, pathology, race, age, expected):
        value = cmig.cmig([pathology / 100], [race / 100, age / 100])[0]
        assert 100 * value == pytest.approx(expected, abs=0.006)

    def test_undefined_when_a_term_is_not_positive(self):
        values = cmig.cmig([np.full(4, 0.8)], [np.array([-0.1, 0.0, NAN, 0.5]), np.full(4, 0.9)])
        assert np.isnan(values).tolist() == [True, True, True, False]
        assert values[3] == pytest.approx(math.sqrt(0.8 * math.sqrt(0.5 * 0.9)))


class TestDivergence:
    def test_by_hand(self):
        assert divergence.bernoulli_kl(0.5, 0.25) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
        assert divergence.printed_kl(0.5, 0.25) == pytest.approx(0.5 * math.log(2))

    def test_equal_is_zero_and_extremes_are_finite(self):
        p = np.array([0.0, 0.3, 1.0])
        np.testing.assert_array_equal(divergence.bernoulli_kl(p, p), 0)
        assert np.isfinite(divergence.bernoulli_kl(p, 1 - p)).all()

    def test_printed_form_can_be_negative_but_bernoulli_cannot(self):
        assert divergence.printed_kl(0.5, 0.9) < 0 < divergence.bernoulli_kl(0.5, 0.9)


class TestRetention:
    def test_pearson_by_hand(self):
        # Deviations (-1, 0, 1) and (-2/3, -2/3, 4/3): covariance 2, variances 2 and 24/9.
        assert retention.pearson([1, 2, 3], [1, 1, 3]) == pytest.approx(2 / math.sqrt(2 * 24 / 9))
        assert retention.pearson([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)

    def test_weights_are_repetitions(self):
        rng = np.random.default_rng(0)
        x, y, w = rng.normal(60, 10, 30), rng.normal(60, 10, 30), rng.integers(0, 4, 30)
        got = retention.Correlation(x, y)(w[None].astype(float))[0]
        assert got == pytest.approx(np.corrcoef(np.repeat(x, w), np.repeat(y, w))[0, 1], abs=1e-12)

    @pytest.mark.parametrize(
        ("x", "y"), [([1, 1, 1], [1, 2, 3]), ([70.1] * 3, [1, 2, 3]), ([1], [2]), ([NAN] * 3, [1, 2, 3])]
    )
    def test_constant_or_empty_is_undefined(self, x, y):
        assert math.isnan(retention.pearson(x, y))

    def test_dice_by_hand(self):
        a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
        a[0, :2], b[0, 1:3] = True, True  # 8 and 8 pixels, 4 shared
        assert retention.dice(a, b)[0] == 0.5
        assert math.isnan(retention.dice(a, b)[1])  # both empty
        b[1, 0, 0] = True
        assert retention.dice(a, b)[1] == 0

    def test_packed_dice_is_dice(self):
        rng = np.random.default_rng(0)
        a, b = (rng.random((2, 5, 6, 8, 16)) < 0.3)[:]
        pack = lambda x: np.packbits(x.reshape(5, 6, -1), axis=-1)  # noqa: E731
        np.testing.assert_array_equal(retention.packed_dice(pack(a), pack(b)), retention.dice(a, b))

    def test_map_correlation_by_hand(self):
        a = np.array([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
        got = retention.map_correlation(a, np.array([[[4.0, 3.0], [2.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]]]))
        assert got[0] == pytest.approx(-1)
        assert math.isnan(got[1])  # a constant map points nowhere

    def test_normalised(self):
        values = retention.normalised(np.array([0.7, 0.7]), np.array([0.9, 0.5]), 0.5)
        assert values[0] == pytest.approx(0.5)
        assert math.isnan(values[1])  # no room above chance


def brute_ssim(a, b):
    """SSIM with an explicit double loop over windows and the two-dimensional kernel."""
    x = np.arange(11) - 5
    kernel = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    c1, c2 = 6.5025, 58.5225
    out = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11].astype(float), b[i : i + 11, j : j + 11].astype(float)
            mp, mq = (kernel * p).sum(), (kernel * q).sum()
            vp, vq = (kernel * (p - mp) ** 2).sum(), (kernel * (q - mq) ** 2).sum()
            cov = (kernel * (p - mp) * (q - mq)).sum()
            out.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(out))


class TestImage:
    def test_ssim_against_the_definition(self):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 256, (2, 47, 23), dtype=np.uint8)  # taller than one strip
        assert image.ssim(a, b) == pytest.approx(brute_ssim(a, b), abs=1e-9)
        assert image.Pyramid(a).similarities(image.Pyramid(b))[0] == image.ssim(a, b)
        assert image.ssim(a, a) == pytest.approx(1)

    def test_ssim_of_constants_by_hand(self):
        a, b = np.full((11, 11), 100, np.uint8), np.full((11, 11), 150, np.uint8)
        expected = (2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025)
        assert image.ssim(a, b) == pytest.approx(expected)

    def test_too_small_or_unequal(self):
        assert math.isnan(image.ssim(np.zeros((10, 30), np.uint8), np.zeros((10, 30), np.uint8)))
        assert math.isnan(image.ms_ssim(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8)))
        with pytest.raises(ValueError, match="one size"):
            image.ssim(np.zeros((16, 16), np.uint8), np.zeros((16, 17), np.uint8))

    def test_outside_a_region_changes_inside_do_not_count(self):
        rng = np.random.default_rng(1)
        a = rng.integers(0, 256, (96, 96), dtype=np.uint8)
        b = a.copy()
        b[80:, 80:] = 0
        region = image.Region(a != b)
        assert image.ssim(a, b) < 0.999
        assert image.ssim(a, b, region) == pytest.approx(1, abs=1e-12)
        assert image.ms_ssim(a, b, region) == pytest.approx(1, abs=1e-12)
        assert image.psnr(a, b, region) == math.inf
        b[:20, :20] = a[:20, :20] // 2
        assert image.ssim(a, b, region) < 0.99
        assert math.isnan(image.ssim(a, b, image.Region(np.ones((96, 96), bool))))
        assert math.isnan(image.psnr(a, b, image.Region(np.ones((96, 96), bool))))

    def test_a_window_outside_touches_nothing_changed(self):
        changed = np.zeros((20, 20), bool)
        changed[10, 10] = True
        expected = np.ones((10, 10), bool)
        expected[0:11, 0:11] = False  # every one of the 10 x 10 windows holds pixel (10, 10)
        np.testing.assert_array_equal(image.Region(changed).windows(), expected)
        changed = np.zeros((30, 30), bool)
        changed[2, 3] = True
        windows = image.Region(changed).windows()
        assert not windows[:3, :4].any()
        assert windows.sum() == 20 * 20 - 3 * 4
        assert not image.Region(changed).pixels(1)[1, 1]
        assert image.Region(changed).pixels(1).sum() == 15 * 15 - 1

    def test_dilate_reaches_rows_and_columns(self):
        mask = np.zeros((9, 9), bool)
        mask[4, 4] = True
        expected = np.zeros((9, 9), bool)
        expected[2:7, 2:7] = True
        np.testing.assert_array_equal(image.dilate(mask, 2), expected)

    def test_ms_ssim_against_its_definition(self):
        rng = np.random.default_rng(5)
        a, b = (rng.integers(0, 256, (64, 70)).astype(np.uint8) for _ in range(2))
        b = (0.7 * a + 0.3 * b).astype(np.uint8)
        x, y, value, weights = a.astype(float), b.astype(float), 1.0, np.array(image.SCALES[:3])
        for scale, weight in enumerate(weights / weights.sum()):
            full, contrast = image.Level(x).maps(image.Level(y))
            value *= (full if scale == 2 else contrast).mean() ** weight
            x, y = (np.mean([z[i::2, j::2][: z.shape[0] // 2, : z.shape[1] // 2] for i in (0, 1) for j in (0, 1)], 0)
                    for z in (x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2], y[: y.shape[0] // 2 * 2, : y.shape[1] // 2 * 2]))  # fmt: skip  # noqa: E501
        assert image.ms_ssim(a, b) == pytest.approx(value, abs=1e-12)

    def test_psnr_by_hand(self):
        a, b = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
        b[0, 0] = 4  # MSE 1
        assert image.psnr(a, b) == pytest.approx(20 * math.log10(255))
        assert image.psnr(a, a) == math.inf
        assert image.mean_absolute_error(a, b) == 0.25

    def test_ms_ssim_scales_fit_the_image(self):
        assert [image.scales((s, 512)) for s in (10, 11, 22, 64, 128, 176, 512)] == [0, 1, 2, 3, 4, 5, 5]
        rng = np.random.default_rng(2)
        a, b = rng.integers(0, 256, (2, 16, 16), dtype=np.uint8)
        assert image.ms_ssim(a, b) == pytest.approx(max(image.ssim(a, b), 0))  # one scale: SSIM itself
        assert image.ms_ssim(a, a) == pytest.approx(1)


class TestDirection:
    named = np.array([[1.0, -1.0, 0.0]])
    prior = np.array([[0.2, 0.9, 0.1]])

    def test_copy_moves_nothing(self):
        moved = direction.moved(self.prior, self.prior, self.named)
        np.testing.assert_array_equal(moved, [[0, 0, NAN]])

    def test_a_rounding_difference_is_a_tie(self):
        moved = direction.moved(self.prior, self.prior + self.named * 1e-6, self.named)
        np.testing.assert_array_equal(moved, [[0, 0, NAN]])

    def test_margin(self):
        after = np.array([[0.24, 0.80, 0.1]])
        np.testing.assert_array_equal(direction.moved(self.prior, after, self.named), [[1, 1, NAN]])
        np.testing.assert_array_equal(direction.moved(self.prior, after, self.named, 0.05), [[0, 1, NAN]])

    def test_kept_counts_only_what_should_have_stayed(self):
        named = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])
        before, after = np.array([[0.1, 0.9, 0.9, 0.1, 0.1]]), np.array([[0.7, 0.8, 0.1, 0.9, 0.9]])
        truth_before = np.array([[0.0, 1.0, 0.0, 0.0, 0.0]])
        truth_after = np.array([[0.0, 1.0, 0.0, 1.0, 1.0]])
        # lost; kept; the scorer was wrong about the prior; it truly changed; it is named.
        expected = [[0, 1, NAN, NAN, NAN]]
        np.testing.assert_array_equal(direction.kept(before, after, named, truth_before, truth_after), expected)

    def test_still_is_within_the_margin(self):
        before, after = np.array([[0.2, 0.2, 0.2, 0.9]]), np.array([[0.24, 0.26, 0.9, 0.9]])
        unchanged = np.array([[True, True, True, False]])
        named = np.array([[0.0, 0.0, 1.0, 0.0]])
        np.testing.assert_array_equal(direction.still(before, after, named, unchanged), [[1, 0, NAN, NAN]])

    def test_confusion(self):
        got = direction.confusion(np.array([0.5, 0.9, 0.4, 0.1, 0.9]), np.array([1, 0, 1, 0, NAN]))
        assert [x.tolist() for x in got] == [
            [True, False, False, False, False],
            [False, True, False, False, False],
            [False, False, True, False, False],
        ]

    def test_success_needs_every_movement_and_no_loss(self):
        moved = np.array([[1, 1, NAN], [1, 0, NAN], [1, NAN, NAN], [NAN, NAN, NAN]])
        kept = np.array([[NAN, NAN, 1], [NAN, NAN, 1], [NAN, 0, 1], [1, 1, 1]])
        np.testing.assert_array_equal(direction.success(moved, kept), [1, 0, 0, NAN])

    def test_contradictory_parts_are_left_out(self):
        assert np.isnan(direction.moved(np.array([[0.1]]), np.array([[0.9]]), np.array([[NAN]]))).all()


def row(**said):
    """float [1, 8]: values of the named findings (underscores for spaces)."""
    out = np.zeros((1, 8))
    for name, value in said.items():
        out[0, findings.FINDINGS.index(name.replace("_", " "))] = value
    return out


class TestText:
    everywhere = np.ones((1, 8), bool)

    def test_other_side(self):
        names = [findings.FINDINGS[i] if i >= 0 else None for i in text.OTHER_SIDE]
        assert names[:4] == [
            "right pleural effusion",
            "left pleural effusion",
            "right pneumothorax",
            "left pneumothorax",
        ]
        assert names[4:] == [None] * 4

    def test_claims_are_read_from_words(self):
        changes, states = text.claims(["New left pleural effusion. Stable cardiomegaly.", ""])
        np.testing.assert_array_equal(changes, np.concatenate([row(left_pleural_effusion=1), np.zeros((1, 8))]))
        assert states[0, 0] == 1
        assert states[0, findings.FINDINGS.index("cardiomegaly")] == 1
        assert np.isnan(states[1]).all()

    def test_change_counts(self):
        claimed = row(left_pleural_effusion=1, cardiomegaly=1, atelectasis=-1)
        true = row(left_pleural_effusion=1, cardiomegaly=-1, consolidation=1)
        # Right: effusion. Wrong: cardiomegaly (direction), atelectasis. Missed: cardiomegaly, consolidation.
        assert [c[0] for c in text.change_counts(claimed, true, self.everywhere)] == [1, 2, 2]

    def test_omitted_findings_only(self):
        claimed = true = row(left_pleural_effusion=1)
        assert [c[0] for c in text.change_counts(claimed, true, claimed == 0)] == [0, 0, 0]

    def test_state_counts(self):
        claimed = np.array([[1, 1, 0, NAN, 1, 0, NAN, NAN]])
        true = np.array([[1, 0, 1, 1, NAN, 0, 0, NAN]])
        assert [c[0] for c in text.state_counts(claimed, true, self.everywhere)] == [1, 2, 2]

    @pytest.mark.parametrize(
        ("claimed", "expected"),
        [
            (row(left_pleural_effusion=1), 1),
            (row(left_pleural_effusion=-1), 0),  # direction
            (row(right_pleural_effusion=1), 0),  # side
            (row(left_pleural_effusion=1, right_pleural_effusion=1), 0),  # both sides, one is wrong
            (row(left_pleural_effusion=1, atelectasis=1), 1),  # something else besides
            (row(), 0),
        ],
    )
    def test_right_finding_and_side(self, claimed, expected):
        named = true = row(left_pleural_effusion=1)
        assert text.right_finding_and_side(claimed, named, true)[0] == expected

    def test_right_side_is_not_held_against_a_true_change_there(self):
        named, true = row(left_pleural_effusion=1), row(left_pleural_effusion=1, right_pleural_effusion=1)
        assert text.right_finding_and_side(true, named, true)[0] == 1

    def test_no_change_named_is_undefined(self):
        assert np.isnan(text.right_finding_and_side(row(), row(), row())[0])

    def test_agreement_with_the_image(self):
        states = np.array([[1, NAN, 0, 0, 1, NAN, NAN, NAN]])
        prob = np.array([[0.9, 0.9, 0.8, 0.1, 0.2, 0.9, 0.9, 0.9]])
        agree, count = text.agreement_counts(states, prob, findings.FINDINGS, self.everywhere)
        assert (agree[0], count[0]) == (2, 4)

    def test_agreement_with_chexpert_columns(self):
        # Effusion present on the left only: the observation is present. Pneumothorax absent on both sides.
        states = np.array([[1, 0, 0, 0, NAN, NAN, NAN, NAN]])
        agree, count = text.agreement_counts(
            states, np.array([[0.9, 0.9]]), ("Pleural Effusion", "Pneumothorax"), self.everywhere
        )
        assert (agree[0], count[0]) == (1, 2)
