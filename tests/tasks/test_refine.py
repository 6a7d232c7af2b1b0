"""Reward-ranked fine-tuning: what is asked, how futures are judged, what is learnt from."""

import numpy as np
import pytest

from progemu_jax.data.answers import asked_severity
from progemu_jax.tasks import refine
from progemu_jax.tasks.refine import Chosen, RefineConfig, drawn_request, rewards
from progemu_jax.text.findings import FINDINGS, PRESENT
from progemu_jax.text.restate import Change, changes_of

EFFUSION, EDEMA = FINDINGS.index("left pleural effusion"), FINDINGS.index("pulmonary edema")


def severities(rng):
    """A patient: most findings absent, some of any severity."""
    return np.where(rng.random(8) < 0.6, 0.03, rng.uniform(0, 1, 8)).astype(np.float32)


def test_requests_fit_the_patient_and_are_balanced():
    rng, asked = np.random.default_rng(0), []
    for _ in range(1000):
        severity = severities(rng)
        changes = drawn_request(severity, rng)
        assert 1 <= len(changes) <= 2
        assert len({c.finding for c in changes}) == len(changes)
        for change in changes:
            before = float(severity[FINDINGS.index(change.finding)])
            moved = asked_severity(before, change) - before
            assert (before < PRESENT) == (change.direction == "new")
            assert moved > 0 if change.direction in ("new", "worse") else moved < 0, (before, change)
            assert abs(moved) >= min(PRESENT, before) or change.direction == "new"
            if change.grade and change.direction != "new":
                assert abs(moved) < 0.5
        asked += changes
    for name in ("direction", "finding"):
        shares = np.unique([getattr(c, name) for c in asked], return_counts=True)[1] / len(asked)
        assert len(shares) == {"direction": 4, "finding": 8}[name]
        np.testing.assert_allclose(shares, 1 / len(shares), atol=0.06)
    assert 0.15 < np.mean([c.grade is not None for c in asked]) < 0.6
    assert not any(c.grade for c in asked if c.direction == "resolved")


def test_what_cannot_happen_is_not_asked():
    rng = np.random.default_rng(0)
    well, ill = np.zeros(8), np.full(8, 0.95)
    assert {c.direction for _ in range(50) for c in drawn_request(well, rng)} == {"new"}
    assert {c.direction for _ in range(50) for c in drawn_request(ill, rng)} == {"better", "resolved"}
    # Neither absent nor present: nothing can happen to them.
    assert drawn_request(np.full(8, 0.1), rng) == []
    one = np.full(8, 0.1)
    one[EDEMA] = 0.5
    assert {c.finding for _ in range(50) for c in drawn_request(one, rng)} == {"pulmonary edema"}


def scores(severity, prob, group=((0.5, 0.5),), age=(50.0,)):
    found = {"finding_severity": severity, "finding_prob": prob, "group_prob": group, "age": age}
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def prior():
    severity, prob = np.zeros((1, 8)), np.full((1, 8), 0.1)
    severity[0, EDEMA], prob[0, EDEMA] = 0.4, 0.9
    return scores(severity, prob)


def futures(*changes, group=None, age=None):
    """Futures of `prior`: dicts of {column: (severity, probability)}."""
    before, n = prior(), len(changes)
    severity, prob = (before[k].repeat(n, 0) for k in ("finding_severity", "finding_prob"))
    for i, change in enumerate(changes):
        for j, (s, p) in change.items():
            severity[i, j], prob[i, j] = s, p
    return scores(severity, prob, group or [(0.5, 0.5)] * n, age or [50.0] * n)


def test_rewards_by_hand():
    request = [Change("left pleural effusion", "new", "moderate")]
    aim = asked_severity(0.0, request[0])
    done, half, none = {EFFUSION: (aim, 0.9)}, {EFFUSION: (aim / 2, 0.2)}, {}
    away = {EFFUSION: (-aim, 0.0)}
    got = rewards(prior(), futures(done, half, none, away), request, others=1.0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [1.0, 0.7 * 0.5 + 0.3 * 0.5, 0.0, -0.7 - 0.3 * 0.5], atol=1e-5)


def test_what_was_not_asked_costs_and_so_does_another_patient():
    request = [Change("left pleural effusion", "new", "moderate")]
    done = {EFFUSION: (asked_severity(0.0, request[0]), 0.9)}
    strayed = {**done, EDEMA: (0.2, 0.5)}  # severity 0.2 and probability 0.4 from the prior's
    made = futures(done, strayed, done, done, group=[(0.5, 0.5)] * 2 + [(0.9, 0.1), (0.5, 0.5)], age=[50, 50, 50, 60])
    lost = np.asarray([0, 0.2 + 0.5 * 0.4, 0.5 * 0.4, 0.5 * 0.5])
    for others in (0.0, 1.0, 2.0):
        np.testing.assert_allclose(rewards(prior(), made, request, others), 1 - others * lost, atol=1e-5)


def test_two_requests_count_half_each_and_none_asks_for_the_same():
    both = [Change("left pleural effusion", "new", "moderate"), Change("pulmonary edema", "resolved")]
    aim = asked_severity(0.0, both[0])
    made = futures({EFFUSION: (aim, 0.9)}, {EFFUSION: (aim, 0.9), EDEMA: (0.0, 0.1)})
    np.testing.assert_allclose(rewards(prior(), made, both, 1.0), [0.5, 1.0], atol=1e-5)
    np.testing.assert_allclose(rewards(prior(), made, [], 1.0)[0], -(aim + 0.4), atol=1e-5)


@pytest.mark.parametrize(("share", "pairs", "others"), [(0.5, 40, 10), (0.25, 40, 30), (1.0, 40, 0), (0.2, 7, 40)])
def test_chosen_rows_have_their_share(share, pairs, others):
    rows = [{"row": i} for i in range(10)]
    made = Chosen(rows, [{"pair": i} for i in range(pairs)], share)
    items = list(made)
    assert [item for item in items if "row" in item] == rows
    spread = np.asarray([item["pair"] for item in items if "pair" in item])
    assert len(spread) == others
    if others:  # evenly over all pairs
        assert spread.min() == 0
        assert spread.max() >= pairs - -(-pairs // others)
        counts = np.bincount(spread, minlength=pairs)
        assert counts.max() - counts.min() <= 1
    with pytest.raises(IndexError):
        made[len(made)]


def test_a_refined_row_is_told_in_other_words_and_has_no_text():
    request = [Change("left pneumothorax", "worse")]
    row = {"prompt": "It fits.", "request": request, "prior": 1, "followup": 2}

    def pack(example, rng):
        return example

    told = [refine.packer(pack, lambda text: True)(row, np.random.default_rng(seed)) for seed in range(20)]
    assert len({t["prompt"] for t in told}) > 10
    read = [changes_of(t["prompt"]) for t in told]
    assert sum(r == tuple(request) for r in read) > 5
    assert all(r in (None, (), tuple(request)) for r in read)
    assert all(t["interpretation"] is None and t["followup"] == 2 for t in told)
    long = refine.packer(pack, lambda text: text == "It fits.")(row, np.random.default_rng(0))
    assert long["prompt"] == "It fits."
    pair = {"prompt": "New edema.", "interpretation": "Edema is new."}
    assert refine.packer(pack, lambda text: True)(pair, np.random.default_rng(0)) == pair


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"share": 1.5}, {"rounds": -1}, {"requests": 0}, {"futures": 1}])
def test_a_config_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        RefineConfig(**wrong)
