"""What a training row says of time: days and earlier films, mixed."""

import numpy as np
import pytest

from progemu_jax.tasks.progemu import ProgEmuConfig, packer
from progemu_jax.text import sequence, vocabulary
from progemu_jax.text.sequence import Layout

CODES, RNG = 16, np.random.default_rng(0)
CODEBOOK = RNG.standard_normal((CODES, 4)).astype(np.float32)
VOCAB = vocabulary.load(None, CODES)
OFF = {"null_prompt": 0.0, "shuffle_sentences": 0.0, "drop_negative": 0.0}


def example(days=60.0, films=2, **more):
    codes = RNG.integers(0, CODES, (4, 2, 3)).astype(np.int32)
    texts = {"prompt": "New edema.", "interpretation": "Edema is new."}
    apart = np.float32([30, 400])[:films]
    time = {"days": np.float32(days), "older": codes[2 : 2 + films], "older_days": apart}
    return {"prior": codes[0], "followup": codes[1], **texts, **time, **more}


def rows(row, count=200, train=True, **task):
    config = ProgEmuConfig(length=128, prompt_budget=12, **{**OFF, **task})
    layout = config.layout(2, 3)
    pack = packer(VOCAB, layout, config, CODEBOOK, train)
    made = [pack(row, np.random.default_rng(seed)) for seed in range(count)]
    return [sequence.unpack(VOCAB, layout, r["tokens"]) for r in made]


def test_a_task_makes_its_layout():
    assert ProgEmuConfig(length=64, prompt_budget=12).layout(2, 3) == Layout(2, 3, 64, 12)
    told = ProgEmuConfig(length=64, interval=0.5, interval_text=True, older=1)
    assert told.layout(2, 3) == Layout(2, 3, 64, older=1, interval="text")


def test_training_mixes_one_to_three_films_and_days_or_none():
    found = [r.timeline for r in rows(example(), interval=0.75, older=2)]
    films = np.bincount([len(t.older) for t in found])
    assert films.min() > 45
    assert len(films) == 3
    assert 0.68 < np.mean([t.days is not None for t in found]) < 0.82
    both = {round(t.days) for t in found if t.days}
    assert both == {45, 64}  # the steps about 60
    assert {len(t.older) for t in found if t.older and t.older[-1].days is not None} == {1, 2}


def test_evaluation_tells_all_that_is_known():
    row = example()
    (found,) = rows(row, 1, train=False, interval=0.5, older=2)
    assert round(found.timeline.days) == 64
    assert [round(f.days) for f in found.timeline.older] == [362, 32]
    np.testing.assert_array_equal([f.codes for f in found.timeline.older], row["older"][::-1])
    (found,) = rows(row, 1, train=False, older=1)
    assert found.timeline.days is None
    assert [f.days for f in found.timeline.older] == [None]


def test_what_the_shards_do_not_know_is_not_told():
    for row in (
        example(days=np.nan, films=0),
        {k: v for k, v in example().items() if "days" not in k and k != "older"},
    ):
        assert {(r.timeline.days, r.timeline.older) for r in rows(row, 20, interval=1.0, older=2)} == {(None, ())}


def test_without_the_keys_rows_are_as_before():
    row = example()
    bare = {k: row[k] for k in ("prior", "followup", "prompt", "interpretation")}
    config = ProgEmuConfig(length=128, prompt_budget=12, restate=0.9, empty_prompt=0.2, identity=0.1)
    pack = packer(VOCAB, config.layout(2, 3), config, CODEBOOK, True)
    for seed in range(20):
        one, other = (pack(r, np.random.default_rng(seed)) for r in (row, bare))
        assert all((one[k] == other[k]).all() for k in one)


def test_a_row_where_nothing_changes_tells_no_days():
    found = rows(example(), 20, interval=1.0, older=2, identity=1.0)
    assert {r.timeline.days for r in found} == {None}
    assert all((r.target == r.prior).all() for r in found)


def test_a_long_prompt_leaves_room_for_the_days():
    words = "edema " * 5
    budget = len(VOCAB.encode(words))
    config = ProgEmuConfig(length=128, prompt_budget=budget, interval=1.0, **OFF)
    pack = packer(VOCAB, config.layout(2, 3), config, CODEBOOK, True)
    row = sequence.unpack(VOCAB, config.layout(2, 3), pack(example(prompt=words), np.random.default_rng(0))["tokens"])
    assert row.prompt == words
    assert row.timeline.days is None


def test_what_is_expected_is_learnt_as_it_is():
    """Extra weight of what changes would make changes look likelier."""

    def weights(**task):
        config = ProgEmuConfig(length=128, prompt_budget=12, changed_weight=4.0, **OFF, **task)
        pack = packer(VOCAB, config.layout(2, 3), config, CODEBOOK, True)
        return pack(example(), np.random.default_rng(0))["weights"]

    assert (weights(interval=1.0, empty_prompt=1.0) == 1).all()
    assert (weights(interval=0.0, empty_prompt=1.0) != 1).any()
    assert (weights(interval=1.0) != 1).any()


@pytest.mark.parametrize("wrong", [{"older": 3}, {"older": -1}, {"interval": 1.5}])
def test_bad_values(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProgEmuConfig(**wrong)
