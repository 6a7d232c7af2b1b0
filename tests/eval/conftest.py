"""A small cohort on disk, and a result of an evaluation as it is written."""

import pytest
from support.eval_cohort import Cohort, estimate


@pytest.fixture
def small(tmp_path):
    cohort = Cohort(patients=4, pairs=1)
    cohort.write_references(tmp_path / "references")
    cohort.write_predictions(tmp_path / "ours", cohort.after, [r["prompt"] for r in cohort.rows])
    return tmp_path, cohort


@pytest.fixture
def result():
    metrics = {
        "finding_auroc": estimate(0.8054, low=0.79, high=0.82), "group_auroc": estimate(0.9722),
        "age_r": estimate(None), "cmig": estimate(None), "fid": estimate(29.21), "bleu_3": estimate(0.1241),
    }  # fmt: skip
    parts = {"cardiomegaly": {"finding_auroc": estimate(0.7)}, "lungs": {"dice_prior": estimate(0.8)}}
    system = {"title": "Ours", "role": "system", "metrics": metrics, "parts": parts, "note": "",
              "features": {"backbone": "net", "dimensions": 4, "real": 9, "generated": 8, "neighbours": 3,
                           "dense_neighbours": 5}}  # fmt: skip
    control = {**system, "title": "Null prompt", "role": "control", "features": {}, "parts": {}}
    return {"title": "T", "cases": 9, "patients": 7, "caveats": ["Invented."],
            "systems": {"ours": system, "null_edit": control}}  # fmt: skip
