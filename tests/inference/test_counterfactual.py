"""Futures: what belongs together, uncertainty and entropy, and the composite, on random weights."""

import dataclasses

import numpy as np
import pytest
from support.tiny_run import GRID, PROMPT, SIDE, SIZE

from progemu_jax.errors import UserError
from progemu_jax.inference.counterfactual import _feathered


class TestFutures:
    def test_shapes_and_what_belongs_together(self, model, prior, futures):
        assert futures.images.shape == (3, SIZE, SIZE)
        assert futures.mask.all()
        np.testing.assert_array_equal(futures.given, prior)
        np.testing.assert_array_equal(futures.prior_codes, model.tokenize(prior))
        np.testing.assert_array_equal(futures.images, model.detokenize(futures.codes))
        np.testing.assert_array_equal(futures.prior + futures.difference, futures.images)

    def test_uncertainty_and_entropy_are_their_definitions(self, futures):
        gray = np.asarray([[0, 10], [4, 10], [8, 40]], np.uint8)[:, None]
        drawn = np.asarray([[1, 1, 5, 5], [1, 2, 5, 5], [1, 3, 6, 5], [1, 4, 6, 6]], np.int32)[:, None]
        known = dataclasses.replace(futures, images=gray, codes=drawn)
        np.testing.assert_allclose(known.uncertainty, [[4.0, 300**0.5]], rtol=1e-6)
        np.testing.assert_allclose(known.entropy, [[0, 2, 1, 0.8112781]], rtol=1e-6)
        assert known.entropy.dtype == known.uncertainty.dtype == np.float32

    def test_understood_is_what_the_rules_read_in_the_prompt(self, futures):
        assert futures.understood.to_dict() == {
            "read": [
                {"finding": "pleural effusion", "side": "left", "zone": None, "grade": "mild", "direction": "new"}
            ],
            "rest": "",
            "unknown": [],
            "warning": None,
        }
        assert dataclasses.replace(futures, prompt="No rib fracture.").understood.unknown == ("fracture",)

    def test_one_future_has_no_uncertainty(self, futures):
        one = dataclasses.replace(futures, images=futures.images[:1], codes=futures.codes[:1])
        for name in ("uncertainty", "entropy"):
            with pytest.raises(UserError, match="num_samples"):
                getattr(one, name)

    def test_image_alone(self, model, prior, futures):
        alone = model.counterfactual(prior, PROMPT, num_samples=3, seed=4, text=False)
        assert alone.texts is None
        np.testing.assert_array_equal(alone.codes, futures.codes)

    def test_no_prior_is_the_constant_gray_one(self, model):
        out = model.counterfactual(None, PROMPT, num_samples=3)
        np.testing.assert_array_equal(out.prior_codes, model.tokenize(np.full((SIZE, SIZE), 128, np.uint8)))
        assert out.given is None


class TestComposite:
    def test_outside_pixels_are_the_priors_and_deep_inside_the_models(self, model, prior):
        mask = np.zeros(GRID, bool)
        mask[1:3, 1:3] = True
        out = model.counterfactual(prior, PROMPT, num_samples=3, mask=mask)
        made = out.composite()
        outside = ~mask.repeat(SIDE, 0).repeat(SIDE, 1)
        assert (made[:, outside] == prior[outside]).all()
        inside = (slice(None), slice(12, 20), slice(12, 20))
        np.testing.assert_array_equal(made[inside], out.images[inside])
        np.testing.assert_array_equal(out.composite(feather=0)[:, ~outside], out.images[:, ~outside])

    def test_weights_rise_from_the_border_and_not_from_the_images_edge(self):
        mask = np.zeros((1, 6), bool)
        mask[0, 2:] = True
        np.testing.assert_allclose(_feathered(mask, 2), [[0, 0, 1 / 3, 2 / 3, 1, 1]])
