"""Readers of raw cohorts: every field, every defect."""

import gzip
import io
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from support import cohorts
from support.cohorts import OPEN

from progemu_jax.data import images, radiograph
from progemu_jax.data.sources import Rejected, Study, inside, open_source, read_table, safe_id
from progemu_jax.errors import UserError


def read(root, name="mimic_cxr", **options):
    items = list(open_source(name, root, **options).studies())
    return [s for s in items if isinstance(s, Study)], [r for r in items if isinstance(r, Rejected)]


def test_a_study_has_every_field(tmp_path):
    studies, rejected = read(cohorts.write(tmp_path, patients=2, studies=2))
    assert not rejected
    assert len(studies) == 4
    study = studies[1]
    assert (study.source, study.patient_id, study.study_id) == ("mimic_cxr", "10000000", "50000001")
    assert study.image_path == tmp_path / "files/p10/p10000000/s50000001/0000-0001.jpg"
    assert study.order_key == (21800207, 81303.125)
    assert study.report["impression"] == "There is a small left pleural effusion."
    assert study.report["findings"].startswith("There is a small left pleural effusion.")
    assert study.labels["Pleural Effusion"] == 1
    assert study.labels["Edema"] is None
    assert (study.age, study.sex, study.group, study.split) == (52.0, "M", "WHITE", "train")
    assert studies[3].group == "BLACK"
    assert studies[1].days - studies[0].days == 31
    assert studies[0].days % 1 == pytest.approx((8 * 3600 + 13 * 60 + 3.125) / 86400)


def test_the_phantom_is_read_by_the_same_reader_under_its_own_name(tmp_path):
    studies, _ = read(cohorts.write(tmp_path, patients=1), "phantom")
    assert {s.source for s in studies} == {"phantom"}


def test_people_tables_are_optional(tmp_path):
    cohorts.write(tmp_path, patients=1)
    (tmp_path / "patients.csv.gz").unlink()
    (tmp_path / "admissions.csv.gz").unlink()
    study = read(tmp_path)[0][0]
    assert (study.age, study.sex, study.group) == (None, None, None)


def test_other_views_are_left_out_with_a_reason(tmp_path):
    cohorts.write(tmp_path, patients=1)
    cohorts.edit(tmp_path, "metadata", lambda lines: [*lines[:2], lines[2].replace("PA", "LATERAL"), *lines[3:]])
    studies, rejected = read(tmp_path, views=("PA",))
    assert len(studies) == 2
    assert [r.reason for r in rejected] == ["view LATERAL is not asked for"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("0000-0000", "../../../0000-0000", "plain name"),
        ("0000-0000", "/etc/passwd", "plain name"),
        (",50000000,", ",..,", "plain name"),
        (",10000000,", ",/1000000,", "plain name"),
        ("21800107", "21801307", "date or time"),
        ("81303.125", "nan", "date or time"),
        ("81303.125", "81303.125,extra", "number of cells"),
    ],
)
def test_a_broken_row_is_rejected_and_the_rest_is_read(tmp_path, old, new, reason):
    cohorts.write(tmp_path, patients=2)
    cohorts.edit(tmp_path, "metadata", lambda lines: [lines[0], lines[1].replace(old, new), *lines[2:]])
    studies, rejected = read(tmp_path)
    assert len(studies) == 5
    assert len(rejected) == 1
    assert reason in rejected[0].reason
    assert rejected[0].path == "mimic-cxr-2.0.0-metadata.csv.gz:2"


def test_labels_that_do_not_parse_reject_their_study(tmp_path):
    cohorts.write(tmp_path, patients=1)
    cohorts.edit(tmp_path, "chexpert", lambda lines: [*lines[:2], lines[2].replace("1.0", "perhaps"), lines[3]])
    studies, rejected = read(tmp_path)
    assert [s.study_id for s in studies] == ["50000000", "50000002"]
    assert rejected[0].reason == "the study's labels do not parse"


def test_links_that_leave_the_root_are_refused(tmp_path):
    root = cohorts.write(tmp_path / "root", patients=1)
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"x")
    first = root / "files/p10/p10000000/s50000000/0000-0000.jpg"
    first.unlink()
    first.symlink_to(outside)
    report = root / "files/p10/p10000000/s50000001.txt"
    report.unlink()
    report.symlink_to(outside)
    studies, rejected = read(root)
    assert [s.study_id for s in studies] == ["50000002"]
    assert [r.reason for r in rejected] == [
        "the image's path leaves the root",
        "the report's path leaves the root",
    ]


