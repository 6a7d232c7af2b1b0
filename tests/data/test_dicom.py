"""DICOM: photometric interpretation, windows, bit depths, transfer syntaxes, and files that are none of that."""

import logging
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from support import cohorts, dicoms

from progemu_jax.data import dicom, images, pool, radiograph
from progemu_jax.data.sources import Rejected, open_source

GRAY = cohorts.chest(0, 96)
DEEP = GRAY.astype(np.uint16) * 14 + 300  # a 12-bit detector


def stretched(values):
    values = np.asarray(values, float)
    return np.round((values - values.min()) * (255 / np.ptp(values))).astype(np.uint8)


def test_deep_pixels_fill_the_range(tmp_path):
    np.testing.assert_array_equal(radiograph.read_gray(dicoms.write(tmp_path / "a.dcm", DEEP)), stretched(DEEP))
    eight = dicoms.write(tmp_path / "b.dcm", GRAY, bits=8)
    np.testing.assert_array_equal(radiograph.read_gray(eight), stretched(GRAY))
    full = dicoms.write(tmp_path / "c.dcm", DEEP * 16, bits=16)
    np.testing.assert_array_equal(radiograph.read_gray(full), stretched(DEEP))


def test_signed_pixels_and_the_rescale(tmp_path):
    signed = (DEEP.astype(np.int16) - 2000).astype(np.uint16)
    path = dicoms.write(tmp_path / "a.dcm", signed, bits=16, PixelRepresentation=1, RescaleSlope=2, RescaleIntercept=-7)
    np.testing.assert_array_equal(radiograph.read_gray(path), stretched(DEEP))


def test_monochrome1_is_turned(tmp_path):
    turned = dicoms.write(tmp_path / "a.dcm", 4095 - DEEP, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(radiograph.read_gray(turned), 255 - stretched(4095 - DEEP))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_is_what_is_seen(tmp_path, function):
    centre, width = 1500.0, 1200.0
    path = dicoms.write(
        tmp_path / "a.dcm", DEEP, WindowCenter=[centre, 1], WindowWidth=[width, 2], VOILUTFunction=function
    )
    x = DEEP.astype(float)  # PS3.3 C.11.2.1.2 and .3
    expected = {
        "LINEAR": np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - centre) / width + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - centre) / width)),
    }[function]
    assert np.abs(radiograph.read_gray(path).astype(int) - stretched(expected)).max() <= 1


def test_a_voi_lut_goes_before_the_window(tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.add_new((0x0028, 0x3002), "US", [4096, 0, 16])
    curve = (np.sqrt(np.arange(4096) / 4095) * 65535).astype(np.uint16)
    table.add_new((0x0028, 0x3006), "US", curve.tolist())
    path = dicoms.write(tmp_path / "a.dcm", DEEP, VOILUTSequence=[table], WindowCenter=100, WindowWidth=10)
    np.testing.assert_array_equal(radiograph.read_gray(path), stretched(curve[DEEP]))


def test_colour_becomes_luminance(tmp_path):
    path = dicoms.write(tmp_path / "a.dcm", np.stack([GRAY, GRAY, GRAY], -1), bits=8)
    np.testing.assert_array_equal(radiograph.read_gray(path), stretched(GRAY))


@pytest.mark.parametrize("syntax", [*dicoms.RAW, *dicoms.COMPRESSED])
def test_every_transfer_syntax(tmp_path, syntax):
    values, bits = (GRAY, 8) if syntax in ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4") else (DEEP, 12)
    image = radiograph.read_gray(dicoms.write(tmp_path / "a.dcm", values, bits=bits, syntax=syntax))
    lossy = syntax in ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4", "JPEG2000", "JPEGLSNearLossless")
    assert np.abs(image.astype(int) - stretched(values)).max() <= (12 if lossy else 0)


def test_extended_jpeg_of_12_bits_is_refused_not_misread(tmp_path):
    path = dicoms.write(tmp_path / "a.dcm", DEEP, syntax="JPEGExtendedProcess2_4")
    with pytest.raises(images.BrokenImage, match="12 bits"):
        radiograph.read_gray(path)


def _bomb(path):
    """A deflated data set that unpacks to a gigabyte."""
    dicoms.write(path, DEEP)
    content = path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(content[:400] + packer.compress(bytes(64 << 20)) + packer.flush())


def _huge(path):
    dicoms.write(path, DEEP, Rows=40_000, Columns=40_000)


def _lying(path):
    """A JPEG 2000 frame that says it is 60,000 pixels wide, in a header that says 96."""
    dicoms.write(path, DEEP, syntax="JPEG2000Lossless")
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51")
    path.write_bytes(content[: at + 8] + struct.pack(">II", 60_000, 60_000) + content[at + 16 :])


def _lying_jpeg(path):
    dicoms.write(path, GRAY, bits=8, syntax="JPEGBaselineProcess1")
    content = path.read_bytes()
    at = content.index(b"\xff\xc0", content.index(b"\xff\xd8"))
    path.write_bytes(content[: at + 5] + struct.pack(">HH", 65_000, 65_000) + content[at + 9 :])


def _cut(path):
    dicoms.write(path, DEEP)
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_bomb, "transfer syntax"),
        (_huge, "40000 x 40000 pixels, more than"),
        (_lying, "another size"),
        (_lying_jpeg, "another size"),
        (_cut, "does not decode"),
        (lambda p: dicoms.write(p, DEEP, NumberOfFrames=3), "3 frames"),
        (lambda p: dicoms.write(p, DEEP, PhotometricInterpretation="PALETTE COLOR"), "neither gray"),
        (lambda p: dicoms.write(p, DEEP[:16]), "96 x 16 pixels"),
        (lambda p: dicoms.write(p, np.full_like(DEEP, 7)), "blank"),
        (lambda p: p.write_bytes(b"\xff\xd8\xff" + bytes(500)), "not a DICOM"),
        (lambda p: p.write_bytes(b""), "not a DICOM"),
        (lambda p: p.write_bytes(bytes(128) + b"DICM"), "parse|syntax"),
        (lambda p: None, "missing"),
    ],
)
def test_files_that_cannot_be_used_name_the_reason_and_take_no_memory(tmp_path, damage, reason):
    damage(tmp_path / "a.dcm")
    tracemalloc.start()
    with pytest.raises(images.BrokenImage, match=reason) as error:
        radiograph.read_gray(tmp_path / "a.dcm")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert "\n" not in str(error.value)


