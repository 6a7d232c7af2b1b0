"""cases.csv: the rows sum up to metrics.json, and what a case has not is an empty cell."""

import csv

import pytest

from progemu_jax.eval import System, evaluate


@pytest.fixture
def judged(small):
    """(metrics.json, columns, rows of cases.csv as dicts) of a system of two samples and of the references' rows."""
    root, cohort = small
    texts = [r["prompt"] for r in cohort.rows]
    cohort.rows[0]["patient_id"] = 'p000, "A"'
    cohort.write_rows(root / "references")
    cohort.write_predictions(root / "two", cohort.after, texts, samples=2, noise=9)
    cohort.write_scores(root / "two/scores.npz", cohort.after, samples=2)
    for name, states in (("prior", cohort.before), ("followup", cohort.after)):
        cohort.write_scores(root / f"scores/{name}.npz", states)
    given = {name: root / f"scores/{name}.npz" for name in ("prior", "followup")}
    systems = {"two": System(root / "two", root / "two/scores.npz")}
    result = evaluate(systems, root / "references", given, root / "out", bootstrap=0, log=lambda line: None)
    with open(root / "out/cases.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return result, reader.fieldnames, list(reader)


def test_every_column_sums_up_to_metrics_json(judged):
    result, columns, rows = judged
    compared = 0
    for name, system in result["systems"].items():
        own = [row for row in rows if row["system"] == name]
        for key in columns:
            if key not in system["metrics"]:
                continue
            pairs = [(float(r[key]), float(r.get(f"{key}:n", 1))) for r in own if r[key]]
            if system["metrics"][key]["value"] is None:
                assert not pairs
                continue
            mean = sum(v * n for v, n in pairs) / sum(n for _, n in pairs)
            assert mean == pytest.approx(system["metrics"][key]["value"], rel=1e-9, abs=1e-9), (name, key)
            compared += 1
    assert compared > 60


def test_rows_are_samples_of_cases(judged):
    _, columns, rows = judged
    own = [row for row in rows if row["system"] == "two"]
    assert [(row["pair_id"], row["sample"]) for row in own[:3]] == [("p000-0", "0"), ("p000-0", "1"), ("p001-0", "0")]
    assert own[0]["patient_id"] == 'p000, "A"'
    assert own[0]["diversity"]
    assert not own[1]["diversity"]  # of the case, not of its second sample
    assert {row["system"] for row in rows} >= {"two", "copy", "echo", "followup", "counterfactual"}
    assert all(not row["ssim_prior"] for row in rows if row["system"] == "echo")  # a text has no image
    assert not {"finding_auroc", "fid", "cmig"} & set(columns)  # of a set of images


def test_a_system_of_which_a_case_has_nothing_is_left_out(small):
    root, cohort = small
    cohort.write_predictions(root / "bare", cohort.after, images=False)
    systems = {"bare": System(root / "bare")}
    evaluate(systems, root / "references", None, root / "out", bootstrap=0, log=lambda line: None)
    lines = (root / "out/cases.csv").read_text(encoding="utf-8").splitlines()
    assert not any(line.startswith("bare,") for line in lines)
    assert any(line.startswith("copy,p000-0,p000,0,") for line in lines)
