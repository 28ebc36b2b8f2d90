"""JPEG and PNG: taken apart without decoding, then decoded by Pillow from nothing but the parts that hold pixels.

Each format has a walker that checks structure and sizes and copies what a decoder needs; EXIF is looked at for its
orientation alone. Colour is looked at only to see that there is none. What every format shares (limits, facts, the
order in which large images are decoded) is here too, because DICOM holds JPEG.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from xray_pipeline.errors import RadiographError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
VIEWS = ("PA", "AP", "FRONTAL")

PNG = b"\x89PNG\r\n\x1a\n"
_LARGE_PIXELS = 16_000_000
_large_turn = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """What a header may claim: bytes, width x height, shortest side in pixels, longest side over shortest."""

    max_file_bytes: int = 200_000_000
    max_pixels: int = 100_000_000
    min_side: int = 64
    max_aspect: float = 4.0


@dataclass(frozen=True)
class Facts:
    """What is known of a radiograph.

    `width` and `height` are of the stored radiograph, `mode` and `bits` of the source. `patient_id` is raw: it must be
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


def turn(width: int, height: int) -> contextlib.AbstractContextManager[object]:
    """Very large images are decoded one at a time, so that memory does not grow with the number of threads."""
    return _large_turn if width * height > _LARGE_PIXELS else contextlib.nullcontext()


def _loaded(image: JpegImageFile | PngImageFile) -> None:
    """Decode fully. Raises RadiographError: Pillow says "truncated" when data ends early."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        ended = "truncated" in str(error)
        detail = "the data ends before the image does" if ended else f"the decoder gave up ({type(error).__name__})"
        raise RadiographError("truncated" if ended else "corrupt", detail) from None


def _levels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels (H, W) of a decoded 8-bit grey image; without a copy unless Pillow keeps it in pieces."""
    try:
        levels = pa.array(image).to_numpy()
    except ValueError:  # of over 16 MB
        return np.asarray(image)
    return np.asarray(levels.reshape(image.height, image.width))


def _reject_colour(blue: NDArray[np.uint8], red: NDArray[np.uint8]) -> None:
    """Refuse chroma planes (Cb, Cr; 128 is grey) with more than 1 in 1,000 pixels over 10 levels from grey."""
    tinted = (np.abs(blue.astype(np.int16) - 128) > 10) | (np.abs(red.astype(np.int16) - 128) > 10)
    share = float(tinted.mean())
    if share > 0.001:
        raise RadiographError("coloured", f"{share:.1%} of the pixels are coloured; a radiograph is grey")


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) of an (H, W, 3) image that is grey; raises RadiographError when it is coloured."""
    red = rgb[..., 0]
    if np.array_equal(red, rgb[..., 1]) and np.array_equal(red, rgb[..., 2]):
        return np.ascontiguousarray(red)
    planes = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).convert("YCbCr"))
    _reject_colour(planes[..., 1], planes[..., 2])
    return np.ascontiguousarray(planes[..., 0])


def _orientation(tiff: bytes) -> int:
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


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF orientation (Exif 2.32, 4.6.4 A)."""
    turned: NDArray[Any] = pixels.T if orientation in (5, 6, 7, 8) else pixels
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    return cast(Pixels, np.ascontiguousarray(turned))


def png_bytes(pixels: Pixels) -> bytes:
    """Encode as greyscale PNG without metadata, 8 or 16 bits as the array has. Equal pixels give equal bytes."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=_PNG_LEVEL)
    return out.getvalue()


_PNG_LEVEL = 4


# JPEG (ITU-T T.81). Segments: FF, marker, length of two bytes, payload; entropy-coded data follows each SOS.


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
    return _Jpeg(frame, colours, plain, _orientation(exif), b"".join([kept[0], said, *kept[1:]]), tuple(scans))


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
        upright = _upright(pixels, jpeg.orientation)
        return Read(Facts("jpeg", upright.shape[1], upright.shape[0], mode, 8), upright)


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
        _loaded(image)
        return _grey(np.asarray(image.convert("RGB")))
    if jpeg.colours == "grey":
        _loaded(image)
        return _levels(image)
    image.draft("YCbCr", image.size)
    _loaded(image)
    luminance, blue, red = (_levels(band) for band in image.split())
    if min(blue.min(), red.min()) < 118 or max(blue.max(), red.max()) > 138:
        _reject_colour(blue, red)
    return luminance


# PNG (W3C PNG, third edition). Chunks: length, type, data, CRC-32 of type and data.

_PNG_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


@dataclass(frozen=True)
class _PngParts:
    width: int
    height: int
    depth: int
    colour: int  # bit 0: palette, bit 1: colour, bit 2: alpha
    orientation: int
    stripped: bytes


def _take_apart_png(data: bytes, limits: Limits) -> _PngParts:
    """Return the header and a copy with nothing but the chunks that hold pixels. Raises RadiographError."""
    kept, packed, orientation, header, stop = [PNG], list[memoryview](), 1, b"", 0
    for kind, at, stop in _chunks(data):
        content = data[at + 8 : stop - 4]
        if (kind == b"IHDR") == bool(header):
            raise RadiographError("corrupt", "the PNG does not start with its one header")
        if kind == b"IHDR":
            header = _png_header(content, limits)
        elif kind == b"acTL":
            raise RadiographError("animated", "an animated PNG")
        elif kind == b"IDAT":
            packed.append(memoryview(data)[at + 8 : stop - 4])
        elif kind == b"eXIf":
            orientation = _orientation(content)
        if kind in _PNG_KEPT:
            kept.append(data[at:stop])
    if stop != len(data):
        raise RadiographError("trailing-garbage", f"{len(data) - stop:,} bytes follow the end of the PNG")
    _check_inflated(packed, _inflated_size(header))
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    return _PngParts(width, height, depth, colour, orientation, b"".join(kept))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, stop) of each chunk up to the end chunk, its checksum proven."""
    at, kind = len(PNG), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise RadiographError("truncated", "the PNG has no end chunk")
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        stop = at + 12 + length
        if stop > len(data):
            raise RadiographError("truncated", f"a PNG chunk claims {length:,} bytes, more than the file has")
        if zlib.crc32(memoryview(data)[at + 4 : stop - 4]) != struct.unpack(">I", data[stop - 4 : stop])[0]:
            raise RadiographError("corrupt", f"the checksum of the PNG chunk at byte {at} is wrong")
        yield kind, at, stop
        at = stop


