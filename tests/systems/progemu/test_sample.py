"""The stage `sample` of ProgEmu on a model of random weights: the queue and batches write the same predictions."""

import json

import numpy as np
from support.tiny_run import CODES, GRID, PROMPT, SIZE

import progemu_jax
from progemu_jax.config import Config, DataConfig, SampleConfig
from progemu_jax.inference.progemu import ProgEmu
from progemu_jax.systems import predict
from progemu_jax.systems.progemu import sample


def test_queue_and_batches_write_the_same_predictions(tiny_folder, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    examples = [
        {"pair_id": f"p{i}", "prompt": prompt, "prior": rng.integers(0, CODES, GRID), "followup": np.zeros(GRID, int)}
        for i, prompt in enumerate((PROMPT, "New edema.", "edema " * 99, "x", PROMPT))
    ]
    model, used = progemu_jax.load(tiny_folder), []
    for name in ("sample", "sample_queued"):
        drawn = getattr(ProgEmu, name)

        def noted(self, *args, name=name, drawn=drawn, **keys):
            used.append(name)
            return drawn(self, *args, **keys)

        monkeypatch.setattr(ProgEmu, name, noted)
    monkeypatch.setattr(sample, "load", lambda folder: model)
    monkeypatch.setattr(sample, "held_out", lambda *_: examples)
    monkeypatch.setattr(predict.Answers, "of_run", lambda folder, size: None)
    for queue in (True, False):
        settings = SampleConfig(
            systems=("progemu", "text-only"), num_samples=2, batch_size=8, queue=queue, policy=model.policy
        )
        sample.sample(Config(data=DataConfig(image_size=SIZE), sample=settings), tmp_path / str(queue))
    assert set(used[:2]) == {"sample_queued"}
    assert set(used[2:]) == {"sample"}
    files = sorted(path.relative_to(tmp_path / "True") for path in (tmp_path / "True").rglob("*.*"))
    assert len(files) == 8 + 4 + 5 + 3 + 2  # images, rows, rejections
    for path in files:
        assert (tmp_path / "False" / path).read_bytes() == (tmp_path / "True" / path).read_bytes()
    rejected = (tmp_path / "True/predictions/progemu/rejected.jsonl").read_text().splitlines()
    assert [json.loads(row)["pair_id"] for row in rejected] == ["p2", "p2"]
