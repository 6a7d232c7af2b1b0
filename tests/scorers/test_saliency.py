"""Saliency against a network whose answer is known."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from support.small_scorer import SMALL

from progemu_jax.models.scorer import ScorerNet
from progemu_jax.scorers.saliency import score_and_explain


class Known(nn.Module):
    """Trunk: the image and its negative. Finding 0 is the mean of channel 0, finding 1 minus that of channel 1."""

    @nn.compact
    def __call__(self, images):
        x = jnp.stack([images, -images], axis=-1)
        self.sow("intermediates", "trunk", x)
        x = self.perturb("trunk", x)
        return {"findings": jnp.stack([x[..., 0].mean((1, 2)), -(x[..., 1].mean((1, 2)) ** 3)], axis=1)}


class TestSaliency:
    def test_by_hand(self):
        images = jnp.array([[[0.0, 1.0], [4.0, 3.0]]])
        out = score_and_explain(Known(), {}, images)
        # Finding 0: only channel 0 counts, equally everywhere: the image itself, scaled to its peak.
        np.testing.assert_allclose(out["saliency"][0, 0], [[0, 0.25], [1, 0.75]])
        # Finding 1: the derivative to channel 1 is negative, the channel too: again the image.
        np.testing.assert_allclose(out["saliency"][0, 1], [[0, 0.25], [1, 0.75]], rtol=1e-6)
        np.testing.assert_allclose(out["findings"], [[2, 8]])

    def test_nothing_for_the_finding_is_a_map_of_zeros(self):
        out = score_and_explain(Known(), {}, -jnp.ones((1, 2, 2)))
        np.testing.assert_array_equal(out["saliency"][0, 0], 0)

    def test_explaining_changes_no_score(self, phantom):
        import jax

        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)
        plain = jax.jit(lambda x: ScorerNet(SMALL).apply({"params": phantom.params}, x))(images / np.float32(255))
        explained = phantom(images, "phantom", batch_size=2)
        np.testing.assert_allclose(explained["finding_prob"], jax.nn.sigmoid(plain["findings"]), atol=1e-6)
        np.testing.assert_allclose(explained["features"], plain["features"], atol=1e-5)
        assert explained["saliency"].shape == (2, 8, 4, 4)
        assert explained["saliency"].max() == 1
