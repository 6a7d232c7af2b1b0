"""The list of findings belongs to the references' folder, and not to the run."""

import json

import numpy as np
from support.eval_cohort import Cohort, one_line, words

from progemu_jax.eval import System, evaluate
from progemu_jax.eval.predictions import read_references
from progemu_jax.files import findings as cohort_findings
from progemu_jax.text.findings import FINDINGS, PHANTOM, names, to_rows


def _evaluated(root, order):
    """The metrics of a noisy system, with the findings, and the scorer's columns, in another order."""
    cohort = Cohort(patients=8, seed=4)
    cohort.write_references(root / "references")
    cohort_findings.write(root / "references", tuple(PHANTOM[i] for i in order))
    texts = [words(b, a) for b, a in zip(cohort.before, cohort.after, strict=True)]
    cohort.write_predictions(root / "ours", cohort.after[1:] + cohort.after[:1], texts)
    columns = dict(findings=np.array(FINDINGS)[order])

    def score(name, shown):
        made = cohort.scores(shown)
        for key in ("finding_prob", "saliency", "finding_severity"):
            if key in made:
                columns[key] = made[key][:, order]
        return cohort.write_scores(root / f"scores-{name}.npz", shown, **columns)

    reference = {k: score(k, cohort.before if k == "prior" else cohort.after) for k in ("prior", "followup")}
    system = System(root / "ours", score("ours", cohort.after[1:] + cohort.after[:1]))
    result = evaluate({"ours": system}, root / "references", reference, root / "out", bootstrap=10, cases_shown=0)
    return result["systems"]["ours"]


def test_no_figure_depends_on_the_order_of_the_list(tmp_path):
    one, other = _evaluated(tmp_path / "one", list(range(8))), _evaluated(tmp_path / "other", [5, 0, 7, 2, 1, 6, 3, 4])
    assert not (tmp_path / "one/references/findings.json").exists()  # the phantom's own list needs none
    assert len(one["metrics"]) > 40
    for key, found in one["metrics"].items():
        again = other["metrics"][key]["value"]
        assert (found["value"] is None) == (again is None), key
        if again is not None:
            np.testing.assert_allclose(again, found["value"], rtol=1e-5, err_msg=key)
    for name in FINDINGS:
        assert one["parts"][name]["finding_auroc"]["value"] == other["parts"][name]["finding_auroc"]["value"]


def test_findings_beyond_the_phantoms_are_judged(small):
    root, cohort = small
    found = (*PHANTOM[:1], PHANTOM[4].__class__("nodule", "Nodule"), *PHANTOM[2:4])
    for row in cohort.rows:
        row["states_before"], row["states_after"] = {"nodule": 0.0}, {"nodule": 1.0}
    cohort.write_rows(root / "references")
    (root / "references/findings.json").write_text(json.dumps(to_rows(found)))
    refs = read_references(root / "references")
    assert refs.names == names(found)
    np.testing.assert_array_equal(refs.changed("nodule"), 1)
    assert refs.true_changes().shape == (len(cohort.rows), 4)
    assert np.isnan(refs.present("cardiomegaly", "after")).all()  # not of this cohort: a label, and there is none


def test_a_list_without_sense_is_one_line(small):
    path = small[0] / "references/findings.json"
    row = {"name": "nodule", "label": "Nodule"}
    for value, match in (
        ({}, "holds no list of 1 to 500 findings"),
        ([], "holds no list"),
        (["nodule"], "finding 1 is no object"),
        ([row, row], "names 'nodule' twice"),
        ([{**row, "name": ""}], "has the name '', which is no plain text"),
        ([{**row, "name": "a\u001b[31m"}], "which is no plain text"),
        ([{**row, "name": "x" * 400}], "name of 400 characters"),
        ([{**row, "label": 7}], "has the label 7"),
        ([{**row, "side": "top"}], "left, right or null is expected"),
        ([{**row, "side": "left"}], "does not begin with its side, left"),
        ([{**row, "organs": ["liver"]}], "has organs beside left lung"),
        ([{**row, "grades": ["mild"]}], "grades that are not three words"),
        ([{**row, "colour": 1}], "unknown key 'colour'"),
    ):
        path.write_text(json.dumps(value))
        one_line(match, read_references, path.parent)
    path.write_text("{")
    one_line("findings.json: ", read_references, path.parent)
