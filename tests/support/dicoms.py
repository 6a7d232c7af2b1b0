"""DICOM files of every kind that the reader takes: pydicom writes them, GDCM compresses them."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

RAW = {"implicit": ImplicitVRLittleEndian, "explicit": ExplicitVRLittleEndian, "big": ExplicitVRBigEndian}
COMPRESSED = ("JPEGBaselineProcess1", "JPEGExtendedProcess2_4", "JPEGLosslessProcess14", "JPEGLosslessProcess14_1",
              "JPEGLSLossless", "JPEGLSNearLossless", "JPEG2000Lossless", "JPEG2000", "RLELossless")  # fmt: skip


def write(path: Path, values: np.ndarray, *, bits: int = 12, syntax: str = "explicit", **header) -> Path:
    """`values` [H, W] (uint8 or uint16, or [H, W, 3]) as a DICOM file; `header` adds or replaces elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    meta.TransferSyntaxUID = RAW.get(syntax, ExplicitVRLittleEndian)
    found = FileDataset(
        str(path), {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=syntax == "implicit",
        is_little_endian=syntax != "big",
    )  # fmt: skip
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.Modality, found.PatientName = "DX", "Zebrastripe^Patient"
    found.ViewPosition, found.StudyDate, found.StudyTime = "PA", "21800107", "081303.125"
    found.Rows, found.Columns = values.shape[:2]
    found.SamplesPerPixel = 3 if values.ndim == 3 else 1
    found.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        found.PlanarConfiguration = 0
    found.BitsAllocated, found.BitsStored = 8 * values.dtype.itemsize, bits
    found.HighBit, found.PixelRepresentation = bits - 1, 0
    order = ">" if syntax == "big" else "<"
    found.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    found["PixelData"].VR = "OW" if values.dtype.itemsize == 2 else "OB"
    for key, value in header.items():
        setattr(found, key, value)
    found.save_as(path, enforce_file_format=True)
    if syntax not in RAW:
        compress(path, syntax)
    return path


def compress(path: Path, syntax: str) -> None:
    """Rewrites a file in a compressed transfer syntax (one of COMPRESSED)."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change(), syntax
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.is_compressed
