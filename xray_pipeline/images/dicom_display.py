"""DICOM display: from stored values to what a viewer shows, by PS3.3 C.11.1 and C.11.2.

What is shown is computed once for each stored value that occurs, 65,536 at most, not for each pixel. No element read
here refuses an image: one that holds no number, or a table that isn't whole, counts as absent.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from xray_pipeline.images.raster import Pixels

if TYPE_CHECKING:
    from xray_pipeline.images.dicom_elements import Elements
    from xray_pipeline.images.dicom_pixels import ImagePixels

_BINARY: Final = {b"US": "H", b"SS": "h", b"UL": "I", b"SL": "i", b"FL": "f", b"FD": "d"}
_OPEN: Final = (b"", b"UN", b"OB", b"OW")  # value representations that don't say what the bytes mean
_NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)(E[+-]?[0-9]+)?")
_MODALITY_LUT, _VOI_LUT, _DESCRIPTOR, _DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
_NONE, _MAX_VALUES = -1 << 16, 16
# Their modality LUT leads back to the X-ray intensity and is not for display (PS3.3 C.8.7.1.1.2).
_FLUOROSCOPY, _FLUOROSCOPY_CLASSES = ("RF", "XA", "XRF"), "1.2.840.10008.5.1.4.1.1.12."


def displayed(image: ImagePixels, stored: NDArray[np.int32], tags: Elements) -> Pixels:
    """Return what a viewer shows, black = air: 8 bits for up to 8 stored, else 16, over the whole output range."""
    padding = _padding(image, tags)
    is_padding = (stored >= padding[0]) & (stored <= padding[1]) if padding else None
    if is_padding is not None and is_padding.all():
        is_padding = None
    shown = stored if is_padding is None else stored[~is_padding]
    low, high = int(shown.min()), int(shown.max())
    tabled = _MODALITY_LUT in tags.elements or _VOI_LUT in tags.elements
    occurs = np.full(high - low + 1, not tabled)  # without a table, the outermost values stand for those between
    for part in np.array_split(shown.ravel(), 1 + shown.size // 250_000) if tabled else ():
        occurs |= np.bincount(part - low, minlength=len(occurs)) > 0
    top = 255 if image.stored <= 8 else 65535
    brightness = np.zeros(len(occurs), np.uint8 if top == 255 else np.uint16)
    with np.errstate(over="ignore"):
        for ramp in _ramps(image, tags, np.flatnonzero(occurs) + low):
            levels = np.rint(np.clip(ramp, 0, 1) * top)
            if levels.min() < levels.max():  # else nothing is seen by it, and the next is tried
                break
    brightness[occurs] = top - levels if image.photometric == "MONOCHROME1" else levels
    if is_padding is None:
        return cast(Pixels, brightness[stored - low])
    pixels = brightness.take(stored - low, mode="clip")
    pixels[is_padding] = 0
    return cast(Pixels, pixels)


def numbers(tags: Elements, tag: int, otherwise: str = "") -> list[float]:
    """Return the values of an element as scanners write them, NaN for each that is no finite number.

    `otherwise`: how they are stored where the value representation doesn't say, "H" (16 bits) or "" (text).
    """
    found, vr = tags.elements.get(tag), _vr(tags, tag)
    if found is None or found.encapsulated:
        return []
    kind = _BINARY.get(vr, otherwise if vr in _OPEN else "")
    if not kind:
        return _written(tags, tag)
    layout = struct.Struct(("<" if tags.little else ">") + kind)
    count = min((found.stop - found.value) // layout.size, _MAX_VALUES)
    return [_finite(*layout.unpack_from(tags.data, found.value + n * layout.size)) for n in range(count)]


def _written(tags: Elements, tag: int) -> list[float]:
    """Return the numbers in a text: with decimal point or comma, among blanks, up to a NUL as C ends a string."""
    words = (part.strip("\0 ").partition("\0")[0].strip() for part in tags.text(tag).split("\\", _MAX_VALUES))
    return [_finite(float(word.replace(",", "."))) if _NUMBER.fullmatch(word) else math.nan for word in words]


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _vr(tags: Elements, tag: int) -> bytes:
    """Return an element's value representation, b"" when it has none."""
    found = tags.elements.get(tag)
    return tags.data[found.start + 4 : found.start + 6] if found and not tags.implicit else b""


