"""Folders of predictions: bad cases, cut calls, and the parts of several hosts."""

import json

import numpy as np
import pytest

from progemu_jax.errors import UserError
from progemu_jax.files.predictions import Case, Prediction, merge_predictions, write_predictions


def test_shards_of_two_hosts_are_the_folder_of_one(tmp_path):
    cases = [Case(f"{'ab'[i % 2]}/p{i}", None, f"prompt {i}", i % 3) for i in range(7)]

    def predict(batch):
        return [Prediction(np.full((4, 4), len(case.prompt) * 9, np.uint8), case.pair_id) for case in batch]

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
