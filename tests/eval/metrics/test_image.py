"""SSIM, MS-SSIM and PSNR against their definitions; inside and outside of a region."""

import math

import numpy as np
import pytest

from progemu_jax.eval.metrics import image


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

    def test_tea_by_hand(self):
        prior = np.full((1, 2), 100, np.uint8)
        truth, made = prior + np.uint8([[30, 0]]), prior + np.uint8([[15, 51]])
        assert image.tea(made, prior, truth) == pytest.approx((0.5, 0.2))
        assert image.tea(prior - np.uint8([[60, 0]]), prior, truth) == pytest.approx((-2, 0))
        assert image.tea(truth, prior, truth) == (1, 0)
        assert image.tea(prior, prior, truth) == (0, 0)
        assert np.isnan(image.tea(made, prior, prior)).all()

    def test_ms_ssim_scales_fit_the_image(self):
        assert [image.scales((s, 512)) for s in (10, 11, 22, 64, 128, 176, 512)] == [0, 1, 2, 3, 4, 5, 5]
        rng = np.random.default_rng(2)
        a, b = rng.integers(0, 256, (2, 16, 16), dtype=np.uint8)
        assert image.ms_ssim(a, b) == pytest.approx(max(image.ssim(a, b), 0))  # one scale: SSIM itself
        assert image.ms_ssim(a, a) == pytest.approx(1)
