"""JPEG (ITU-T T.81): taken apart without decoding, then decoded by libjpeg-turbo from what holds pixels alone.

Segments are FF, a marker, a length of two bytes and a payload; entropy-coded data follows each SOS. The walker checks
structure and sizes and copies what a decoder needs. libjpeg invents what is missing (grey blocks) and drops what is
left over, but says so: here, every such warning is a refusal. DICOM holds JPEG too, so parts of this are public.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.raster import (
    Facts,
    Limits,
    Read,
    check_end,
    check_size,
    exif_orientation,
    grey,
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


@dataclass(frozen=True)
class _Jpeg:
    """A JPEG taken apart; `data` is it without application and comment segments.

    `plain`: a decoder tells the colours of `data` by the components' names alone; else `data` starts with a segment of
    ours that says them.
    """

    frame: Frame
    colours: Literal["grey", "ycc", "rgb"]
    plain: bool
    orientation: int
    data: bytes


def _take_apart_jpeg(data: bytes, limits: Limits) -> _Jpeg:
    """Return the headers and what a decoder needs. Raises RadiographError."""
    application, frame, scans, stop = list[tuple[int, bytes]](), None, 0, 2
    view, kept, interval, missing = memoryview(data), list[bytes | memoryview](), 0, dict[int, bytearray]()
    for marker, at, stop, restarts in segments(data):
        if marker in APPLICATION:
            application.append((marker, data[at + 4 : stop]))
            continue
        if marker in FRAMES and frame is None:
            frame = _shared_frame(frame_header(marker, data[at + 4 : stop]), limits)
            missing = {component: bytearray(b"\xff" * 64) for component in frame.components}
        elif marker == SOS and frame is not None and scans < _MAX_SCANS:
            start, components = _scan_header(data, at, frame, missing)
            check_restarts(restarts, _units(frame, components), interval)
            scans += 1
            if frame.marker != _PROGRESSIVE:  # some cameras leave out what is the same in every such scan
                kept += [view[at : start - 3], b"\0\x3f\0"]
                at = start
        elif marker == RESTART_INTERVAL:
            interval = restart_interval(data[at + 4 : stop])
        elif marker not in _TABLES and marker != EOI:
            raise _misplaced(marker)
        kept.append(view[at:stop])
    check_end(data, stop, "JPEG")
    if frame is None or not scans:
        raise RadiographError("corrupt", "the JPEG has no image")
    if any(map(any, missing.values())):
        raise RadiographError("truncated", f"the JPEG ends after scan {scans}, and scans are missing")
    exif = next((body[6:] for marker, body in application if marker == _APP1 and body.startswith(b"Exif\0\0")), b"")
    colours = _colours(frame, application)
    plain = colours != "rgb" and frame.components != b"RGB"
    said = b"" if plain else _ADOBE_RGB if colours == "rgb" else _JFIF
    return _Jpeg(frame, colours, plain, exif_orientation(exif), b"".join([view[:2], said, *kept]))


_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"


def _scan_header(data: bytes, at: int, frame: Frame, missing: dict[int, bytearray]) -> tuple[int, bytes]:
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
    factors = frame.sampling if len(frame.components) > 1 else b"\x11"
    across, down = 8 * max(byte >> 4 for byte in factors), 8 * max(byte & 15 for byte in factors)
    if len(components) == 1 and len(frame.components) > 1:
        own = frame.sampling[frame.components.index(components)]
        # The component has fewer samples than the image, and is not filled up to whole MCUs.
        return -(-frame.width * (own >> 4) // across) * -(-frame.height * (own & 15) // down)
    return -(-frame.width // across) * -(-frame.height // down)


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
    """Decode a JPEG's grey levels (H, W). Raises RadiographError for colour, and when a scan is damaged."""
    if jpeg.colours == "grey":
        return _strictly(jpeg.data, "GRAY")[..., 0]
    rgb = _strictly(jpeg.data, "RGB")
    pixels = grey(rgb)
    if jpeg.colours == "rgb" or np.array_equal(pixels, rgb[..., 1]):
        return pixels
    return _strictly(jpeg.data, "GRAY")[..., 0]  # the luminance itself, without a way through RGB and back


def _strictly(data: bytes, space: Literal["GRAY", "RGB"]) -> NDArray[np.uint8]:
    """Return what libjpeg-turbo decodes without a warning (H, W, channels). Raises RadiographError."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, space, strict=True))
    except ValueError as error:
        said = str(error)
    over = int(found[1]) if (found := _OVER.search(said)) else 0
    if 0 < over <= _MAX_OVER and not any(data[-2 - over : -2]):
        return _strictly(data[: -2 - over] + data[-2:], space)
    if "subsampling" in said:
        raise RadiographError("unsupported-jpeg", "its colours are sampled as no usual encoder does; save it as grey")
    if "remature end" in said or "marker 0xd9 instead" in said:
        raise RadiographError("truncated", "a JPEG scan, or a part between restart markers, ends early")
    detail = "goes on after the image is complete" if over else "is damaged"
    raise RadiographError("corrupt", f"a JPEG scan {detail}")


_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_MAX_OVER = 64  # zeros: encoders fill up words or blocks


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
