"""The cache of scores: by content, and of one scorer."""

import numpy as np

from progemu_jax.scorers.cache import Cached
from progemu_jax.text.findings import ORGANS


class Counting:
    """A scorer that counts; its answer is the image's mean."""

    caveat, identity = "none", "counting 1"

    def __init__(self):
        self.calls = []

    def __call__(self, images, source):
        self.calls.append(len(images))
        masks = np.repeat((images > 128)[:, None], 6, axis=1)
        return {
            "findings": np.array(["Edema"]), "finding_prob": images.mean((1, 2), keepdims=True)[:, 0] / 255,
            "age": images.mean((1, 2)), "organs": np.array(ORGANS), "masks": np.packbits(masks, axis=-1),
            "mask_shape": np.array(masks.shape),
        }  # fmt: skip


class TestCache:
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 12), dtype=np.uint8)

    def test_scores_are_the_scorers_and_are_made_once(self, tmp_path):
        scorer = Counting()
        cached = Cached(scorer, tmp_path, batch_size=3)
        first, want = cached(self.images, "x"), Counting()(self.images, "x")
        assert scorer.calls == [3, 3, 1]
        again = Cached(scorer, tmp_path)(self.images[::-1], "x")
        assert scorer.calls == [3, 3, 1]
        assert set(first) == set(want)
        for key in want:
            np.testing.assert_array_equal(first[key], want[key], err_msg=key)
            turned = want[key] if key in ("findings", "organs", "mask_shape") else want[key][::-1]
            np.testing.assert_array_equal(again[key], turned, err_msg=key)

    def test_equal_images_are_one(self, tmp_path):
        scorer = Counting()
        Cached(scorer, tmp_path)(np.repeat(self.images[:2], 3, axis=0), "x")
        assert scorer.calls == [2]

    def test_other_weights_never_meet(self, tmp_path):
        a, b = Counting(), Counting()
        b.identity = "counting 2"
        Cached(a, tmp_path)(self.images, "x")
        Cached(b, tmp_path)(self.images, "x")
        assert sum(b.calls) == 7

    def test_one_pixel_or_the_shape_makes_another_image(self, tmp_path):
        scorer = Counting()
        cached = Cached(scorer, tmp_path)
        changed = self.images[:1].copy()
        changed[0, 3, 3] ^= 1
        for images in (self.images[:1], changed, self.images[:1].reshape(1, 9, 16)):
            cached(images, "x")
        assert cached.scored == 3

    def test_a_damaged_file_is_scored_again(self, tmp_path):
        scorer = Counting()
        cached = Cached(scorer, tmp_path)
        want = cached(self.images, "x")
        files = sorted(tmp_path.rglob("*.npz"))
        files[0].write_bytes(b"")
        files[1].write_bytes(files[1].read_bytes()[:40])
        got = cached(self.images, "x")
        assert cached.scored == 9
        np.testing.assert_array_equal(got["age"], want["age"])
