"""Hostile references and predictions: each defect is one line that names the cases."""

import json

import numpy as np
import pytest
from PIL import Image
from support.eval_cohort import one_line

from progemu_jax.eval.predictions import read_predictions, read_references


class TestReferences:
    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("pair_id", 7, "pair_id is not text"),
            ("age", "old", r"case p001-0\): age is not a number"),
            ("age", float("nan"), "line 2 holds a number that is not finite"),
            ("group", 3, "group is not text"),
            ("states_after", [0, 1], "states_after is not an object of numbers from 0 to 1"),
            ("states_before", {"cardiomegaly": "yes"}, "states_before is not an object"),
            ("states_before", {"cardiomegaly": 7}, "states_before is not an object"),
            ("prompt_changes", {"cardiomegaly": 2}, "prompt_changes is not an object of numbers from -1 to 1"),
            ("labels_after", "none", "labels_after is not an object"),
            ("age", 10**400, "line 2 holds a number of too many digits"),
            ("states_after", {"cardiomegaly": float("inf")}, "line 2 holds a number that is not finite"),
            ("interpretation", "half \ud800", "line 2 holds half a character"),
            ("prior", "x" * 5000, "prior is not a path in the folder"),
            ("prior", "../outside.png", "prior is not a path in the folder"),
            ("masks_prior", "/etc/passwd", "masks_prior is not a path in the folder"),
        ],
    )
    def test_values_that_make_no_sense(self, small, key, value, match):
        root, cohort = small
        cohort.rows[1][key] = value
        cohort.write_rows(root / "references")
        one_line(match, read_references, root / "references")

    def test_bytes_that_are_no_text(self, small):
        (small[0] / "references/references.jsonl").write_bytes(b"\xff\xfe")
        one_line("line 1 is not JSON", read_references, small[0] / "references")

    def test_masks_of_other_organs(self, small):
        root, cohort = small
        np.savez(root / "references" / cohort.rows[2]["masks_prior"], masks=np.zeros((3, 32, 32), bool))
        refs = read_references(root / "references")
        one_line(r"masks \(3, 32, 32\) of case p002-0", refs.masks, 2, "prior")

    def test_images_of_16_bits_are_not_cut_to_8(self, small):
        root, cohort = small
        Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(root / "references" / cohort.rows[0]["prior"])
        refs = read_references(root / "references")
        one_line(r"image of mode I;16 \(case p000-0\); write 8-bit", refs.image, 0, "prior")


class TestPredictions:
    @pytest.mark.parametrize(
        ("key", "value", "match"),
        [
            ("sample", "a", "sample is not a whole number from 0 for cases p001-0"),
            ("sample", -1, "sample is not a whole number"),
            ("text", 5, "text is not text for cases p001-0"),
            ("prompt", [], "prompt is not text for cases p001-0"),
            ("image", "../x.png", "image is not a path in the folder for cases p001-0"),
            ("image", "x" * 5000, "image is not a path in the folder for cases p001-0"),
            ("sampling", {"t": float("nan")}, "line 2 holds a number that is not finite"),
            ("seed", float("inf"), "line 2 holds a number that is not finite"),
            ("checkpoint", "\udc00", "line 2 holds half a character"),
            ("pair_id", "p\n\x1b[31m", r"does not hold: 'p\\n\\x1b"),
        ],
    )
    def test_values_that_make_no_sense(self, small, key, value, match):
        path = small[0] / "ours/predictions.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[1][key] = value
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        one_line(match, read_predictions, small[0] / "ours", read_references(small[0] / "references"))


def test_no_image_from_outside_the_folder_reaches_the_page(small):
    root, cohort = small
    rows = [json.loads(line) for line in (root / "ours/predictions.jsonl").read_text().splitlines()]
    for folder, name in (("ours", rows[0]["image"]), ("references", cohort.rows[0]["prior"])):
        (root / folder / name).rename(root / f"{folder}.png")
        (root / folder / name).symlink_to(root / f"{folder}.png")
    refs = read_references(root / "references")
    one_line("links out of the folder", read_predictions, root / "ours", refs)
    one_line("is a link out of the folder", refs.image, 0, "prior")
