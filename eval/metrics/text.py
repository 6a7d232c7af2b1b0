"""What the interpretation says, against the truth and against the generated image.

A text is read by `radtext` into claims about the eight findings: a *change* (+1 new or worse, -1 better or
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

from progemu_jax.text import findings, rules

FINDINGS = findings.FINDINGS


def _other_side():
    index = {f: i for i, f in enumerate(FINDINGS)}
    swap = {"left": "right", "right": "left"}
    pairs = []
    for i, finding in enumerate(FINDINGS):
        side, _, rest = finding.partition(" ")
        pairs.append(index.get(f"{swap[side]} {rest}", i) if side in swap else -1)
    return np.array(pairs)


OTHER_SIDE = _other_side()
"""int [8]: index of the same disease on the other side, -1 for a finding without sides."""


def claims(texts):
    """Claims of each text.

    Returns:
      changes: float [N, 8] in FINDINGS order, +1, -1, or 0 where the text claims no change.
      states: float [N, 8], 1 present, 0 absent, NaN not stated.
    """
    changes, states = np.zeros((len(texts), len(FINDINGS))), np.full((len(texts), len(FINDINGS)), np.nan)
    seen = {}
    for i, text in enumerate(texts):
        if text not in seen:
            change, state = rules.changes(text), rules.states(text)
            seen[text] = (
                [change.get(f) or 0 for f in FINDINGS],
                [np.nan if state.get(f) is None else float(state[f]) for f in FINDINGS],
            )
        changes[i], states[i] = seen[text]
    return changes, states


def change_counts(claimed, true, where):
    """TP, FP, FN of claimed against true changes, float [N] each; `where` bool [N, 8] limits the findings."""
    hit = (claimed == true) & (true != 0)
    wrong = (claimed != 0) & ~hit
    missed = (true != 0) & ~hit
    return tuple((x & where).sum(1).astype(np.float64) for x in (hit, wrong, missed))


def state_counts(claimed, true, where):
    """TP, FP, FN of "present" claims against true states (1, 0, NaN = absent), float [N] each."""
    said, real = claimed == 1, true == 1
    return tuple((x & where).sum(1).astype(np.float64) for x in (said & real, said & ~real, ~said & real))


def right_finding_and_side(claimed, named, true):
    """float [N]: 1 right, 0 wrong, NaN where the prompt names no change.

    Args:
      claimed: float [N, 8], the text's changes.
      named: float [N, 8], the prompt's changes.
      true: float [N, 8], the true changes.
    """
    asked = named != 0
    said = np.where(asked, claimed == named, True).all(1)
    sided = OTHER_SIDE >= 0
    other = claimed[:, OTHER_SIDE] * sided  # what the text claims of the other side
    wrong_side = asked & (other != 0) & (other != true[:, OTHER_SIDE])
    return np.where(asked.any(1), (said & ~wrong_side.any(1)).astype(np.float64), np.nan)


def agreement_counts(states, prob, columns, where):
    """Claims of state that the scorer's reading of the generated image bears out.

    Args:
      states: float [N, 8], claimed states.
      prob: float [N, F], the scorer's probabilities on the generated images.
      columns: names of the F columns, of radtext.FINDINGS or CheXpert's.
      where: bool [N, 8] limits the findings.

    Returns:
      (agreeing, claims): float [N] each.
    """
    agree, count = np.zeros(len(states)), np.zeros(len(states))
    columns = list(columns)
    for j, name in enumerate(columns):
        members = [
            i for i, f in enumerate(FINDINGS) if f == name or (f not in columns and findings.CHEXPERT_OF[f] == name)
        ]
        if not members:
            continue
        claim = np.where(where[:, members], states[:, members], np.nan)
        present = (claim == 1).any(1)
        absent = (claim == 0).all(1)  # absent on every side
        seen = prob[:, j] >= 0.5
        count += present | absent
        agree += (present & seen) | (absent & ~seen)
    return agree, count
