"""Bytes to radiograph: JPEG, PNG and DICOM become one 2-D greyscale array, black = air, or are refused by a rule.

Content decides, never a file's name. Each format is first taken apart by a small walker of ours that checks sizes and
structure without decoding anything; a decoder (Pillow's JPEG and PNG plugins, pydicom's pixel decoders) then sees only
the parts that hold pixels: no EXIF, no text chunk, no patient tag. What is stored keeps a JPEG's compressed pixels byte
for byte and is otherwise lossless PNG. `RULES` is every rule there is.

Trade-offs. Colour management is ignored (an ICC profile or gamma chunk is dropped), as training sees grey levels only.
A JPEG of three components is taken at its luminance. libjpeg repairs damaged entropy data silently, so a flipped bit
inside a JPEG's scan is not noticed, while a missing end is. A DICOM image without a window is stretched from its
darkest to its brightest value, as viewers do, unless it has 8 bits. This module travels with the registered model, so
it imports nothing of the package but its errors, and pixels are made by the same code in training and in serving.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
import pydicom.config
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import correct_ambiguous_vr
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import UID

from xray_pipeline.errors import RadiographError

Pixels = NDArray[np.uint8] | NDArray[np.uint16]
Outcome = Literal["quarantined", "normalised"]

# pydicom's warnings quote the value they are about, and a value may name a patient.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


class Rule(NamedTuple):
    """One written rule: its code, whether the file is quarantined or normalised, and the rule in words."""

    code: str
    outcome: Outcome
    text: str


RULES: Final[tuple[Rule, ...]] = (
    Rule("empty", "quarantined", "the file has no bytes"),
    Rule("too-large", "quarantined", "the file is larger than the rules allow; it isn't read"),
    Rule("not-an-image", "quarantined", "the content is not JPEG, PNG or DICOM, whatever the name says"),
    Rule("archive", "quarantined", "archives (zip, tar, gzip, ...) are never unpacked"),
    Rule("executable", "quarantined", "a program, or a DICOM file whose preamble starts as one (MZ, ELF, #!)"),
    Rule("polyglot", "quarantined", "a DICOM file whose preamble makes it a second kind of file"),
    Rule("truncated", "quarantined", "the file ends before its image does"),
    Rule("corrupt", "quarantined", "the file breaks its own format, or its decoder gave up"),
    Rule("trailing-garbage", "quarantined", "bytes follow the end of the image"),
    Rule("bomb", "quarantined", "the header claims more pixels than allowed, or data inflates beyond the size limit"),
    Rule("too-small", "quarantined", "the shorter side has fewer pixels than the rules ask for"),
    Rule("extreme-aspect", "quarantined", "the longer side is too many times the shorter one"),
    Rule("unsupported-jpeg", "quarantined", "a JPEG process viewers don't share (lossless, arithmetic, 12 bits, ...)"),
    Rule("cmyk", "quarantined", "four-component (printing) JPEG"),
    Rule("coloured", "quarantined", "over 0.1 % of the pixels are visibly coloured, palettes included"),
    Rule("deep-colour", "quarantined", "16 bits with colour or alpha channels; grey levels would be lost"),
    Rule("bilevel", "quarantined", "one bit per pixel"),
    Rule("transparent", "quarantined", "a pixel is not fully opaque"),
    Rule("animated", "quarantined", "animated PNG"),
    Rule("blank", "quarantined", "every pixel has the same value"),
    Rule("no-pixels", "quarantined", "DICOM without pixel data (report, directory, plan, ...)"),
    Rule("multi-frame", "quarantined", "DICOM of several frames"),
    Rule("colour-dicom", "quarantined", "DICOM that is not MONOCHROME1 or MONOCHROME2"),
    Rule("unsupported-pixels", "quarantined", "DICOM pixels of other than 8 or 16 allocated bits, or floating point"),
    Rule("unsupported-transfer-syntax", "quarantined", "DICOM encoding not named, or one we have no decoder for"),
    Rule("wrong-modality", "quarantined", "DICOM Modality is given and is no projection radiograph's"),
    Rule("lateral-view", "quarantined", "DICOM view is given as lateral or oblique"),
    Rule("not-chest", "quarantined", "DICOM BodyPartExamined is given and is not the chest"),
    Rule("not-human", "quarantined", "DICOM names a species other than human"),
    Rule("for-processing", "quarantined", "DICOM presentation intent is FOR PROCESSING: raw detector data"),
    Rule("burned-in-annotation", "quarantined", "DICOM BurnedInAnnotation is YES: text of a patient may be visible"),
    Rule("metadata", "normalised", "EXIF, ICC, comments, text and every DICOM tag are left out of what is stored"),
    Rule("jpeg-kept", "normalised", "an upright grey JPEG keeps its compressed pixels byte for byte"),
    Rule("grey-colour", "normalised", "colour files of grey images become grey (JPEG: the luminance)"),
    Rule("grey-palette", "normalised", "a palette of greys becomes grey"),
    Rule("opaque-alpha", "normalised", "a fully opaque alpha channel is dropped"),
    Rule("orientation", "normalised", "EXIF orientation is applied; a turned JPEG becomes PNG"),
    Rule("depth", "normalised", "16 bits are kept; DICOM of over 8 bits stored becomes 16-bit PNG, others 8-bit"),
    Rule("display", "normalised", "DICOM: modality LUT or rescale, then VOI LUT or window, else darkest to brightest"),
    Rule("monochrome1", "normalised", "DICOM MONOCHROME1 is inverted, so that black is air"),
    Rule("padding", "normalised", "DICOM pixel padding is shown black and does not count for the brightness range"),
)


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
    hashed at once and never logged. `age_years` is whole years above 2, at most 90, None when unknown.
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
class Normalised:
    """A radiograph ready to store: `data` (".jpg" or ".png"), its SHA-256, facts, and pixels (H, W)."""

    data: bytes
    suffix: str
    digest: str
    facts: Facts
    pixels: Pixels


@dataclass(frozen=True)
class _Read:
    """Pixels and facts of any image; `jpeg` is the stripped JPEG when its compressed pixels can be kept."""

    facts: Facts
    pixels: Pixels
    jpeg: bytes = b""


def sniff(data: bytes) -> str | None:
    """Return "jpeg", "png" or "dicom" by content alone, else None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(_PNG):
        return "png"
    if data[128:132] == b"DICM":
        return "dicom"
    return None


