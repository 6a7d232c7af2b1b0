"""A training from before its config gained a key goes on, bit for bit; with another value it is refused."""

import dataclasses
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
from support.toy_training import CFG, Toy, run

from progemu_jax.errors import UserError
from progemu_jax.training.loop import TrainConfig


@dataclass(frozen=True)
class Model:
    width: int = 3


@dataclass(frozen=True)
class Gated:
    count: int = 0


@dataclass(frozen=True)
class WiderModel(Model):
    gates: Gated = field(default_factory=Gated)
    depth: int = 1


@dataclass(frozen=True)
class LongerTrain(TrainConfig):
    polish: int = 0


OLD = dataclasses.replace(CFG, steps=60)
NEW = LongerTrain(**dataclasses.asdict(OLD))


class Stop(Exception):
    pass


def stop(done, state, metrics):
    if done == 49:
        raise Stop


@pytest.fixture
def begun(tmp_path):
    """A training of the old config, stopped after its checkpoint of step 40."""
    with pytest.raises(Stop):
        run(tmp_path / "old", OLD, config={"model": Model()}, hooks=[stop])
    return tmp_path / "old"


def test_key_at_its_default_goes_on_bit_for_bit(begun, tmp_path):
    steps = []
    state = run(begun, NEW, config={"model": WiderModel()}, hooks=[lambda done, *_: steps.append(done)])
    assert min(steps) > 40
    whole = run(tmp_path / "whole", OLD, task=Toy(OLD), config={"model": Model()})
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert (begun / "metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("cfg", "model", "key"),
    [
        (NEW, WiderModel(gates=Gated(2)), r"config\.model\.gates\.count=0, the config now says 2"),
        (NEW, WiderModel(depth=4), r"config\.model\.depth=1, the config now says 4"),
        (dataclasses.replace(NEW, polish=1), WiderModel(), r"train\.polish=0, the config now says 1"),
        (NEW, WiderModel(width=4), r"config\.model\.width=3, the config now says 4"),
    ],
)
def test_another_value_is_refused_naming_the_key(begun, cfg, model, key):
    with pytest.raises(UserError, match=key):
        run(begun, cfg, config={"model": model})


def test_key_of_a_plain_dict_has_no_default(begun):
    with pytest.raises(UserError, match=r"config\.model\.depth='\(absent\)', the config now says 1"):
        run(begun, NEW, config={"model": {"width": 3, "depth": 1}})
