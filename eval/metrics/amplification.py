"""Did the edit change who the person is? Attributes that no prompt names, on the prior and on the generated image.

Counterfactual generators are known to exaggerate an attribute that nobody asked them to touch (attribute
amplification, Xia et al. 2024). With g the group that the scorer sees most in the prior:

- group_flip: share of cases whose most probable group changed.
- group_shift: mean of P(g | generated) - P(g | prior): above 0 amplified, below 0 washed out.
- age_shift: mean of age(generated) - age(prior), years: a system that ages everybody; age_shift_abs: mean |...|.
- sex_flip: share of cases whose P(F) crossed 0.5.

The real follow-up's row shows how much of this is the scorer's own noise between two films of one person.
"""

import numpy as np


def group_flip(before, after):
    """float [N]: 1 where the most probable group differs; before, after float [N, G]."""
    return (before.argmax(1) != after.argmax(1)).astype(np.float64)


def group_shift(before, after):
    """float [N]: change of the probability of the prior's most probable group; before, after float [N, G]."""
    rows, top = np.arange(len(before)), before.argmax(1)
    return after[rows, top].astype(np.float64) - before[rows, top]


def age_shift(before, after):
    """float [N] years; NaN where either age is unknown."""
    return np.asarray(after, np.float64) - before


def sex_flip(before, after):
    """float [N]: 1 where P(F) crossed 0.5; before, after float [N]."""
    return ((np.asarray(before) >= 0.5) != (np.asarray(after) >= 0.5)).astype(np.float64)