def normalise(data: bytes, limits: Limits) -> Normalised:
    """Return the radiograph that a file holds, as it is stored. The same bytes always give the same result.

    Raises RadiographError with one of the quarantined `RULES`; the detail holds no patient data.
    """
    read = _read(data, limits)
    stored = read.jpeg or _png_bytes(read.pixels)
    suffix = ".jpg" if read.jpeg else ".png"
    return Normalised(stored, suffix, hashlib.sha256(stored).hexdigest(), read.facts, read.pixels)


def decode(data: bytes) -> Pixels:
    """Return the pixels (H, W), uint8 or uint16, of a stored radiograph: what `normalise` gave as `data`.

    Raises RadiographError when the bytes are no such thing.
    """
    return _read(data, _NO_LIMITS).pixels


def square(pixels: Pixels, side: int) -> NDArray[np.uint8]:
    """Return pixels (H, W) squashed to (side, side) uint8, antialiased (bilinear, support scaled by the reduction).

    16 bits become 8 by rounding v / 257. Kermany's 224-pixel files are nearest to this filter of all Pillow has.
    """
    shallow = pixels if pixels.dtype == np.uint8 else _TO_8_BITS[pixels]
    if shallow.shape == (side, side):
        return np.array(shallow)
    image = Image.fromarray(np.ascontiguousarray(shallow))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def load(data: bytes, limits: Limits, side: int) -> NDArray[np.uint8]:
    """Return any image file as the (side, side) uint8 that a model sees; equal for a file and its stored radiograph.

    Raises RadiographError as `normalise` does.
    """
    return square(_read(data, limits).pixels, side)


_PNG = b"\x89PNG\r\n\x1a\n"
_NO_LIMITS = Limits(max_file_bytes=1 << 62, max_pixels=1 << 62, min_side=1, max_aspect=float("inf"))
_TO_8_BITS: Final = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)
_LARGE_PIXELS = 16_000_000
_large_turn = threading.Lock()


def _read(data: bytes, limits: Limits) -> _Read:
    if not data:
        raise RadiographError("empty", "the file has no bytes")
    if len(data) > limits.max_file_bytes:
        raise RadiographError("too-large", f"{len(data):,} bytes, {limits.max_file_bytes:,} allowed")
    reader = {"jpeg": _read_jpeg, "png": _read_png, "dicom": _read_dicom}.get(sniff(data) or "", _refuse)
    try:
        read = reader(data, limits)
    except RadiographError:
        raise
    except MemoryError:
        raise RadiographError("bomb", "decoding ran out of memory") from None
    # Decoders meet hostile bytes here and raise what they like; their words may quote a patient's, so none are kept.
    except Exception as error:
        raise RadiographError("corrupt", f"the decoder gave up ({type(error).__name__})") from None
    if read.pixels.min() == read.pixels.max():
        raise RadiographError("blank", f"every pixel is {int(read.pixels.flat[0])}")
    return read


def _refuse(data: bytes, limits: Limits) -> _Read:
    kind, name = _looks_like(data)
    raise RadiographError(kind, f"not JPEG, PNG or DICOM; the content looks like {name}")


_MAGIC: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"MZ", "executable", "a Windows program"),
    (b"\x7fELF", "executable", "a Linux program"),
    (b"#!", "executable", "a script"),
    (b"\xca\xfe\xba\xbe", "executable", "a Java class or macOS program"),
    (b"\xcf\xfa\xed\xfe", "executable", "a macOS program"),
    (b"PK\x03\x04", "archive", "a zip archive or Office document"),
    (b"PK\x05\x06", "archive", "an empty zip archive"),
    (b"\x1f\x8b", "archive", "gzip"),
    (b"BZh", "archive", "bzip2"),
    (b"\xfd7zXZ\0", "archive", "xz"),
    (b"7z\xbc\xaf\x27\x1c", "archive", "7-Zip"),
    (b"Rar!", "archive", "RAR"),
    (b"\x28\xb5\x2f\xfd", "archive", "Zstandard"),
    (b"GIF8", "not-an-image", "GIF"),
    (b"BM", "not-an-image", "BMP"),
    (b"II*\0", "not-an-image", "TIFF"),
    (b"MM\0*", "not-an-image", "TIFF"),
    (b"II+\0", "not-an-image", "BigTIFF"),
    (b"RIFF", "not-an-image", "WebP or another RIFF file"),
    (b"\0\0\0\x0cjP  ", "not-an-image", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "not-an-image", "JPEG 2000"),
    (b"%!PS", "not-an-image", "PostScript (EPS)"),
    (b"\xc5\xd0\xd3\xc6", "not-an-image", "PostScript (EPS)"),
    (b"%PDF", "not-an-image", "PDF"),
    (b"SIMPLE  =", "not-an-image", "FITS"),
    (b"SQLite", "not-an-image", "SQLite"),
    (b"\x80\x04", "not-an-image", "a Python pickle"),
)
_TIFF = ("TIFF", "BigTIFF")  # modalities write a TIFF header into the preamble, as PS3.10 7.1 lets them
_MARKUP = (
    (re.compile(rb"<svg[\s>]", re.I), "SVG"),
    (re.compile(rb"<(!doctype\s+html|html|head|body)[\s>]", re.I), "HTML"),
    (re.compile(rb"<\?xml|<!doctype", re.I), "XML"),
)


