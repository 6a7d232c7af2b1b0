"""BLEU and its kin by hand and by the libraries."""

import numpy as np
import pytest

from progemu_jax.eval.metrics import words


class TestBleu:
    def test_by_hand(self):
        # "a b c d" against "a b x d e": matches 3, 1; totals 4, 3; brevity exp(1 - 5/4).
        sums = np.array([3, 1, 0, 0, 4, 3, 2, 1, 4, 5.0])
        brevity = np.exp(-0.25)
        assert words.bleu(sums, 1) == pytest.approx(0.75 * brevity)
        assert words.bleu(sums, 2) == pytest.approx(np.sqrt(0.75 / 3) * brevity)
        assert words.bleu(sums, 3) == 0
        assert words.bleu(sums * 7, 2) == pytest.approx(words.bleu(sums, 2))

    def test_nothing_said_and_nothing_to_say(self):
        assert words.bleu(np.array([0.0] * 9 + [5]), 1) == 0
        assert np.isnan(words.bleu(np.zeros(10), 1))

    def test_by_the_libraries(self):
        if words.available():
            pytest.skip("the extra [text] is not installed")
        counts, rouge, meteor = words.overlap(["New left edema."] * 2, ["New left edema.", "No change."])
        np.testing.assert_array_equal(counts[0], [4, 3, 2, 1, 4, 3, 2, 1, 4, 4])
        assert rouge.tolist() == [1, 0]
        assert meteor[0] == pytest.approx(1 - 0.5 / 4**3)

    def test_what_is_missing_is_named(self, monkeypatch):
        monkeypatch.setattr(words, "find_spec", lambda name: None if name == "nltk" else True)
        assert words.available().endswith("(not there: nltk)")