def test_a_decoder_that_ends_its_process_leaves_ours_alone(tmp_path, monkeypatch, capfd):
    apart, path = pool.Apart(), dicoms.write(tmp_path / "a.dcm", DEEP, syntax="JPEG2000Lossless")
    with pytest.raises(pool.Died):
        apart(os.abort)
    with pytest.raises(ZeroDivisionError):
        apart(divmod, 1, 0)
    assert apart(divmod, 7, 2) == (3, 1)  # another process
    monkeypatch.setattr(dicom, "_apart", lambda *_: apart(os.abort))
    with pytest.raises(images.BrokenImage, match="died of it"):
        radiograph.read_gray(path)
    assert capfd.readouterr() == ("", "")


def test_nothing_of_a_header_is_printed(tmp_path, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    path = dicoms.write(tmp_path / "a.dcm", DEEP)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"21800107", b"Zebrastr", 1))
    dicom.header(path)
    radiograph.read_gray(path)
    output = capsys.readouterr()
    assert cohorts.SECRET[:8] not in output.out + output.err + caplog.text


@pytest.fixture(params=[True, False], ids=["tables", "headers"])
def mimic(tmp_path, request):
    root = cohorts.write(tmp_path, patients=2, studies=2)
    rows = []
    for path in sorted(root.rglob("*.jpg")):
        number = int(path.stem[-1])
        dicoms.write(path.with_suffix(".dcm"), DEEP, StudyDate=f"2180{1 + number:02d}07", StudyTime="081303.125")
        path.unlink()
        subject, study = path.parts[-3][1:], path.parts[-2][1:]
        rows.append((subject, study, path.stem, f"files/{path.stem}"))
    if not request.param:
        for table in root.glob("mimic-cxr-*"):
            table.unlink()
        cohorts.plain(root / "cxr-record-list.csv.gz", ("subject_id", "study_id", "dicom_id", "path"), rows)
    return root


def test_mimic_cxr_in_dicom(mimic):
    studies = list(open_source("mimic_cxr_dicom", mimic, views=("PA",)).studies())
    assert [(s.source, s.patient_id, s.study_id) for s in studies] == [
        ("mimic_cxr", p, s) for p, s in (("10000000", "50000000"), ("10000000", "50000001"),
                                         ("11000001", "50000100"), ("11000001", "50000101"))
    ]  # fmt: skip
    assert studies[1].order_key == (21800207, 81303.125)
    assert (studies[1].age, studies[1].sex, studies[1].group) == (52.0, "M", "WHITE")
    assert [s.labels["Pleural Effusion"] for s in studies] == [0, 1, 0, 1]  # the table's, or our rules' of the report
    assert radiograph.read_gray(studies[0].image_path).shape == (96, 96)


def test_a_damaged_header_rejects_its_image(mimic):
    (victim,) = (mimic / "files/p10/p10000000/s50000001").iterdir()
    victim.write_bytes(b"x" * 300)
    items = list(open_source("mimic_cxr_dicom", mimic).studies())
    rejected = [i for i in items if isinstance(i, Rejected)]
    tables = (mimic / "mimic-cxr-2.0.0-metadata.csv.gz").exists()  # then nobody opens the image yet
    assert [r.reason for r in rejected] == ([] if tables else ["broken image: not a DICOM file"])
