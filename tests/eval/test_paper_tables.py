"""The papers' templates, filled."""

import pytest

from progemu_jax.eval import paper_tables


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
