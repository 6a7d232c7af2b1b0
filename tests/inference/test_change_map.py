"""Masks and the map of change, on random weights."""

import numpy as np
import pytest
from support.tiny_run import CODES, GRID, PROMPT, SIDE, SIZE

from progemu_jax.inference import change_map


class TestMask:
    @pytest.mark.parametrize("seed", range(3))
    def test_outside_codes_are_the_priors_always(self, model, codes, seed):
        mask = np.random.default_rng(seed).random(GRID) < 0.4
        out = model.counterfactual(codes, PROMPT, num_samples=3, seed=seed, mask=mask)
        assert (out.codes[:, ~mask] == codes[~mask]).all()
        assert (out.codes[:, mask] != codes[mask]).any()
        np.testing.assert_array_equal(out.mask, mask)

    def test_a_place_is_inside_as_soon_as_one_pixel_is(self, model, codes):
        pixels = np.zeros((SIZE, SIZE), bool)
        pixels[SIDE, 2 * SIDE - 1] = True  # of place (1, 1)
        out = model.counterfactual(codes, PROMPT, num_samples=3, mask=pixels)
        assert np.argwhere(out.mask).tolist() == [[1, 1]]

    def test_everything_marked_is_no_mask(self, model, prior, futures):
        out = model.counterfactual(prior, PROMPT, num_samples=3, seed=4, mask=np.ones((SIZE, SIZE), bool))
        np.testing.assert_array_equal(out.codes, futures.codes)
        assert out.texts == futures.texts

    @pytest.mark.parametrize("prompt", ["No significant change.", "Unchanged.", "Stable small left pleural effusion."])
    def test_no_change_under_the_automatic_mask_is_the_prior(self, model, prior, prompt):
        out = model.counterfactual(prior, prompt, num_samples=3, mask="auto")
        assert not out.mask.any()
        assert (out.codes == out.prior_codes).all()
        assert (out.images == out.prior).all()
        assert (out.composite() == prior).all()
        assert len(out.texts) == 3

    def test_the_automatic_mask_is_the_map_above_its_threshold(self, model, prior):
        found = model.change_map(prior, PROMPT)
        assert found.shape == GRID
        assert found.min() >= 0
        assert found.max() <= 1
        out = model.counterfactual(prior, PROMPT, num_samples=3, mask="auto")
        assert 0 < out.mask.sum() < out.mask.size
        np.testing.assert_array_equal(out.mask, found >= change_map.CHANGE_THRESHOLD)
        assert (out.codes[:, ~out.mask] == out.prior_codes[~out.mask]).all()
        assert (model.change_mask(prior, PROMPT, threshold=1.1) == np.zeros(GRID, bool)).all()

    def test_the_map_is_the_distance_of_next_code_distributions(self, model, codes):
        """By whole rows of logits of the public API: no padding is cut, no row is batched with another."""
        from progemu_jax.models import transformer
        from progemu_jax.text import sequence
        from progemu_jax.text.findings import NO_CHANGE

        start, stop = model.vocabulary.visual_start, model.vocabulary.visual_start + CODES
        shares = []
        for text in (PROMPT, NO_CHANGE):
            row = sequence.pack(model.vocabulary, model.layout, codes, text, codes, "")
            tokens, positions, aligned = (row[k][None] for k in ("tokens", "positions", "aligned"))
            hidden, _ = transformer.Transformer(model.config).apply(
                {"params": model.params},
                tokens,
                positions,
                aligned=aligned,
                beside=transformer.beside_of(aligned),
            )
            at = np.flatnonzero(row["kinds"] == sequence.Kind.VISUAL) - 1
            scores = np.asarray(transformer.logits(model.params, hidden, (start, stop)))[0, at].astype(np.float64)
            shares.append(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
        expected = np.maximum(shares[0] - shares[1], 0).sum(1).reshape(GRID)
        np.testing.assert_allclose(model.change_map(codes, PROMPT), expected, atol=1e-5)
