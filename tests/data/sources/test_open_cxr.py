"""The open collection: every field of a row, and the collection itself where it is there."""

import pytest
from support.cohorts import OPEN

from progemu_jax.data import radiograph
from progemu_jax.data.sources import Rejected, Study, open_source
from progemu_jax.errors import UserError


def read(root, name="mimic_cxr", **options):
    items = list(open_source(name, root, **options).studies())
    return [s for s in items if isinstance(s, Study)], [r for r in items if isinstance(r, Rejected)]


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
