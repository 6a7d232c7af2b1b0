"""Batches: every example once an epoch, processes disjoint, resumed exactly."""

import json
import time

import numpy as np
import pytest
from support import cohorts
from support.errors import fails
from support.trees import make_tree

from progemu_jax.data import icg_cxr, images
from progemu_jax.data.augment import Augment, mirrored
from progemu_jax.data.batches import ArrayBatches, Examples, example_batches, examples, image_batches
from progemu_jax.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("batches")
    return icg_cxr.build_shards(make_tree(root / "t", pairs=15, singles=7), root / "s", 32, progress=False)


def transform(example, rng):
    return {"id": np.int32(example["patient_id"]), "noise": rng.random(3), "prior": example["prior"]}


def stream(shards, n, seed=0, batch_size=4, **options):
    batches = example_batches(shards, "pairs", "train", batch_size, seed, transform=transform, **options)
    return [next(batches) for _ in range(n)]


def ids(batches):
    return [int(i) for b in batches for i in b["id"]]


def test_every_example_once_an_epoch_in_another_order_each_time(shards):
    seen = ids(stream(shards, 5))
    assert len(seen) == 20
    assert sorted(seen[:10]) == sorted(seen[10:]) == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert seen[:10] != seen[10:]


def test_seeds_reproduce_and_differ(shards):
    a, b, c = (stream(shards, 3, seed=s) for s in (0, 0, 1))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_equal(x, y)
    assert ids(a) != ids(c)
    assert not np.array_equal(a[0]["noise"], c[0]["noise"])
    noise = np.concatenate([x["noise"] for x in stream(shards, 5)])
    assert len(np.unique(noise)) == noise.size  # an example draws anew in each epoch


def test_images_reach_the_transform_as_they_are(shards):
    batch = stream(shards, 1)[0]
    for i, prior in zip(batch["id"], batch["prior"], strict=True):
        np.testing.assert_array_equal(prior, images.resize(cohorts.chest(2 * int(i)), 32))


@pytest.mark.parametrize("cache", [True, False])
def test_resume_is_exact_across_epochs(shards, cache):
    whole = stream(shards, 9, cache=cache)
    for stop in (0, 1, 2, 3, 7):
        first = example_batches(shards, "pairs", "train", 4, 0, transform=transform, cache=cache)
        for _ in range(stop):
            next(first)
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        second = example_batches(shards, "pairs", "train", 4, 0, transform=transform, cache=cache)
        second.set_state(state)
        for expected in whole[stop:]:
            np.testing.assert_equal(next(second), expected)


def test_a_state_of_something_else_is_refused(shards):
    state = example_batches(shards, "pairs", "train", 4, 0, transform=transform).get_state()
    other = example_batches(shards, "pairs", "train", 5, 0, transform=transform)
    with pytest.raises(UserError, match="batch_size=4, this one has batch_size=5"):
        other.set_state(state)
    with pytest.raises(UserError):
        image_batches(shards, "pairs", "train", 4, 0).set_state(state)
    with pytest.raises(UserError):
        other.set_state({})