def test_a_root_that_is_itself_a_link_and_links_within_it_are_fine(tmp_path):
    root = cohorts.write(tmp_path / "root", patients=1)
    (tmp_path / "link").symlink_to(root)
    image = root / "files/p10/p10000000/s50000000/0000-0000.jpg"
    image.rename(root / "moved.jpg")
    image.symlink_to(root / "moved.jpg")
    assert len(read(tmp_path / "link")[0]) == 3


@pytest.mark.parametrize("content", [b"\x00\x01", b"word " * 100_000])
def test_a_report_that_is_no_text_rejects_its_study(tmp_path, content):
    cohorts.write(tmp_path, patients=1)
    (tmp_path / "files/p10/p10000000/s50000001.txt").write_bytes(content)
    studies, rejected = read(tmp_path)
    assert len(studies) == 2
    assert rejected[0].reason == "the report is not a text file"


def test_a_missing_report_is_an_empty_one(tmp_path):
    cohorts.write(tmp_path, patients=1)
    (tmp_path / "files/p10/p10000000/s50000001.txt").unlink()
    studies, _ = read(tmp_path)
    assert studies[1].report == {"findings": "", "impression": ""}


def test_report_text_is_not_in_what_gets_printed(tmp_path):
    studies, _ = read(cohorts.write(tmp_path, patients=1))
    assert cohorts.SECRET in studies[0].report["findings"]
    assert cohorts.SECRET not in repr(studies)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path):
    path.write_bytes(b"not gzip at all")


def _binary(path):
    path.write_bytes(gzip.compress(b"dicom_id,study_id\n\xff\xfe\xfa,1\n"))


def _quotes(path):
    path.write_bytes(gzip.compress(b'dicom_id,study_id\n"a"b,1\n'))


def _columns(path):
    path.write_bytes(gzip.compress(b"dicom_id\n1\n"))


def _long(path):
    path.write_bytes(gzip.compress(b"dicom_id," + b"x" * (3 << 20)))


@pytest.mark.parametrize("damage", [_truncate, _flip, _binary, _quotes, _columns, _long, os.unlink])
@pytest.mark.parametrize("name", ["metadata", "chexpert", "split"])
def test_a_table_that_does_not_read_is_one_clear_line(tmp_path, damage, name):
    cohorts.write(tmp_path, patients=1)
    path = tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz"
    damage(path)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_empty_roots(tmp_path):
    for name in ("mimic_cxr", "phantom", "open_cxr"):
        with pytest.raises(UserError, match="no such folder"):
            read(tmp_path / "nowhere", name)
        with pytest.raises(UserError, match="empty"):
            read(tmp_path, name)
    with pytest.raises(UserError, match="unknown source"):
        open_source("elsewhere", tmp_path)


