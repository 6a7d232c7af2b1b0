"""A run from before a config gained a key goes on: the key counts as its default, and no digest moves."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field

import pytest

from progemu_jax import config as configs
from progemu_jax import run as runs
from progemu_jax.errors import UserError
from progemu_jax.files.settings import filled, from_dict, to_dict
from progemu_jax.files.stages import Stage, list_stages, run_stages, stage_record
from progemu_jax.systems import shared_stages


@dataclass(frozen=True)
class OldNet:
    width: int = 8


@dataclass(frozen=True)
class OldToy:
    seed: int = 0
    net: OldNet = field(default_factory=OldNet)


@dataclass(frozen=True)
class Gate:
    count: int = 0
    taps: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Net:
    width: int = 8
    depth: int = 2
    gate: Gate = field(default_factory=Gate)


@dataclass(frozen=True)
class Toy:
    seed: int = 0
    net: Net = field(default_factory=Net)
    parts: tuple[Gate, ...] = ()


def chain(config, ran, off=""):
    """data -> train -> score, each of one file; `off` is an input of score that is there when named."""

    def make(name, *outputs):
        def run(workdir):
            ran.append(name)
            for output in outputs:
                (workdir / output).mkdir(exist_ok=True)

        return run

    plain, kind = to_dict(config), type(config)
    return [
        Stage("data", ("data", "more"), (), plain, make("data", "data", "more"), kind),
        Stage("train", ("train",), ("data",), {"net": plain["net"]}, make("train", "train"), {"net": type(config.net)}),
        Stage("score", ("score",), ("train", off), {"seed": plain["seed"]}, make("score", "score"), kind),
    ]


def go(workdir, config, off=""):
    ran = []
    run_stages(chain(config, ran, off), workdir, say=lambda text: None)
    return ran


@pytest.fixture
def workdir(tmp_path):
    """A complete run of the old config, as the old code left it."""
    folder = tmp_path / "run"
    assert go(folder, OldToy()) == ["data", "train", "score"]
    shutil.rmtree(folder / ".made")
    return folder


NOW = Toy()


def records(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob("*stage.json"))}


class TestStages:
    def test_key_at_its_default_leaves_every_stage_complete_and_every_record_as_it_lies(self, workdir):
        before = records(workdir)
        listed = [line for line in list_stages(chain(NOW, []), workdir).splitlines() if not line.startswith(" ")]
        assert listed == ["data: complete", "train: complete", "score: complete"]
        assert go(workdir, NOW) == []
        assert records(workdir) == before

    @pytest.mark.parametrize(
        ("config", "key"),
        [
            (Toy(net=Net(depth=4)), r"net\.depth=2, the config now says 4"),
            (Toy(net=Net(gate=Gate(count=1))), r"net\.gate\.count=0, the config now says 1"),
            (Toy(net=Net(gate=Gate(taps=(1,)))), r"net\.gate\.taps=\[1, 2\], the config now says \[1\]"),
            (Toy(parts=(Gate(),)), r"parts=\[\], the config now says \[\{"),
            (Toy(net=Net(width=9)), r"net\.width=8, the config now says 9"),
        ],
    )
    def test_another_value_is_refused_naming_the_key(self, workdir, config, key):
        with pytest.raises(UserError, match=key):
            go(workdir, config)

    @pytest.mark.parametrize("lost", [["more"], ["score"], ["train"], ["data", "more"], ["data", "more", "train"]])
    def test_what_is_made_again_keeps_its_record(self, workdir, lost):
        before = records(workdir)
        go(workdir, NOW)
        for name in lost:
            shutil.rmtree(workdir / name)
        assert go(workdir, NOW) == sorted({{"more": "data"}.get(name, name) for name in lost})
        assert records(workdir) == before
        assert go(workdir, NOW) == []

    def test_an_output_left_of_several_keeps_the_record_of_a_run_never_seen_before(self, workdir):
        before = records(workdir)
        shutil.rmtree(workdir / "more")
        assert go(workdir, NOW) == ["data"]
        assert records(workdir) == before

    def test_made_again_under_another_config_it_is_another(self, workdir):
        go(workdir, NOW)
        for name in ("data", "more", "train"):
            shutil.rmtree(workdir / name)
        with pytest.raises(UserError, match=r"score made it from another train"):
            go(workdir, Toy(net=Net(width=9)))
        assert stage_record(workdir / "train")["config"] == {"net": to_dict(Net(width=9))}

    def test_begun_by_the_old_code_it_goes_on(self, tmp_path):
        stages = chain(OldToy(), [])
        broken = [dataclasses.replace(stages[0], run=lambda w: (w / "data").mkdir() or 1 / 0), *stages[1:]]
        with pytest.raises(ZeroDivisionError):
            run_stages(broken, tmp_path, say=lambda text: None)
        with pytest.raises(UserError, match=r"net\.depth"):
            go(tmp_path, Toy(net=Net(depth=5)))
        assert go(tmp_path, NOW) == ["data", "train", "score"]
        assert stage_record(tmp_path / "data")["config"] == to_dict(OldToy())

    def test_input_that_is_off_is_not_listed(self, workdir, tmp_path):
        assert [stage.inputs for stage in chain(NOW, [])][-1] == ("train",)
        (tmp_path / "weights").write_text("1")
        with pytest.raises(UserError, match="made it from another external input 2"):
            go(workdir, NOW, off=str(tmp_path / "weights"))


def test_filled_by_dataclass_dict_and_list():
    kind = {"toy": Toy, "gate": Gate()}
    new = to_dict({"toy": Toy(parts=(Gate(), Gate(3))), "gate": Gate(), "other": 1})
    old = {"toy": {"seed": 4, "parts": [{}, {"count": 3}]}, "left": 2}
    assert filled(kind, old, new) == {
        "toy": {"seed": 4, "net": to_dict(Net()), "parts": to_dict({"p": [Gate(), Gate(3)]})["p"]},
        "gate": to_dict(Gate()),
        "left": 2,
    }
    assert filled(None, old, new) == old
    assert filled(Toy, None, {"seed": 1}) is None


def test_filled_gives_no_key_that_the_new_record_leaves_out():
    assert filled(Toy, {}, {"net": {"width": 1}}) == {"net": {"width": 8}}


def test_filled_invents_no_value_for_a_key_that_declares_none():
    @dataclass(frozen=True)
    class Needed:
        height: int
        depth: int = 2
        derived: int | None = None  # a run puts 2 * height

    new = {"height": 4, "depth": 2, "derived": 8}
    assert filled(Needed, {}, new) == {"depth": 2, "derived": None}


class TestRealStages:
    """Over `run.build_stages`, with records as an old run has them and nothing computed."""

    @staticmethod
    def stages(config, ran):
        def make(stage):
            def run(workdir):
                ran.append(stage.name)
                for output in (*stage.outputs, *stage.holds):
                    (workdir / output).mkdir(parents=True, exist_ok=True)

            return dataclasses.replace(stage, run=run)

        return [make(stage) for stage in runs.build_stages(config)]

    @staticmethod
    def extended(monkeypatch):
        """`Config` whose sections for training, the phantom and pairs have one more key each, and a section more."""

        def more(cls, *keys, **replaced):
            fields = [(name, kind, field(default=default)) for name, kind, default in keys]
            fields += [(name, kind, field(default_factory=kind)) for name, kind in replaced.items()]
            return dataclasses.make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True)

        train = more(configs.TrainConfig, ("polish", int, 0))
        phantom = more(configs.PhantomConfig, ("ribs", int, 12))
        pairs = more(configs.Options, ("gap", tuple, ()))
        data = more(configs.DataConfig, phantom=phantom, journeys=pairs)
        model = more(configs.LanguageModelConfig, stage1=train, stage2=train)
        scorer = more(configs.ScorerConfig, train=train)
        tokenizer = more(configs.TokenizerConfig, train=train)
        sections = {"data": data, "progemu": model, "scorer": scorer, "tokenizer": tokenizer, "extra": Gate}
        config = more(configs.Config, **sections)
        monkeypatch.setattr(runs, "Config", config)
        monkeypatch.setattr(shared_stages, "PhantomConfig", phantom)
        monkeypatch.setattr(shared_stages, "ScorerConfig", scorer)
        return config

    @pytest.mark.parametrize("system", ["progemu", "diffusion"])
    def test_chain_with_new_keys_is_complete_and_a_changed_one_is_refused(self, tmp_path, monkeypatch, system):
        ran = []
        old = configs.Config(system=system, name="old")
        run_stages(self.stages(old, ran), tmp_path, say=lambda text: None)
        before = records(tmp_path)
        assert len(ran) == 8
        extended = self.extended(monkeypatch)
        assert all(stage.kind is not configs.Config for stage in self.stages(extended(), ran))
        ran.clear()
        now = from_dict(extended, to_dict(old))
        assert "polish" in json.dumps(to_dict(now))
        run_stages(self.stages(now, ran), tmp_path, say=lambda text: None)
        assert ran == []
        assert records(tmp_path) == before
        shutil.rmtree(tmp_path / "train")
        run_stages(self.stages(now, ran), tmp_path, say=lambda text: None)
        assert ran == ["train"]
        assert records(tmp_path) == before
        for section, key, value, stage in (
            ("data", "phantom", {"ribs": 13}, "data"),
            ("scorer", "train", {"polish": 1}, "scorer"),
        ):
            values = to_dict(now)
            values[section][key] |= value
            stages = self.stages(from_dict(extended, values), ran)
            name, said = next(iter(value.items()))
            match = rf"stage {stage} made it with .*\.{name}=\d+, the config now says {said}"
            with pytest.raises(UserError, match=match):
                run_stages(stages, tmp_path, [stage], say=lambda text: None)
