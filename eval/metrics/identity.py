"""Is the generated film one of the prior's patient, as a re-identification network sees it?

Such networks place films so that those of one patient lie close together (`scorers.reidentification`). Two films are
*verified* as one patient's where they are more alike than all but FALSE_MATCHES of the real films of two patients: the
prior of one and the follow-up of another of the same sex, among the held-out ones. By definition 1 % of strangers pass,
a copy always does, and the real follow-up says what another day's film of the patient reaches.
"""

import numpy as np

FALSE_MATCHES = 0.01
MOST = 2000  # films of each side that strangers are drawn from
LEAST = 100  # pairs of strangers, for one in a hundred to mean anything


def strangers(prior, followup, patient, sex):
    """float [K], ascending: similarities of real films of two patients.

    Args:
      prior, followup: float [N, D] of length 1, of the N cases.
      patient: int [N]. sex: float [N], NaN unknown: a patient of the other sex is too easy to tell apart.
    """
    step = -(-len(prior) // MOST)
    prior, followup, patient, sex = (x[::step] for x in (prior, followup, patient, sex))
    apart = patient[:, None] != patient[None]
    apart &= ~(np.abs(sex[:, None] - sex[None]) > 0)  # NaN compares as False: unknown is let in
    return np.sort((prior @ followup.T)[apart])


def threshold(apart):
    """The similarity that FALSE_MATCHES of the strangers' exceed; None where there are too few."""
    return float(np.quantile(apart, 1 - FALSE_MATCHES)) if len(apart) >= LEAST else None


def verified(made, prior, apart):
    """(1 verified as the prior's patient or 0, share of strangers that are less alike): float [N] each.

    The mean of the second is the AUROC of the similarity against the strangers (ties count half).
    """
    alike = (made * prior).sum(1)
    below = (np.searchsorted(apart, alike, "left") + np.searchsorted(apart, alike, "right")) / (2 * len(apart))
    return (alike > threshold(apart)).astype(np.float64), below
