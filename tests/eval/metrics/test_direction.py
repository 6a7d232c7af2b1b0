"""Direction of change: ties, margins, what should have stayed."""

import numpy as np

from progemu_jax.eval.metrics import direction

NAN = float("nan")


class TestDirection:
    named = np.array([[1.0, -1.0, 0.0]])
    prior = np.array([[0.2, 0.9, 0.1]])

    def test_copy_moves_nothing(self):
        moved = direction.moved(self.prior, self.prior, self.named)
        np.testing.assert_array_equal(moved, [[0, 0, NAN]])

    def test_a_rounding_difference_is_a_tie(self):
        moved = direction.moved(self.prior, self.prior + self.named * 1e-6, self.named)
        np.testing.assert_array_equal(moved, [[0, 0, NAN]])

    def test_margin(self):
        after = np.array([[0.24, 0.80, 0.1]])
        np.testing.assert_array_equal(direction.moved(self.prior, after, self.named), [[1, 1, NAN]])
        np.testing.assert_array_equal(direction.moved(self.prior, after, self.named, 0.05), [[0, 1, NAN]])

    def test_kept_counts_only_what_should_have_stayed(self):
        named = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]])
        before, after = np.array([[0.1, 0.9, 0.9, 0.1, 0.1]]), np.array([[0.7, 0.8, 0.1, 0.9, 0.9]])
        truth_before = np.array([[0.0, 1.0, 0.0, 0.0, 0.0]])
        truth_after = np.array([[0.0, 1.0, 0.0, 1.0, 1.0]])
        # lost; kept; the scorer was wrong about the prior; it truly changed; it is named.
        expected = [[0, 1, NAN, NAN, NAN]]
        np.testing.assert_array_equal(direction.kept(before, after, named, truth_before, truth_after), expected)

    def test_still_is_within_the_margin(self):
        before, after = np.array([[0.2, 0.2, 0.2, 0.9]]), np.array([[0.24, 0.26, 0.9, 0.9]])
        unchanged = np.array([[True, True, True, False]])
        named = np.array([[0.0, 0.0, 1.0, 0.0]])
        np.testing.assert_array_equal(direction.still(before, after, named, unchanged), [[1, 0, NAN, NAN]])

    def test_confusion(self):
        got = direction.confusion(np.array([0.5, 0.9, 0.4, 0.1, 0.9]), np.array([1, 0, 1, 0, NAN]))
        assert [x.tolist() for x in got] == [
            [True, False, False, False, False],
            [False, True, False, False, False],
            [False, False, True, False, False],
        ]

    def test_success_needs_every_movement_and_no_loss(self):
        moved = np.array([[1, 1, NAN], [1, 0, NAN], [1, NAN, NAN], [NAN, NAN, NAN]])
        kept = np.array([[NAN, NAN, 1], [NAN, NAN, 1], [NAN, 0, 1], [1, 1, 1]])
        np.testing.assert_array_equal(direction.success(moved, kept), [1, 0, 0, NAN])

    def test_contradictory_parts_are_left_out(self):
        assert np.isnan(direction.moved(np.array([[0.1]]), np.array([[0.9]]), np.array([[NAN]]))).all()


class TestEffect:
    def test_is_the_change_in_the_stated_direction(self):
        named = np.array([[1.0, -1.0, 1.0, 0.0, NAN]])
        before, after = np.array([[0.2, 0.9, 0.5, 0.1, 0.1]]), np.array([[0.7, 0.8, 0.25, 0.9, 0.9]])
        np.testing.assert_allclose(direction.effect(before, after, named), [[0.5, 0.1, -0.25, NAN, NAN]])
        np.testing.assert_array_equal(direction.effect(before, before, named), [[0, 0, 0, NAN, NAN]])

    def test_flips_count_where_the_prior_is_on_the_other_side(self):
        named = np.array([[1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 0.0, NAN]])
        before, after = np.array([[0.1, 0.4, 0.9, 0.5, 0.6, 0.2, 0.1, 0.1]]), np.array([[0.6, 0.49, 0.4] + [0.6] * 5])
        # crossed; moved short of it; crossed; stayed above; was there already, twice; not named; contradicts itself.
        expected = [[1, 0, 1, 0, NAN, NAN, NAN, NAN]]
        np.testing.assert_array_equal(direction.flipped(before, after, named), expected)
        np.testing.assert_array_equal(direction.flipped(before, before, named), [[0, 0, 0, 0] + [NAN] * 4])

    def test_amplified_is_away_from_the_middle(self):
        named, unchanged = np.array([[0.0, 0.0, 0.0, 1.0, 0.0]]), np.array([[True, True, True, True, False]])
        before, after = np.array([[0.7, 0.3, 0.5, 0.3, 0.3]]), np.array([[0.9, 0.1, 0.25, 0.1, 0.1]])
        expected = [[0.2, 0.2, -0.25, NAN, NAN]]
        np.testing.assert_allclose(direction.amplified(before, after, named, unchanged), expected)
