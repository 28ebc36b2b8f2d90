"""JPEG (ITU-T T.81): taken apart without decoding, then decoded by Pillow from nothing but the parts that hold pixels.

Segments are FF, a marker, a length of two bytes and a payload; entropy-coded data follows each SOS. The walker checks
structure and sizes and copies what a decoder needs. DICOM holds JPEG too, so parts of it are public.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.raster import (
    Facts,
    Limits,
    Read,
    check_size,
    exif_orientation,
    grey,
    levels,
    load,
    reject_colour,
    turn,
    upright,
)

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]")  # without the fill bytes before it
_FILL = re.compile(rb"\xff+(?=\xff)")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_SOI, EOI, SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
APPLICATION = frozenset((*range(0xE0, 0xF0), 0xFE))  # and comments
RESTART_INTERVAL = 0xDD
_TABLES = frozenset((0xC4, 0xDB, RESTART_INTERVAL))  # Huffman and quantisation tables
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = 0xC2
_SHARED_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended sequential, progressive; Huffman coded
_MAX_SCANS = 64


class Frame(NamedTuple):
    marker: int
    bits: int
    height: int
    width: int
    components: bytes  # their identifiers
    sampling: bytes  # their horizontal and vertical factors, 4 bits each


def frame_header(marker: int, payload: bytes) -> Frame:
    """Return the frame header in the payload of an SOF segment. Raises RadiographError."""
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise RadiographError("corrupt", "the JPEG frame header is too short")
    bits, height, width, count = struct.unpack(">BHHB", payload[:6])
    return Frame(marker, bits, height, width, payload[6 : 6 + 3 * count : 3], payload[7 : 6 + 3 * count : 3])


def restart_interval(payload: bytes) -> int:
    """Return the restart interval in MCUs in the payload of a DRI segment."""
    if len(payload) != 2:
        raise RadiographError("corrupt", f"a JPEG restart interval of {len(payload)} bytes")
    return int.from_bytes(payload)


def check_restarts(found: int, units: int, interval: int) -> None:
    """Raise RadiographError unless a scan has as many restart markers as its `units` (MCUs) ask for.

    One after the last unit is let pass, as some encoders write it.
    """
    wanted = (units - 1) // interval if interval else 0
    if found < wanted:
        raise RadiographError("truncated", f"{found} of {wanted} JPEG restart markers; a part of the scan is missing")
    if found > wanted + bool(interval):
        raise RadiographError("corrupt", f"{found} JPEG restart markers, {wanted} expected")


class Segment(NamedTuple):
    marker: int
    start: int
    stop: int
    restarts: int  # markers in the entropy-coded data of a scan


def segments(data: bytes) -> Iterator[Segment]:
    """Yield each segment, marker included; an SOS takes its entropy-coded data with it. Raises RadiographError."""
    at = 2
    while True:
        if fill := _FILL.match(data, at):
            at = fill.end()
        if at + 4 > len(data) and data[at : at + 2] != b"\xff\xd9":
            raise RadiographError("truncated", "the JPEG has no end marker")
        if data[at] != 0xFF:
            raise RadiographError("corrupt", f"no JPEG marker at byte {at}")
        marker = data[at + 1]
        if marker == EOI:
            yield Segment(marker, at, at + 2, 0)
            return
        if marker < 0xC0 or 0xD0 <= marker <= _SOI:
            raise RadiographError("corrupt", f"JPEG marker {marker:02X} at byte {at} is out of place")
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        stop, restarts = at + 2 + length, 0
        if length < 2 or stop > len(data):
            raise RadiographError("corrupt" if length < 2 else "truncated", f"a JPEG segment of {length} bytes")
        if marker == SOS:
            stop, restarts = _end_of_scan(data, stop)
        yield Segment(marker, at, stop, restarts)
        at = stop


def _end_of_scan(data: bytes, start: int) -> tuple[int, int]:
    """Return where entropy-coded data ends, and how many restart markers are in it."""
    for number, found in enumerate(_JPEG_MARKER.finditer(data, start)):
        marker = data[found.end() - 1]
        if not 0xD0 <= marker <= 0xD7:
            stop = found.start()
            while stop > start and data[stop - 1] == 0xFF:
                stop -= 1
            return stop, number
        if marker != 0xD0 + number % 8:
            raise RadiographError("corrupt", f"JPEG restart marker {number + 1} of a scan is out of order")
    raise RadiographError("truncated", "the JPEG has no end marker")


class _Scan(NamedTuple):
    """One scan: its entropy-coded data is data[start:stop]; `interval` MCUs of it lie between two restart markers."""

    start: int
    stop: int
    components: bytes  # their identifiers
    interval: int


@dataclass(frozen=True)
class _Jpeg:
    """A JPEG taken apart; `data` is it without application and comment segments, which `scans` point into.

    `plain`: a decoder tells the colours of `data` by the components' names alone; else `data` starts with a segment of
    ours that says them.
    """

    frame: Frame
    colours: Literal["grey", "ycc", "rgb"]
    plain: bool
    orientation: int
    data: bytes
    scans: tuple[_Scan, ...]


def _take_apart_jpeg(data: bytes, limits: Limits) -> _Jpeg:
    """Return the headers and what a decoder needs. Raises RadiographError."""
    view, application, frame, scans, stop = memoryview(data), list[tuple[int, bytes]](), None, list[_Scan](), 2
    kept, size, interval, missing = [view[:2]], 2, 0, dict[int, bytearray]()
    for marker, at, stop, restarts in segments(data):
        if marker in APPLICATION:
            application.append((marker, data[at + 4 : stop]))
            continue
        if marker in FRAMES and frame is None:
            frame = _shared_frame(frame_header(marker, data[at + 4 : stop]), limits)
            missing = {component: bytearray(b"\xff" * 64) for component in frame.components}
        elif marker == SOS and frame is not None and len(scans) < _MAX_SCANS:
            start, components = _scan_header(data, at, stop, frame, missing)
            check_restarts(restarts, _units(frame, components), interval)
            scans.append(_Scan(size + start - at, size + stop - at, components, interval))
        elif marker == RESTART_INTERVAL:
            interval = restart_interval(data[at + 4 : stop])
        elif marker not in _TABLES and marker != EOI:
            raise _misplaced(marker)
        kept.append(view[at:stop])
        size += stop - at
    if stop != len(data):
        raise RadiographError("trailing-garbage", f"{len(data) - stop:,} bytes follow the end of the JPEG")
    if frame is None or not scans:
        raise RadiographError("corrupt", "the JPEG has no image")
    if any(map(any, missing.values())):
        raise RadiographError("truncated", f"the JPEG ends after scan {len(scans)}, and scans are missing")
    exif = next((body[6:] for marker, body in application if marker == _APP1 and body.startswith(b"Exif\0\0")), b"")
    colours = _colours(frame, application)
    plain = colours != "rgb" and frame.components != b"RGB"
    said = b"" if plain else _ADOBE_RGB if colours == "rgb" else _JFIF
    scans = [scan._replace(start=scan.start + len(said), stop=scan.stop + len(said)) for scan in scans]
    return _Jpeg(frame, colours, plain, exif_orientation(exif), b"".join([kept[0], said, *kept[1:]]), tuple(scans))


_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"


def _scan_header(data: bytes, at: int, stop: int, frame: Frame, missing: dict[int, bytearray]) -> tuple[int, bytes]:
    """Return where the entropy-coded data of a scan starts, and its components' identifiers.

    `missing` says of each coefficient of each component which lower bits no scan has told yet (T.81 G.1.1.1).
    """
    length, count = struct.unpack_from(">HB", data, at + 2)
    start, components = at + 2 + length, data[at + 5 : at + 5 + 2 * count : 2]
    if length != 6 + 2 * count or not components or not set(components) <= missing.keys():
        raise RadiographError("corrupt", "a JPEG scan header that does not fit the image")
    first, last, bits = data[start - 3 : start] if frame.marker == _PROGRESSIVE else (0, 63, 0)
    for component in components:
        missing[component][first : last + 1] = bytes([bits & 15]) * (last + 1 - first)
    return start, components


def _units(frame: Frame, components: bytes) -> int:
    """Return how many MCUs a scan has: blocks of one component, or of all, interleaved (T.81 A.2)."""
    across, down = _unit(frame)
    if len(components) == 1 and len(frame.components) > 1:
        factors = frame.sampling[frame.components.index(components)]
        # The component has fewer samples than the image, and is not filled up to whole MCUs.
        return -(-frame.width * (factors >> 4) // across) * -(-frame.height * (factors & 15) // down)
    return -(-frame.width // across) * -(-frame.height // down)


def _unit(frame: Frame) -> tuple[int, int]:
    """Return width and height of an interleaved MCU in pixels."""
    factors = frame.sampling if len(frame.components) > 1 else b"\x11"
    return 8 * max(byte >> 4 for byte in factors), 8 * max(byte & 15 for byte in factors)


def _misplaced(marker: int) -> RadiographError:
    if marker in FRAMES:
        return RadiographError("corrupt", "the JPEG has two frame headers")
    if marker == SOS:
        return RadiographError("corrupt", f"the JPEG has a scan before its frame header, or over {_MAX_SCANS} scans")
    return RadiographError("unsupported-jpeg", f"JPEG marker {marker:02X}")


def _shared_frame(frame: Frame, limits: Limits) -> Frame:
    if frame.marker not in _SHARED_FRAMES or frame.bits != 8:
        raise RadiographError("unsupported-jpeg", f"JPEG process SOF{frame.marker - 0xC0} of {frame.bits} bits")
    if len(frame.components) == 4:
        raise RadiographError("cmyk", "four colour components; save the radiograph as grey")
    if len(frame.components) not in (1, 3):
        raise RadiographError("unsupported-jpeg", f"{len(frame.components)} colour components")
    if any(not 1 <= factor <= 4 for byte in frame.sampling for factor in (byte >> 4, byte & 15)):
        raise RadiographError("corrupt", "a JPEG component has no sensible sampling factors")
    check_size(frame.width, frame.height, limits)
    return frame


def _colours(frame: Frame, application: list[tuple[int, bytes]]) -> Literal["grey", "ycc", "rgb"]:
    """Tell YCbCr from RGB as libjpeg does (jdapimin.c, default_decompress_parms)."""
    if len(frame.components) == 1:
        return "grey"
    if any(marker == _APP0 and body.startswith(b"JFIF\0") for marker, body in application):
        return "ycc"
    for marker, body in reversed(application):
        if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            return "rgb" if body[11] == 0 else "ycc"
    return "rgb" if frame.components == b"RGB" else "ycc"


def read_jpeg(data: bytes, limits: Limits) -> Read:
    """Read a JPEG file. Raises RadiographError."""
    jpeg = _take_apart_jpeg(data, limits)
    width, height = jpeg.frame.width, jpeg.frame.height
    mode = "L" if jpeg.colours == "grey" else "RGB"
    with turn(width, height):
        pixels = _decoded_jpeg(jpeg)
        if jpeg.plain and jpeg.orientation == 1:
            return Read(Facts("jpeg", width, height, mode, 8), pixels, jpeg.data)
        turned = upright(pixels, jpeg.orientation)
        return Read(Facts("jpeg", turned.shape[1], turned.shape[0], mode, 8), turned)


def jpeg_levels(data: bytes, limits: Limits) -> NDArray[np.uint8]:
    """Return the grey levels (H, W) of a JPEG of one component, whole. Raises RadiographError."""
    return _decoded_jpeg(_take_apart_jpeg(data, limits))


def _decoded_jpeg(jpeg: _Jpeg) -> NDArray[np.uint8]:
    """Decode a JPEG's grey levels (H, W). Raises RadiographError when its scans hold too little or too much.

    libjpeg invents what is missing (grey blocks) and drops what is left over, and Pillow hides that it says so. So an
    image of one scan is decoded from data without an end: all it needs must be there, its last bytes must be needed.
    """
    if len(jpeg.scans) > 1:
        pixels = _grey_jpeg(jpeg, io.BytesIO(jpeg.data))
        suspicious = True
    else:
        endless = _Endless(jpeg.data, jpeg.scans[0])
        pixels = _grey_jpeg(jpeg, endless)
        if not endless.needed:
            raise RadiographError("corrupt", "the JPEG scan goes on after the image is complete")
        suspicious = _ends_in_grey(jpeg, pixels)
    if suspicious:
        padded = io.BytesIO(padded_jpeg(jpeg.data))
        if not np.array_equal(_grey_jpeg(jpeg, padded), pixels):
            raise RadiographError("truncated", "a JPEG scan, or a part between restart markers, ends early")
    return pixels


class _Endless(io.BytesIO):
    """A JPEG up to the end of its one scan, then a few bytes to look ahead at; `needed`: it was read to that end.

    Those bytes are ones, which no Huffman code consists of, so that they pass for two blocks at the most.
    """

    _TAIL = 16  # encoders may leave some bytes over, and any number of zeros
    _MORE = b"\xff\0" * 10

    def __init__(self, data: bytes, scan: _Scan) -> None:
        super().__init__(data)
        zeros = next((n for n, byte in enumerate(reversed(memoryview(data)[scan.start : scan.stop])) if byte), 0)
        self._held_back, self._stop = max(scan.start, scan.stop - zeros - self._TAIL), scan.stop

    @property
    def needed(self) -> bool:
        return self.tell() > self._held_back

    def read(self, size: int | None = -1, /) -> bytes:
        at, wanted = self.tell(), self._stop if size is None or size < 0 else size
        if at < self._held_back:
            return super().read(min(wanted, self._held_back - at))
        if at >= self._stop:
            raise RadiographError("truncated", "the JPEG scan ends before the image does")
        return super().read(self._stop - at) + self._MORE


def _ends_in_grey(jpeg: _Jpeg, pixels: NDArray[np.uint8]) -> bool:
    """Return whether an MCU before a restart marker is what libjpeg makes of no data: all 128."""
    interval = jpeg.scans[0].interval
    if not interval:
        return False
    across, down = _unit(jpeg.frame)
    last = np.arange(interval - 1, _units(jpeg.frame, jpeg.scans[0].components), interval)
    rows, columns = np.divmod(last, -(-jpeg.frame.width // across))
    rows, columns = rows * down, columns * across
    grey = np.flatnonzero(pixels[rows, columns] == 128)
    return any((pixels[rows[n] : rows[n] + down, columns[n] : columns[n] + across] == 128).all() for n in grey)


def padded_jpeg(data: bytes) -> bytes:
    """Return a JPEG with noise wherever entropy-coded data ends: a decoder skips it unless it had too little data."""
    parts, at = [], 0
    for marker, start, stop, _ in segments(data):
        if marker == SOS:
            first = start + 2 + int.from_bytes(data[start + 2 : start + 4])
            parts += [data[at:first], _RESTART.sub(lambda found: _NOISE + found[0], data[first:stop]), _NOISE]
            at = stop
    return b"".join([*parts, data[at:]])


_NOISE = bytes(range(7, 250, 11))


def _grey_jpeg(jpeg: _Jpeg, source: io.BytesIO) -> NDArray[np.uint8]:
    """Decode grey levels from `source`; of three components the chroma is checked to be grey."""
    image = JpegImageFile(source)
    if not jpeg.plain:
        load(image)
        return grey(np.asarray(image.convert("RGB")))
    if jpeg.colours == "grey":
        load(image)
        return levels(image)
    image.draft("YCbCr", image.size)
    load(image)
    luminance, blue, red = (levels(band) for band in image.split())
    if min(blue.min(), red.min()) < 118 or max(blue.max(), red.max()) > 138:
        reject_colour(blue, red)
    return luminance