def _padding(image: ImagePixels, tags: Elements) -> tuple[int, int] | None:
    """Return the lowest and highest padding value (PS3.3 C.7.5.1.1.2), None without."""
    first = tags.number(0x00280120, _NONE)
    ends = (first, tags.number(0x00280121, first))
    if not all(-1 << 15 <= value < 1 << 16 for value in ends):
        return None
    # The 16 bits are as the pixels are, signed or not, whatever the value representation says.
    low, high = sorted((value + 32768) % 65536 - 32768 if image.signed else value % 65536 for value in ends)
    return low, high


def _ramps(image: ImagePixels, tags: Elements, values: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Yield the brightness, 0 to 1, of each stored value by every VOI LUT and window there is, and without.

    Without one, 8-bit values are shown as they are, and others from darkest to brightest.
    """
    meant = _meant(tags, values)
    for entries, looked_up in _lookups(tags, _VOI_LUT, meant):
        # The bits that a descriptor claims are often not those of the entries, which are taken to span black to white.
        yield (looked_up - entries.min()) / max(np.ptp(entries), 1)
    yield from _windowed(tags, meant)
    if image.stored == 8 and not image.signed and np.array_equal(meant, values):
        yield values / 255.0
    yield (meant - meant.min()) / (np.ptp(meant) or 1)


def _meant(tags: Elements, values: NDArray[np.int64]) -> NDArray[Any]:
    """Return stored values through the modality LUT, else rescaled (PS3.3 C.11.1), else as they are."""
    fluoroscopy = tags.text(0x00080060) in _FLUOROSCOPY or tags.text(0x00080016).startswith(_FLUOROSCOPY_CLASSES)
    for _, looked_up in () if fluoroscopy else _lookups(tags, _MODALITY_LUT, values):
        if looked_up.min() < looked_up.max():
            return looked_up
    intercept, slope = (next(iter(numbers(tags, tag)), math.nan) for tag in (0x00281052, 0x00281053))
    rescaled = values * (1.0 if math.isnan(slope) else slope) + (0.0 if math.isnan(intercept) else intercept)
    keeps_values_apart = math.isfinite(rescaled[-1] - rescaled[0]) and np.diff(rescaled).all()
    return rescaled if keeps_values_apart else values


def _lookups(tags: Elements, tag: int, values: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, for each whole table in a LUT sequence, its entries and what `values` come to (PS3.3 C.11.2.1.1)."""
    for item in tags.items(tag):
        for described in (numbers(item, _DESCRIPTOR, "H"), _written(item, _DESCRIPTOR)):
            found = _table(item, described)
            if found:
                entries, first = found
                # Negative where the value representation says so, and where no value comes up to it.
                first -= 65536 if first > max(32767, values.max()) else 0
                yield entries, entries[np.clip(np.rint(values) - first, 0, len(entries) - 1).astype(np.intp)]
                break


def _table(item: Elements, described: list[float]) -> tuple[NDArray[np.int64], int] | None:
    """Return the entries of a LUT item and the value that the first is for; None when they don't fit the descriptor.

    Entries of 8 bits lie two in a word, the first in its low byte, or each in a word of its own; the length tells.
    """
    if len(described) < 3 or any(not value.is_integer() for value in described[:3]):
        return None
    count, first, bits = (int(value) for value in described[:3])
    if not (-1 << 15 <= count <= 1 << 16 and -1 << 15 <= first < 1 << 16 and 8 <= bits <= 16):
        return None
    count = count % 65536 or 65536
    found, vr = item.elements.get(_DATA), _vr(item, _DATA)
    if found is None or found.encapsulated or vr not in (*_OPEN, b"US", b"SS"):
        return None
    raw = item.raw(_DATA) + bytes((found.stop - found.value) % 2)
    entries = np.frombuffer(raw, "<u2" if item.little else ">u2").astype("<u2")
    if len(entries) < count and bits == 8:
        entries = np.frombuffer(raw if vr == b"OB" else entries.tobytes(), np.uint8)
    return (entries[:count].astype(np.int64), first) if count <= len(entries) <= count + 1 else None  # one may fill up


def _windowed(tags: Elements, meant: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield what each window makes of values (PS3.3 C.11.2.1.2 and C.11.2.1.3), from below 0 to above 1."""
    function = tags.text(0x00281056).replace(" ", "_")
    for centre, width in zip(numbers(tags, 0x00281050), numbers(tags, 0x00281051), strict=False):
        if math.isnan(centre) or not width > 0:
            continue
        if function == "SIGMOID":
            yield (1 + np.tanh(2 * (meant - centre) / width)) / 2
        elif function == "LINEAR_EXACT":
            yield (meant - centre) / width + 0.5
        elif width > 1:
            yield (meant - (centre - 0.5)) / (width - 1) + 0.5
        elif width == 1:
            yield meant > centre - 0.5
