"""Preference among own futures: what is asked, how futures are judged, what is learnt from them."""

import dataclasses

import jax
import numpy as np
import pytest
from support.language_model import OF_IMAGES

from progemu_jax.data.answers import asked_severity
from progemu_jax.models import transformer
from progemu_jax.tasks import refine
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask, packer
from progemu_jax.tasks.refine import PreferenceTask, Ranked, RefineConfig, drawn_request, rewards
from progemu_jax.text import vocabulary
from progemu_jax.text.findings import FINDINGS, PRESENT
from progemu_jax.text.restate import Change
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.training.loop import TrainConfig

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
    shares = np.unique([c.finding for c in asked], return_counts=True)[1] / len(asked)
    np.testing.assert_allclose(shares, 1 / 8, atol=0.06)
    often = {d: np.mean([c.direction == d for c in asked]) for d in refine.DIRECTIONS}
    assert 0.1 < often["new"] < often["worse"]
    assert 0.1 < often["resolved"] < often["better"]
    assert 0.3 < np.mean([c.grade is not None for c in asked]) < 0.7
    assert not any(c.grade for c in asked if c.direction == "resolved")


def test_a_share_asks_for_nothing():
    rng = np.random.default_rng(0)
    assert all(drawn_request(np.full(8, 0.5), rng) for _ in range(100))
    none = np.mean([not drawn_request(np.full(8, 0.5), rng, 0.2) for _ in range(1000)])
    assert 0.15 < none < 0.25


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


def test_preferences_by_hand():
    got = refine.preferred(np.asarray([[0.0, 1.0, 2.0], [0.5, 0.5, 0.5]]), 2.0)
    spread = np.sqrt(2 / 3)
    shares = np.exp([-2 / spread, 0.0, 2 / spread])
    np.testing.assert_allclose(got, [shares / shares.sum(), [1 / 3] * 3], rtol=1e-5)
    # What differs by less than the scorer's noise is hardly preferred.
    close = refine.preferred(np.asarray([0.5, 0.5001]), 2.0)
    assert 0.5 < close[1] < 0.502


def test_lists_have_pairs_beside_them_others_in_another_round():
    lists = [{"prompt": str(i)} for i in range(40)]
    pairs = [{"pair": i} for i in range(1000)]
    made = Ranked(lists, pairs, 3, seed=1)
    items = list(made)
    assert [item["prompt"] for item in items] == [str(i) for i in range(40)]
    drawn = [[pair["pair"] for pair in item["pairs"]] for item in items]
    assert np.shape(drawn) == (40, 3)
    assert len(np.unique(drawn)) > 100
    assert drawn == [[pair["pair"] for pair in made[i]["pairs"]] for i in range(40)]
    again = Ranked(lists, pairs, 3, seed=2)
    assert drawn != [[pair["pair"] for pair in item["pairs"]] for item in again]
    with pytest.raises(IndexError):
        made[len(made)]