def test_tables_are_streamed(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2222222222222222222222222222\n" * 100_000))
    tracemalloc.start()
    assert sum(1 for _ in read_table(path, ("a",))) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20  # the table is 3 MB


def test_paths_and_ids(tmp_path):
    assert inside(tmp_path, "a", "b.jpg") == tmp_path / "a/b.jpg"
    assert inside(tmp_path, "a", "../../x") is None
    assert inside(tmp_path, "/etc/passwd") is None
    assert safe_id("0000-0a.b")
    assert not any(map(safe_id, ("", "..", "a..b", "a/b", ".a", "a\n", "a b", "x" * 200)))


# Images.


def _saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


GRAY = cohorts.chest(0)


def test_gray_files_are_read_as_they_are(tmp_path):
    np.testing.assert_array_equal(radiograph.read_gray(_saved(tmp_path, Image.fromarray(GRAY))), GRAY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1"])
def test_other_modes_become_gray(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    image = radiograph.read_gray(_saved(tmp_path, Image.fromarray(GRAY).convert(mode), name))
    assert image.dtype == np.uint8
    if mode == "1":
        assert set(np.unique(image)) == {0, 255}
    else:
        assert np.abs(image.astype(int) - GRAY).max() <= (40 if mode == "CMYK" else 2)


def test_a_palette_with_transparency_keeps_its_luminance(tmp_path):
    image = Image.fromarray(GRAY).convert("P")
    image.info["transparency"] = 0
    assert np.abs(radiograph.read_gray(_saved(tmp_path, image)).astype(int) - GRAY).max() <= 2


def test_sixteen_bits_fill_the_range(tmp_path):
    values = GRAY.astype(np.uint16) * 12 + 700  # a 12-bit detector
    image = radiograph.read_gray(_saved(tmp_path, Image.fromarray(values)))
    span = (values - values.min()) * (255 / np.ptp(values))
    np.testing.assert_array_equal(image, np.round(span).astype(np.uint8))


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files_are_broken(tmp_path, name, share):
    path = _saved(tmp_path, Image.fromarray(GRAY), name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(images.BrokenImage, match=r"decode|neither"):
        radiograph.read_gray(path)


def test_unusable_files_name_the_reason(tmp_path):
    blank = _saved(tmp_path, Image.new("L", (64, 64), 7), "blank.png")
    tiny = _saved(tmp_path, Image.fromarray(GRAY[:16]), "tiny.png")
    gif = _saved(tmp_path, Image.fromarray(GRAY), "a.gif")
    for path, reason in (
        (blank, "blank"),
        (tiny, "64 x 16"),
        (gif, "neither"),
        (tmp_path / "no.png", "missing"),
    ):
        with pytest.raises(images.BrokenImage, match=reason):
            radiograph.read_gray(path)


def test_decompression_bombs_are_refused_before_decoding(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(buffer, "PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    tracemalloc.start()
    with pytest.raises(images.BrokenImage, match="refused"):
        radiograph.read_gray(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with pytest.raises(images.BrokenImage, match="64 x 64 pixels, more than 1000"):
        radiograph.read_gray(_saved(tmp_path, Image.fromarray(GRAY)), max_pixels=1000)


def test_resizing_averages_down_and_keeps_the_range_up():
    small = images.resize(GRAY, 32)
    means = GRAY.reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(small - means).max() <= 1  # rows, then columns: each pass rounds
    assert images.resize(GRAY, 100).shape == (100, 100)
    assert images.resize(GRAY[:40], 64).shape == (64, 64)
    assert images.resize(GRAY, 64) is GRAY


# The open collection.

OPEN_HEADER = "patientid,offset,sex,age,view,modality,folder,filename,clinical_notes"


def _open(tmp_path, *rows):
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "metadata.csv").write_text("\n".join([OPEN_HEADER, *rows]) + "\n")
    return read(tmp_path, "open_cxr")


def test_open_collection_rows(tmp_path):
    studies, rejected = _open(
        tmp_path,
        '7,-3,F,61,PA,X-ray,images,a.jpg,"Clear lungs, no effusion."',
        "7,2,X,,AP Supine,X-ray,images,b.jpg,Worse.",
        "7,,M,5,PA,X-ray,images,c.jpg,",
        "7,4,M,5,PA,CT,images,c.jpg,",
        "../7,4,M,5,PA,X-ray,images,c.jpg,",
        "7,4,M,5,PA,X-ray,images,../../c.jpg,",
        "7,4,M,5,PA,X-ray,/etc,passwd,",
    )
    assert [(s.study_id, s.order_key, s.days) for s in studies] == [
        ("7dm3", (-3.0,), -3.0),
        ("7d2", (2.0,), 2.0),
    ]
    assert (studies[0].sex, studies[0].age, studies[1].sex, studies[1].age) == ("F", 61.0, None, None)
    assert studies[0].report == {"findings": "Clear lungs, no effusion.", "impression": ""}
    assert studies[0].labels == {}
    reasons = ("offset", "not an X-ray", "plain name", "leaves the root", "leaves the root")
    assert len(rejected) == len(reasons)
    for row, reason in zip(rejected, reasons, strict=True):
        assert reason in row.reason


def test_open_collection_without_its_table(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"metadata\.csv: the file is missing"):
        read(tmp_path, "open_cxr")


@pytest.mark.skipif(not OPEN.is_dir(), reason="the open collection is not here")
def test_the_real_open_collection():
    studies, rejected = read(OPEN, "open_cxr")
    assert (len(studies), len(rejected)) == (99, 0)
    assert len({s.patient_id for s in studies}) == 34
    assert {s.view for s in studies} == {"PA", "AP", "AP Supine"}
    assert all(radiograph.read_gray(s.image_path).ndim == 2 for s in studies[::20])
