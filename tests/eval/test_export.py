"""Predictions written for other evaluations: what each of them reads, and what is refused."""

import ast
import csv
import re

import numpy as np
import pytest
from PIL import Image
from support.eval_cohort import one_line

from progemu_jax.eval.__main__ import main
from progemu_jax.eval.export import EXPORTS, export
from progemu_jax.text.findings import CHEXPERT


@pytest.fixture
def two(small):
    """(folder, cohort) with a system of two samples of each case, of four patients."""
    root, cohort = small
    for k, row in enumerate(cohort.rows):
        row.update(patient_id="Zebrastripe" if k < 2 else "Other", labels_after={"Edema": k % 2, "Fracture": None})
        row["prompt"] = "New pulmonary edema."  # prompts repeat
    cohort.write_rows(root / "references")
    prompts = [r["prompt"] for r in cohort.rows]
    cohort.write_predictions(root / "two", cohort.after, ["Edema is new."] * 4, samples=2, noise=9, prompts=prompts)
    return root, cohort


def make(root, protocol, system="two"):
    return export(protocol, root / system, root / "references", root / "out" / protocol)


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_chexgenbench_finds_the_images_of_a_pathology_by_their_prompts(two):
    root, _ = two
    out = make(root, "chexgenbench")
    made, real = table(out / "assets/CSV/prompt_INFO.csv"), table(out / "real.csv")
    assert [set(made[0]), set(real[0])] == [
        {"prompt", "annotated_prompt", "img_savename"}, {"path", "annotated_prompt", "chexpert_labels"},
    ]  # fmt: skip
    assert {row["prompt"] for row in made} == {"New pulmonary edema."}
    assert len({row["annotated_prompt"] for row in real}) == len(real) == 4  # it drops a prompt's second real image
    labels = [ast.literal_eval(row["chexpert_labels"]) for row in real]
    assert [set(label) == set(CHEXPERT) for label in labels] == [True] * 4
    with_edema = {row["annotated_prompt"] for row, label in zip(real, labels, strict=True) if label["Edema"] == 1}
    shown = [row["img_savename"] for row in made if row["annotated_prompt"] in with_edema]
    assert shown == ["case00001_0.png", "case00001_1.png", "case00003_0.png", "case00003_1.png"]
    assert all((out / "assets/synthetic_images" / name).is_file() for name in shown)
    assert (pixels(out / "real_images/case00003.png") == pixels(root / "references/images/p003-0-followup.png")).all()


def test_images_keep_their_bytes_and_export_csv_names_them(two):
    root, _ = two
    out = make(root, "m3")
    known = {row["name"]: row for row in table(out / "export.csv")}
    assert known["case00002_1"] == {"name": "case00002_1", "pair_id": "p002-0", "sample": "1"}
    ours = out / "generated/subject00001_case00002_1.png"
    assert ours.read_bytes() == (root / "two/images/p002-0-1.png").read_bytes()


def test_m3_has_folders_whose_names_hold_the_patient_as_a_number(two):
    root, _ = two
    out = make(root, "m3")
    names = files(out)
    assert len([n for n in names if n.startswith("real/")]) == 4
    assert len([n for n in names if n.startswith("generated/")]) == 8
    subjects = {re.search("(subject[0-9]+)", n)[1] for n in names if n.endswith(".png")}
    assert subjects == {"subject00000", "subject00001"}
    assert "Zebrastripe" not in "".join(names)


def test_radmatch_pairs_reports_by_file_name(two):
    root, cohort = two
    out = make(root, "radmatch")
    for folder in ("reports_gt", "reports_pred"):
        assert files(out / folder) == [f"case0000{i}.txt" for i in range(4)]
    assert (out / "reports_pred/case00002.txt").read_text() == "Edema is new.\n"
    assert (out / "reports_gt/case00002.txt").read_text() == cohort.rows[2]["interpretation"] + "\n"