def test_the_rows_of_all_processes_are_the_batches_of_one(shards):
    whole = stream(shards, 3, batch_size=6)
    parts = [stream(shards, 3, batch_size=6, process_index=i, process_count=3) for i in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        joined = {key: np.concatenate([share[key] for share in shares]) for key in batch}
        np.testing.assert_equal(joined, batch)
    assert not set(ids(parts[0][:1])) & set(ids(parts[1][:1]))


def test_a_state_goes_on_with_another_number_of_processes(shards):
    whole = stream(shards, 3, batch_size=6)
    one = example_batches(shards, "pairs", "train", 6, 0, transform=transform)
    next(one), next(one)
    second = example_batches(shards, "pairs", "train", 6, 0, transform=transform, process_index=1, process_count=2)
    second.set_state(one.get_state())
    np.testing.assert_equal(next(second), {key: value[3:] for key, value in whole[2].items()})


def test_worker_processes_give_the_same_batches_and_resume(shards):
    whole = stream(shards, 7)
    first = example_batches(shards, "pairs", "train", 4, 0, transform=transform, workers=2)
    for expected in whole[:3]:
        np.testing.assert_equal(next(first), expected)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = example_batches(shards, "pairs", "train", 4, 0, transform=transform, workers=2)
    second.set_state(state)
    for expected in whole[3:]:
        np.testing.assert_equal(next(second), expected)
    second.close()
    with pytest.raises(UserError, match="workers=2, this one has workers=0"):
        example_batches(shards, "pairs", "train", 4, 0, transform=transform).set_state(state)


def test_two_hosts_see_disjoint_halves_of_every_epoch(shards):
    hosts = [ids(stream(shards, 6, batch_size=10, process_index=i, process_count=2)) for i in range(2)]
    for epoch in range(6):
        halves = [set(h[5 * epoch : 5 * epoch + 5]) for h in hosts]
        assert not halves[0] & halves[1]
        assert len(halves[0] | halves[1]) == 10


def test_augmentations_change_what_they_may(shards):
    example = examples(shards, "pairs", "train")[0] | {
        "prompt": "New left effusion.", "interpretation": "No edema. Unchanged RLL opacity. New left effusion.",
    }  # fmt: skip
    none = Augment(0, 0, 0)
    np.testing.assert_equal(none(example, np.random.default_rng(0)), example)
    turned = Augment(0, 0, 0, flip=1)(example, np.random.default_rng(0))
    np.testing.assert_array_equal(turned["prior"], example["prior"][:, ::-1])
    np.testing.assert_array_equal(turned["followup"], example["followup"][:, ::-1])
    assert turned["prompt"] == "New right effusion."
    assert turned["interpretation"] == "No edema. Unchanged LLL opacity. New right effusion."
    assert mirrored(turned)["interpretation"] == example["interpretation"]
    null = Augment(1, 0, 0)(example, np.random.default_rng(0))
    assert (null["prompt"], set(null["prior"].ravel())) == ("", {128})
    np.testing.assert_array_equal(null["followup"], example["followup"])
    dropped = Augment(0, 0, 1)(example, np.random.default_rng(0))
    assert dropped["prompt"] == example["prompt"]
    assert dropped["interpretation"] in ("Unchanged RLL opacity. New left effusion.", "No edema. New left effusion.")
    rng = np.random.default_rng(1)
    assert sum(Augment()(example, rng)["prompt"] == "" for _ in range(3000)) in range(10, 60)  # 0.01
    assert Augment().flip == 0


def test_one_pass_in_order_with_a_smaller_last_batch(shards):
    batches = list(example_batches(shards, "pairs", "train", 4, 0, transform=transform, repeat=False))
    assert [len(b["id"]) for b in batches] == [4, 4, 2]
    assert ids(batches) == [int(e["patient_id"]) for e in examples(shards, "pairs", "train")]


def test_a_batch_larger_than_the_split(shards):
    seen = ids(stream(shards, 1, batch_size=20))
    assert sorted(seen[:10]) == sorted(seen[10:])


def test_image_batches_hold_priors_and_follow_ups_and_singles(shards):
    (batch,) = image_batches(shards, "pairs", "train", 20, 0, repeat=False)
    assert batch["image"].shape == (20, 32, 32)
    assert batch["image"].dtype == np.uint8
    expected = [e[k].tobytes() for e in examples(shards, "pairs", "train") for k in ("prior", "followup")]
    assert sorted(i.tobytes() for i in batch["image"]) == sorted(expected)
    assert len(set(expected)) == 20
    shuffled = next(image_batches(shards, "pairs", "train", 20, 0))["image"]
    assert [i.tobytes() for i in shuffled] != [i.tobytes() for i in batch["image"]]
    assert next(image_batches(shards, "single", "train", 7, 0))["image"].shape == (7, 32, 32)


def test_the_cache_cannot_be_damaged(shards):
    source = Examples(shards, "pairs", "train", cache=True)
    with pytest.raises(ValueError):
        source[0]["prior"][:] = 0
    source[0]["prompt"] = "other"
    assert source[0]["prompt"] != "other"
    assert source[-1]["pair_id"] == source[9]["pair_id"]
    with pytest.raises(IndexError):
        source[10]


def test_cached_batches_are_fast(shards):
    batches = stream(shards, 1)  # imports
    batches = example_batches(shards, "pairs", "train", 32, 0, transform=transform, cache=True)
    for _ in range(3):
        next(batches)
    start = time.process_time()
    for _ in range(50):
        next(batches)
    assert (time.process_time() - start) / 50 < 0.01


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"process_index": 2, "process_count": 2}, {"process_count": 99}]
)
def test_bad_arguments(shards, options):
    with pytest.raises(UserError):
        stream(shards, 1, **options)


def test_array_batches_go_on_from_their_state():
    arrays = {"x": np.arange(10)}
    one = ArrayBatches(arrays, 4, seed=3)
    for _ in range(3):
        next(one)
    two = ArrayBatches(arrays, 4, seed=3)
    two.set_state(one.get_state())
    assert (next(one)["x"] == next(two)["x"]).all()


@pytest.mark.parametrize("found", [None, {}, {"pair_id": None, "prompt": None}])
def test_an_example_that_is_nothing_is_damaged(shards, found):
    """What a reader gives of a file that is cut between two chunks."""
    source = examples(shards, "pairs", "train", cache=False)
    source._source = [found]
    fails("example 0 of pairs/train is damaged", source._decode, 0)
