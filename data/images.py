"""Radiograph files: reading with every defect named, resizing, PNG bytes."""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # a 43 x 43 cm detector at 0.05 mm; more is taken for a decompression bomb
_ORIENTATION = 0x0112  # the EXIF tag
LEAST = 32  # pixels a side, the least that registration takes


class BrokenImage(Exception):
    """An image file that cannot be used; the message is the reason, without the file's name."""


def read(path: str | Path, convert: Callable[[Any], np.ndarray], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """`convert` of the open PIL image of a PNG or JPEG file, upright where its EXIF says how it was held.

    What is wrong with the file is a BrokenImage.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise BrokenImage("the image is no regular file")  # a pipe would be waited for
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as file:
                width, height = file.size
                if width * height > max_pixels:
                    raise BrokenImage(f"{width} x {height} pixels, more than {max_pixels} are refused")
                if min(width, height) < LEAST:
                    raise BrokenImage(f"{width} x {height} pixels, at least {LEAST} a side are needed")
                return convert(ImageOps.exif_transpose(file) if file.getexif().get(_ORIENTATION, 1) != 1 else file)
    except BrokenImage:
        raise
    except FileNotFoundError:
        raise BrokenImage("the image file is missing") from None
    except PermissionError as error:
        raise BrokenImage(f"the image cannot be read ({error.strerror})") from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"more than {max_pixels} pixels are refused") from None
    except Image.UnidentifiedImageError:
        raise BrokenImage("neither PNG nor JPEG") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        TypeError,
        IndexError,
        KeyError,
        OverflowError,
        struct.error,
    ) as error:
        raise BrokenImage(f"the image does not decode ({type(error).__name__}); it may be truncated") from None


def to_gray(file: Any, window: tuple[float, float, float] | None = None) -> np.ndarray:
    """A PIL image of any mode as gray uint8 [H, W]; see `radiograph.read_gray`.

    window: (least, greatest, greatest that is stored) of images of more than 8 bits; where an image goes beyond the
    last, it was stretched to 16 bits, and so is the window.
    """
    if file.mode.startswith(("I", "F")):
        values = np.asarray(file, np.float64)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(high - low):
            raise BrokenImage("the image holds values that are not finite")
        if window is not None:
            stretched = 65535 / window[2] if high > window[2] else 1.0
            low, high = window[0] * stretched, window[1] * stretched
            values = np.clip(values, low, high)
        return np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    if file.mode in ("P", "PA"):
        file = file.convert("RGBA" if "transparency" in file.info or file.mode == "PA" else "RGB")
    if file.mode in ("RGBA", "LA", "La", "RGBa"):
        file = file.convert("RGB" if file.mode.startswith("R") else "LA").convert("L")
    return np.asarray(file if file.mode == "L" else file.convert("L")).copy()


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 [H, W] -> uint8 of `size` (height, width; or of a square): area averages going down, bicubic going up."""
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape == (height, width):
        return image
    down = image.shape[0] >= height and image.shape[1] >= width
    method = Image.Resampling.BOX if down else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def png(image: np.ndarray) -> bytes:
    """PNG file content of a gray uint8 [H, W] image; lightly compressed, the same bytes every time."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