def test_teas_folders_have_prior_truth_and_edit_by_one_name(two):
    root, cohort = two
    out = make(root, "teacsv")
    rows = table(out / "test.csv")
    names = {row["name"]: row["filename"] for row in rows}
    assert set(names) == {row["name"] for row in table(out / "export.csv")}
    assert names["case00003_1"] == "subject_00001_case_00003_sample_1_.tiff"
    for place, image in (
        ("test/no_bias", "references/images/p003-0-prior.png"),
        ("test/bias", "references/images/p003-0-counterfactual.png"),
        ("system_cfs/bias", "two/images/p003-0-1.png"),
    ):
        assert set(names.values()) == {*files(out / place)} - {"predictions.csv"}
        shown = pixels(out / place / names["case00003_1"])
        assert shown.dtype == np.float32
        np.testing.assert_array_equal(shown, pixels(root / image).astype(np.float32) / 255)
    predicted = table(out / "system_cfs/bias/predictions.csv")
    assert [(row["filename"], row["predictions"]) for row in predicted] == [(name, "") for name in names.values()]
    asked = cohort.rows[1]["prompt_changes"]
    assert rows[2]["changes"] == "; ".join(f"{'+' if way > 0 else '-'}{finding}" for finding, way in asked.items())
    assert (float(rows[2]["age"]), rows[2]["sex"]) == (cohort.rows[1]["age"], cohort.rows[1]["sex"])


class TestRefusals:
    def test_a_folder_in_use(self, two):
        root, _ = two
        make(root, "m3")
        one_line("not empty", make, root, "m3")

    def test_a_system_without_what_is_wanted(self, two):
        root, cohort = two
        cohort.write_predictions(root / "silent", cohort.after)
        cohort.write_predictions(root / "blind", cohort.after, ["Stable."] * 4, images=False)
        one_line("has no texts", make, root, "radmatch", "silent")
        one_line("has no images", make, root, "m3", "blind")

    def test_a_case_without_truth_where_it_is_wanted(self, two):
        root, cohort = two
        cohort.rows[2]["counterfactual"] = None
        cohort.write_rows(root / "references")
        one_line("case p002-0 has no true counterfactual", make, root, "teacsv")

    def test_a_broken_image(self, two):
        root, _ = two
        (root / "two/images/p001-0-1.png").write_bytes(b"no image")
        one_line("cannot be read as an image", make, root, "chexgenbench")
        assert not (root / "out/chexgenbench/export.csv").exists()

    def test_a_folder_that_cannot_be_made(self, two):
        root, _ = two
        (root / "out").write_text("")
        one_line("cannot be written", make, root, "m3")


class TestCommand:
    def test_writes_each_system_for_each_protocol_and_judges_nothing(self, two, capsys):
        root, _ = two
        given = [f"--predictions={root / 'two'}", f"--predictions=other={root / 'ours'}"]
        given += [f"--references={root / 'references'}", f"--out={root / 'out'}"]
        assert main([*given, "--export=m3", "--export=radmatch"]) == 0
        assert capsys.readouterr().out.strip() == str(root / "out")
        for place in ("m3/two", "m3/other", "radmatch/two", "radmatch/other"):
            assert (root / "out" / place / "export.csv").is_file()
        assert not (root / "out/metrics.json").exists()

    @pytest.mark.parametrize("name", ["..", "a/b", "."])
    def test_a_name_that_would_leave_the_folder(self, two, capsys, name):
        root, _ = two
        given = [f"--predictions={name}={root / 'two'}", f"--references={root / 'references'}"]
        assert main([*given, f"--out={root / 'out'}", "--export=m3"]) == 2
        assert "no name of a folder" in capsys.readouterr().err
        assert not (root / "out").exists()

    def test_an_unknown_protocol(self, two, capsys):
        root, _ = two
        given = [f"--predictions={root / 'two'}", f"--references={root / 'references'}", f"--out={root / 'out'}"]
        with pytest.raises(SystemExit) as ended:
            main([*given, "--export=m4"])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert all(protocol in error for protocol in EXPORTS)
