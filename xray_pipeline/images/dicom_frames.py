"""Compressed DICOM frames before they are decoded: what they are, where they end, and that a decoder survives them."""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.jpeg import (
    APPLICATION,
    EOI,
    FRAMES,
    RESTART_INTERVAL,
    SOS,
    check_restarts,
    frame_header,
    restart_interval,
    segments,
)

if TYPE_CHECKING:
    from xray_pipeline.images.dicom_pixels import ImagePixels

JPEG, JPEG_12_BITS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
RLE = "1.2.840.10008.1.2.5"
# Decoders in the order in which they are asked: each is strict, so that the next may read what it refuses. A compressed
# frame's own header tells which of the first five syntaxes of a kind it is in, whatever the data set says.
DECODERS: Final = {
    JPEG: ("pillow",),  # as JPEG files are read
    JPEG_12_BITS: ("gdcm",),  # JPEG extended; of 8 bits it is read as JPEG
    JPEG_LOSSLESS: ("gdcm",),
    JPEG_LS: ("pyjpegls", "gdcm"),
    JPEG_2000: ("pillow", "gdcm"),
    "1.2.840.10008.1.2.4.70": ("gdcm",),  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),  # JPEG-LS near-lossless
    **{f"1.2.840.10008.1.2.4.{number}": ("pillow", "gdcm") for number in (91, 201, 202, 203)},  # JPEG 2000 as well
    RLE: ("pydicom",),
}
_SOF55 = 0xF7
_J2K = b"\xff\x4f\xff\x51"


class Codestream(NamedTuple):
    """What a compressed frame says of itself; `syntax` is the first of its kind among `DECODERS`."""

    syntax: str
    start: int
    rows: int
    columns: int
    samples: int
    bits: int


