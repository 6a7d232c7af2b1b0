"""TFDS shards: what goes in comes out, the same bytes every time, no TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support import cohorts
from support.trees import META, external, make_tree

from progemu_jax.data import icg_cxr, images
from progemu_jax.data.batches import Examples
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import CHEXPERT


def token_examples(n, kind="pair"):
    for i in range(n):
        codes = np.arange(12, dtype=np.int32).reshape(3, 4) + 30_000 + i
        yield {
            "pair_id": f"{kind}-{i}", "patient_id": str(i), "kind": kind, "prior": codes,
            "followup": codes[::-1], "prompt": f"é {i}", "interpretation": "",
        }  # fmt: skip


def test_pairs_come_back(tmp_path):
    icg_cxr.build_shards(make_tree(tmp_path / "t"), tmp_path / "s", 32, progress=False)
    train, test = (list(Examples(tmp_path / "s", "pairs", split)) for split in ("train", "test"))
    assert (len(train), len(test)) == (4, 2)
    found = {e["patient_id"]: e for e in train + test}
    assert sorted(found) == [f"{i:05d}" for i in range(6)]
    assert {e["patient_id"] for e in test} == {"00002", "00005"}
    one = found["00004"]
    assert one["prompt"] == "Prompt 4."
    assert one["interpretation"] == META["changes-of-findings"]
    assert (one["source"], one["view"], one["sex"], one["group"]) == ("chexpertplus", "pa", "F", "")
    assert one["age"] == 54
    assert one["confidence"] == 4
    assert np.isnan(one["days"])
    np.testing.assert_array_equal(one["prior"], images.resize(cohorts.chest(8), 32))
    np.testing.assert_array_equal(one["followup"], images.resize(cohorts.chest(9), 32))
    labels = dict(zip(CHEXPERT, one["labels_after"], strict=True))
    assert (labels["Edema"], labels["Fracture"], labels["Pneumonia"], labels["Atelectasis"]) == (1, -1, 0, -2)
    assert set(one["labels_before"]) == {-2}


def test_singles_come_back(tmp_path):
    icg_cxr.build_shards(make_tree(tmp_path / "t"), tmp_path / "s", 64, progress=False)
    found = {e["study_id"]: e for e in Examples(tmp_path / "s", "single", "train")}
    assert sorted(found) == list("0123")
    assert found["2"]["text"] == "Report 2."
    np.testing.assert_array_equal(found["2"]["image"], cohorts.chest(52))


def test_tokens_come_back(tmp_path):
    splits = {"train": lambda: token_examples(5), "single_train": lambda: token_examples(3, "single")}
    icg_cxr.write_tokens(tmp_path, splits, height=3, width=4, identity={"tokenizer": "a"}, progress=False)
    assert len(Examples(tmp_path, "tokens", "single_train")) == 3
    found = {e["pair_id"]: e for e in Examples(tmp_path, "tokens", "train")}
    for expected in token_examples(5):
        one = found[expected["pair_id"]]
        assert one["prior"].dtype == np.int32
        np.testing.assert_array_equal(one["prior"], expected["prior"])
        np.testing.assert_array_equal(one["followup"], expected["followup"])
        assert (one["prompt"], one["kind"]) == (expected["prompt"], "pair")
    icg_cxr.write_tokens(
        tmp_path, dict.fromkeys(splits, None), height=3, width=4, identity={"tokenizer": "a"}, progress=False
    )
    with pytest.raises(UserError, match="tokenizer='a', asked for 'b'"):
        icg_cxr.write_tokens(tmp_path, splits, height=3, width=4, identity={"tokenizer": "b"}, progress=False)


def test_the_same_tree_gives_the_same_bytes_in_every_process_without_tensorflow(tmp_path):
    make_tree(tmp_path / "t")
    code = (
        "import sys; from progemu_jax.data import icg_cxr;"
        "icg_cxr.build_shards(sys.argv[1], sys.argv[2], 32, progress=False);"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    for seed in "12":
        run = [sys.executable, "-c", code, tmp_path / "t", tmp_path / seed]
        subprocess.run(run, check=True, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
    assert cohorts.files(tmp_path / "1") == cohorts.files(tmp_path / "2")


def test_complete_shards_are_left_and_others_refused(tmp_path):
    root = make_tree(tmp_path / "t")
    icg_cxr.build_shards(root, tmp_path / "s", 32, progress=False)
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*") if p.is_file()}
    icg_cxr.build_shards(root, tmp_path / "s", 32, progress=False)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*") if p.is_file()} == written
    with pytest.raises(UserError, match="image_size=32, asked for 64"):
        icg_cxr.build_shards(root, tmp_path / "s", 64, progress=False)
    external(root, "pa/1/train/p99")
    with pytest.raises(UserError, match="items="):
        icg_cxr.build_shards(root, tmp_path / "s", 32, progress=False)


def test_what_a_kill_left_is_cleaned_up(tmp_path):
    left = icg_cxr.config_folder(tmp_path / "s", "pairs").parent / "incomplete.ABC_1.0.0"
    left.mkdir(parents=True)
    (left / "part").write_text("x")
    icg_cxr.build_shards(make_tree(tmp_path / "t"), tmp_path / "s", 32, progress=False)
    assert not left.exists()


def test_broken_items_are_listed_and_the_rest_is_written(tmp_path):
    root = make_tree(tmp_path / "t")
    folder = root / "chexpertplus/pa/1/train"
    (bad_image,) = (folder / "p00001").rglob("*-flu-reg.png")
    bad_image.write_bytes(bad_image.read_bytes()[:300])
    (bad_json,) = (folder / "p00003").rglob("*.json")
    bad_json.write_text("{")
    (root / "singles/x/p1/1-a.png").unlink()
    icg_cxr.build_shards(root, tmp_path / "s", 32, progress=False)
    assert len(Examples(tmp_path / "s", "pairs", "train")) == 2
    assert len(Examples(tmp_path / "s", "single", "train")) == 3
    reasons = [row["reason"] for _, row in records.read_lines(tmp_path / "s" / "rejected.jsonl")]
    assert sorted(r.split("(")[0].strip() for r in reasons) == [
        "broken image: the image does not decode",
        "broken image: the image file is missing",
        "the JSON does not parse",
    ]


def test_missing_shards_and_splits_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no shards here"):
        Examples(tmp_path, "pairs", "train")
    icg_cxr.build_shards(make_tree(tmp_path / "t"), tmp_path / "s", 32, progress=False)
    with pytest.raises(UserError, match="no split 'validation'; there are: test, train"):
        Examples(tmp_path / "s", "pairs", "validation")
    (icg_cxr.config_folder(tmp_path / "s", "pairs") / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="do not read"):
        Examples(tmp_path / "s", "pairs", "train")


def test_a_damaged_shard_is_named_and_not_read(tmp_path):
    icg_cxr.build_shards(make_tree(tmp_path / "tree"), tmp_path / "s", 32, progress=False)
    (shard,) = (tmp_path / "s/icg_cxr/pairs/1.0.0").glob("*train*")
    content = bytearray(shard.read_bytes())
    content[200] ^= 16
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"pairs/1\.0\.0: example 0 of pairs/train is damaged"):
        Examples(tmp_path / "s", "pairs", "train")[0]
