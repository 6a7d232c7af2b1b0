"""PadChest: 16 bits in a window, dates, places, labels of the report itself, every defect, and the way to shards."""

import gzip

import numpy as np
import pytest
from PIL import Image
from support.cohorts import QUIET, SECRET, chest, files, read
from support.label_cohorts import PAD_SICK, PAD_TABLE, edit, padchest

from progemu_jax.data import radiograph
from progemu_jax.data.batches import Examples
from progemu_jax.data.build import build, read_cohort
from progemu_jax.data.journeys import Options
from progemu_jax.data.sources import State
from progemu_jax.data.sources.label_findings import PADCHEST as LIST
from progemu_jax.errors import UserError


def labelled(root, labels, sentences):
    """The study whose row has these cells, or why there is none."""
    edit(root / PAD_TABLE, (PAD_SICK[0], labels), (PAD_SICK[1], sentences))
    studies, rejected = read("padchest", root)
    return rejected[0].reason if rejected else studies[1]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return padchest(tmp_path_factory.mktemp("padchest"))


def test_a_study_has_every_field(cohort):
    studies, rejected = read("padchest", cohort, views=("PA",))
    assert (len(studies), rejected) == (18, [])
    first, study = studies[:2]
    assert len(study.study_id) == 24
    assert study.image_path == cohort / f"0/{study.image_id}.png"
    assert (study.days - first.days, study.order_key[0] - first.order_key[0]) == (365, 365)
    assert (study.age, study.sex, study.view, study.split) == (61.0, "F", "PA", None)
    assert study.window == (1000.0, 3000.0, 4095.0)
    assert (study.states["left pleural effusion"], study.states["right pleural effusion"]) == (
        State(True),
        State(False),
    )
    assert (study.states["nodule"], study.states["emphysema"]) == (State(True), State(False))
    assert (study.labels["pleural effusion"], study.labels["emphysema"]) == (1, 0)
    assert set(first.labels.values()) == {0}
    assert set(study.labels) == {f.label for f in LIST}
    assert not any(study.report.values())  # stems of Spanish words


def test_gray_values_are_shown_in_the_table_s_window(cohort, tmp_path):
    study = read("padchest", cohort)[0][0]
    values = np.asarray(Image.open(study.image_path), float)
    shown = radiograph.read_gray(study.image_path, window=study.window)
    np.testing.assert_array_equal(shown, np.round((np.clip(values, 1000, 3000) - 1000) * (255 / 2000)))
    # The same film stretched to 16 bits: the window is stretched with it.
    Image.fromarray(np.round(values * (65535 / 4095)).astype(np.uint16)).save(tmp_path / "s.png")
    assert np.abs(shown.astype(int) - radiograph.read_gray(tmp_path / "s.png", window=study.window)).max() <= 1


def test_all_images_in_one_folder_and_a_compressed_table_read_alike(cohort, tmp_path):
    root = padchest(tmp_path, flat=True)
    (root / f"{PAD_TABLE}.gz").write_bytes(gzip.compress((root / PAD_TABLE).read_bytes()))
    (root / PAD_TABLE).unlink()
    flat, folders = read("padchest", root)[0], read("padchest", cohort)[0]
    assert [(s.image_id, s.states) for s in flat] == [(s.image_id, s.states) for s in folders]


@pytest.mark.parametrize(
    ("labels", "sentences", "states"),
    [
        # Physicians' sentences are lists.
        ("['consolidation']", "[['consolidation', 'loc right lower lobe']]", {"consolidation": ("right", "lower")}),
        ("['pleural effusion']", "[['pleural effusion both sides', 'loc pleural', 'loc right', 'loc bilateral']]",
         {"left pleural effusion": (None, None), "right pleural effusion": (None, None)}),
        ("['nodule', 'infiltrates']", "[['nodule', 'loc upper lobe', 'loc middle lobe'], ['infiltrates', 'loc left']]",
         {"nodule": (None, None), "infiltrates": ("left", None)}),
        ("['cardiomegaly']", "[['cardiomegaly', 'loc cardiac', 'loc left']]", {"cardiomegaly": (None, None)}),
        ("['normal', 'NSG tube', '']", "[['normal', 'loc left']]", {}),
        # The network's are run together: a label without a space in front begins the next one.
        ("['nodule', 'consolidation', ' pleural effusion']",
         "['nodule', 'loc left', 'consolidation', ' pleural effusion', 'loc right', 'loc basal', 'NSG tube']",
         {"nodule": ("left", None), "consolidation": ("right", "lower"), "right pleural effusion": (None, None)}),
        ("['hydropneumothorax']", "['hydropneumothorax', 'loc right']",
         {"right pleural effusion": (None, None), "right pneumothorax": (None, None)}),
    ],
)  # fmt: skip
def test_labels_and_their_places(tmp_path, labels, sentences, states):
    study = labelled(padchest(tmp_path, patients=1, studies=2), labels, sentences)
    there = {name: (s.side, s.zone) for name, s in study.states.items() if s.present}
    assert there == states
    assert {s.present for s in study.states.values()} <= {True, False}


