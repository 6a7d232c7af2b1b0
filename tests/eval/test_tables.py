"""The tables in three forms, the papers' templates, words and text models."""

from support.eval_cohort import estimate

from progemu_jax.eval import tables
from progemu_jax.eval.definitions import METRICS, SECTIONS, cell, features_line

TABLE = tables.Table("A & B", ["x_1", "50 %"], [("Ours | theirs", ["0.5 [0.4, 0.6]", ""])], "n < 3", "a b")


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
            assert "density and coverage against 9 real follow-ups, net (4 features), k = 3, of the last two 5" in text

    def test_backbone_and_n_stand_beside_the_number(self, result):
        assert features_line(result).endswith("n generated: Ours 8")

    def test_every_metric_is_in_a_table(self):
        shown = {k for _, keys in SECTIONS for k in keys}
        hidden = {"kl_printed", "sex_retention"}  # in the papers' tables, and beside the other retentions in the JSON
        assert shown | hidden == set(METRICS)


def test_html_in_a_title_is_text_in_markdown(tmp_path):
    hostile = "<img src=x onerror=alert(1)> & co"
    table = tables.Table("T", [hostile], [(hostile, ["1"])])
    tables.write_forms(tmp_path, "tables", hostile, [hostile], [table])
    for kind in ("md", "html"):
        text = (tmp_path / f"tables.{kind}").read_text()
        assert text.count("&lt;img src=x onerror=alert(1)&gt; &amp; co") >= 4
        assert "<img" not in text
