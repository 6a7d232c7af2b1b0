"""What stage 1 learns to say of single images; older films and intervals on their way into token shards."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from support.trees import make_tree

from progemu_jax.config import Config, DataConfig, TokensConfig
from progemu_jax.data import icg_cxr
from progemu_jax.data.batches import Examples
from progemu_jax.data.progression import progression
from progemu_jax.data.sources.label_findings import NIH, PADCHEST
from progemu_jax.files import records
from progemu_jax.systems.progemu import image_tokens
from progemu_jax.systems.progemu.image_tokens import as_change
from progemu_jax.text.findings import NO_CHANGE, PHANTOM, label_columns


def _example(of, text, *there):
    labels = np.array([label in there for label in label_columns(of)], np.int8)
    return {"text": text, "labels": labels, "image_id": "x"}


def test_a_single_is_a_change_from_nothing():
    """By the rules of a report; by the labels of a cohort with its own list, whose nodule the rules know nothing of."""
    text = "Cardiomegaly. Nodule."
    by_rules = as_change(_example(PHANTOM, text, "Cardiomegaly"), PHANTOM)
    assert by_rules == progression({}, {"findings": text})
    assert as_change(_example(NIH, "Nodule.", "Nodule"), NIH).prompt == "New nodule."
    assert as_change(_example(NIH, "No mass."), NIH).prompt == NO_CHANGE


def test_the_side_of_a_label_without_one_is_read_in_the_text():
    example = _example(PADCHEST, "Left pleural effusion.", "pleural effusion")
    assert as_change(example, PADCHEST).changes == {"left pleural effusion": 1}


# Older films.


class Blocks:
    """A tokenizer whose codes are the means of 8 x 8 blocks, plus 1000 where they lean."""

    def __init__(self):
        self.leaned = []  # (images, slack) of what leans

    def on(self, mesh):
        return self

    def error(self, images):
        return 2.0

    def tokenize(self, images, near=None, slack=0.0):
        assert images.size
        if near is not None:
            assert len(near) == len(images)
            self.leaned.append((len(images), slack))
        blocks = images.reshape(*images.shape[:-2], images.shape[-2] // 8, 8, -1, 8)
        return blocks.mean((-3, -1)).astype(np.int32) + 1000 * (slack > 0)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function (tokens config) -> (its token shards' examples by split and id, the tokenizer)."""
    root = make_tree(tmp_path / "tree", pairs=6)
    for i, path in enumerate(sorted(root.rglob("*.json"))):
        meta = json.loads(path.read_text())
        films = [f"{path.stem}-old{n + 1}-reg.png" for n in range(i % 3)]
        for name in films:  # each is the prior once more, so that it must move as the prior does
            shutil.copy(path.with_name(f"{path.stem}-ref-reg.png"), path.with_name(name))
        meta["progemu"]["older"] = [{"study_id": name, "days": 7.5} for name in films]
        meta["progemu"]["split"] = ("train", "validation", "test")[i % 3] if i > 3 else "train"
        meta["time-interval"] = 30 * i if i != 1 else -30
        path.write_text(json.dumps(meta))
    icg_cxr.build_shards(root, tmp_path / "data/shards", 32, progress=False)
    coder = Blocks()
    monkeypatch.setattr(image_tokens, "load_tokenizer", lambda workdir: coder)
    monkeypatch.setattr(image_tokens, "local_mesh", lambda config: None)

    def tokens(**options):
        config = Config(data=replace(DataConfig(), image_size=32), tokens=TokensConfig(**options))
        shutil.rmtree(tmp_path / image_tokens.TOKENS, ignore_errors=True)
        image_tokens.make_tokens(config, tmp_path)
        splits = ("train", "validation", "test", "train_single")
        shards = tmp_path / "data/shards"
        return {s: {e["pair_id"]: e for e in Examples(shards, "tokens", s)} for s in splits}, coder

    return tokens


def test_tokens_carry_time_and_older_films_move_with_their_pair(run):
    found, coder = run(crops=3, flip=True, time=True, slack=1.5)
    train = found["train"]
    assert len(train) == 4 * 3 * 2
    for name, e in train.items():
        i = int(name.split("#")[0].split("-p0000")[1][0])
        count = i % 3
        assert (e["older"].shape, e["older"].dtype) == ((count, 4, 4), np.int32)
        np.testing.assert_array_equal(e["older"], np.repeat(e["prior"][None] + 1000, count, axis=0))
        assert (e["older_days"].tolist(), e["older_days"].dtype) == ([7.5] * count, np.float32)
        # The second pair is reversed.
        np.testing.assert_equal(float(e["days"]), float("nan") if i == 1 else 30.0 * i)
    one = next(name for name in train if "#" not in name and len(train[name]["older"]))
    np.testing.assert_array_equal(train[f"{one}#mirrored"]["older"], train[one]["older"][:, :, ::-1])
    assert not np.array_equal(train[f"{one}#1"]["older"], train[one]["older"])
    # In the test split the follow-up has its own codes, the older films lean as they will at inference.
    (test,) = found["test"].values()
    assert test["followup"].max() < 1000 <= test["older"].min()
    assert {slack for _, slack in coder.leaned} == {0.0, 3.0}
    for e in found["train_single"].values():
        assert np.isnan(e["days"])
        assert (e["older"].shape, e["older_days"].shape) == ((0, 4, 4), (0,))


def test_tokens_without_time_are_as_they_were(run, tmp_path):
    found, coder = run(slack=1.5)
    keys = {"pair_id", "patient_id", "kind", "prior", "followup", "prompt", "interpretation"}
    assert all(e.keys() == keys for split in found.values() for e in split.values())
    assert [n for n, _ in coder.leaned] == [4, 1, 1]
    made_from = records.read_json(tmp_path / image_tokens.TOKENS / "1.0.0/metadata.json")
    assert made_from == {"height": 4, "width": 4, "splits": ["test", "train", "train_single", "validation"]}
    run(time=True)
    timed = records.read_json(tmp_path / image_tokens.TOKENS / "1.0.0/metadata.json")
    assert timed == made_from | {"time": True}
