"""FID, KID, nearest neighbours, diversity and calibration against definitions and hand-computed values."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import fidelity


class TestFid:
    def test_of_one_dimension_by_hand(self):
        # Means 1 and 5, variances 2 and 8: 16 + (sqrt 8 - sqrt 2)^2 = 18.
        assert fidelity.fid([[0.0], [2.0]], [[3.0], [7.0]]) == pytest.approx(16 + 2)

    def test_of_diagonal_covariances(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(400, 3))
        y = x * [1, 2, 0.5] + [0, 1, 0]
        covariance = np.cov(x.T)
        # C2 = S C1 S: (C1 C2)^(1/2) has no closed form unless C1 is diagonal, so whiten x first.
        x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        y = x * [1, 2, 0.5] + [0, 1, 0]
        assert fidelity.fid(x, y) == pytest.approx(1 + (2 - 1) ** 2 + (0.5 - 1) ** 2)

    def test_more_dimensions_than_points_is_the_same_formula(self):
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(20, 6)), rng.normal(size=(30, 6)) + 0.5
        wide = np.pad(x, ((0, 0), (0, 50))), np.pad(y, ((0, 0), (0, 50)))
        assert fidelity.fid(*wide) == pytest.approx(fidelity.fid(x, y), abs=1e-9)

    def test_of_a_set_with_itself_is_zero_and_one_image_has_none(self):
        x = np.random.default_rng(2).normal(size=(50, 8))
        assert fidelity.fid(x, x) == pytest.approx(0, abs=1e-9)
        assert math.isnan(fidelity.fid(x, x[:1]))
        assert fidelity.fid(np.zeros((5, 3)), np.zeros((5, 3))) == 0


class TestKid:
    def test_by_hand(self):
        # d = 1: kernel (xy + 1)^3. x = 0, 1; y = 1, 2. k(0, 1) = 1; k(1, 2) = 27; cross: 1, 1, 8, 27.
        assert fidelity.kid([[0.0], [1.0]], [[1.0], [2.0]]) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)

    def test_blocks_change_nothing(self, monkeypatch):
        rng = np.random.default_rng(3)
        x, y = rng.normal(size=(30, 5)), rng.normal(size=(25, 5))
        whole = fidelity.kid(x, y), fidelity.neighbours(x, y)
        monkeypatch.setattr(fidelity, "BLOCK", 7)
        assert fidelity.kid(x, y) == pytest.approx(whole[0])
        assert fidelity.neighbours(x, y) == whole[1]

    def test_is_unbiased(self):
        rng = np.random.default_rng(4)
        values = [fidelity.kid(*rng.normal(size=(2, 15, 3))) for _ in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 20


class TestPrecisionRecall:
    def test_by_hand(self):
        # k = 1: real points 0, 1, 10 reach 1, 1, 9; made points 0.5 and 15 are in, 30 is out.
        real, made = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [15.0], [30.0]])
        assert fidelity.neighbours(real, made, k=1)[:2] == (pytest.approx(2 / 3), 1.0)

    def test_collapse_has_precision_and_no_recall(self):
        real = np.random.default_rng(5).normal(size=(80, 4))
        precision, recall, density, coverage = fidelity.neighbours(real, np.zeros((80, 4)))
        assert precision == 1
        assert recall < 0.05
        assert density > 1
        assert coverage < 0.5

    def test_too_few_points(self):
        assert all(math.isnan(v) for v in fidelity.neighbours(np.zeros((3, 2)), np.zeros((9, 2))))
        for sizes, undefined in (((5, 9), [False, False, True, True]), ((9, 1), [True, True, False, False])):
            assert [math.isnan(v) for v in fidelity.neighbours(*(np.zeros((n, 2)) for n in sizes))] == undefined
        assert all(math.isnan(v) for v in fidelity.neighbours(np.zeros((9, 2)), np.zeros((0, 2))))


class TestDensityAndCoverage:
    def test_by_hand(self):
        # k = 2: real points 0, 1, 3, 10 reach 3, 2, 3, 9. Made points: 0.5 is in the balls of 0, 1 and 3; 2 in those of
        # 0, 1, 3 and 10; 30 in none. (3 + 4 + 0) / (2 * 3).
        real, made = np.array([[0.0], [1.0], [3.0], [10.0]]), np.array([[0.5], [2.0], [30.0]])
        assert fidelity.neighbours(real, made, dense=2)[2:] == (pytest.approx(7 / 6), 1.0)
        assert fidelity.neighbours(real, made[:1], dense=2)[2:] == (pytest.approx(3 / 2), 0.75)

    def test_an_edge_is_outside(self):
        # Real points 0, 1, 3 reach 1, 1, 2 (k = 1): 5 lies on the edge of the last ball.
        assert fidelity.neighbours([[0.0], [1.0], [3.0]], [[5.0]], dense=1)[2:] == (0, 0)

    def test_of_real_images_are_one_and_almost_one(self):
        rng = np.random.default_rng(9)
        values = [fidelity.neighbours(*rng.normal(size=(2, 60, 4)))[2:] for _ in range(60)]
        chance = 1 - np.prod([(59 - j) / (119 - j) for j in range(5)])  # of its five nearest not all are real ones
        assert np.mean(values, axis=0) == pytest.approx([1, chance], abs=0.02)

    def test_recall_rises_as_diversity_falls_and_coverage_does_not(self):
        # Real points 0, 1, ..., 9; two images, three times each: the third neighbour of each is the other, 8.6 away.
        real, few = np.arange(10.0)[:, None], np.repeat([[0.2], [8.8]], 3, axis=0)
        assert fidelity.neighbours(real, few)[:2] == (1, 1)
        assert fidelity.neighbours(real, few)[3] == pytest.approx(8 / 10)  # 4 lies 3.8 from 0.2 and reaches 3; so 5
        draws = np.random.default_rng(10).normal(size=(40, 2, 80, 16))
        every = np.mean([fidelity.neighbours(real, made) for real, made in draws], axis=0)
        eight = np.mean([fidelity.neighbours(real, made[:8]) for real, made in draws], axis=0)
        assert eight[1] > every[1] + 0.05
        assert eight[3] < every[3] / 2


class TestIntervals:
    def test_at_most_fifty_and_centred_on_the_value(self):
        rng = np.random.default_rng(6)
        x, y, patient = rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 0.3, np.arange(60) // 2
        got = fidelity.fidelity(x, y, patient, patient, subsamples=500)
        assert {len(v) for v in got.values()} == {51}
        assert got["fid"][0] == fidelity.fid(x, y)
        assert got["kid"][1:].mean() == pytest.approx(got["kid"][0])
        assert (got["feature_precision"] <= 1).all()

    def test_spread_is_that_of_whole_samples(self):
        """KID over fresh cohorts of 80 against the half-samples of one: within a third."""
        rng = np.random.default_rng(7)
        draw = lambda: (rng.normal(size=(80, 3)), 1 + 2 * rng.normal(size=(80, 3)))  # noqa: E731
        truth = np.std([fidelity.kid(*draw()) for _ in range(300)])
        own = [fidelity.fidelity(*draw(), np.arange(80), np.arange(80, 160))["kid"][1:].std() for _ in range(12)]
        assert np.mean(own) == pytest.approx(truth, rel=0.33)

    def test_few_patients_have_none(self):
        x = np.random.default_rng(8).normal(size=(9, 2))
        assert len(fidelity.fidelity(x, x, np.zeros(9, int), np.zeros(9, int))["fid"]) == 1

    def test_fid_of_halves_is_their_mean(self):
        rng = np.random.default_rng(11)
        x, y, patient = rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 0.3, np.arange(40)
        got = fidelity.fidelity(x, y, patient, patient, subsamples=20)
        assert got["fid_half"][0] == pytest.approx(got["fid_half"][1:].mean())
        assert got["fid_half"][0] > got["fid"][0]  # FID falls with n
        assert "fid_half" not in fidelity.fidelity(x, y, patient, patient, subsamples=0)


class TestRealHalves:
    def test_no_patient_is_on_both_sides(self, monkeypatch):
        """Features that are the patient's number: a patient on both sides would be in both sets."""
        sides = []
        monkeypatch.setattr(fidelity, "_all", lambda one, other: sides.append((one, other)) or (0.0,) * 6)
        patient = np.repeat(np.arange(9), [1, 2, 3] * 3)
        got = fidelity.real_halves(patient[:, None].astype(float), patient, splits=7)
        assert len(sides) == 7
        for one, other in sides:
            assert not set(one[:, 0]) & set(other[:, 0])
            assert len(one) + len(other) == len(patient)
        assert set(got) == {"fid_half", *fidelity.NAMES[1:]}

    def test_is_where_images_as_good_as_real_stand(self):
        """Means over 40 cohorts: the floor, and other draws of the same distribution at half n."""
        rng, patient, floor, other = np.random.default_rng(12), np.arange(60), [], []
        for _ in range(40):
            real, made = rng.normal(size=(2, 60, 4))
            got = fidelity.real_halves(real, patient, splits=8)
            floor.append([v[0] for v in got.values()])
            other.append(fidelity.fidelity(real, made, patient, patient, subsamples=8)["fid_half"][0])
        fid, kid, _, _, density, coverage = np.mean(floor, axis=0)
        assert fid == pytest.approx(np.mean(other), rel=0.15)
        assert kid == pytest.approx(0, abs=0.05)
        assert density == pytest.approx(1, abs=0.05)
        assert coverage == pytest.approx(0.97, abs=0.02)

    def test_few_patients_have_none(self):
        assert fidelity.real_halves(np.zeros((9, 2)), np.arange(9) // 3) == {}
        assert fidelity.real_halves(np.zeros((9, 2)), np.arange(9), splits=0) == {}
