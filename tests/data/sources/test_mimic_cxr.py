"""MIMIC-CXR-JPG: every field, every defect, tables that do not read, links that leave the root."""

import gzip
import os
import tracemalloc

import pytest
from support import cohorts

from progemu_jax.data.sources import Rejected, Study, open_source, read_table
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
        ("21800107", "00010101", "date or time"),
        ("21800107", "02180506", "date or time"),
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
