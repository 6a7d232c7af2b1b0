"""CMIG, the counterfactual medical image generation score (MedJourney, Gu et al. 2023, section 4.2).

    CMIG = sqrt(geomean(accuracies) * geomean(retentions))

In the paper the accuracies are the pathology AUROC and the retentions the race AUROC and the age Pearson r.
The paper's *printed* CMIG column does not follow from its printed inputs by this formula (for MedJourney
83.23 is printed and 84.11 follows); this is the formula.
"""

import numpy as np


def cmig(accuracies, retentions):
    """Combine accuracies and retentions (lists of float or float [B] arrays) into float [B].

    Undefined (NaN) wherever a term is undefined or not above zero: a geometric mean has no meaning for a
    negative correlation, and clipping it at zero would hide by how much it failed.
    """
    if not accuracies or not retentions:
        raise ValueError("CMIG needs at least one accuracy and one retention")
    means = []
    for terms in (accuracies, retentions):
        stacked = np.stack([np.atleast_1d(np.asarray(t, np.float64)) for t in terms])
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(np.where((stacked > 0).all(0), np.exp(np.log(stacked).mean(0)), np.nan))
    return np.sqrt(means[0] * means[1])
