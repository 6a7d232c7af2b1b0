"""What the interpretation says, against the truth and against the generated image.

A text is read by `radtext` into claims about the findings of the cohort: a *change* (+1 new or worse, -1 better or
resolved) and a *state* (present or absent after the change). All counts are over (case, finding):

- change precision = TP / (TP + FP), recall = TP / (TP + FN), F1 = 2 TP / (2 TP + FP + FN); a change with the
  wrong direction is one FP and one FN.
- state F1, the same with "present" as the positive class; a finding of unknown state counts as absent, the
  convention of CheXpert-labeller F1 scores.
- right finding and side: every change that the prompt names is claimed with its direction, and the same
  disease is not claimed to change on the other side unless it truly does.
- on *omitted* findings: the counts above over findings that the prompt does not name, where repeating the
  prompt earns nothing.
- agreement with the generated image: share of claimed states with which the scorer, at 0.5, agrees.
"""

import numpy as np

from progemu_jax.text import rules
from progemu_jax.text.findings import columns_of, other_sides


def claims(texts, findings):
    """Claims of each text on the F `Finding`s.

    Returns:
      changes: float [N, F], +1, -1, or 0 where the text claims no change.
      states: float [N, F], 1 present, 0 absent, NaN not stated.
    """
    changes, states = np.zeros((len(texts), len(findings))), np.full((len(texts), len(findings)), np.nan)
    seen = {}
    for i, text in enumerate(texts):
        if text not in seen:
            change, state = rules.changes(text, findings=findings), rules.states(text, findings)
            seen[text] = (
                [change.get(f.name) or 0 for f in findings],
                [np.nan if state.get(f.name) is None else float(state[f.name]) for f in findings],
            )
        changes[i], states[i] = seen[text]
    return changes, states


def change_counts(claimed, true, where):
    """TP, FP, FN of claimed against true changes, float [N] each; `where` bool [N, F] limits the findings."""
    hit = (claimed == true) & (true != 0)
    wrong = (claimed != 0) & ~hit
    missed = (true != 0) & ~hit
    return tuple((x & where).sum(1).astype(np.float64) for x in (hit, wrong, missed))


def state_counts(claimed, true, where):
    """TP, FP, FN of "present" claims against true states (1, 0, NaN = absent), float [N] each."""
    said, real = claimed == 1, true == 1
    return tuple((x & where).sum(1).astype(np.float64) for x in (said & real, said & ~real, ~said & real))


def right_finding_and_side(claimed, named, true, findings):
    """float [N]: 1 right, 0 wrong, NaN where the prompt names no change.

    Args:
      claimed: float [N, F], the text's changes.
      named: float [N, F], the prompt's changes.
      true: float [N, F], the true changes.
      findings: the F `Finding`s.
    """
    other_side = np.array(other_sides(findings))
    asked = named != 0
    said = np.where(asked, claimed == named, True).all(1)
    sided = other_side >= 0
    other = claimed[:, other_side] * sided  # what the text claims of the other side
    wrong_side = asked & (other != 0) & (other != true[:, other_side])
    return np.where(asked.any(1), (said & ~wrong_side.any(1)).astype(np.float64), np.nan)


def agreement_counts(states, prob, columns, where, findings):
    """Claims of state that the scorer's reading of the generated image bears out.

    Args:
      states: float [N, F], claimed states.
      prob: float [N, C], the scorer's probabilities on the generated images.
      columns: names of the C columns: findings or labels.
      where: bool [N, F] limits the findings.
      findings: the F `Finding`s.

    Returns:
      (agreeing, claims): float [N] each.
    """
    agree, count = np.zeros(len(states)), np.zeros(len(states))
    columns = list(columns)
    for j, name in enumerate(columns):
        members = columns_of(name, columns, findings)
        if not members:
            continue
        claim = np.where(where[:, members], states[:, members], np.nan)
        present = (claim == 1).any(1)
        absent = (claim == 0).all(1)  # absent on every side
        seen = prob[:, j] >= 0.5
        count += present | absent
        agree += (present & seen) | (absent & ~seen)
    return agree, count
