"""DICOM pixels: from the stored bytes to the values that they mean.

A compressed frame's own header is checked against the data set's before a decoder of pydicom's sees it.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from xray_pipeline.base.errors import DecoderUnavailable, RadiographError
from xray_pipeline.images.decoder_process import Died, NotStarted, Refused, Workers, decoded
from xray_pipeline.images.dicom_elements import PIXEL_DATA
from xray_pipeline.images.dicom_frames import (
    DECODERS,
    FILE,
    JPEG,
    JPEG_12_BITS,
    JPEG_LOSSLESS,
    JPEG_LS,
    RLE,
    check_padding,
    check_rle,
    codestream,
    end_of_image,
    plain_lossless,
    plain_sequential,
)
from xray_pipeline.images.jpeg import APPLICATION, RESTART_INTERVAL, jpeg_levels, padded_jpeg, segments
from xray_pipeline.images.raster import Limits, Pixels, grey, reject_colour

if TYPE_CHECKING:
    from xray_pipeline.images.dicom_elements import Elements

GUARDED: Final = frozenset(DECODERS) - {JPEG, RLE}
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
    samples: int = 1
    planar: int = 0


def stored_values(image: ImagePixels, tags: Elements, limits: Limits) -> NDArray[Any]:
    """Return the stored values as DICOM means them: unused bits masked, signs extended.

    They are (rows, columns), int32, or (rows, columns, samples) of a colour image; a colour JPEG comes as its grey
    levels. Raises RadiographError, also for more or less than one image; DecoderUnavailable.
    """
    element = tags.elements[PIXEL_DATA]
    of_items = image.syntax in DECODERS and tags.data.startswith(b"\xfe\xff\x00\xe0", element.value)
    if not element.encapsulated and not of_items:  # items in a value that has a length are none of the standard's
        return _meant(_native(image, tags), image)
    frame = _joined(image, tags)
    stream = codestream(frame, image)
    if stream is None:
        check_rle(frame, image)
        return _meant(_decoded(image._replace(syntax=RLE), frame), image)
    if (stream.rows, stream.columns) != (image.rows, image.columns) or stream.samples not in (image.samples, 3):
        claimed = f"{image.columns} x {image.rows} x {image.samples}"
        found = f"{stream.columns} x {stream.rows} x {stream.samples}"
        raise RadiographError("corrupt", f"compressed image of {found}, the header says {claimed}")
    frame = frame[stream.start : end_of_image(frame, stream.start)]
    if stream.syntax == JPEG:
        levels = _grey_jpeg(frame, image, limits)
        return (levels.view(np.int8) if image.signed and image.stored <= 8 else levels).astype(np.int32)
    if stream.samples != image.samples or (stream.syntax == JPEG_12_BITS and image.allocated < 16):
        raise RadiographError("corrupt", f"{stream.bits} bits of {stream.samples} samples; the header says otherwise")
    image = image._replace(syntax=stream.syntax)
    if stream.syntax == JPEG_12_BITS:
        image, frame = image._replace(stored=12), plain_sequential(frame)
    elif stream.syntax == JPEG_LOSSLESS:
        frame = plain_lossless(frame, image)
    values = _decoded(image, frame)
    if stream.syntax in (JPEG_LOSSLESS, JPEG_12_BITS) and _lacks_data(image, frame, values):
        raise RadiographError("truncated", "the JPEG's scan ends before the image does")
    return values if image.samples == 3 else values.astype(np.int32)


def _native(image: ImagePixels, tags: Elements) -> NDArray[Any]:
    """Return the one uncompressed image. Less than another after it is a writer's padding (PS3.5 8.1.1, note)."""
    if image.syntax in DECODERS:
        raise RadiographError("corrupt", "compressed DICOM pixels are not encapsulated")
    subsampled = image.photometric == "YBR_FULL_422"  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
    raw, per_pixel = tags.raw(PIXEL_DATA), 2 if subsampled else image.samples
    size = image.rows * image.columns * per_pixel * (image.allocated // 8)
    if len(raw) < size or (subsampled and image.columns % 2):
        raise RadiographError("truncated", f"{len(raw):,} bytes of pixels, {size:,} needed")
    if len(raw) // size > 1 and len(raw) % size <= 1:
        raise RadiographError("multi-frame", f"{len(raw) // size} frames of pixels, one expected")
    if len(raw) // size > 1 or FILE.match(raw, size):
        check_padding(memoryview(raw)[size:])
    # PS3.5 6.2: big-endian 8-bit pixels in words of 16 bits come in swapped pairs.
    kind = np.dtype(f"{'<' if tags.little else '>'}u{image.allocated // 8}")
    flat = np.frombuffer(raw[:size], kind)
    if image.allocated == 8 and not tags.little and _vr(tags) == b"OW":
        flat = np.frombuffer(raw[: size + size % 2], ">u2").astype("<u2").view(np.uint8)[:size]
    if subsampled:
        first, second, blue, red = flat.reshape(-1, 4).T
        planes = np.stack([first, second], 1).ravel(), blue.repeat(2), red.repeat(2)
        return np.stack(planes, 1).reshape(image.rows, image.columns, 3)
    if image.samples == 1:
        return flat.reshape(image.rows, image.columns)
    if image.planar == 1:
        return np.moveaxis(flat.reshape(image.samples, image.rows, image.columns), 0, -1)
    return flat.reshape(image.rows, image.columns, image.samples)


def _grey_jpeg(frame: bytes, image: ImagePixels, limits: Limits) -> NDArray[np.uint8]:
    """Return the grey levels of a JPEG of one or three components.

    Whether three are RGB or YCbCr the data set may say, and only the JPEG itself counts for a decoder: those of a grey
    image are grey in one reading alone.
    """
    try:
        return jpeg_levels(frame, limits)
    except RadiographError as error:
        if error.reason != "coloured" or image.photometric != "RGB":
            raise
    parts = [frame[at:stop] for marker, at, stop, _ in segments(frame) if marker not in APPLICATION]
    return jpeg_levels(b"".join([frame[:2], _ADOBE_RGB, *parts]), limits)


_ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"


def grey_pixels(image: ImagePixels, stored: NDArray[Any], tags: Elements) -> Pixels:
    """Return the grey levels of a colour image (of `stored_values`), over the whole range of 8 or 16 bits.

    PS3.3 C.11 has windows and lookup tables for monochrome images alone. Raises RadiographError when it is coloured.
    """
    bits = image.stored
    if image.photometric == "PALETTE COLOR":
        stored, bits = _through_palette(stored, tags)
    if stored.ndim == 2:  # a JPEG's levels
        return cast(Pixels, stored.astype(np.uint8))
    luminance = image.photometric.startswith("YBR_FULL")
    try:
        return _grey_levels(stored, bits, luminance)
    except RadiographError:
        # Labels are often wrong, and what is grey is grey in one reading alone.
        with contextlib.suppress(RadiographError):
            return _grey_levels(stored, bits, not luminance)
        raise


def _grey_levels(stored: NDArray[Any], bits: int, luminance: bool) -> Pixels:
    """Return the grey levels of RGB, or with `luminance` of YCbCr. Raises RadiographError."""
    first, top = stored[..., 0], 255 if bits <= 8 else 65535
    shallow = (stored >> max(0, bits - 8)).astype(np.uint8)
    if luminance:
        reject_colour(shallow[..., 1], shallow[..., 2])
    elif bits <= 8:
        first = grey(shallow)
    else:
        grey(shallow)
    if bits > 8 and not (stored[..., 1:] == ((1 << (bits - 1)) if luminance else stored[..., :1])).all():
        raise RadiographError("deep-colour", f"nearly grey colours of {bits} bits")
    return cast(Pixels, np.rint(first * (top / ((1 << bits) - 1))).astype(np.uint8 if top == 255 else np.uint16))


def _through_palette(stored: NDArray[Any], tags: Elements) -> tuple[NDArray[Any], int]:
    """Return the colours (rows, columns, 3) that a palette (PS3.3 C.7.6.3.1.5) gives to stored values, and its bits."""
    planes, bits = [], 0
    for tag in (0x00281101, 0x00281102, 0x00281103):
        descriptor = np.frombuffer(tags.raw(tag)[:6], "<u2" if tags.little else ">u2").tolist()
        table = tags.raw(tag + 0x100)
        if len(descriptor) != 3 or descriptor[2] not in (8, 16) or not table:
            raise RadiographError("colour-dicom", "a palette is missing, segmented or of other than 8 or 16 bits")
        entries, first, bits = descriptor[0] or 65536, descriptor[1], descriptor[2]
        if len(table) < 2 * entries:  # bytes, in words of the file's order
            swapped = np.frombuffer(table[: len(table) & ~1], "<u2" if tags.little else ">u2").astype("<u2")
            values = swapped.view(np.uint8)
        else:
            values = np.frombuffer(table[: 2 * entries], "<u2" if tags.little else ">u2")
        if len(values) < entries or (bits == 16 and values.dtype == np.uint8):
            raise RadiographError("corrupt", f"a palette of {entries} entries has {len(table)} bytes")
        first -= 65536 if first > 32767 and int(stored.min()) < 0 else 0
        planes.append(values[np.clip(stored - first, 0, entries - 1)].astype(np.int32))
    return np.stack(planes, -1), 16 if max(plane.max() for plane in planes) > 255 else bits


def _lacks_data(image: ImagePixels, frame: bytes, values: NDArray[Any]) -> bool:
    """Return whether GDCM decoded more of a JPEG than there is: from there on, rows of one value if it is lossless."""
    ends_flat = image.syntax == JPEG_12_BITS or bool((values[-1] == values[-1, 0]).all())
    if not ends_flat and not any(segment.marker == RESTART_INTERVAL for segment in segments(frame)):
        return False
    try:
        return not np.array_equal(_decoded(image, padded_jpeg(frame)), values)
    except RadiographError:
        return True


def _vr(tags: Elements) -> bytes:
    start = tags.elements[PIXEL_DATA].start
    return tags.data[start + 4 : start + 6]


def _meant(values: NDArray[Any], image: ImagePixels) -> NDArray[Any]:
    """Take `stored` bits up to the high bit out of each cell (PS3.5 8.1.1)."""
    if image.samples == 3 and image.stored == image.allocated:
        return values
    cells = values.astype(np.int32) & ((1 << image.allocated) - 1)
    cells >>= image.high_bit + 1 - image.stored
    cells &= (1 << image.stored) - 1
    if image.signed:
        sign = 1 << (image.stored - 1)
        cells = (cells ^ sign) - sign
    return cells


def _joined(image: ImagePixels, tags: Elements) -> bytes:
    """Return the fragments of the one frame (PS3.5 A.4) as one."""
    element, order = tags.elements[PIXEL_DATA], "<" if tags.little else ">"
    fragments, at = [], element.value
    while at < element.stop:
        group, number, size = struct.unpack_from(order + "HHI", tags.data, at)
        if (group, number) != (0xFFFE, 0xE000) or at + 8 + size > element.stop:
            raise RadiographError("corrupt", "DICOM pixel fragments are broken")
        fragments.append(tags.data[at + 8 : at + 8 + size])
        at += 8 + size
    frame = b"".join(fragments[1:])  # the first is the offset table
    if not frame:
        raise RadiographError("truncated", "the DICOM file has no pixel fragments")
    if len(fragments) > 2 and image.syntax == RLE:  # PS3.5 A.4.2: a frame is one fragment
        raise RadiographError("multi-frame", f"{len(fragments) - 1} frames of pixels, one expected")
    return frame


def _decoded(image: ImagePixels, frame: bytes) -> NDArray[Any]:
    """Return the values of the first decoder that reads the frame, else raise what the first of them said.

    Raises RadiographError, DecoderUnavailable, and what an unguarded decoder likes.
    """
    options: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "planar_configuration": image.planar,
        "number_of_frames": 1,
        "bits_allocated": image.allocated,
        "bits_stored": image.stored,
        "pixel_representation": int(image.signed),
        "photometric_interpretation": image.photometric,
        "pixel_keyword": "PixelData",
    }
    failures: list[RadiographError] = []
    for plugin, data in _attempts(image.syntax, frame):
        try:
            values = _asked(image.syntax, plugin, data, options)
        except RadiographError as error:
            failures.append(error)
            if error.reason == "bomb":
                raise
            continue
        if values.shape[:2] == (image.rows, image.columns):
            return values
        failures.append(RadiographError("corrupt", f"decoded to {values.shape}, which is not what the header says"))
    raise failures[0]


