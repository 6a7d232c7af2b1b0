"""What the live comparisons of evaluation share: features, the tolerance, torchvision."""

import importlib
import re
import sys

import numpy as np
import pytest

TOLERANCE = {"rtol": 0, "atol": 1e-6}
CASES = 200  # random and degenerate inputs of a comparison
_LIBRARIES = []  # what they define is gone with them


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, **TOLERANCE)


def features(seed):
    """Features float [N, D] and [M, D] of two sets; some copied, some with a singular covariance."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(2, 12))
    n, m = rng.integers(d + 3, 60, 2)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * rng.uniform(0.5, 2, d) + rng.normal(size=d)
    if seed % 4 == 0:
        y = x[: max(len(x) // 2, 5)].copy()
    if seed % 10 == 1:
        x[:, 0] = 3.0  # a singular covariance
    return x, y


def import_torchvision():
    """torchvision, also where its compiled operators are of another build than PyTorch: no model here needs them."""
    library = pytest.importorskip("torch").library.Library("torchvision", "FRAGMENT")
    _LIBRARIES.append(library)
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
