"""Controls of the stage `sample`: what they ask, and the rendered true answers where there is a renderer."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

from progemu_jax import run as runs
from progemu_jax.config import Config, SampleConfig
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.files.stages import run_stages
from progemu_jax.systems import predict
from progemu_jax.text.restate import Change

PAIRS = [
    {"pair_id": "a", "prompt": "x", "states_before": {"cardiomegaly": 0.3}, "states_after": {"cardiomegaly": 0.0}},
    {"pair_id": "b", "prompt": "x", "states_before": {"cardiomegaly": 0.9}, "states_after": {"cardiomegaly": 0.9}},
    {"pair_id": "c", "prompt": "x", "states_before": {"cardiomegaly": 0.0}, "states_after": {"cardiomegaly": 0.0}},
]
EXAMPLES = [{"pair_id": r["pair_id"], "prior": np.zeros((8, 8), np.uint8), "prompt": "x"} for r in PAIRS]


class Model:
    name, hash = "toy@0", "0"

    def __init__(self):
        self.asked = []

    def check(self, case):
        pass

    def sample(self, cases, seed, policy):
        self.asked += [case.prompt for case in cases]
        return type("Made", (), {"texts": None, "images": np.zeros((len(cases), 8, 8), np.uint8)})


class Drawn:
    """Answers that show in their gray level how many changes were asked for."""

    def __init__(self):
        self.asked = {}

    def __contains__(self, pair_id):
        return True

    def image(self, pair_id, changes):
        self.asked.setdefault(pair_id, []).append(tuple(changes))
        return np.full((8, 8), 100 * len(changes), np.uint8)


@dataclass(frozen=True)
class Policy:
    top_k: int = 1


def sample(workdir, systems, answers, monkeypatch, prompts=("x",) * 3, **keys):
    records.write_lines(workdir / "data/references/references.jsonl", PAIRS)
    monkeypatch.setattr(predict.Answers, "of_run", lambda folder, size: answers)
    config, model = Config(sample=SampleConfig(systems=systems, batch_size=2, **keys)), Model()
    predict.predict_systems(config, workdir, model, EXAMPLES, "toy", prompts, Policy(), {})
    return model


def rows(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def made(tmp_path, monkeypatch):
    drawn = Drawn()
    model = sample(tmp_path, ("toy", "shuffled-prompts", "contradicting-prompts", "null-prompt"), drawn, monkeypatch)
    return tmp_path / "predictions", drawn, model


def test_each_control_that_says_what_it_asks_has_its_answers(made):
    folder, drawn, _ = made
    assert {p.name for p in folder.iterdir()} == {
        "toy", "shuffled-prompts", "contradicting-prompts", "contradicting-prompts-answers", "null-prompt",
        "null-prompt-answers",
    }  # fmt: skip
    worse, resolved, new = (Change("cardiomegaly", d) for d in ("worse", "resolved", "new"))
    assert drawn.asked == {"a": [(worse,), ()], "b": [(resolved,), ()], "c": [(new,), ()]}
    answers, asked = rows(folder / "contradicting-prompts-answers"), rows(folder / "contradicting-prompts")
    assert [r["prompt"] for r in answers] == [r["prompt"] for r in asked]
    assert answers[0]["prompt"] == "Worsening cardiomegaly."
    assert (answers[0]["checkpoint"], answers[0]["text"]) == ("phantom", None)


def test_the_runs_own_prompts_have_answers_where_the_rules_read_them_all(tmp_path, monkeypatch):
    drawn, prompts = Drawn(), ["New pulmonary edema.", "Worsening cardiomegaly.", "No significant change."]
    sample(tmp_path, ("toy",), drawn, monkeypatch, prompts)
    assert [r["prompt"] for r in rows(tmp_path / "predictions/answers")] == prompts
    assert drawn.asked == {
        "a": [(Change("pulmonary edema", "new"),)], "b": [(Change("cardiomegaly", "worse"),)], "c": [()]
    }  # fmt: skip
    sample(tmp_path / "unread", ("toy",), drawn, monkeypatch, [*prompts[:2], "x"])
    assert {p.name for p in (tmp_path / "unread/predictions").iterdir()} == {"toy"}


def test_without_a_renderer_there_are_the_predictions_of_before(tmp_path, monkeypatch):
    sample(tmp_path, ("contradicting-prompts", "null-prompt"), None, monkeypatch)
    assert {p.name for p in (tmp_path / "predictions").iterdir()} == {"contradicting-prompts", "null-prompt"}


def test_free_prompts_say_the_same_in_other_words_and_fit_the_model(tmp_path, monkeypatch):
    """Their answers are of the grade that they name; a model that takes no free prompt gets the plain one."""
    drawn, words = Drawn(), {}
    monkeypatch.setattr(Model, "check", lambda self, case: words.setdefault(case.pair_id, []).append(case.prompt))
    sample(tmp_path / "free", ("contradicting-prompts",), drawn, monkeypatch, free_prompts=True)
    prompts = {r["pair_id"]: r["prompt"] for r in rows(tmp_path / "free/predictions/contradicting-prompts")}
    assert prompts["a"] not in ("Worsening cardiomegaly.", "x")
    assert all(prompts[key] in words[key] for key in "abc")
    assert drawn.asked["a"] == [(Change("cardiomegaly", "worse", "moderate"),)]

    def refuse(self, case):
        if case.prompt != "Worsening cardiomegaly.":
            raise UserError("prompt: too long")

    monkeypatch.setattr(Model, "check", refuse)
    sample(tmp_path / "none", ("contradicting-prompts",), drawn, monkeypatch, free_prompts=True)
    assert [r["prompt"] for r in rows(tmp_path / "none/predictions/contradicting-prompts")] == [
        "Worsening cardiomegaly."
    ]
    assert drawn.asked["a"][1] == (Change("cardiomegaly", "worse"),)


class TestQueueOrBatches:
    """The stage `sample` of a run in which nothing is computed: how its predictions are drawn, and what is recorded."""

    @staticmethod
    def go(workdir, *, killed=False, **keys):
        """Runs what is left; how the stage `sample` drew, None where it was complete."""
        config, drew = Config(sample=SampleConfig(**keys)), []

        def make(stage):
            def run(folder):
                for output in (*stage.outputs, *stage.holds):
                    (folder / output).mkdir(parents=True, exist_ok=True)
                if stage.name == "sample":
                    drew.append(predict.queued(config, folder))
                    if killed:
                        raise KeyboardInterrupt

            return replace(stage, run=run)

        try:
            run_stages([make(stage) for stage in runs.build_stages(config)], workdir, say=lambda text: None)
        except KeyboardInterrupt:
            assert killed
        return drew[0] if drew else None

    @staticmethod
    def age(path):
        """Makes a record that of a version that knew batches alone."""
        record = json.loads(path.read_text())
        del record["config"]["sample"]["queue"]
        path.write_text(json.dumps(record))

    @pytest.mark.parametrize("queue", [True, False])
    def test_a_run_is_ended_as_its_record_says_that_it_began(self, tmp_path, queue):
        assert self.go(tmp_path, killed=True, queue=queue) is queue
        with pytest.raises(UserError, match=rf"sample.queue={queue}, the config now says {not queue}"):
            self.go(tmp_path, queue=not queue)
        assert self.go(tmp_path, queue=queue) is queue
        assert self.go(tmp_path, queue=queue) is None

    @pytest.mark.parametrize("keys", [{}, {"queue": False}])
    def test_what_an_older_version_began_ends_in_batches(self, tmp_path, keys):
        """Also what is made again of it: under one record there are predictions of one kind."""
        assert self.go(tmp_path, killed=True) is True
        self.age(tmp_path / ".stages/sample.json")
        assert self.go(tmp_path, **keys) is False
        record = (tmp_path / "predictions/stage.json").read_bytes()
        assert b"queue" not in record
        assert self.go(tmp_path, **keys) is None
        shutil.rmtree(tmp_path / "predictions")
        assert self.go(tmp_path, **keys) is False
        assert (tmp_path / "predictions/stage.json").read_bytes() == record

    def test_without_a_record_the_config_says_it(self, tmp_path):
        assert [predict.queued(Config(sample=SampleConfig(queue=q)), tmp_path) for q in (True, False)] == [True, False]