def codestream(frame: bytes, image: ImagePixels) -> Codestream | None:
    """Return the header of the JPEG, JPEG-LS or JPEG 2000 that a frame is, None for RLE. Raises RadiographError."""
    if frame.startswith(b"\xff\xd8"):
        for marker, at, stop, _ in segments(frame):
            if marker in FRAMES or marker == _SOF55:
                found = frame_header(marker, frame[at + 4 : stop])
                huffman = JPEG_12_BITS if found.bits == 12 and marker in (0xC0, 0xC1, 0xC2) else JPEG
                kind = {0xC3: JPEG_LOSSLESS, _SOF55: JPEG_LS}.get(marker, huffman)
                return Codestream(kind, 0, found.height, found.width, len(found.components), found.bits)
            if marker == SOS:
                break
        raise RadiographError("corrupt", "the compressed image has no frame header")
    at = frame.find(_J2K, 0, 4096)  # it may lie in the boxes of a JP2 file
    if at >= 0 and len(frame) >= at + 43:
        # ITU-T T.800 A.5.1: Rsiz, image size and offset, tile size and offset, components, bits of the first.
        _, x1, y1, x0, y0, tile_x, tile_y, _, _, samples, bits = struct.unpack_from(">HIIIIIIIIHB", frame, at + 6)
        if not tile_x or not tile_y or (x1 // tile_x + 1) * (y1 // tile_y + 1) > 65_535:
            raise RadiographError("corrupt", "the JPEG 2000 image has no sensible tiles")
        return Codestream(JPEG_2000, at, y1 - y0, x1 - x0, samples, (bits & 127) + 1)
    unnamed = image.syntax not in DECODERS and frame.startswith(struct.pack("<I", image.samples * image.allocated // 8))
    if image.syntax == RLE or unnamed:  # `check_rle` tells whether it is
        return None
    if image.syntax in DECODERS:
        raise RadiographError("corrupt", "the compressed image is neither JPEG nor JPEG 2000")
    raise RadiographError(
        "unsupported-transfer-syntax",
        "compressed pixels, and the header does not say how; export the image again with its transfer syntax",
    )


def end_of_image(frame: bytes, start: int) -> int:
    """Return where the codestream ends that starts at `start`; the frame's length if unknown.

    Raises RadiographError when anything but padding follows.
    """
    end = _end_of_jpeg(frame) if frame.startswith(b"\xff\xd8") else _end_of_jpeg_2000(frame, start)
    check_padding(frame[end:])
    return end


def _end_of_jpeg(frame: bytes) -> int:
    stuffs_bits, stop = False, 2
    for marker, _, stop, _ in segments(frame):
        stuffs_bits = stuffs_bits or marker == _SOF55
        if marker == SOS and stuffs_bits:  # JPEG-LS: bytes below 80 may follow FF in its data, a marker can't
            end = frame.find(b"\xff\xd9", stop) + 2
            return end if end > 1 else len(frame)
    return stop


def _end_of_jpeg_2000(frame: bytes, at: int) -> int:
    at += 2
    while at + 12 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != EOI:
        marker, length = struct.unpack_from(">HH", frame, at)
        part = struct.unpack_from(">I", frame, at + 6)[0] if marker == 0xFF90 else 2 + length
        at = at + part if part else frame.rfind(b"\xff\xd9")  # no length: the last tile-part (T.800 A.4.2)
    return at + 2 if frame[at : at + 2] == b"\xff\xd9" else len(frame)


FILE = re.compile(rb"\xff\xd8\xff|\xff\x4f\xff\x51|\x89PNG|GIF8|PK\x03\x04|%PDF|\x7fELF|MZ\x90|.{128}DICM", re.DOTALL)


def check_padding(rest: bytes | memoryview) -> None:
    """Refuse what follows an image unless it is one byte, which evens its length, or zeros."""
    kept = bytes(rest).lstrip(b"\0") if len(rest) > 1 else b""
    if kept.startswith((b"\xff\xd8\xff", _J2K)):
        raise RadiographError("multi-frame", "another compressed image follows the first")
    if kept:
        raise RadiographError("trailing-garbage", f"{len(rest):,} bytes follow the pixels inside the DICOM file")


def plain_sequential(frame: bytes) -> bytes:
    """Return a JPEG in which each scan says that it has all coefficients, as those of its process do (T.81 B.2.3)."""
    plain, process = bytearray(frame), 0
    for marker, at, _, _ in segments(frame):
        process = marker if marker in FRAMES else process
        if marker == SOS and process in (0xC0, 0xC1):
            end = at + 2 + int.from_bytes(frame[at + 2 : at + 4])
            plain[end - 3 : end] = b"\0\x3f\0"
    return bytes(plain)


def plain_lossless(frame: bytes, image: ImagePixels) -> bytes:
    """Return a lossless JPEG (ITU-T T.81, process 14) with nothing in it that GDCM's decoder does not survive."""
    kept, headers, scans, interval = [b"\xff\xd8"], 0, 0, 0
    for marker, at, stop, restarts in segments(frame):
        payload = frame[at + 4 : stop]
        if marker == 0xC3:
            headers += 1
            found = frame_header(marker, payload)
            if not 2 <= found.bits <= image.allocated or set(found.sampling) != {0x11}:
                raise RadiographError("corrupt", f"lossless JPEG of {found.bits} bits")
        elif marker == 0xC4:
            _check_huffman(payload)
        elif marker == RESTART_INTERVAL:
            interval = restart_interval(payload)
        elif marker == SOS:
            scans += 1
            check_restarts(restarts, image.rows * image.columns, interval)
            _check_lossless_scan(payload, image)
        elif marker in APPLICATION:
            continue
        elif marker != EOI:
            raise RadiographError("corrupt", f"lossless JPEG with marker {marker:02X}")
        kept.append(frame[at:stop])
    if (headers, scans) != (1, 1):
        raise RadiographError("corrupt", "lossless JPEG without exactly one image")
    return b"".join(kept)


def _check_lossless_scan(payload: bytes, image: ImagePixels) -> None:
    """Refuse the header of a scan of other than all components, predicted from neighbours and not split in bits."""
    count, after = image.samples, 1 + 2 * image.samples
    predictor, last, shift = payload[after : after + 3].ljust(3, b"\xff")
    if payload[0] != count or not 1 <= predictor <= 7 or last or shift >= image.stored:
        raise RadiographError("corrupt", "lossless JPEG with a scan of another kind")


def _check_huffman(payload: bytes) -> None:
    """Check the tables of a DHT segment (T.81 B.2.4.2, C): complete, prefix codes, differences of 16 bits at most."""
    at = 0
    while at < len(payload):
        counts = payload[at + 1 : at + 17]
        values = payload[at + 17 : at + 17 + sum(counts)]
        space = sum(count << (16 - length) for length, count in enumerate(counts, 1))
        if (
            payload[at] > 3
            or len(counts) != 16
            or len(values) != sum(counts)
            or space > 1 << 16
            or max(values, default=0) > 16
        ):
            raise RadiographError("corrupt", "lossless JPEG with a broken Huffman table")
        at += 17 + len(values)


def check_rle(frame: bytes, image: ImagePixels) -> None:
    """Refuse RLE segments (PS3.5 Annex G) that would unpack to another size than the header's."""
    count, *offsets = struct.unpack("<16I", frame[:64]) if len(frame) >= 64 else (0,)
    expected = image.samples * image.allocated // 8
    if count != expected:
        raise RadiographError("corrupt", f"{count} RLE segments, {expected} expected")
    bounds = [*offsets[:count], len(frame)]
    for start, stop in pairwise(bounds):
        if not 64 <= start < stop <= len(frame):
            raise RadiographError("corrupt", "RLE segments are out of order")
        at, size = start, 0
        while at < stop and size < image.rows * image.columns:
            control = frame[at]
            size += control + 1 if control < 128 else 257 - control if control > 128 else 0
            at += control + 2 if control < 128 else 2 if control > 128 else 1
        if at > stop or size != image.rows * image.columns:
            raise RadiographError("truncated", "an RLE segment does not hold the pixels the header claims")
        if stop - at > 2:
            raise RadiographError("corrupt", "an RLE segment holds more than the header claims")