CODES, LAYOUT = 16, Layout(2, 3, 64, prompt_budget=12)
CODEBOOK = np.random.default_rng(3).standard_normal((CODES, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def words():
    return vocabulary.load(None, CODES)


@pytest.fixture(scope="module")
def task(words):
    model = dataclasses.replace(OF_IMAGES, vocab_size=words.size)
    config = RefineConfig(rounds=1, futures=3, pairs=2, strength=0.5, weight=2.0, anchor=0.3)
    train = TrainConfig(steps=10, learning_rate=1e-2, warmup_steps=0)
    return PreferenceTask(config, words, LAYOUT, model, ProgEmuConfig(length=64), train)


def batch(words, lists=2):
    rng = np.random.default_rng(0)

    def codes(*lead):
        return rng.integers(0, CODES, (*lead, 2, 3))

    def pair():
        return {"prior": codes(), "followup": codes(), "prompt": "New edema.", "interpretation": "Edema is new."}

    pack = packer(words, LAYOUT, ProgEmuConfig(length=64, prompt_budget=12), CODEBOOK, True)
    made = refine.packer(pack, words, LAYOUT, 2.0)
    rows = [
        made(
            {
                "pairs": [pair(), pair()],
                "prior": codes(),
                "prompt": "Worse edema.",
                "futures": codes(3),
                "reward": rng.random(3),
                "reference": -rng.random(3),
            },
            rng,
        )
        for _ in range(lists)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def flat(batch, rows):
    return {name: batch[name][:, rows].reshape(-1, batch[name].shape[-1]) for name in (*refine.ROW, "weights")}


PAIRS, FUTURES = slice(0, 2), slice(2, 5)


def likelihoods_by_hand(task, words, params, rows):
    """Sum over the target's codes of log p(code), among codes, from the logits of whole rows."""
    logits, _ = task.model.apply({"params": params}, rows["tokens"], rows["positions"], aligned=rows["aligned"],
                                 segments=rows["kinds"] != Kind.PAD)  # fmt: skip
    logits = np.asarray(logits @ transformer.head(params).T, np.float64)
    out = []
    for row, kinds, tokens in zip(logits, rows["kinds"], rows["tokens"], strict=True):
        at = np.flatnonzero(kinds == Kind.VISUAL)
        own = row[at - 1, words.visual_start : words.visual_start + CODES]
        own = own - np.log(np.exp(own).sum(1, keepdims=True))
        out.append(own[np.arange(len(at)), tokens[at] - words.visual_start].sum())
    return np.asarray(out)


def test_the_loss_is_that_of_the_pairs_and_the_divergence_of_the_preferences(task, words):
    params, given = task.params(task.init(jax.random.key(0))), batch(words)
    loss, metrics = jax.jit(lambda p, b: task.loss(p, b, None))(params, given)
    plain = ProgEmuTask(task.model_config, task.config, task.train)
    of_pairs, _ = plain.loss(params, flat(given, PAIRS), None)
    found = likelihoods_by_hand(task, words, params, flat(given, FUTURES))
    own = task.log_likelihoods(params, flat(given, FUTURES))
    np.testing.assert_allclose(own, found, rtol=1e-4)
    gained = 0.5 * (found.reshape(2, 3) - given["reference"])
    q = np.exp(gained) / np.exp(gained).sum(1, keepdims=True)
    p = np.asarray(given["preferred"], np.float64)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
    divergence = (p * np.log(p / q)).sum(1).mean()
    np.testing.assert_allclose(metrics["loss_preference"], divergence, rtol=1e-3)
    kept = -(p * found.reshape(2, 3)).sum(1).mean() / 6
    np.testing.assert_allclose(loss, of_pairs + 2.0 * divergence + 0.3 * kept, rtol=1e-4)
    # Evaluation is of pairs alone.
    evaluated = task.eval_step(task.init(jax.random.key(0)), flat(given, PAIRS))
    np.testing.assert_allclose(evaluated["loss"], of_pairs, rtol=1e-5)


def test_steps_move_the_likelihoods_as_preferred(task, words):
    state, given = task.init(jax.random.key(0)), batch(words)
    reference = np.asarray(task.log_likelihoods(state["params"], flat(given, FUTURES))).reshape(2, 3)
    given["reference"] = reference
    step = jax.jit(task.train_step)
    for _ in range(30):
        state, metrics = step(state, given, jax.random.key(0))
    assert metrics["agreed"] == 1
    assert metrics["loss_preference"] < 0.1
    gained = np.asarray(task.log_likelihoods(state["params"], flat(given, FUTURES))).reshape(2, 3) - reference
    np.testing.assert_array_equal(gained.argsort(1), given["preferred"].argsort(1))


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": 0.0},
        {"weight": -1.0},
        {"rounds": -1},
        {"requests": 0},
        {"futures": 1},
        {"pairs": 0},
        {"anchor": -0.1},
    ],
)
def test_a_config_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        RefineConfig(**wrong)
