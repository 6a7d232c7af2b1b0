"""Batches of cases drawn through a queue: what batches give, in their order, whatever was cut or cannot be drawn."""

import dataclasses

import numpy as np
import pytest
from support.tiny_run import CODES, GRID, PROMPT

import progemu_jax
from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case, write_predictions

TEXTS = (PROMPT, "New edema.", "x", "")


def cases(count):
    rng = np.random.default_rng(0)
    return [Case(f"p{i}", rng.integers(0, CODES, GRID), TEXTS[i % 4]) for i in range(count)]


def cut(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


def shown(made):
    return [(out.image.tobytes(), out.text) for batch in made for out in batch]


def test_it_gives_what_batches_give(tiny_model):
    asked = cases(7)
    found = shown(tiny_model.sample_queued(cut(asked, 3), seed=5, slots=3))
    batches = [tiny_model.sample(batch + batch[:1] * (3 - len(batch)), seed=5) for batch in cut(asked, 3)]
    expected = [(i.tobytes(), t) for made in batches for i, t in zip(made.images, made.texts, strict=True)]
    assert found == expected[:7]
    assert len({image for image, _ in found}) > 4
    # Gone on with from the second batch on, and alone.
    assert shown(tiny_model.sample_queued(cut(asked[3:], 3), seed=5, slots=3)) == found[3:]
    assert shown(tiny_model.sample_queued([asked[4:5]], seed=5, slots=3)) == found[4:5]


@pytest.mark.slow
def test_drafts_draw_the_same(tiny_model):
    policy = dataclasses.replace(tiny_model.policy, draft="jacobi", window=4)
    plain, drafted = (shown(tiny_model.sample_queued(cut(cases(5), 2), 1, p, slots=2)) for p in (None, policy))
    assert drafted == plain


def test_an_error_is_of_its_case_alone(tiny_model):
    asked = cases(7)
    good = shown(tiny_model.sample_queued(cut(asked, 3), slots=3))
    for i in (1, 3, 4, 5):  # one of a batch, and all of one
        asked[i] = dataclasses.replace(asked[i], prompt="edema " * 99)
    made = [out for batch in tiny_model.sample_queued(cut(asked, 3), slots=3) for out in batch]
    assert [i for i, out in enumerate(made) if isinstance(out, UserError)] == [1, 3, 4, 5]
    assert [(made[i].image.tobytes(), made[i].text) for i in (0, 2, 6)] == [good[i] for i in (0, 2, 6)]


def test_a_cut_folder_ends_as_an_uncut_one(tiny_model, tmp_path):
    asked, options = cases(10), {"batch_size": 3, "seed": 0, "checkpoint": "c", "sampling": {}}

    def predict(batches):
        return tiny_model.sample_queued(batches, slots=3)

    def killed(batches):
        for number, made in enumerate(predict(batches)):
            if number == 2:
                raise KeyboardInterrupt
            yield made

    write_predictions(tmp_path / "whole", asked, predict, **options)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path / "cut", asked, killed, **options)
    assert len((tmp_path / "cut/predictions.jsonl").read_text().splitlines()) == 6
    write_predictions(tmp_path / "cut", asked, predict, **options)
    for path in sorted(p for p in (tmp_path / "whole").rglob("*") if p.is_file()):
        assert (tmp_path / "cut" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_many_devices_draw_as_one(tiny_model, tiny_folder):
    many = progemu_jax.load(tiny_folder).on(sharding.make_mesh(data=8))
    asked = cut(cases(11), 8)
    drawn = (model.sample_queued(asked, seed=5, slots=8) for model in (tiny_model, many))
    one, other = ([out for batch in made for out in batch] for made in drawn)
    for a, b in zip(one, other, strict=True):
        assert a.text == b.text
        assert abs(a.image.astype(int) - b.image).max() <= 1
