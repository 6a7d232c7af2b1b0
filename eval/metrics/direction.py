"""Directional accuracy: did each finding that the prompt names move the way the prompt says, and no other?

Let p0 and p1 be the scorer's probability of finding f on the prior and on the generated image, and d = +1
(new, worse) or -1 (better, resolved) the direction that the prompt states for f.

- `moved` (directional accuracy): d * (p1 - p0) > margin. Equality and anything within the margin is wrong,
  so a copy of the prior scores 0. With margin 0 an edit that ignores the prompt scores about one half; with
  the reporting margin of 0.05 small unrelated noise, such as a tokenizer's, counts as no movement.
- `kept` (specificity): over findings that the prompt does not name and that truly did not change, and on
  which the scorer was right about the prior: is it still on the same side of 0.5? A copy scores 1.
- `still`: over the same findings, whatever the scorer thought of the prior: |p1 - p0| <= margin. A copy scores 1.
- `success`: every named finding moved (margin 0) and no other was lost: one number a case. A copy scores 0.
- `effect` (the effectiveness of a counterfactual, Monteiro et al. 2023, as a change of probability): d * (p1 - p0).
- `flipped` (the flip test): of named findings that the scorer sees on the prior on the side that the prompt leads away
  from, does it see them on the other side of 0.5? A copy scores 0.
- `amplified` (attribute amplification, Xia et al. 2024, of findings): over the findings of `still`, s * (p1 - p0) with
  s = +1 where p0 >= 0.5, else -1: above 0 what was seen already is exaggerated, below 0 washed out.
"""

import numpy as np

# Two float32 evaluations of one image may differ in the last digits with the batch; that is a tie.
TIE = 1e-5
MARGIN = 0.05
THRESHOLD = 0.5


def moved(before, after, direction, margin=TIE):
    """Whether each named finding moved the stated way by more than `margin`.

    Args:
      before, after: float [N, F], probabilities on the prior and on the generated image.
      direction: float [N, F], +1 or -1 where the prompt names the finding, 0 elsewhere, NaN to leave out.
      margin: smallest change of probability that counts as movement.

    Returns:
      float [N, F]: 1 moved as stated, 0 not, NaN where the prompt does not name the finding.
    """
    named = np.abs(direction) == 1
    step = direction * (np.asarray(after, np.float64) - np.asarray(before, np.float64))
    return np.where(named, (step > margin).astype(np.float64), np.nan)


def kept(before, after, direction, truth_before, truth_after, threshold=THRESHOLD):
    """Whether each finding that should have stayed did stay on its side of the threshold.

    Args:
      before, after, direction: as in `moved`.
      truth_before, truth_after: float [N, F], 1 present, 0 absent, NaN unknown.

    Returns:
      float [N, F]: 1 kept, 0 lost, NaN where the question does not arise.
    """
    asked = (direction == 0) & (truth_before == truth_after)
    asked &= (np.asarray(before) >= threshold) == (truth_before == 1)
    return np.where(asked, ((np.asarray(after) >= threshold) == (truth_after == 1)).astype(np.float64), np.nan)


def still(before, after, direction, unchanged, margin=MARGIN):
    """Whether each finding that nothing asks to move stayed within `margin`.

    Args:
      before, after, direction: as in `moved`.
      unchanged: bool [N, F], findings that the question is asked of, where the prompt does not name them.

    Returns:
      float [N, F]: 1 still, 0 moved, NaN where the question does not arise.
    """
    step = np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64))
    return np.where((direction == 0) & unchanged, (step <= margin).astype(np.float64), np.nan)


def effect(before, after, direction):
    """float [N, F]: change of the probability in the stated direction; NaN where the prompt does not name the finding.

    before, after, direction: as in `moved`.
    """
    step = direction * (np.asarray(after, np.float64) - np.asarray(before, np.float64))
    return np.where(np.abs(direction) == 1, step, np.nan)


def flipped(before, after, direction, threshold=THRESHOLD):
    """float [N, F]: 1 where a named finding crossed to the stated side of the threshold, 0 where it stayed.

    NaN where the prompt does not name the finding, or the prior is on the stated side already. Arguments as in `moved`.
    """
    was, now = np.asarray(before) >= threshold, np.asarray(after) >= threshold
    asked = np.where(direction == 1, ~was, (direction == -1) & was)
    return np.where(asked, (now != was).astype(np.float64), np.nan)


def amplified(before, after, direction, unchanged, threshold=THRESHOLD):
    """float [N, F]: change of the probability towards the side it was on already; NaN elsewhere. See `still`."""
    side = np.where(np.asarray(before) >= threshold, 1.0, -1.0)
    step = side * (np.asarray(after, np.float64) - np.asarray(before, np.float64))
    return np.where((direction == 0) & unchanged, step, np.nan)


def success(moved_, kept_):
    """float [N]: 1 where every named finding moved and none was lost; NaN where the prompt names none."""
    named = ~np.isnan(moved_)
    good = (np.where(named, moved_, 1).min(1) == 1) & (np.where(np.isnan(kept_), 1, kept_).min(1) == 1)
    return np.where(named.any(1), good.astype(np.float64), np.nan)


def confusion(prob, truth, threshold=THRESHOLD):
    """(true positive, false positive, false negative), bool [N] each, of probabilities against truth (1, 0, NaN)."""
    said = np.asarray(prob) >= threshold
    return said & (truth == 1), said & (truth == 0), ~said & (truth == 1)
