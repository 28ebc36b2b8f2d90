"""DICOM pixels: from the stored bytes to the values that they mean.

A compressed frame's own header is checked against the data set's before a decoder of pydicom's sees it.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xray_pipeline.base.errors import DecoderUnavailable, RadiographError
from xray_pipeline.images.decoder_process import Died, NotStarted, Refused, Workers, decoded
from xray_pipeline.images.jpeg import (
    APPLICATION,
    EOI,
    FRAMES,
    RESTART_INTERVAL,
    SOS,
    check_restarts,
    frame_header,
    jpeg_levels,
    padded_jpeg,
    restart_interval,
    segments,
)
from xray_pipeline.images.raster import Limits

if TYPE_CHECKING:
    from xray_pipeline.images.dicom import Elements

PIXEL_DATA = 0x7FE00010
DEFLATED, IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
EXPLICIT = "1.2.840.10008.1.2.1"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG = ("1.2.840.10008.1.2.4.50", JPEG_EXTENDED)
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_RLE = "1.2.840.10008.1.2.5"
NATIVE = frozenset((IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED))
# One decoder each, and of those there are the one that held up best against damaged data.
DECODERS: Final = {
    **dict.fromkeys(_JPEG, ""),  # read as JPEG files are
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "pyjpegls",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "pillow",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": "pillow",  # JPEG 2000
    _RLE: "pydicom",
}
GUARDED: Final = frozenset(DECODERS) - {*_JPEG, _RLE}
workers = Workers()


class ImagePixels(NamedTuple):
    """The Image Pixel module (PS3.3 C.7.6.3)."""

    syntax: str
    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str


def stored_values(image: ImagePixels, tags: Elements, limits: Limits) -> NDArray[np.int32]:
    """Return the stored values (rows, columns) as DICOM means them: unused bits masked, signs extended.

    Raises RadiographError, also for more or less than one image; DecoderUnavailable.
    """
    if image.syntax in NATIVE:
        raw, size = tags.raw(PIXEL_DATA), image.rows * image.columns * (image.allocated // 8)
        if tags.elements[PIXEL_DATA].encapsulated:
            raise RadiographError("corrupt", "encapsulated pixels in an uncompressed DICOM file")
        if len(raw) < size:
            raise RadiographError("truncated", f"{len(raw):,} bytes of pixels, {size:,} needed")
        if len(raw) // size > 1 and len(raw) % size <= 1:
            raise RadiographError("multi-frame", f"{len(raw) // size} frames of pixels, one expected")
        _check_padding(memoryview(raw)[size:])
        # PS3.5 6.2: big-endian 8-bit pixels in words of 16 bits come in swapped pairs.
        kind = np.dtype(f"{'<' if tags.little else '>'}u{image.allocated // 8}")
        flat = np.frombuffer(raw[:size], kind)
        if image.allocated == 8 and not tags.little and _vr(tags) == b"OW":
            flat = np.frombuffer(raw[: size + size % 2], ">u2").astype("<u2").view(np.uint8)[:size]
        return _meant(flat.reshape(image.rows, image.columns), image)
    frame = _compressed_frame(image, tags)
    if image.syntax in _JPEG:
        if image.allocated != 8:
            raise RadiographError("corrupt", f"{image.allocated} bits allocated for a JPEG of 8")
        levels = jpeg_levels(frame, limits)
        return (levels.view(np.int8) if image.signed else levels).astype(np.int32)
    values = _decoded(image, frame)
    if values.shape != (image.rows, image.columns):
        raise RadiographError("corrupt", f"decoded to {values.shape}, the header says {(image.rows, image.columns)}")
    if image.syntax in _JPEG_LOSSLESS and _lacks_data(image, frame, values):
        raise RadiographError("truncated", "the lossless JPEG's scan ends before the image does")
    return _meant(values, image) if image.syntax == _RLE else values.astype(np.int32)


def _check_padding(rest: bytes | memoryview) -> None:
    """Refuse what follows an image unless it is one byte, which evens its length, or zeros."""
    kept = bytes(rest).lstrip(b"\0") if len(rest) > 1 else b""
    if kept.startswith((b"\xff\xd8\xff", _J2K)):
        raise RadiographError("multi-frame", "another compressed image follows the first")
    if kept:
        raise RadiographError("trailing-garbage", f"{len(rest):,} bytes follow the pixels inside the DICOM file")


def _lacks_data(image: ImagePixels, frame: bytes, values: NDArray[Any]) -> bool:
    """Return whether GDCM decoded more of a lossless JPEG than there is: from there on, rows of one value."""
    ends_flat = bool((values[-1] == values[-1, 0]).all())
    if not ends_flat and not any(segment.marker == RESTART_INTERVAL for segment in segments(frame)):
        return False
    try:
        return not np.array_equal(_decoded(image, padded_jpeg(frame)), values)
    except RadiographError:
        return True


def _vr(tags: Elements) -> bytes:
    start = tags.elements[PIXEL_DATA].start
    return tags.data[start + 4 : start + 6]


def _meant(values: NDArray[Any], image: ImagePixels) -> NDArray[np.int32]:
    """Take `stored` bits up to the high bit out of each cell (PS3.5 8.1.1)."""
    cells = values.astype(np.int32) & ((1 << image.allocated) - 1)
    cells >>= image.high_bit + 1 - image.stored
    cells &= (1 << image.stored) - 1
    if image.signed:
        sign = 1 << (image.stored - 1)
        cells = (cells ^ sign) - sign
    return cells


def _compressed_frame(image: ImagePixels, tags: Elements) -> bytes:
    """Join the fragments of the one frame (PS3.5 A.4) and check its own header against the data set's."""
    element = tags.elements[PIXEL_DATA]
    if not element.encapsulated:
        raise RadiographError("corrupt", "compressed DICOM pixels are not encapsulated")
    fragments, at = [], element.value
    while at < element.stop:
        tag, size = struct.unpack_from("<II", tags.data, at)
        if tag != 0xE000FFFE or at + 8 + size > element.stop:
            raise RadiographError("corrupt", "DICOM pixel fragments are broken")
        fragments.append(tags.data[at + 8 : at + 8 + size])
        at += 8 + size
    frame = b"".join(fragments[1:])  # the first is the offset table
    if not frame:
        raise RadiographError("truncated", "the DICOM file has no pixel fragments")
    if image.syntax == _RLE:
        if len(fragments) > 2:  # PS3.5 A.4.2: a frame is one fragment
            raise RadiographError("multi-frame", f"{len(fragments) - 1} frames of pixels, one expected")
        _check_rle(frame, image)
        return frame
    end = _end_of_image(frame)
    _check_padding(frame[end:])
    frame = frame[:end]
    if image.syntax in _JPEG_LOSSLESS:
        frame = _plain_lossless(frame, image)
    rows, columns, samples = _codestream_size(frame)
    if (rows, columns, samples) != (image.rows, image.columns, 1):
        raise RadiographError(
            "corrupt", f"compressed image of {columns} x {rows} x {samples}, header says {image.columns} x {image.rows}"
        )
    return frame