def _png_header(header: bytes, limits: Limits) -> bytes:
    if len(header) != 13:
        raise RadiographError("corrupt", f"a PNG header of {len(header)} bytes")
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    check_size(width, height, limits)
    if depth == 16 and colour != 0:
        raise RadiographError("deep-colour", "16-bit PNG with colour or alpha; save it as 16-bit grey")
    if depth == 1 and colour == 0:
        raise RadiographError("bilevel", "one bit per pixel")
    return header


def _inflated_size(header: bytes) -> int:
    """Return how many bytes the rows of a PNG have, each with its filter; all passes when interlaced (Adam7)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * (1 if colour & 1 else 3 if colour & 2 else 1) + depth * bool(colour & 4)
    size = 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        across, rows = -((left - width) // right), -((top - height) // down)
        size += rows * (1 + (across * bits + 7) // 8) if across > 0 else 0
    return size


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def _check_inflated(packed: list[memoryview], size: int) -> None:
    """Refuse a zlib stream that does not hold `size` bytes, or has others behind it: Pillow stops where either ends."""
    inflater, found = zlib.decompressobj(), 0
    for piece in (part[at : at + _AT_ONCE] for part in packed for at in range(0, len(part), _AT_ONCE)):
        rest: bytes | memoryview = piece
        more = not inflater.eof
        while more and found <= size:
            try:
                count = len(inflater.decompress(rest, _AT_ONCE))
            except zlib.error:
                raise RadiographError("corrupt", "the PNG's compressed pixels are damaged") from None
            found, rest = found + count, inflater.unconsumed_tail
            more = not inflater.eof and (bool(rest) or count == _AT_ONCE)
        if found > size or (inflater.eof and (inflater.unused_data or rest)):
            raise RadiographError("trailing-garbage", "bytes follow the pixels inside the PNG's data")
    if found < size or not inflater.eof:
        raise RadiographError("truncated", f"the PNG holds {found:,} bytes of pixels, {size:,} needed")


_AT_ONCE = 1 << 16


def read_png(data: bytes, limits: Limits) -> Read:
    """Read a PNG file. Raises RadiographError."""
    parts = _take_apart_png(data, limits)
    with turn(parts.width, parts.height):
        image = PngImageFile(io.BytesIO(parts.stripped))
        _loaded(image)
        mode = image.mode
        pixels = _upright(_png_grey(image), parts.orientation)
    bits = parts.depth if mode != "P" else 8
    return Read(Facts("png", pixels.shape[1], pixels.shape[0], mode, bits), pixels)


def _png_grey(image: PngImageFile) -> Pixels:
    if image.mode == "I;16":
        return _opaque_16(image)
    if image.mode == "L" and "transparency" not in image.info:
        return _levels(image)
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        whole = np.asarray(image.convert("RGBA"))
        if (clear := int((whole[..., 3] != 255).sum())) > 0:
            raise RadiographError("transparent", f"{clear:,} pixels are not fully opaque")
        return _grey(whole[..., :3])
    return _grey(np.asarray(image.convert("RGB")))


def _opaque_16(image: PngImageFile) -> NDArray[np.uint16]:
    pixels = np.asarray(image).astype(np.uint16)
    clear = image.info.get("transparency")
    if clear is not None and (pixels == clear).any():
        raise RadiographError("transparent", "pixels of the transparent grey level")
    return pixels


# DICOM (PS3.5 for the encoding, PS3.3 for what the values mean).