def _looks_like(data: bytes) -> tuple[str, str]:
    """Return (reason code, name) of content that is none of the three formats."""
    for magic, code, name in _MAGIC:
        if data.startswith(magic):
            return code, name
    if data[257:262] == b"ustar":
        return "archive", "a tar archive"
    start = data[:2048]
    for pattern, name in _MARKUP:
        if pattern.search(start):
            return "not-an-image", name
    if start[:1] == b"\x08" and start[1:2] == b"\0":
        return "not-an-image", "DICOM without its Part 10 preamble; export it again as a DICOM file"
    if start[4:8] == b"ftyp":
        return "not-an-image", "HEIF, AVIF or MP4"
    if not start.strip(b"\0"):
        return "not-an-image", "nothing but zeros"
    if all(byte in _PRINTABLE for byte in start):
        return "not-an-image", "text"
    return "not-an-image", "no format we know"


_PRINTABLE = frozenset((*range(0x20, 0x100), 9, 10, 13)) - {0x7F}


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise RadiographError("corrupt", f"the header says {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise RadiographError("bomb", f"the header says {width} x {height} pixels, {limits.max_pixels:,} allowed")
    short, long = sorted((width, height))
    if short < limits.min_side:
        raise RadiographError("too-small", f"{width} x {height} pixels, at least {limits.min_side} a side wanted")
    if long > limits.max_aspect * short:
        raise RadiographError("extreme-aspect", f"{width} x {height} pixels, at most {limits.max_aspect:g} : 1 wanted")


def _turn(width: int, height: int) -> contextlib.AbstractContextManager[object]:
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


def _png_bytes(pixels: Pixels) -> bytes:
    """Encode as greyscale PNG without metadata, 8 or 16 bits as the array has. Equal pixels give equal bytes."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=_PNG_LEVEL)
    return out.getvalue()


_PNG_LEVEL = 4


# JPEG (ITU-T T.81). Segments: FF, marker, length of two bytes, payload; entropy-coded data follows each SOS.

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
_APPLICATION = frozenset((*range(0xE0, 0xF0), 0xFE))  # and comments
_RESTART_INTERVAL = 0xDD
_TABLES = frozenset((0xC4, 0xDB, _RESTART_INTERVAL))  # Huffman and quantisation tables
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SHARED_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # baseline, extended sequential, progressive; Huffman coded
_MAX_SCANS = 64


class _Frame(NamedTuple):
    marker: int
    bits: int
    height: int
    width: int
    components: bytes  # their identifiers


def _frame(marker: int, payload: bytes) -> _Frame:
    if len(payload) < 6 or len(payload) < 6 + 3 * payload[5]:
        raise RadiographError("corrupt", "the JPEG frame header is too short")
    bits, height, width, count = struct.unpack(">BHHB", payload[:6])
    return _Frame(marker, bits, height, width, payload[6 : 6 + 3 * count : 3])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of each segment, marker included; an SOS takes its entropy-coded data with it."""
    at = 2
    while True:
        if at + 4 > len(data) and data[at : at + 2] != b"\xff\xd9":
            raise RadiographError("truncated", "the JPEG has no end marker")
        if data[at] != 0xFF:
            raise RadiographError("corrupt", f"no JPEG marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == _EOI:
            yield marker, at, at + 2
            return
        if marker < 0xC0 or 0xD0 <= marker <= _SOI:
            raise RadiographError("corrupt", f"JPEG marker {marker:02X} at byte {at} is out of place")
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        stop = at + 2 + length
        if length < 2 or stop > len(data):
            raise RadiographError("corrupt" if length < 2 else "truncated", f"a JPEG segment of {length} bytes")
        if marker == _SOS:
            found = _JPEG_MARKER.search(data, stop)
            if found is None:
                raise RadiographError("truncated", "the JPEG has no end marker")
            stop = found.start()
        yield marker, at, stop
        at = stop


@dataclass(frozen=True)
class _Jpeg:
    frame: _Frame
    colours: Literal["grey", "ycc", "rgb"]
    orientation: int
    stripped: bytes


def _take_apart_jpeg(data: bytes, limits: Limits) -> _Jpeg:
    """Return the headers and a copy without application and comment segments. Raises RadiographError."""
    kept, application, frame, scans, stop = [b"\xff\xd8"], list[tuple[int, bytes]](), None, 0, 2
    for marker, at, stop in _segments(data):
        if marker in _APPLICATION:
            application.append((marker, data[at + 4 : stop]))
            continue
        if marker in _FRAMES and frame is None:
            frame = _shared_frame(_frame(marker, data[at + 4 : stop]), limits)
        elif marker == _SOS and frame is not None and scans < _MAX_SCANS:
            scans += 1
        elif marker not in _TABLES and marker != _EOI:
            raise _misplaced(marker)
        kept.append(data[at:stop])
    if stop != len(data):
        raise RadiographError("trailing-garbage", f"{len(data) - stop:,} bytes follow the end of the JPEG")
    if frame is None or not scans:
        raise RadiographError("corrupt", "the JPEG has no image")
    exif = next((body[6:] for marker, body in application if marker == _APP1 and body.startswith(b"Exif\0\0")), b"")
    return _Jpeg(frame, _colours(frame, application), _orientation(exif), b"".join(kept))


def _misplaced(marker: int) -> RadiographError:
    if marker in _FRAMES:
        return RadiographError("corrupt", "the JPEG has two frame headers")
    if marker == _SOS:
        return RadiographError("corrupt", f"the JPEG has a scan before its frame header, or over {_MAX_SCANS} scans")
    return RadiographError("unsupported-jpeg", f"JPEG marker {marker:02X}")


def _shared_frame(frame: _Frame, limits: Limits) -> _Frame:
    if frame.marker not in _SHARED_FRAMES or frame.bits != 8:
        raise RadiographError("unsupported-jpeg", f"JPEG process SOF{frame.marker - 0xC0} of {frame.bits} bits")
    if len(frame.components) == 4:
        raise RadiographError("cmyk", "four colour components; save the radiograph as grey")
    if len(frame.components) not in (1, 3):
        raise RadiographError("unsupported-jpeg", f"{len(frame.components)} colour components")
    _check_size(frame.width, frame.height, limits)
    return frame


def _colours(frame: _Frame, application: list[tuple[int, bytes]]) -> Literal["grey", "ycc", "rgb"]:
    """Tell YCbCr from RGB as libjpeg does (jdapimin.c, default_decompress_parms)."""
    if len(frame.components) == 1:
        return "grey"
    if any(marker == _APP0 and body.startswith(b"JFIF\0") for marker, body in application):
        return "ycc"
    for marker, body in reversed(application):
        if marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
            return "rgb" if body[11] == 0 else "ycc"
    return "rgb" if frame.components == b"RGB" else "ycc"


def _read_jpeg(data: bytes, limits: Limits) -> _Read:
    jpeg = _take_apart_jpeg(data, limits)
    width, height = jpeg.frame.width, jpeg.frame.height
    mode = "L" if jpeg.colours == "grey" else "RGB"
    # Without its JFIF and Adobe segments a decoder tells colours by the components' names alone.
    keeps_colours = jpeg.colours != "rgb" and jpeg.frame.components != b"RGB"
    with _turn(width, height):
        if keeps_colours:
            pixels = _luminance(jpeg.stripped, grey=mode == "L")
        else:
            image = JpegImageFile(io.BytesIO(data))
            _loaded(image)
            pixels = _grey(np.asarray(image.convert("RGB")))
        if keeps_colours and jpeg.orientation == 1:
            return _Read(Facts("jpeg", width, height, mode, 8), pixels, jpeg.stripped)
        upright = _upright(pixels, jpeg.orientation)
        return _Read(Facts("jpeg", upright.shape[1], upright.shape[0], mode, 8), upright)


def _luminance(stripped: bytes, *, grey: bool) -> NDArray[np.uint8]:
    """Decode a stripped JPEG's grey levels; of three components the chroma is checked to be grey."""
    image = JpegImageFile(io.BytesIO(stripped))
    if grey:
        _loaded(image)
        return np.asarray(image)
    image.draft("YCbCr", image.size)
    _loaded(image)
    luminance, blue, red = (np.asarray(band) for band in image.split())
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
    kept, orientation, header, stop = [_PNG], 1, b"", 0
    for kind, at, stop in _chunks(data):
        content = data[at + 8 : stop - 4]
        if (kind == b"IHDR") == bool(header):
            raise RadiographError("corrupt", "the PNG does not start with its one header")
        if kind == b"IHDR":
            header = _png_header(content, limits)
        elif kind == b"acTL":
            raise RadiographError("animated", "an animated PNG")
        elif kind == b"eXIf":
            orientation = _orientation(content)
        if kind in _PNG_KEPT:
            kept.append(data[at:stop])
    if stop != len(data):
        raise RadiographError("trailing-garbage", f"{len(data) - stop:,} bytes follow the end of the PNG")
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    return _PngParts(width, height, depth, colour, orientation, b"".join(kept))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, stop) of each chunk up to the end chunk, its checksum proven."""
    at, kind = len(_PNG), b""
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
    _check_size(width, height, limits)
    if depth == 16 and colour != 0:
        raise RadiographError("deep-colour", "16-bit PNG with colour or alpha; save it as 16-bit grey")
    if depth == 1 and colour == 0:
        raise RadiographError("bilevel", "one bit per pixel")
    return header


def _read_png(data: bytes, limits: Limits) -> _Read:
    parts = _take_apart_png(data, limits)
    with _turn(parts.width, parts.height):
        image = PngImageFile(io.BytesIO(parts.stripped))
        _loaded(image)
        mode = image.mode
        pixels = _upright(_png_grey(image), parts.orientation)
    bits = parts.depth if mode != "P" else 8
    return _Read(Facts("png", pixels.shape[1], pixels.shape[0], mode, bits), pixels)


def _png_grey(image: PngImageFile) -> Pixels:
    if image.mode == "I;16":
        return _opaque_16(image)
    if image.mode == "L" and "transparency" not in image.info:
        return np.asarray(image)
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

_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_ITEM = 0xFFFEE000
_MAX_ELEMENTS, _MAX_DEPTH, _MAX_LUT_BYTES = 100_000, 64, 1 << 20
_PIXEL_DATA = 0x7FE00010
_DEFLATED, _IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_JPEG_LOSSLESS = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_RLE = "1.2.840.10008.1.2.5"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_NATIVE = frozenset((_IMPLICIT, _EXPLICIT, _BIG_ENDIAN, _DEFLATED))
# One decoder each, and of those there are the one that held up best against damaged data.
_DECODERS: Final = {
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    _JPEG_EXTENDED: "pillow",
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "gdcm",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "pyjpegls",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "pillow",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": "pillow",  # JPEG 2000
    _RLE: "pydicom",
}


class _Element(NamedTuple):
    start: int  # of the element
    value: int  # of its value
    stop: int  # of its value
    encapsulated: bool  # undefined length


class _Walk:
    """The top-level elements of a data set, found without reading values: flat, counted, and of bounded depth."""

    def __init__(self, data: bytes, at: int, *, implicit: bool, little: bool, meta: bool = False) -> None:
        self.data, self.stop, self.implicit, self.little = data, at, implicit, little
        self.elements: dict[int, _Element] = {}
        self._order = "<" if little else ">"
        self._nested_implicit = implicit
        self._around: list[bool] = []  # for each open sequence or item: whether what encloses it has implicit VRs
        self._top = (0, 0, 0)  # tag, start and start of value of the last top-level element
        self._walk(meta)

    def _walk(self, meta: bool) -> None:
        head = struct.Struct(self._order + "HH2sH")
        for _ in range(_MAX_ELEMENTS):
            if self.stop >= len(self.data):
                break
            if self.stop + 8 > len(self.data):
                raise self._broken("the DICOM file ends inside an element", "truncated")
            group, number, vr, short = head.unpack_from(self.data, self.stop)
            if group == 0xFFFE and number != 0xE000:
                self._close(number)
            elif meta and group != 2 and not self._around:
                return
            else:
                self._enter(group << 16 | number, vr, short)
        else:
            raise RadiographError("corrupt", f"over {_MAX_ELEMENTS:,} DICOM elements")
        if self._around:
            raise self._broken("the DICOM file ends inside a sequence", "truncated")

    def _enter(self, tag: int, vr: bytes, short: int) -> None:
        """Step over an element or item, or into it when its length is undefined."""
        size, body = self._length(tag, vr, short)
        if not self._around:
            if tag == _ITEM or (self._top[0] >= _PIXEL_DATA and tag <= self._top[0]):
                raise self._broken("elements out of order")
            self._top = (tag, self.stop, body)
        if size == _UNDEFINED:
            if len(self._around) >= _MAX_DEPTH:
                raise RadiographError("corrupt", f"DICOM sequences nested over {_MAX_DEPTH} deep")
            self._around.append(self._nested_implicit)
            self._nested_implicit = self._nested_implicit or vr == b"UN"  # PS3.5 6.2.2 note 2
            self.stop = body
            return
        if body + size > len(self.data):
            raise self._broken(f"a DICOM element claims {size:,} bytes, more than there are", "truncated")
        self.stop = body + size
        if not self._around:
            self.elements[tag] = _Element(*self._top[1:], self.stop, False)

    def _close(self, number: int) -> None:
        """Step out of a sequence or item at its delimiter."""
        if not self._around or number not in (0xE00D, 0xE0DD):
            raise self._broken("a DICOM delimiter out of place")
        self._nested_implicit = self._around.pop()
        if not self._around:
            self.elements[self._top[0]] = _Element(*self._top[1:], self.stop, True)
        self.stop += 8

    def _length(self, tag: int, vr: bytes, short: int) -> tuple[int, int]:
        """Return (length of the value, where it starts)."""
        if self._nested_implicit or tag == _ITEM:
            return int(struct.unpack_from(self._order + "I", self.data, self.stop + 4)[0]), self.stop + 8
        if vr in _LONG_VRS:
            if self.stop + 12 > len(self.data):
                raise self._broken("the DICOM file ends inside an element", "truncated")
            return int(struct.unpack_from(self._order + "I", self.data, self.stop + 8)[0]), self.stop + 12
        if not (vr.isalpha() and vr.isupper()):
            raise self._broken(f"no DICOM value representation at byte {self.stop}")
        return short, self.stop + 8

    def _broken(self, detail: str, reason: str = "corrupt") -> RadiographError:
        """What does not parse after the pixels is something appended."""
        if _PIXEL_DATA in self.elements:
            return RadiographError("trailing-garbage", f"bytes that are no DICOM follow the pixels ({detail})")
        return RadiographError(reason, detail)

    def raw(self, tag: int) -> bytes:
        """Return a top-level value, b"" when absent."""
        found = self.elements.get(tag)
        return self.data[found.value : found.stop] if found else b""

    def text(self, tag: int) -> str:
        """Return a short text value, stripped, upper case: fit to compare, not to show."""
        return self.raw(tag)[:1024].decode("latin-1").strip(" \0").upper()

    def number(self, tag: int, default: int = 0) -> int:
        """Return an unsigned 16-bit value."""
        value = self.raw(tag)
        return int(struct.unpack(self._order + "H", value[:2])[0]) if len(value) >= 2 else default


class _Image(NamedTuple):
    """The Image Pixel module (PS3.3 C.7.6.3)."""

    syntax: str
    rows: int
    columns: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    photometric: str


def _read_dicom(data: bytes, limits: Limits) -> _Read:
    for magic, code, name in _MAGIC:
        if data.startswith(magic) and name not in _TIFF:
            reason = code if code == "executable" else "polyglot"
            raise RadiographError(reason, f"the preamble makes the DICOM file {name} as well")
    syntax, tags = _data_set(data, limits)
    if _PIXEL_DATA not in tags.elements:
        deep = 0x7FE00008 in tags.elements or 0x7FE00009 in tags.elements
        reason = "unsupported-pixels" if deep else "no-pixels"
        raise RadiographError(reason, "floating-point pixels" if deep else "the DICOM file holds no image")
    _check_tags(tags)
    image = _image(syntax, tags, limits)
    with _turn(image.columns, image.rows):
        stored = _stored_values(image, tags)
        pixels = _displayed(image, stored, tags)
    facts = Facts(
        "dicom",
        image.columns,
        image.rows,
        image.photometric,
        image.stored,
        patient_id=tags.raw(0x00100020)[:1024].decode("latin-1").strip(" \0"),
        view=tags.text(0x00185101)[:16],
        sex=tags.text(0x00100040)[:1] if tags.text(0x00100040)[:1] in ("M", "F", "O") else "",
        age_years=_age(tags),
        scanner=_scanner(tags),
    )
    return _Read(facts, pixels)


def _data_set(data: bytes, limits: Limits) -> tuple[str, _Walk]:
    meta = _Walk(data, 132, implicit=False, little=True, meta=True)
    syntax = meta.text(0x00020010)
    if syntax not in _NATIVE and syntax not in _DECODERS:
        shown = syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "none that is valid"
        raise RadiographError("unsupported-transfer-syntax", f"transfer syntax: {shown}")
    if syntax != _DEFLATED:
        return syntax, _Walk(data, meta.stop, implicit=syntax == _IMPLICIT, little=syntax != _BIG_ENDIAN)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(memoryview(data)[meta.stop :], limits.max_file_bytes)
    if inflater.unconsumed_tail:
        raise RadiographError("bomb", f"deflated DICOM grows beyond {limits.max_file_bytes:,} bytes")
    if not inflater.eof:
        raise RadiographError("truncated", "the deflated DICOM data ends early")
    checksum = struct.pack("<II", zlib.crc32(inflated), len(inflated) & 0xFFFFFFFF)  # some toolkits add gzip's
    if inflater.unused_data.removeprefix(checksum).strip(b"\0"):
        raise RadiographError("trailing-garbage", "bytes follow the deflated DICOM data")
    return syntax, _Walk(inflated, 0, implicit=False, little=True)


_RADIOGRAPHY = frozenset(("", "CR", "DX", "RG", "RF", "OT", "SC"))
# Shown in messages; any other value stays out of them, as anything may have been typed there.
_OTHER_MODALITIES = frozenset(("CT", "MR", "US", "NM", "PT", "MG", "XA", "ES", "SM", "SR", "SEG", "PX", "IO", "ECG"))
_COLOUR = frozenset(("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"))
_CHEST = re.compile(r"CHEST|THORA|LUNG|^$")
_SIDE_ON = re.compile(r"\b(LL|RL|LLD|RLD|LAT|LATERAL|LLO|RLO|LAO|RAO|LPO|RPO|OBLIQUE)\b")
_FRONTAL = re.compile(r"\b(AP|PA|FRONTAL)\b")
_ANIMAL = re.compile(r"\b(CANINE|FELINE|EQUINE|VETERINARY|DOG|CAT|HORSE)\b")


def _check_tags(tags: _Walk) -> None:
    """Raise RadiographError when a tag says that this is not a frontal chest radiograph for viewing."""
    if (frames := _whole(tags.text(0x00280008))) not in (None, 1):
        raise RadiographError("multi-frame", f"{frames} frames")
    if tags.number(0x00280002, 1) != 1 or tags.text(0x00280004) not in ("MONOCHROME1", "MONOCHROME2"):
        kind = tags.text(0x00280004)
        shown = kind if kind in _COLOUR else "not MONOCHROME1 or MONOCHROME2"
        raise RadiographError("colour-dicom", f"photometric interpretation is {shown}")
    if (modality := tags.text(0x00080060)) not in _RADIOGRAPHY:
        shown = modality if modality in _OTHER_MODALITIES else "none we know"
        raise RadiographError("wrong-modality", f"modality is {shown}; a projection radiograph is CR or DX")
    if tags.text(0x00080068) == "FOR PROCESSING":
        raise RadiographError("for-processing", "raw detector data; send the image for presentation")
    if tags.text(0x00280301) == "YES":
        raise RadiographError("burned-in-annotation", "the modality says that text is burned into the image")
    if not _CHEST.search(tags.text(0x00180015)):
        raise RadiographError("not-chest", "body part examined is given, and is not the chest")
    described = " ".join(tags.text(tag) for tag in (0x00181400, 0x0008103E, 0x00181030)).replace("_", " ")
    species = tags.text(0x00102201)
    if (species and not species.startswith("HOM")) or _ANIMAL.search(described):
        raise RadiographError("not-human", "the species is given, and is not human")
    view = tags.text(0x00185101).replace("_", " ")
    if _SIDE_ON.search(view) or (not view and _SIDE_ON.search(described) and not _FRONTAL.search(described)):
        raise RadiographError("lateral-view", "the view is given as lateral or oblique")


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _age(tags: _Walk) -> float | None:
    """Return years from Patient's Age (PS3.5: nnnD, nnnW, nnnM, nnnY; bare numbers are years), else from two dates.

    Whole years, from 2 on; over 89 becomes 90 (HIPAA Safe Harbor, 45 CFR 164.514(b)(2)(i)(C)).
    """
    found = re.fullmatch(r"(\d{1,3})([DWMY]?)", tags.text(0x00101010))
    if found:
        years = int(found[1]) / {"D": 365.25, "W": 52.18, "M": 12}.get(found[2], 1)
    else:
        born, seen = (re.fullmatch(r"(\d{4})(\d\d)(\d\d)", tags.text(tag)) for tag in (0x00100030, 0x00080020))
        if not born or not seen:
            return None
        (y0, m0, d0), (y1, m1, d1) = (tuple(map(int, date.groups())) for date in (born, seen))
        years = y1 - y0 + (m1 - m0) / 12 + (d1 - d0) / 365.25
    if not 0 <= years < 150:
        return None
    return min(float(int(years)), 90.0) if years >= 2 else round(years, 2)


def _scanner(tags: _Walk) -> str:
    """Return manufacturer and model, printable ASCII, at most 64 characters."""
    words = (tags.raw(tag)[:64].decode("ascii", "ignore") for tag in (0x00080070, 0x00081090))
    return " ".join(re.sub(r"[^ -~]", "", " ".join(words)).split())[:64]


def _image(syntax: str, tags: _Walk, limits: Limits) -> _Image:
    """Return the checked Image Pixel module. Raises RadiographError."""
    rows, columns = tags.number(0x00280010), tags.number(0x00280011)
    allocated = tags.number(0x00280100)
    stored = tags.number(0x00280101, allocated)
    high_bit = tags.number(0x00280102, stored - 1)
    _check_size(columns, rows, limits)
    if allocated not in (8, 16):
        raise RadiographError("unsupported-pixels", f"{allocated} bits allocated per pixel; 8 and 16 are supported")
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise RadiographError("corrupt", f"{stored} bits stored, high bit {high_bit}, in {allocated} allocated")
    if syntax == _JPEG_EXTENDED and stored > 8:
        raise RadiographError("unsupported-transfer-syntax", f"JPEG Extended of {stored} bits; 8 are supported")
    if stored == 1:
        raise RadiographError("bilevel", "one bit stored per pixel")
    signed = tags.number(0x00280103) == 1
    return _Image(syntax, rows, columns, allocated, stored, high_bit, signed, tags.text(0x00280004))


def _stored_values(image: _Image, tags: _Walk) -> NDArray[np.int32]:
    """Return the stored values (rows, columns) as DICOM means them: unused bits masked, signs extended."""
    if image.syntax in _NATIVE:
        raw, size = tags.raw(_PIXEL_DATA), image.rows * image.columns * (image.allocated // 8)
        if tags.elements[_PIXEL_DATA].encapsulated:
            raise RadiographError("corrupt", "encapsulated pixels in an uncompressed DICOM file")
        if len(raw) < size:
            raise RadiographError("truncated", f"{len(raw):,} bytes of pixels, {size:,} needed")
        # PS3.5 6.2: big-endian 8-bit pixels in words of 16 bits come in swapped pairs.
        kind = np.dtype(f"{'<' if tags.little else '>'}u{image.allocated // 8}")
        flat = np.frombuffer(raw[:size], kind)
        if image.allocated == 8 and not tags.little and _vr(tags) == b"OW":
            flat = np.frombuffer(raw[: size + size % 2], ">u2").astype("<u2").view(np.uint8)[:size]
        return _meant(flat.reshape(image.rows, image.columns), image)
    frame = _compressed_frame(image, tags)
    values = _decompressed(image, frame)
    if values.shape != (image.rows, image.columns):
        raise RadiographError("corrupt", f"decoded to {values.shape}, the header says {(image.rows, image.columns)}")
    return _meant(values, image) if image.syntax == _RLE else values.astype(np.int32)


def _vr(tags: _Walk) -> bytes:
    start = tags.elements[_PIXEL_DATA].start
    return tags.data[start + 4 : start + 6]


def _meant(values: NDArray[Any], image: _Image) -> NDArray[np.int32]:
    """Take `stored` bits up to the high bit out of each cell (PS3.5 8.1.1)."""
    cells = values.astype(np.int32) & ((1 << image.allocated) - 1)
    cells >>= image.high_bit + 1 - image.stored
    cells &= (1 << image.stored) - 1
    if image.signed:
        sign = 1 << (image.stored - 1)
        cells = (cells ^ sign) - sign
    return cells


def _compressed_frame(image: _Image, tags: _Walk) -> bytes:
    """Join the fragments of the one frame (PS3.5 A.4) and check its own header against the data set's."""
    element = tags.elements[_PIXEL_DATA]
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
        _check_rle(frame, image)
        return frame
    if image.syntax in _JPEG_LOSSLESS:
        frame = _plain_lossless(frame, image)
    rows, columns, samples = _codestream_size(frame)
    if (rows, columns, samples) != (image.rows, image.columns, 1):
        raise RadiographError(
            "corrupt", f"compressed image of {columns} x {rows} x {samples}, header says {image.columns} x {image.rows}"
        )
    return frame


def _codestream_size(frame: bytes) -> tuple[int, int, int]:
    """Return (rows, columns, samples) from the header of a JPEG, JPEG-LS or JPEG 2000 codestream."""
    if frame.startswith(b"\xff\xd8"):
        for marker, at, stop in _segments(frame):
            if marker in _FRAMES or marker == 0xF7:  # SOF55: JPEG-LS
                found = _frame(marker, frame[at + 4 : stop])
                return found.height, found.width, len(found.components)
            if marker == _SOS:
                break
        raise RadiographError("corrupt", "the compressed image has no frame header")
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(frame) < at + 42:
        raise RadiographError("corrupt", "the compressed image is neither JPEG nor JPEG 2000")
    # ITU-T T.800 A.5.1: Rsiz, image size and offset, tile size and offset, components.
    _, x1, y1, x0, y0, tile_x, tile_y, _, _, samples = struct.unpack_from(">HIIIIIIIIH", frame, at + 6)
    if not tile_x or not tile_y or (x1 // tile_x + 1) * (y1 // tile_y + 1) > 65_535:
        raise RadiographError("corrupt", "the JPEG 2000 image has no sensible tiles")
    return y1 - y0, x1 - x0, samples


def _plain_lossless(frame: bytes, image: _Image) -> bytes:
    """Return a lossless JPEG (ITU-T T.81, process 14) with nothing in it that GDCM's decoder does not survive."""
    kept, headers, scans = [b"\xff\xd8"], 0, 0
    for marker, at, stop in _segments(frame):
        payload = frame[at + 4 : stop]
        if marker == 0xC3:
            headers += 1
            found = _frame(marker, payload)
            if not 2 <= found.bits <= image.allocated or len(found.components) != 1 or payload[7] != 0x11:
                raise RadiographError("corrupt", f"lossless JPEG of {found.bits} bits")
        elif marker == 0xC4:
            _check_huffman(payload)
        elif marker == _SOS:
            scans += 1
            if (
                len(payload) < 6
                or payload[0] != 1
                or not 1 <= payload[3] <= 7
                or payload[4]
                or payload[5] >= image.stored
            ):
                raise RadiographError("corrupt", "lossless JPEG with a scan of another kind")
        elif marker in _APPLICATION:
            continue
        elif marker not in (_EOI, _RESTART_INTERVAL):
            raise RadiographError("corrupt", f"lossless JPEG with marker {marker:02X}")
        kept.append(frame[at:stop])
    if (headers, scans) != (1, 1):
        raise RadiographError("corrupt", "lossless JPEG without exactly one image")
    return b"".join(kept)


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


def _check_rle(frame: bytes, image: _Image) -> None:
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


def _decompressed(image: _Image, frame: bytes) -> NDArray[Any]:
    padded = frame + b"\0" * (len(frame) % 2)
    buffer = struct.pack("<III", 0xE000FFFE, 0, 0xE000FFFE) + struct.pack("<I", len(padded)) + padded
    buffer += struct.pack("<II", 0xE0DDFFFE, 0)
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
    plugin = _DECODERS[image.syntax]
    values, _ = get_decoder(image.syntax).as_array(buffer, raw=True, decoding_plugin=plugin, **options)
    return values


def _displayed(image: _Image, stored: NDArray[np.int32], tags: _Walk) -> Pixels:
    """Return what a viewer shows, black = air: 8 bits for up to 8 stored, else 16, over the whole output range."""
    padding = _padding(image, tags)
    is_padding = (stored >= padding[0]) & (stored <= padding[1]) if padding else None
    shown = stored[~is_padding] if is_padding is not None and not is_padding.all() else stored
    low, high = int(shown.min()), int(shown.max())
    top = 255 if image.stored <= 8 else 65535
    ramp = _display_ramp(image, tags, low, high)
    levels = np.rint(np.clip(ramp, 0, 1) * top).astype(np.uint8 if top == 255 else np.uint16)
    if image.photometric == "MONOCHROME1":
        levels = top - levels
    if is_padding is None:
        return cast(Pixels, levels[stored - low])
    pixels = levels[np.clip(stored, low, high) - low]
    pixels[is_padding] = 0
    return cast(Pixels, pixels)


def _padding(image: _Image, tags: _Walk) -> tuple[int, int] | None:
    """Return the lowest and highest padding value (PS3.3 C.7.5.1.1.2), None without."""
    if len(tags.raw(0x00280120)) != 2:
        return None
    ends = []
    for tag in (0x00280120, 0x00280121):
        value = tags.number(tag, tags.number(0x00280120))
        ends.append(value - 65536 if image.signed and value > 32767 else value)
    return min(ends), max(ends)


_DISPLAY_TAGS = (0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281056, 0x00283000, 0x00283010)
_VALUE_TAGS = (0x00280004, 0x00280101, 0x00280103)


def _display_ramp(image: _Image, tags: _Walk, low: int, high: int) -> NDArray[np.float64]:
    """Return the brightness, 0 to 1, of each stored value from low to high.

    The lookup is made for at most 65,536 values instead of each pixel: modality LUT or rescale, then VOI LUT or window
    (PS3.3 C.11.1, C.11.2). Without a VOI, 8-bit values are shown as they are, and others from darkest to brightest.
    """
    values = np.arange(low, high + 1, dtype=np.int64)
    display = _display_module(tags)
    rescaled = apply_modality_lut(values, display)
    window = _window_or_lut(display, rescaled)
    if window is not None:
        return window
    plain = "ModalityLUTSequence" not in display and bool((rescaled == values).all())
    if plain and image.stored == 8 and not image.signed:
        return values / 255.0
    darkest, brightest = float(rescaled.min()), float(rescaled.max())
    return (rescaled - darkest) / max(brightest - darkest, 1e-12)


def _display_module(tags: _Walk) -> Dataset:
    """Return a pydicom data set of nothing but the elements that say how to display."""
    order, parts = "<" if tags.little else ">", []
    for tag in sorted((*_VALUE_TAGS, *_DISPLAY_TAGS)):
        found = tags.elements.get(tag)
        if found is None or found.stop == found.value:
            continue
        if found.stop - found.start > _MAX_LUT_BYTES:
            raise RadiographError("corrupt", "a DICOM lookup table is too large")
        parts.append(tags.data[found.start : found.stop])
        if found.encapsulated:
            parts.append(struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0))
    display = Dataset(read_dataset(io.BytesIO(b"".join(parts)), tags.implicit, tags.little))
    display.file_meta = FileMetaDataset()
    syntax = _IMPLICIT if tags.implicit else _EXPLICIT if tags.little else _BIG_ENDIAN
    display.file_meta.TransferSyntaxUID = UID(syntax)
    correct_ambiguous_vr(display, tags.little)
    return display


def _window_or_lut(display: Dataset, rescaled: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return `rescaled` through the first VOI LUT or window, scaled to 0 to 1; None when there is no usable one."""
    if display.get("VOILUTSequence"):
        item = display.VOILUTSequence[0]
        entries, first = int(item.LUTDescriptor[0]) or 65536, int(item.LUTDescriptor[1])
        inside = np.clip(np.rint(rescaled).astype(np.int64), first, first + entries - 1)
        ends = apply_voi_lut(np.arange(first, first + entries, dtype=np.int64), display)
        shown, dark, bright = apply_voi_lut(inside, display), int(ends.min()), int(ends.max())
    elif _usable_window(display):
        # Two values far outside the window show what its darkest and brightest come to.
        far = np.array([-1e12, 1e12])
        with np.errstate(over="ignore"):
            all_shown = apply_voi_lut(np.concatenate([rescaled.astype(np.float64), far]), display)
        shown, (dark, bright) = all_shown[:-2], all_shown[-2:]
    else:
        return None
    if dark == bright:
        return None
    return np.asarray((shown.astype(np.float64) - dark) / (bright - dark), dtype=np.float64)


def _usable_window(display: Dataset) -> bool:
    centre, width = display.get("WindowCenter"), display.get("WindowWidth")
    centre, width = (v[0] if hasattr(v, "__getitem__") and len(v) else v for v in (centre, width))
    if centre is None or width is None or centre == "" or width == "":
        return False
    exact = str(display.get("VOILUTFunction", "LINEAR")).upper() != "LINEAR"
    return bool(np.isfinite(float(centre)) and np.isfinite(float(width)) and float(width) > (0 if exact else 0.999999))