def _end_of_image(frame: bytes) -> int:
    """Return where the JPEG, JPEG-LS or JPEG 2000 codestream ends that a frame starts with; its length if unknown."""
    at = 2
    if frame.startswith(b"\xff\xd8"):
        stuffs_bits = False
        for marker, _, at, _ in segments(frame):
            stuffs_bits = stuffs_bits or marker == _SOF55
            if marker == SOS and stuffs_bits:  # JPEG-LS: bytes below 80 may follow FF in its data, a marker can't
                at = frame.find(b"\xff\xd9", at) + 2
                return at if at > 1 else len(frame)
        return at
    while frame.startswith(_J2K) and at + 12 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != EOI:
        marker, length = struct.unpack_from(">HH", frame, at)
        part = struct.unpack_from(">I", frame, at + 6)[0] if marker == 0xFF90 else 2 + length
        at = at + part if part else frame.rfind(b"\xff\xd9")  # no length: the last tile-part (T.800 A.4.2)
    return at + 2 if frame[at : at + 2] == b"\xff\xd9" else len(frame)


_SOF55 = 0xF7
_J2K = b"\xff\x4f\xff\x51"


def _codestream_size(frame: bytes) -> tuple[int, int, int]:
    """Return (rows, columns, samples) from the header of a JPEG, JPEG-LS or JPEG 2000 codestream."""
    if frame.startswith(b"\xff\xd8"):
        for marker, at, stop, _ in segments(frame):
            if marker in FRAMES or marker == _SOF55:
                found = frame_header(marker, frame[at + 4 : stop])
                return found.height, found.width, len(found.components)
            if marker == SOS:
                break
        raise RadiographError("corrupt", "the compressed image has no frame header")
    at = frame.find(_J2K, 0, 4096)
    if at < 0 or len(frame) < at + 42:
        raise RadiographError("corrupt", "the compressed image is neither JPEG nor JPEG 2000")
    # ITU-T T.800 A.5.1: Rsiz, image size and offset, tile size and offset, components.
    _, x1, y1, x0, y0, tile_x, tile_y, _, _, samples = struct.unpack_from(">HIIIIIIIIH", frame, at + 6)
    if not tile_x or not tile_y or (x1 // tile_x + 1) * (y1 // tile_y + 1) > 65_535:
        raise RadiographError("corrupt", "the JPEG 2000 image has no sensible tiles")
    return y1 - y0, x1 - x0, samples


def _plain_lossless(frame: bytes, image: ImagePixels) -> bytes:
    """Return a lossless JPEG (ITU-T T.81, process 14) with nothing in it that GDCM's decoder does not survive."""
    kept, headers, scans, interval = [b"\xff\xd8"], 0, 0, 0
    for marker, at, stop, restarts in segments(frame):
        payload = frame[at + 4 : stop]
        if marker == 0xC3:
            headers += 1
            found = frame_header(marker, payload)
            if not 2 <= found.bits <= image.allocated or len(found.components) != 1 or payload[7] != 0x11:
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
    """Refuse the header of a scan of other than one component, predicted from neighbours and not split in bits."""
    if len(payload) < 6 or payload[0] != 1 or not 1 <= payload[3] <= 7 or payload[4] or payload[5] >= image.stored:
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


def _check_rle(frame: bytes, image: ImagePixels) -> None:
    """Refuse RLE segments (PS3.5 Annex G) that would unpack to another size than the header's."""
    count, *offsets = struct.unpack("<16I", frame[:64]) if len(frame) >= 64 else (0,)
    if count != image.allocated // 8:
        raise RadiographError("corrupt", f"{count} RLE segments, {image.allocated // 8} expected")
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


def _decoded(image: ImagePixels, frame: bytes) -> NDArray[Any]:
    """Return the decoder's values. Raises RadiographError, DecoderUnavailable, and what an unguarded decoder likes."""
    options: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": image.allocated,
        "bits_stored": image.stored,
        "pixel_representation": int(image.signed),
        "photometric_interpretation": image.photometric,
        "pixel_keyword": "PixelData",
    }
    plugin = DECODERS[image.syntax]
    if image.syntax not in GUARDED:
        return decoded(image.syntax, plugin, frame, options)
    try:
        return workers.decode(image.syntax, plugin, frame, options)
    except Refused as error:
        reason = "bomb" if str(error) == "MemoryError" else "corrupt"
        raise RadiographError(reason, f"the decoder gave up ({error})") from None
    except Died as error:
        how = "did not finish" if error.late else "crashed"
        raise RadiographError("undecodable", f"the decoder {how}") from None
    except NotStarted as error:
        raise DecoderUnavailable(f"a process to decode DICOM in can't be started: {error}") from error
