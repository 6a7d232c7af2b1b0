"""Folders of predictions: bad cases, cut calls, and the parts of several hosts."""

import json

import numpy as np
import pytest
from support.errors import fails
from support.tiny_run import GRID, PROMPT

from progemu_jax import run as run_
from progemu_jax.errors import UserError
from progemu_jax.files import predictions
from progemu_jax.files.predictions import Case, Prediction, merge_predictions, write_predictions


def test_shards_of_two_hosts_are_the_folder_of_one(tmp_path):
    cases = [Case(f"{'ab'[i % 2]}/p{i}", None, f"prompt {i}", i % 3) for i in range(7)]

    def predict(batches):
        for batch in batches:
            yield [Prediction(np.full((4, 4), len(case.prompt) * 9, np.uint8), case.pair_id) for case in batch]

    options = {"batch_size": 2, "seed": 3, "checkpoint": "c", "sampling": {}}
    write_predictions(tmp_path / "whole", cases, predict, **options)
    groups = [cases[i : i + 2] for i in range(0, 7, 2)]
    parts = [tmp_path / f"parts/{i}-of-2" for i in range(2)]
    for i, part in enumerate(parts):
        write_predictions(part, [case for group in groups[i::2] for case in group], predict, **options)
    with pytest.raises(UserError, match="no host has predicted a/p0 and 3 more"):
        merge_predictions(parts[1:], tmp_path / "half", cases)
    assert not (tmp_path / "half").exists()
    merge_predictions(parts, tmp_path / "merged", cases)
    for path in sorted(p for p in (tmp_path / "whole").rglob("*") if p.is_file()):
        assert (tmp_path / "merged" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    rows = (tmp_path / "merged/predictions.jsonl").read_text().splitlines()
    assert [json.loads(row)["pair_id"] for row in rows] == [case.pair_id for case in cases]
    assert not any(part.exists() for part in parts)


def test_cases_that_come_to_an_error_are_named_and_the_others_go_on(tmp_path):
    """In one process and in shards, whose rejections are merged too; gone on with, the folder stays what it is."""
    cases, options = [Case(f"p{i}", None, "x") for i in range(5)], {"seed": 3, "checkpoint": "c", "sampling": {}}

    def predict(batches):
        for batch in batches:
            yield [UserError("no room") if case.pair_id in ("p1", "p4") else Prediction(None, "t") for case in batch]

    for _ in range(2):
        path = write_predictions(tmp_path / "whole", cases, predict, batch_size=2, **options)
        assert [json.loads(row)["pair_id"] for row in path.read_text().splitlines()] == ["p0", "p2", "p3"]
        rejected = (tmp_path / "whole/rejected.jsonl").read_text().splitlines()
        assert [json.loads(row) for row in rejected] == [
            {"pair_id": name, "sample": 0, "reason": "no room"} for name in ("p1", "p4")
        ]
    parts = [tmp_path / f"parts/{i}-of-2" for i in range(2)]
    for part, some in zip(parts, (cases[:2] + cases[4:], cases[2:4]), strict=True):
        write_predictions(part, some, predict, batch_size=2, **options)
    merge_predictions(parts, tmp_path / "merged", cases)
    for name in ("predictions.jsonl", "rejected.jsonl"):
        assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class TestQueue:
    """One bad case among good ones, in a predictions folder."""

    CASES = tuple(
        Case(f"c{i}", np.zeros(GRID, np.int32), p) for i, p in enumerate((PROMPT, "a " * 300, "b\x00", "New edema."))
    )

    def write(self, tiny_model, folder, cases, stop_after=None):
        done = []

        def predict(batches):
            for batch in batches:
                if len(done) == stop_after:
                    raise KeyboardInterrupt
                done.extend(batch)
                yield [Prediction(np.full((8, 8), 7, np.uint8), "text") for _ in batch]

        return predictions.write_predictions(
            folder, cases, predict, batch_size=1, seed=0, checkpoint="x", sampling={}, check=tiny_model.check
        )

    def test_the_others_are_there_and_it_is_named(self, tiny_model, tmp_path):
        path = self.write(tiny_model, tmp_path / "progemu", self.CASES)
        assert [json.loads(line)["pair_id"] for line in path.read_text().splitlines()] == ["c0", "c3"]
        rejected = [json.loads(line) for line in (tmp_path / "progemu/rejected.jsonl").read_text().splitlines()]
        assert [row["pair_id"] for row in rejected] == ["c1", "c2"]
        assert "tokens" in rejected[0]["reason"]
        line = predictions.rejections(tmp_path)
        assert "2 cases" in line
        assert "c1" in line
        assert "\n" not in line
        self.write(tiny_model, tmp_path / "progemu", self.CASES[:1])
        assert predictions.rejections(tmp_path) is None

    def test_a_cut_call_goes_on_to_the_same_folder(self, tiny_model, tmp_path):
        whole = self.write(tiny_model, tmp_path / "whole", self.CASES)
        with pytest.raises(KeyboardInterrupt):
            self.write(tiny_model, tmp_path / "cut", self.CASES, stop_after=1)
        assert self.write(tiny_model, tmp_path / "cut", self.CASES).read_text() == whole.read_text()

    def test_no_case_left_is_one_line(self, tiny_model, tmp_path):
        fails("no case can be predicted", self.write, tiny_model, tmp_path, self.CASES[1:3])

    def test_the_command_ends_with_the_line(self, tiny_model, tmp_path, monkeypatch):
        from progemu_jax.configs import demo

        self.write(tiny_model, tmp_path / "predictions/progemu", self.CASES)
        monkeypatch.setattr(run_, "run_stages", lambda *_: None)
        with pytest.raises(UserError, match="2 cases could not be predicted"):
            run_.run(demo.get_config(), tmp_path, None)
        assert (tmp_path / "config.json").exists()
        run_.run(demo.get_config(), tmp_path, ["data"])
