"""PNG (W3C PNG, third edition): taken apart without decoding, then decoded by Pillow from what holds pixels alone.

Chunks are a length, a type, data, and the CRC-32 of type and data. The walker proves checksums and sizes, inflates the
pixels once to count them, and copies what a decoder needs.

Many a 16-bit PNG holds the 8, 10, 12 or 14 bits of a detector as they are: shown so, it is black. Its brightest pixel
says which, unless somebody does (`Limits.png_bits`), and the values are scaled to the whole range. That is safe: a
radiograph of 16 bits that nowhere reaches a quarter of its range would be all but black. Eight bits become an 8-bit
radiograph, which such a file was made of. A 16-bit PNG of ours has a chunk that says so, and is never scaled again.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.raster import (
    Facts,
    Limits,
    Pixels,
    Read,
    check_end,
    check_size,
    exif_orientation,
    grey,
    levels,
    load,
    turn,
    upright,
)

PNG = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"))


@dataclass(frozen=True)
class _Parts:
    width: int
    height: int
    depth: int
    colour: int  # bit 0: palette, bit 1: colour, bit 2: alpha
    orientation: int
    whole_range: bool  # ours: its 16 bits are 16 bits
    stripped: bytes


def _take_apart_png(data: bytes, limits: Limits) -> _Parts:
    """Return the header and a copy with nothing but the chunks that hold pixels. Raises RadiographError."""
    kept, packed, orientation, header, stop = [PNG], list[memoryview](), 1, b"", 0
    whole_range = False
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
            orientation = exif_orientation(content)
        whole_range = whole_range or kind == _WHOLE_RANGE
        if kind in _KEPT:
            kept.append(data[at:stop])
    check_end(data, stop, "PNG")
    _check_inflated(packed, _inflated_size(header))
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    return _Parts(width, height, depth, colour, orientation, whole_range, b"".join(kept))


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
        load(image)
        mode = image.mode
        pixels = upright(_png_grey(image), parts.orientation)
    bits = parts.depth if mode != "P" else 8
    if bits == 16:
        pixels, bits = _scaled(pixels, 16 if parts.whole_range else limits.png_bits)
    return Read(Facts("png", pixels.shape[1], pixels.shape[0], mode, bits), pixels)


def _png_grey(image: PngImageFile) -> Pixels:
    if image.mode == "I;16":
        return _opaque_16(image)
    if image.mode == "L" and "transparency" not in image.info:
        return levels(image)
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        whole = np.asarray(image.convert("RGBA"))
        if (clear := int((whole[..., 3] != 255).sum())) > 0:
            raise RadiographError("transparent", f"{clear:,} pixels are not fully opaque")
        return grey(whole[..., :3])
    return grey(np.asarray(image.convert("RGB")))


def _opaque_16(image: PngImageFile) -> NDArray[np.uint16]:
    pixels = np.asarray(image).astype(np.uint16)
    clear = image.info.get("transparency")
    if clear is not None and (pixels == clear).any():
        raise RadiographError("transparent", "pixels of the transparent grey level")
    return pixels


def _scaled(pixels: Pixels, bits: int) -> tuple[Pixels, int]:
    """Return 16-bit values of `bits` (0: the fewest of 8, 10, 12, 14, 16 that hold the brightest) scaled, and the bits.

    What has 8 bits or fewer is returned as uint8. Raises RadiographError when a pixel is brighter than the bits allow.
    """
    brightest = int(pixels.max())
    bits = bits or next(some for some in (8, 10, 12, 14, 16) if not brightest >> some)
    if brightest >> bits:
        raise RadiographError("wrong-depth", f"a pixel of {brightest:,}, more than the {bits} bits that were said hold")
    if bits == 16:
        return pixels, bits
    top, kind = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    return np.rint(np.arange(1 << bits) * (top / ((1 << bits) - 1))).astype(kind)[pixels], bits


def png_bytes(pixels: Pixels) -> bytes:
    """Encode as greyscale PNG without metadata, 8 or 16 bits as the array has. Equal pixels give equal bytes."""
    out, said = io.BytesIO(), PngInfo()
    if pixels.dtype == np.uint16:
        said.add(_WHOLE_RANGE, b"")
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=_LEVEL, pnginfo=said)
    return out.getvalue()


_WHOLE_RANGE = b"xrWR"

_LEVEL = 4
