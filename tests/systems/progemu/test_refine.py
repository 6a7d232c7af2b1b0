"""Rounds of refining: what a killed run finds again, and what cannot be refined."""

import dataclasses

import numpy as np
import pytest
from support.errors import fails

from progemu_jax.config import Config
from progemu_jax.configs import demo_quick
from progemu_jax.files.settings import from_dict
from progemu_jax.systems.progemu import refine
from progemu_jax.systems.progemu.system import ProgEmu
from progemu_jax.tasks.refine import RefineConfig
from progemu_jax.text.restate import Change

ROWS = [
    {
        "prior": np.full((2, 3), i, np.int32),
        "futures": np.full((4, 2, 3), i + 1, np.int32),
        "reward": np.full(4, i, np.float32),
        "reference": np.full(4, -i, np.float32),
        "prompt": f"Prompt {i}.",
        "request": [Change("consolidation", "new", "mild", "left", "upper"), Change("cardiomegaly", "resolved")][i:],
    }
    for i in range(2)
]


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_with_the_futures_that_it_drew(tmp_path, monkeypatch):
    config = dataclasses.replace(Config(), progemu=dataclasses.replace(Config().progemu, refine=RefineConfig(rounds=2)))
    sampled, fitted = [], []

    def ranked_futures(config, workdir, model, number):
        sampled.append((model, number))
        return ROWS[number:]

    def go(die=None):
        def fit(number, rows, params):
            if number == die:
                raise Killed
            fitted.append((number, rows, params))
            return f"{params}+{number}"

        return refine.rounds(config, tmp_path, lambda params: f"model of {params}", fit, "first")

    monkeypatch.setattr(refine, "ranked_futures", ranked_futures)
    with pytest.raises(Killed):
        go(die=1)
    assert sampled == [("model of first", 0), ("model of first+0", 1)]
    fitted.clear()
    (tmp_path / "train/refine1/futures.npz").unlink()  # killed before it was there: only then the round samples again
    assert go() == "first+0+1"
    assert sampled[2:] == [("model of first+0", 1)]
    assert [(number, params) for number, _, params in fitted] == [(0, "first"), (1, "first+0")]
    for number, rows, _ in fitted:
        assert len(rows) == len(ROWS[number:])
        for row, wanted in zip(rows, ROWS[number:], strict=True):
            assert {k: row[k] for k in ("prompt", "request")} == {k: wanted[k] for k in ("prompt", "request")}
            assert row["prior"].dtype == row["futures"].dtype == np.int32
            for name in refine.ARRAYS:
                np.testing.assert_array_equal(row[name], wanted[name])


def asked(**keys):
    """The quick config with two rounds whose scorer judges severities, and with these keys."""
    config = demo_quick.get_config().to_dict()
    config["progemu"]["refine"] = {"rounds": 2, "scorer": {"seed": 1, "net": {"severity": True}}}
    for key, value in keys.items():
        section, *rest = key.split("__")
        place = config[section]
        for name in rest[:-1]:
            place = place.setdefault(name, {})
        place[rest[-1]] = value
    return from_dict(Config, config)


def test_a_run_with_rounds_has_a_training_scorer_of_its_own():
    config = asked()
    ProgEmu().check(config)
    trained = ProgEmu().trained(config)
    assert {"progemu.refine.train", "progemu.refine.scorer.train"} <= trained.keys()
    assert not [name for name in ProgEmu().trained(asked(progemu__refine__rounds=0)) if "refine" in name]
    assert not [name for name in trained if "diagonal" in name]
    diagonal = asked(progemu__diagonal={"head": {"steps": 1}}, sample__policy__mode="diagonal")
    ProgEmu().check(diagonal)
    assert "progemu.diagonal.head" in ProgEmu().trained(diagonal)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"progemu__refine__scorer__seed": 0}, "evaluating scorer's patients"),
        ({"scorer__seed": 1}, "evaluating scorer's patients"),
        ({"data__source": "mimic_cxr"}, "no training scorer"),
        ({"progemu__refine__scorer__net__severity": False}, "severity=False"),
        ({"progemu__words__steps": 5, "progemu__task__prompt_budget": 0}, "config.progemu.task.prompt_budget"),
        ({"sample__policy__mode": "diagonal"}, r"config\.progemu\.diagonal\.head\.steps"),
        ({"progemu__task__interval": 0.5}, r"config\.tokens\.time=False"),
        ({"progemu__task__older": 1}, "3 images and the prompt alone take"),
        ({"progemu__task__older": 1, "progemu__task__length": 512}, r"config\.tokens\.time=False"),
        (
            {"progemu__task__older": 1, "progemu__task__length": 512, "tokens__time": True},
            r"set config\.data\.journeys\.history=1",
        ),
        (
            {
                "progemu__task__older": 1,
                "progemu__task__length": 512,
                "progemu__task__prompt_budget": 48,
                "tokens__time": True,
                "data__journeys": {"history": 1},
                "progemu__model__learned_positions": 512,
            },
            r"learned_positions=512: rows with older films have ids up to \d+; give that",
        ),
    ],
)
def test_what_cannot_be_is_one_line(keys, words):
    fails(words, ProgEmu().check, asked(**keys))
