"""DICOM radiographs -> gray 8-bit images, by pydicom (extra [dicom]); every defect named.

What a radiologist would have seen: the modality LUT or rescale, then the VOI LUT or window, then MONOCHROME1 turned
so that bone is bright; the result fills 0..255. (MIMIC-CXR-JPG equalised histograms instead; registration and the
exposure match do not mind.) Sizes, in the header and in the compressed frame itself, are checked before anything is
decoded. No value of a header goes into a message: a header may name a patient.
"""

import logging
import os
import struct
import warnings
from pathlib import Path

import numpy as np

from progemu_jax.data.images import LEAST, MAX_PIXELS, BrokenImage
from progemu_jax.data.pool import Apart, Died
from progemu_jax.errors import UserError
from progemu_jax.files import records

MAX_FILE = 256 << 20  # bytes: 64 million pixels of 16 bits, twice
RAW = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"}
RLE = "1.2.840.10008.1.2.5"
JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70)}
JPEG_LS = {f"1.2.840.10008.1.2.4.{n}" for n in (80, 81)}
JPEG_2000 = {f"1.2.840.10008.1.2.4.{n}" for n in (90, 91)}
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def require():
    """pydicom, or one clear line."""
    try:
        import pydicom
    except ImportError:
        raise UserError('DICOM images need pydicom: pip install -e ".[dicom]"') from None
    return pydicom


def header(path: str | Path) -> dict[str, str]:
    """ViewPosition, StudyDate and StudyTime of a file, "" where it is silent. Raises BrokenImage."""
    found = _read(path, stop_before_pixels=True)
    return {key: str(found.get(key) or "").strip() for key in ("ViewPosition", "StudyDate", "StudyTime")}


def read_gray(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The one frame of a DICOM file as gray uint8 [H, W]; see the module.

    Raises BrokenImage for a file that is missing, damaged, of several frames, of a photometric interpretation
    without gray levels, of a transfer syntax that is no still image, or over `max_pixels`.
    """
    found = _read(path)
    try:
        rows, columns = int(found.Rows), int(found.Columns)
        frames, samples = int(found.get("NumberOfFrames") or 1), int(found.get("SamplesPerPixel", 1))
        bits, kind = int(found.BitsAllocated), str(found.PhotometricInterpretation)
        syntax = str(found.file_meta.TransferSyntaxUID)
    except Exception as error:
        raise BrokenImage(f"the DICOM header is incomplete ({type(error).__name__})") from None
    if rows * columns > max_pixels:
        raise BrokenImage(f"{columns} x {rows} pixels, more than {max_pixels} are refused")
    if min(rows, columns) < LEAST:
        raise BrokenImage(f"{columns} x {rows} pixels, at least {LEAST} a side are needed")
    if frames != 1:
        raise BrokenImage(f"{frames} frames, one is expected")
    if bits not in (8, 16) or (samples, kind in _GRAY, kind in _COLOUR) not in ((1, True, False), (3, False, True)):
        raise BrokenImage("neither gray nor colour of 8 or 16 bits")
    if syntax == "1.2.840.10008.1.2.4.51" and bits == 16:
        raise BrokenImage("lossy JPEG of 12 bits: no decoder here is right about it; decompress the file first")
    _check_frame(found, syntax, (rows, columns, samples))
    pydicom = require()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = pydicom.pixels.pixel_array(found) if syntax in RAW else _apart(_pixels, os.path.abspath(path))
            if samples == 1:
                values = pydicom.pixels.apply_modality_lut(values, found)
                values = pydicom.pixels.apply_voi_lut(values, found)
            values = np.asarray(values, np.float64)
    except Died:
        raise BrokenImage("the DICOM does not decode (its decoder died of it); it may be damaged") from None
    except Exception as error:
        raise BrokenImage(f"the DICOM does not decode ({type(error).__name__}); it may be damaged") from None
    if samples == 3:
        values = values @ (0.299, 0.587, 0.114)
    if values.shape != (rows, columns):
        raise BrokenImage("the DICOM decodes to another size than its header says")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):
        raise BrokenImage("the image holds values that are not finite")
    if low == high:
        raise BrokenImage("the image is blank")
    image = np.round((values - low) * (255 / (high - low))).astype(np.uint8)
    return 255 - image if kind == "MONOCHROME1" else image


_apart = Apart()  # a damaged frame can make a decoder in C++ end its process


def _pixels(path: str) -> np.ndarray:
    pydicom = require()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.pixels.pixel_array(path)


def _read(path, stop_before_pixels=False):
    """The data set of a file, of a transfer syntax that is understood."""
    pydicom = require()
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote values
    try:
        if Path(path).stat().st_size > MAX_FILE:
            raise BrokenImage(f"the file is larger than {MAX_FILE} bytes")
        with records.open_file(path) as file:
            if file.read(132)[128:] != b"DICM":
                raise BrokenImage("not a DICOM file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = pydicom.filereader.read_file_meta_info(path)
            if str(meta.get("TransferSyntaxUID")) not in {*RAW, RLE, *JPEG, *JPEG_LS, *JPEG_2000}:
                # A deflated data set could also unpack to any size.
                raise BrokenImage("the transfer syntax is none of still images")
            return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except BrokenImage:
        raise
    except FileNotFoundError:
        raise BrokenImage("the image file is missing") from None
    except Exception as error:  # a parser of untrusted bytes: anything, and its text may quote them
        raise BrokenImage(f"the DICOM does not parse ({type(error).__name__}); it may be damaged") from None


def _check_frame(found, syntax: str, shape: tuple[int, int, int]) -> None:
    """A compressed frame says its size itself: another one than the header's is refused before it is decoded."""
    if syntax in RAW or syntax == RLE:
        return
    pydicom = require()
    try:
        frame = next(pydicom.encaps.generate_frames(found.PixelData, number_of_frames=1))
        size = _shape_2000(frame) if syntax in JPEG_2000 else _shape_jpeg(frame)
    except Exception as error:
        raise BrokenImage(f"the DICOM holds no compressed frame ({type(error).__name__})") from None
    if size != shape:
        raise BrokenImage("the compressed frame is of another size than the header says")


def _shape_jpeg(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, samples) of a JPEG or JPEG-LS stream, from its start-of-frame segment."""
    at = 2
    while frame[at] == 0xFF:
        code = frame[at + 1]
        if code == 0xFF:  # padding
            at += 1
        elif code == 0xF7 or (0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack(">HHB", frame[at + 5 : at + 10])
        else:
            at += 2 + struct.unpack(">H", frame[at + 2 : at + 4])[0]
    raise ValueError


def _shape_2000(frame: bytes) -> tuple[int, int, int]:
    """(rows, columns, samples) of a JPEG 2000 codestream, from its SIZ segment; also within a JP2 file."""
    at = frame.index(b"\xff\x4f\xff\x51")
    width, height, left, top = struct.unpack(">IIII", frame[at + 8 : at + 24])
    return height - top, width - left, struct.unpack(">H", frame[at + 40 : at + 42])[0]