def _attempts(syntax: str, frame: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield decoders and what to give them: the frame, and of JPEG-LS also less of the zeros before its end marker.

    Some encoders leave more of them than belong to the data. A decoder takes it with the right number alone.
    """
    for plugin in DECODERS[syntax]:
        yield plugin, frame
    data = frame[:-2].rstrip(b"\0")
    for zeros in range(min(4, len(frame) - 2 - len(data)) if syntax == JPEG_LS else 0):
        yield DECODERS[syntax][0], data + bytes(zeros) + frame[-2:]


def _asked(syntax: str, plugin: str, frame: bytes, options: dict[str, Any]) -> NDArray[Any]:
    if syntax not in GUARDED:
        return decoded(syntax, plugin, frame, options)
    # Asked for as lossless: pydicom keeps GDCM from 12 bits, which it reads (its values are within 1 of libjpeg's).
    syntax = JPEG_LOSSLESS if syntax == JPEG_12_BITS else syntax
    try:
        return workers.decode(syntax, plugin, frame, options)
    except Refused as error:
        reason = "bomb" if str(error) == "MemoryError" else "corrupt"
        raise RadiographError(reason, f"the decoder gave up ({error})") from None
    except Died as error:
        how = "did not finish" if error.late else "crashed"
        raise RadiographError("undecodable", f"the decoder {how}") from None
    except NotStarted as error:
        raise DecoderUnavailable(f"a process to decode DICOM in can't be started: {error}") from error
