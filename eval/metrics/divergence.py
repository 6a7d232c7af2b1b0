"""KL divergence between a classifier's outputs on real and on generated images.

p is the scorer's probability on the real follow-up, q on the generated image, per finding, in nats.

- `bernoulli_kl`: KL(Bernoulli(p) || Bernoulli(q)) = p ln(p/q) + (1-p) ln((1-p)/(1-q)): never negative, and
  zero only where p = q.
- `printed_kl`: sum of p ln(p/q) as MedJourney prints it (appendix A.2). The findings are not exclusive, so
  this is not a divergence between distributions and can be negative: a scorer that says 1 to everything
  would win. It is kept for comparison with published numbers only.
"""

import numpy as np

# float32 sigmoid outputs reach 0 and 1; this keeps the logarithms finite (at most 13.8 nats a finding).
EPSILON = 1e-6


def bernoulli_kl(p, q):
    """Elementwise KL of Bernoulli(p) from Bernoulli(q); float arrays in [0, 1], nats."""
    p, q = _clip(p), _clip(q)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def printed_kl(p, q):
    """Elementwise p ln(p/q); float arrays in [0, 1], nats; may be negative."""
    p, q = _clip(p), _clip(q)
    return p * np.log(p / q)


def _clip(x):
    return np.clip(np.asarray(x, np.float64), EPSILON, 1 - EPSILON)
