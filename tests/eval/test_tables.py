"""The tables in three forms, the papers' templates, words and text models."""

import sys
import types

import numpy as np
import pytest

from progemu_jax.errors import UserError
from progemu_jax.eval import paper_tables, tables
from progemu_jax.eval.definitions import METRICS, SECTIONS, cell, features_line
from progemu_jax.eval.metrics import textmodels, words

TABLE = tables.Table("A & B", ["x_1", "50 %"], [("Ours | theirs", ["0.5 [0.4, 0.6]", ""])], "n < 3", "a b")


def estimate(value, **more):
    return {"value": value, "low": None, "high": None, "undefined_resamples": 0, "flags": [], **more}


@pytest.fixture
def result():
    metrics = {
        "finding_auroc": estimate(0.8054, low=0.79, high=0.82), "group_auroc": estimate(0.9722),
        "age_r": estimate(None), "cmig": estimate(None), "fid": estimate(29.21), "bleu_3": estimate(0.1241),
    }  # fmt: skip
    parts = {"cardiomegaly": {"finding_auroc": estimate(0.7)}, "lungs": {"dice_prior": estimate(0.8)}}
    system = {"title": "Ours", "role": "system", "metrics": metrics, "parts": parts, "note": "",
              "features": {"backbone": "net", "dimensions": 4, "real": 9, "generated": 8, "neighbours": 3}}  # fmt: skip
    control = {**system, "title": "Null prompt", "role": "control", "features": {}, "parts": {}}
    return {"title": "T", "cases": 9, "patients": 7, "caveats": ["Invented."],
            "systems": {"ours": system, "null_edit": control}}  # fmt: skip


class TestForms:
    def test_markdown(self):
        assert tables.markdown(TABLE).splitlines() == [
            "## A & B", "", "| system | x_1 | 50 % |", "| --- | --- | --- |", "| Ours \\| theirs | 0.5 [0.4, 0.6] |  |",
            "", "n < 3",
        ]  # fmt: skip

    def test_latex_escapes_and_balances(self):
        text = tables.latex(TABLE)
        assert r"A \& B. n \textless{} 3" in text
        assert r" & x\_1 & 50 \% \\" in text
        assert r"Ours \textbar{} theirs & 0.5 [0.4, 0.6] &  \\" in text
        assert text.count(r"\begin") == text.count(r"\end") == 2
        assert text.count("{") == text.count("}")
        assert r"\label{tab:ab}" in text

    def test_html_escapes(self):
        text = tables.html(tables.Table("<b>", ["&"], [("<i>", ["<u>"])]))
        assert "<b>" not in text
        assert "&lt;i&gt;" in text

    def test_undefined_is_a_word_and_absent_is_empty(self):
        assert cell(estimate(None)) == "undefined"
        assert cell(None) == ""
        assert cell(estimate(0.5, flags=["few"])) == "0.500*"

    def test_files(self, result, tmp_path):
        tables.write_tables(result, tmp_path)
        for kind in ("md", "tex", "html"):
            text = (tmp_path / f"tables.{kind}").read_text()
            assert "Invented." in text
            assert "undefined" in text
            assert "FID, KID, precision and recall against 9 real follow-ups, net (4 features), k = 3" in text

    def test_backbone_and_n_stand_beside_the_number(self, result):
        assert features_line(result).endswith("n generated: Ours 8")

    def test_every_metric_is_in_a_table(self):
        shown = {k for _, keys in SECTIONS for k in keys}
        hidden = {"kl_printed", "sex_retention"}  # in the papers' tables, and beside the other retentions in the JSON
        assert shown | hidden == set(METRICS)


class TestPaper:
    def test_recomputed_column(self):
        expected = {"Stable Diffusion": 26.91, "InstructPix2Pix": 46.58, "RoentGen": 62.77, "MedJourney": 84.11}
        assert paper_tables.recomputed() == pytest.approx(expected, abs=0.006)
        assert all(abs(paper_tables.recomputed()[k] - v[3]) > 0.5 for k, v in paper_tables.PRINTED.items())

    def test_templates_are_filled_for_the_systems_given(self, result, tmp_path):
        one, two, _, four, printed = paper_tables.paper_tables(result)
        assert one.rows == [("Ours", ["0.805 [0.790, 0.820]", "0.972", "undefined", "undefined"])]
        assert "never compare" in one.caption
        assert (two.columns, two.rows) == (["cardiomegaly"], [("Ours", ["0.700"])])
        assert four.rows == [("Ours", ["29.21", "", "0.124", "", ""])]
        assert printed.rows[3] == ("MedJourney", ["80.54", "97.22", "79.38", "83.23", "84.11"])
        paper_tables.write_paper(result, tmp_path)
        assert all((tmp_path / f"paper.{kind}").is_file() for kind in ("md", "tex", "html"))


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

        for name, what in (("f1chexbert", {"F1CheXbert": CheXbert}), ("radgraph", {"F1RadGraph": RadGraph}),
                           ("green_score", {"GREEN": Green})):  # fmt: skip
            module = types.ModuleType(name)
            module.__dict__.update(what)
            monkeypatch.setitem(sys.modules, name, module)

    def test_by_hand(self, packages):
        got = textmodels.ratios(["chexbert", "radgraph", "green"], self.made, self.reference)
        values = {k: top.sum() / bottom.sum() for k, (top, bottom) in got.items()}
        assert values == pytest.approx({"chexbert_f1": 2 * 1 / (2 + 1 + 1), "radgraph_f1": 1 / 3, "green": 0.9 / 3})
        assert set(values) <= set(METRICS)

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