def test_an_effusion_without_a_side_is_uncertain_on_both(tmp_path):
    study = labelled(padchest(tmp_path, patients=1, studies=2), "['pleural effusion']", "['pleural effusion']")
    assert study.labels["pleural effusion"] == 1
    assert {study.states[f"{side} pleural effusion"] for side in ("left", "right")} == {State(None)}


def test_what_a_report_calls_unchanged_is_unknown_unless_listed(tmp_path):
    cells = "['unchanged', 'nodule']", "[['unchanged'], ['nodule']]"
    study = labelled(padchest(tmp_path, patients=1, studies=2), *cells)
    assert {name: s.present for name, s in study.states.items() if s.present is not None} == {"nodule": True}
    assert {label: v for label, v in study.labels.items() if v is not None} == {"nodule": 1}


@pytest.mark.parametrize(
    ("labels", "sentences", "reason"),
    [
        ("['Pleural effusion']", "[]", "spelt in another way"),
        ("['pleural_effusion']", "[]", "spelt in another way"),
        ("['pleural efusion']", "[]", "spelt in another way"),
        ("['']", "[]", "no label"),
        ("nan", "nan", "the labels do not parse"),
        ("[1]", "[]", "the labels do not parse"),
        ("[" * 5000, "[]", "the labels do not parse"),
        ("['nodule']", "[nan, ['nodule']]", "the places do not parse"),
        ("['nodule']", "[['nodule', 1]]", "the places do not parse"),
        ("['exclude']", "['exclude']", "labelled 'exclude'"),
        ("['suboptimal study', 'nodule']", "[]", "labelled 'suboptimal study'"),
        ("['nodule', ' normal']", "[]", "normal stands beside a finding"),
    ],
)
def test_labels_of_another_kind_are_rejected_with_their_reason(tmp_path, labels, sentences, reason):
    assert reason in labelled(padchest(tmp_path, patients=1, studies=2), labels, sentences)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (",20110115,", ",2011015,", "date of the study"),
        (",20110115,", ",20111315,", "date of the study"),
        (",839860488694292331637988235681460000,", f",{'8' * 60},", "more than 40 characters"),
        (",839860488694292331637988235681460000,", ",../1,", "plain name"),
        ("_000001.png", "_7.png", "the image file is missing"),
        (",PA,", ",L,", "view L is not asked for"),
    ],
)
def test_a_broken_row_is_rejected_with_its_reason(tmp_path, old, new, reason):
    root = padchest(tmp_path, patients=2)
    path = root / PAD_TABLE
    lines = path.read_text().splitlines()
    assert old in lines[2]
    lines[2] = lines[2].replace(old, new)
    path.write_text("\n".join(lines) + "\n")
    studies, rejected = read("padchest", root, views=("PA",))
    assert len(studies) == 5
    assert reason in rejected[0].reason


def test_an_image_without_a_row_is_counted(tmp_path):
    root = padchest(tmp_path, patients=1)
    Image.fromarray(chest(0)).save(root / "0/extra.png")
    assert [(r.path, r.reason) for r in read("padchest", root)[1]] == [
        ("extra.png", "no row of the table names the image")
    ]


def test_a_wrong_root_is_one_line(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="the file is missing; give the root of PadChest"):
        read("padchest", tmp_path)
    (tmp_path / PAD_TABLE).write_text("ImageID\n")
    with pytest.raises(UserError, match="no image in 0/, 1/"):
        read("padchest", tmp_path)


def test_a_source_that_names_no_split_is_one_line(cohort):
    with pytest.raises(UserError, match="no pair of studies is left"):
        read_cohort("padchest", cohort, Options(split="csv"))


def test_to_shards_in_both_orders(tmp_path):
    root = padchest(tmp_path / "root", patients=12)
    options = {"validation": 0.3, "test": 0.3, "pairs": "both"}
    result = build("padchest", root, tmp_path / "out", image_size=32, options=options, **QUIET)
    assert result["funnel"]["pairs kept, reversed"] > 0
    made = list(Examples(tmp_path / "out/shards", "pairs", "train"))
    assert {e["labels_after"].shape for e in made} == {(len(LIST) - 2,)}  # two findings have two sides
    assert any(e["days"] < 0 for e in made)
    assert {"left pleural effusion" in e["interpretation"].lower() for e in made if e["labels_after"][0]} == {True}
    assert not any(SECRET.lower().encode() in content for content in files(tmp_path / "out").values())
