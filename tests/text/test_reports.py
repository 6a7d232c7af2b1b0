"""The rules on the language of real reports, in sentences of our own; the benchmark that scores them on a cohort."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from progemu_jax.errors import UserError
from progemu_jax.text import rules

ROOT = Path(__file__).resolve().parents[2]
PE, PTX, CM, ED, AT, CO = "Pleural Effusion", "Pneumothorax", "Cardiomegaly", "Edema", "Atelectasis", "Consolidation"
OPACITY = "Lung Opacity"

LABELS = [
    # Denials with a noun of their own.
    ("There are no typical findings of edema.", {ED: 0}),
    ("Crowded vessels, without typical findings of edema.", {ED: 0}),
    ("No findings to suggest pneumothorax.", {PTX: 0}),
    ("No findings that would suggest edema.", {ED: 0}),
    ("Without convincing edema or effusion.", {ED: 0, PE: 0}),
    ("No definite focal area of consolidation.", {CO: 0}),
    ("No visible layering effusion of pneumothorax.", {PE: 0, PTX: 0}),
    ("Lungs show no effusions of edema.", {PE: 0, ED: 0}),
    ("Pneumothorax cannot be seen.", {PTX: 0}),
    ("No consolidative airspace opacities.", {CO: 0}),
    ("Increased markings without superimposed consolidation.", {CO: 0}),
    # A denial of another noun, and an adjective of another noun.
    ("Cardiomegaly without decompensation.", {CM: 1}),
    ("Enlarged heart with no failure or effusion.", {CM: 1, ED: 0, PE: 0}),
    ("Left effusion with no response to drainage.", {PE: 1}),
    ("Normal heart size with prominent atrial appendage.", {CM: 0}),
    ("Heart and mediastinal contours are within normal limits.", {CM: 0}),
    ("The heart and aorta are enlarged.", {CM: 1}),
    ("Heart size and vascular engorgement appear within normal limits.", {CM: 0, ED: 0}),
    # What the labels mean.
    ("Airspace disease at the left base.", {OPACITY: 1, CO: None}),
    ("Bilateral air space opacities.", {OPACITY: 1, CO: None}),
    ("Left airspace consolidation.", {CO: 1}),
    ("The right lower lobe is consolidated.", {CO: 1}),
    ("No airspace disease.", {OPACITY: 0, CO: None}),
    ("Central vascular congestion.", {ED: -1}),
    ("Congestive heart failure.", {ED: -1}),
    ("No vascular congestion.", {ED: 0}),
    ("Congestion with mild interstitial edema.", {ED: 1}),
    ("Blunting of the left costophrenic angle.", {PE: -1}),
    ("Blunted left costophrenic angle from a small effusion.", {PE: 1}),
    ("Both costophrenic angles are sharp.", {PE: 0}),
    ("Volume loss on the right.", {AT: -1}),
    ("Right hydropneumothorax.", {PE: 1, PTX: 1}),
    # The heart.
    ("Borderline cardiomegaly.", {CM: 1}),
    ("The heart is borderline enlarged.", {CM: 1}),
    ("Borderline heart size.", {CM: 1}),
    ("Heart size at the upper limits of normal.", {CM: 0}),
    ("Mild cardiomegaly.", {CM: 1}),
    ("The heart is slightly large.", {CM: 1}),
    ("The heart stays as large as before.", {CM: None}),
    # Doubt.
    ("Streaks at the base, atelectasis or scarring.", {AT: -1}),
    ("Basal density, atelectasis versus contusion.", {AT: -1}),
    ("Left basal atelectasis or contusion.", {AT: -1}),
    ("Haze may be infection, atelectasis, or something else.", {AT: -1}),
    ("Diffuse pattern; differential includes pneumonia, edema.", {ED: -1}),
    ("Left effusion, differential includes empyema.", {PE: 1}),
    ("Findings most suggestive of edema.", {ED: 1}),
    ("Haze suspicious for developing edema.", {ED: -1}),
    ("Effusion is unlikely.", {PE: -1}),
    ("Consider atelectasis.", {AT: -1}),
    ("Possible pneumonia and small left effusion.", {PE: 1}),
    # Another time, and pronouns that mean something else.
    ("On the outside study, the left lung was consolidated.", {CO: None}),
    ("On the previous study the effusion was small and it is now large.", {PE: 1}),
    ("There is no pneumothorax. This appears increased.", {PTX: 0}),
    ("Right pneumothorax. This is a common variant. It is larger.", {PTX: 1}),
    # Words that were taken out.
    ("XXXX left effusion, XXXX small.", {PE: 1}),
    ("No XXXX of effusion or ___ pneumothorax.", {PE: 0, PTX: 0}),
    ("The heart XXXX is enlarged.", {CM: 1}),
    ("Opacity ___ reflecting atelectasis.", {AT: 1}),
]


@pytest.mark.parametrize(("text", "expected"), LABELS)
def test_labels_of_reports(text, expected):
    found = rules.labels(text)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Small left effusion.", {PE: "left"}),
        ("Right greater than left effusions.", {PE: "both"}),
        ("Effusions.", {PE: "both"}),
        ("Left effusion. Right effusion.", {PE: "both"}),
        ("Right basal opacity compatible with effusion.", {PE: "right", OPACITY: "right"}),
        ("Right basal opacity compatible effusion.", {PE: "right", OPACITY: "right"}),
        ("Left effusion versus thickening.", {PE: "left"}),
        ("Possible left effusion. Small right effusion.", {PE: "right"}),
        ("No left effusion.", {}),
        ("Blunting of the left costophrenic angle.", {}),
        ("Effusion.", {}),
    ],
)
def test_sides(text, expected):
    assert rules.sides(text) == expected


LEFT, RIGHT = "left pleural effusion", "right pleural effusion"


@pytest.mark.parametrize(
    ("text", "expected", "observed"),
    [
        ("New left effusion.", {LEFT: "new"}, {PE: "new"}),
        ("The left effusion is larger than on the prior film.", {LEFT: "worse"}, {PE: "worse"}),
        ("Stable edema.", {"pulmonary edema": "stable"}, {ED: "stable"}),
        ("Edema has improved but not resolved.", {"pulmonary edema": "improved"}, {ED: "improved"}),
        ("Resolution of the right effusion.", {RIGHT: "resolved"}, {PE: "resolved"}),
        ("The heart is no longer enlarged.", {"cardiomegaly": "resolved"}, {CM: "resolved"}),
        ("Left effusion is unchanged, right effusion has grown.", {LEFT: "stable", RIGHT: "worse"}, {PE: "worse"}),
        ("Compared with the prior film, airspace disease is worse.", {"consolidation": "worse"}, {OPACITY: "worse"}),
        ("Vascular congestion has improved.", {"pulmonary edema": "improved"}, {}),
        ("Effusion has decreased.", {}, {PE: "improved"}),
        ("No new edema.", {}, {}),
        ("Small left effusion. No edema.", {}, {}),
        ("Interval increase in the pneumonia.", {}, {"Pneumonia": "worse"}),
    ],
)
def test_five_classes(text, expected, observed):
    assert rules.progressions(text) == expected
    assert rules.observed_progressions(text) == observed
    sign = {"new": 1, "worse": 1, "stable": 0, "improved": -1, "resolved": -1}
    moved = rules.changes(text)
    assert {name: moved[name] for name in expected} == {name: sign[kind] for name, kind in expected.items()}


def test_a_change_without_a_side_goes_where_the_finding_was():
    assert rules.progressions("The effusion has resolved.", context={LEFT: True}) == {LEFT: "resolved"}


# ---------------------------------------------------------------------------------------------- the benchmark


def _benchmark():
    spec = importlib.util.spec_from_file_location("reports_benchmark", ROOT / "benchmarks/reports.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(folder, number, findings, *codes, impression=""):
    majors = "".join(f"<major>{code}</major>" for code in codes)
    parts = {"FINDINGS": findings, "IMPRESSION": impression, "INDICATION": "Edema?"}
    texts = "".join(f'<AbstractText Label="{name}">{text}</AbstractText>' for name, text in parts.items())
    (folder / f"{number}.xml").write_text(
        f"<eCitation><Abstract>{texts}</Abstract><MeSH>{majors}<automatic>Edema</automatic></MeSH></eCitation>"
    )


def test_the_benchmark_scores_codes_and_lists_what_contradicts(tmp_path):
    _write(tmp_path, 2, "Small left effusion.", "Pleural Effusion/left/small")
    _write(tmp_path, 4, "No effusion.", "Pleural Effusion/right")  # the code contradicts the words
    _write(tmp_path, 6, "Left effusion versus scar.", "Pleural Effusion/left", impression="Mild cardiomegaly.")
    _write(tmp_path, 8, "Right effusion.", "normal")
    _write(tmp_path, 10, "", "normal")
    _write(tmp_path, 3, "Left effusion.", "Pleural Effusion/right")
    lines = list(_benchmark().findings(tmp_path, "even"))
    effusion = next(line for line in lines if line.get("finding") == PE)
    assert effusion["positive"] == 3
    assert (effusion["precision"], effusion["recall"], effusion["f1"]) == (0.5, 0.3333, 0.4)
    assert (effusion["missed"], effusion["made_up"], effusion["contradicting"]) == ([4, 6], [8], [4, 8])
    assert effusion["f1_without"] == 0.6667
    heart = next(line for line in lines if line.get("finding") == CM)
    assert (heart["made_up"], heart["contradicting"]) == ([6], [6])
    assert lines[-1]["reports"] == 4
    assert lines[-1]["without_text"] == 1
    assert (lines[-1]["sided_effusions"], lines[-1]["side_right"]) == (3, 2)
    odd = list(_benchmark().findings(tmp_path, "odd"))
    assert odd[-1]["reports"] == 1
    assert {"wrong_side": 3} in odd


def test_the_benchmark_scores_the_five_classes(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text(
        "report,finding,progression\n"
        '"New left effusion.",Pleural Effusion,new\n'
        '"Left effusion, now larger.",left pleural effusion,worse\n'
        '"Stable edema.",Edema,worse\n'
        '"No edema.",Edema,\n'
    )
    command = [sys.executable, str(ROOT / "benchmarks/reports.py"), f"--labels={file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    by = {line["progression"]: line for line in lines if "progression" in line}
    assert list(by) == ["new", "worse", "stable", "improved", "resolved"]
    assert by["new"]["f1"] == 1.0
    assert (by["worse"]["rows"], by["worse"]["precision"], by["worse"]["recall"]) == (2, 1.0, 0.5)
    assert by["stable"]["precision"] == 0.0
    assert lines[-1] == {"rows": 4, "f1": 0.8333, "accuracy": 0.75}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("report,finding\nx,Edema\n", "no column progression"),
        ("report,finding,progression\nx,Edema,bigger\n", "line 2"),
        ("report,finding,progression\nx,Oedema,new\n", "Oedema"),
        ("report,finding,progression\n", "no row"),
        ("", "no column"),
    ],
)
def test_labels_that_do_not_parse_are_one_line(tmp_path, content, word):
    file = tmp_path / "labels.csv"
    file.write_text(content)
    with pytest.raises(UserError, match=word) as error:
        list(_benchmark().progressions(file))
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)


def test_reports_that_do_not_parse_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no report with text"):
        list(_benchmark().findings(tmp_path, "even"))
    (tmp_path / "2.xml").write_text("<a><b></a>")
    with pytest.raises(UserError, match=r"2\.xml.*expected a report"):
        list(_benchmark().findings(tmp_path, "even"))
