"""What the formats share: limits, facts, the order in which large images are decoded, and that pixels are grey.

Colour is looked at only to see that there is none, and EXIF for its orientation alone.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from xray_pipeline.base.errors import RadiographError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
VIEWS = ("PA", "AP", "FRONTAL")

_LARGE_PIXELS = 16_000_000
_large_turn = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """What a header may claim: bytes, width x height, shortest side in pixels, longest side over shortest.

    `png_bits` is how many bits the values in a 16-bit PNG have; 0: what its brightest pixel says. The
    words are a site's own, beside those of `dicom_words`, for the chest and for lateral and oblique views.
    """

    max_file_bytes: int = 200_000_000
    max_pixels: int = 100_000_000
    min_side: int = 64
    max_aspect: float = 4.0
    png_bits: int = 0
    chest_words: tuple[str, ...] = ()
    lateral_words: tuple[str, ...] = ()

    @classmethod
    def of(cls, rules: Any) -> Limits:
        """Return the limits among the intake's rules, which have the same names."""
        return cls(**{field.name: getattr(rules, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Facts:
    """What is known of a radiograph.

    `width` and `height` are of the stored radiograph, `mode` and `bits` of the source: of a 16-bit PNG (mode I;16) the
    bits that its values were taken to have. `patient_id` is raw: it must be
    hashed at once and never logged. `view` is one of VIEWS or "", and no words that were typed. `age_years` is whole
    years above 2, at most 90, None when unknown.
    """

    format: str
    width: int
    height: int
    mode: str
    bits: int
    patient_id: str = ""
    view: str = ""
    sex: str = ""
    age_years: float | None = None
    scanner: str = ""


@dataclass(frozen=True)
class Read:
    """Pixels and facts of any image; `jpeg` is the stripped JPEG when its compressed pixels can be kept."""

    facts: Facts
    pixels: Pixels
    jpeg: bytes = b""


def check_size(width: int, height: int, limits: Limits) -> None:
    """Raise RadiographError when what a header claims (pixels) is beyond the limits."""
    if width < 1 or height < 1:
        raise RadiographError("corrupt", f"the header says {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise RadiographError("bomb", f"the header says {width} x {height} pixels, {limits.max_pixels:,} allowed")
    short, long = sorted((width, height))
    if short < limits.min_side:
        raise RadiographError("too-small", f"{width} x {height} pixels, at least {limits.min_side} a side wanted")
    if long > limits.max_aspect * short:
        raise RadiographError("extreme-aspect", f"{width} x {height} pixels, at most {limits.max_aspect:g} : 1 wanted")


def check_end(data: bytes, stop: int, kind: str) -> None:
    """Refuse what follows an image that ends at `stop`, unless it is a few zeros, blanks or line ends."""
    if len(data) - stop > _MAX_TAIL or data[stop:].strip(b"\0\t\n\r "):
        raise RadiographError("trailing-garbage", f"{len(data) - stop:,} bytes follow the end of the {kind}")


_MAX_TAIL = 16


def turn(width: int, height: int) -> contextlib.AbstractContextManager[object]:
    """Very large images are decoded one at a time, so that memory does not grow with the number of threads."""
    return _large_turn if width * height > _LARGE_PIXELS else contextlib.nullcontext()


def load(image: PngImageFile) -> None:
    """Decode fully. Raises RadiographError: Pillow says "truncated" when data ends early."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        ended = "truncated" in str(error)
        detail = "the data ends before the image does" if ended else f"the decoder gave up ({type(error).__name__})"
        raise RadiographError("truncated" if ended else "corrupt", detail) from None


def levels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (H, W) of a decoded 8-bit grey image; without a copy unless Pillow keeps it in pieces."""
    try:
        flat = pa.array(image).to_numpy()
    except ValueError:  # of over 16 MB
        return np.asarray(image)
    return np.asarray(flat.reshape(image.height, image.width))


def reject_colour(blue: NDArray[np.uint8], red: NDArray[np.uint8]) -> None:
    """Refuse chroma planes (Cb, Cr; 128 is grey) with more than 1 in 1,000 pixels over 10 levels from grey."""
    tinted = (np.abs(blue.astype(np.int16) - 128) > 10) | (np.abs(red.astype(np.int16) - 128) > 10)
    share = float(tinted.mean())
    if share > 0.001:
        raise RadiographError("coloured", f"{share:.1%} of the pixels are coloured; a radiograph is grey")


def grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) of an (H, W, 3) image that is grey; raises RadiographError when it is coloured."""
    red = rgb[..., 0]
    if np.array_equal(red, rgb[..., 1]) and np.array_equal(red, rgb[..., 2]):
        return np.ascontiguousarray(red)
    planes = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("YCbCr"))
    reject_colour(planes[..., 1], planes[..., 2])
    return np.ascontiguousarray(planes[..., 0])


def exif_orientation(tiff: bytes) -> int:
    """Return the EXIF orientation (1 to 8, TIFF tag 274) in a TIFF block; 1 when absent or broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    offset = struct.unpack(order + "I", tiff[4:8])[0]
    entries = tiff[offset : offset + 2 + 12 * 1024]
    count = struct.unpack(order + "H", entries[:2])[0] if len(entries) >= 2 else 0
    for at in range(2, min(2 + 12 * count, len(entries) - 11), 12):
        tag, kind, values, value = struct.unpack(order + "HHIH", entries[at : at + 10])
        if tag == 0x0112 and kind == 3 and values == 1:
            return int(value) if 1 <= value <= 8 else 1
    return 1


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (Exif 2.32, 4.6.4 A)."""
    turned: NDArray[Any] = pixels.T if orientation in (5, 6, 7, 8) else pixels
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    return cast(Pixels, np.ascontiguousarray(turned))
