"""Text models, on stand-ins for their packages."""

import sys
import types

import pytest

from progemu_jax.errors import UserError
from progemu_jax.eval.definitions import METRICS
from progemu_jax.eval.metrics import textmodels


class TestTextModels:
    made, reference = ["edema", "clear", "edema"], ["edema", "edema", "clear"]

    @pytest.fixture
    def packages(self, monkeypatch):
        """Stand-ins with the packages' own interfaces."""

        class CheXbert:
            def get_label(self, text):
                return [int(text == "edema"), 0, 0]

        class RadGraph:
            def __init__(self, reward_level):
                assert reward_level == "partial"

            def __call__(self, hyps, refs):
                return 0.5, [float(a == b) for a, b in zip(hyps, refs, strict=True)], [], []

        class Green:
            def __init__(self, name, output_dir):
                assert name == "StanfordAIMI/GREEN-radllama2-7b"

            def __call__(self, refs, hyps):
                return 0.5, 0.1, [0.2 + 0.3 * (a == b) for a, b in zip(hyps, refs, strict=True)], "", None

        class RadEval:
            def __init__(self, metrics, per_sample):
                assert (metrics, per_sample) == (["ratescore", "radcliq", "temporal", "srrbert"], True)

            def __call__(self, refs, hyps):
                alike = [float(a == b) for a, b in zip(hyps, refs, strict=True)]
                return {"ratescore": alike, "radcliq_v1": [1 - v for v in alike], "temporal_f1": [0.5] * 3,
                        "srrbert_weighted_f1": alike, "srrbert_weighted_recall": [2.0] * 3}  # fmt: skip

        for name, what in (("f1chexbert", {"F1CheXbert": CheXbert}), ("radgraph", {"F1RadGraph": RadGraph}),
                           ("green_score", {"GREEN": Green}), ("radeval", {"RadEval": RadEval})):  # fmt: skip
            module = types.ModuleType(name)
            module.__dict__.update(what)
            monkeypatch.setitem(sys.modules, name, module)

    def test_by_hand(self, packages):
        got = textmodels.ratios(["chexbert", "radgraph", "green"], self.made, self.reference)
        values = {k: top.sum() / bottom.sum() for k, (top, bottom) in got.items()}
        assert values == pytest.approx({"chexbert_f1": 2 * 1 / (2 + 1 + 1), "radgraph_f1": 1 / 3, "green": 0.9 / 3})
        assert set(values) <= set(METRICS)

    def test_radeval_gives_four_metrics(self, packages):
        got = textmodels.ratios(["radeval", "green"], self.made, self.reference)
        values = {k: top.sum() / bottom.sum() for k, (top, bottom) in got.items()}
        assert values == pytest.approx(
            {"ratescore": 1 / 3, "radcliq_v1": 2 / 3, "temporal_f1": 0.5, "srrbert_weighted_f1": 1 / 3, "green": 0.3}
        )
        assert set(values) <= set(METRICS)

    def test_radeval_of_another_version_is_one_line(self, packages, monkeypatch):
        monkeypatch.setattr(sys.modules["radeval"].RadEval, "__call__", lambda self, refs, hyps: {"ratescore": [1.0]})
        with pytest.raises(UserError, match=r"radeval failed \(ValueError: \(1,\) scores for 3 texts\)"):
            textmodels.ratios(["radeval"], self.made, self.reference)

    def test_not_installed_unknown_or_failing_is_one_line(self, packages, monkeypatch):
        monkeypatch.setitem(sys.modules, "radgraph", None)
        with pytest.raises(UserError, match="package radgraph is not there"):
            textmodels.ratios(["radgraph"], self.made, self.reference)
        with pytest.raises(UserError, match="choose among chexbert, radgraph, green"):
            textmodels.ratios(["bertscore"], self.made, self.reference)

        def fail(*_, **__):
            raise OSError("no weights\nat all")

        monkeypatch.setattr(sys.modules["green_score"], "GREEN", fail)
        with pytest.raises(UserError, match=r"green_score failed \(OSError: no weights\)"):
            textmodels.ratios(["green"], self.made, self.reference)
