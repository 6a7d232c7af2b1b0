"""Several futures of one case: how different are they, and does their spread know where they are wrong?

- diversity: mean of 1 - MS-SSIM over pairs of samples of a case; 0 when all are one image.
- the uncertainty map is the standard deviation (n - 1) of the S samples at a pixel. Its calibration: were the truth
  one more draw, its squared distance from the samples' mean would be var * (1 + 1 / S) on average. Pixels are put
  into bins by that prediction; ENCE (expected normalised calibration error, Levi et al. 2022, eq. 8) is the mean
  over bins of |RMV - RMSE| / RMV, here weighted by pixels: 0 is calibrated, above 1 the map says next to nothing.
- uncertainty_error_r: Pearson r of the map with the absolute error of the samples' mean, within a case.

The truth is the true counterfactual where there is one, else the real follow-up, whose pose and exposure no sample
can know: there the error is an upper bound.
"""

import numpy as np

# Edges of the bins of predicted standard deviation, gray levels: fixed, so that a resample only adds up sums.
EDGES = np.array([0.5, 1, 2, 4, 8, 16, 32, 64])
BINS = len(EDGES)


def diversity(samples):
    """Mean 1 - MS-SSIM over pairs of S images (a list of `image.Pyramid`); NaN below two or for tiny images."""
    if len(samples) < 2:
        return float("nan")
    return float(1 - np.mean([samples[i].ms_ssim(samples[j]) for i in range(len(samples)) for j in range(i)]))


def calibration_sums(samples, truth):
    """Sums over pixels of each bin: (pixels, predicted variance, squared error), float [3, BINS + 1].

    Args:
      samples: uint8 [S, H, W], S >= 2.
      truth: uint8 [H, W].

    The last column holds the pixels on which all samples agree: they predict no error at all.
    """
    samples, count = np.asarray(samples, np.float64), len(samples)
    predicted = samples.var(0, ddof=1).ravel() * (1 + 1 / count)
    error = (samples.mean(0) - truth).ravel() ** 2
    which = np.searchsorted(EDGES, np.sqrt(predicted), side="right") - 1
    which = np.where(predicted > 0, np.maximum(which, 0), BINS)
    return np.stack([np.bincount(which, w, BINS + 1) for w in (np.ones_like(error), predicted, error)])


def ence(sums):
    """Expected normalised calibration error of summed sums float [..., 3, BINS + 1] -> float [...].

    NaN where no pixel varies. Pixels without any spread have no normalised error and are left out.
    """
    pixels, predicted, error = np.moveaxis(np.asarray(sums, np.float64)[..., :BINS], -2, 0)
    ok = pixels > 0
    safe = np.where(ok, predicted, 1.0)
    miss = np.where(ok, np.abs(1 - np.sqrt(error / safe)), 0.0)
    total = pixels.sum(-1)
    return np.divide((pixels * miss).sum(-1), total, out=np.full(np.shape(total), np.nan), where=total > 0)


def error_correlation(samples, truth):
    """Pearson r over pixels of the samples' spread with |mean - truth|; NaN where either is constant."""
    samples = np.asarray(samples, np.float64)
    spread = samples.std(0, ddof=1).ravel()
    error = np.abs(samples.mean(0) - truth).ravel()
    if np.ptp(spread) == 0 or np.ptp(error) == 0:
        return float("nan")
    return float(np.corrcoef(spread, error)[0, 1])
