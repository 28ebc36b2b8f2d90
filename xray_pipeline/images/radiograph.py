"""Bytes to radiograph: JPEG, PNG and DICOM become one 2-D greyscale array, black = air, or are refused by a rule.

Content decides, never a file's name. Each format is first taken apart by a small walker of ours that checks sizes and
structure without decoding anything; a decoder (libjpeg-turbo, Pillow's PNG plugin, pydicom's pixel decoders) then sees
only the parts that hold pixels: no EXIF, no text chunk, no patient tag. What is stored keeps a JPEG's compressed pixels
byte for byte and is otherwise lossless PNG. `intake/rules.toml` has every reason for which a file is refused, in words.

Trade-offs. Colour management is ignored (an ICC profile or gamma chunk is dropped), as training sees grey levels only.
A JPEG of three components is taken at its luminance. Damaged entropy data is noticed when a code is none, when a scan
or a part between restart markers comes out short or over some bytes long, or when one is missing. Damage after which
the count comes out right, as after most single flipped bits, is not: some blocks of the radiograph are then wrong. The
depth of a 16-bit PNG is what its brightest pixel says, unless somebody said it (`images/png.py`). A DICOM image
without a window is stretched from its darkest to its brightest value, as viewers do, unless it has 8 bits. This module
travels with the registered model, so it imports nothing of the package but its formats and errors: training and serving
make pixels by the same code.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.base.errors import DecoderUnavailable, RadiographError
from xray_pipeline.images.dicom import read_dicom, starts_bare
from xray_pipeline.images.jpeg import read_jpeg
from xray_pipeline.images.png import PNG, png_bytes, read_png
from xray_pipeline.images.raster import Facts, Limits, Pixels, Read

Fit = Literal["squash", "shorter-side"]
"""How a radiograph becomes a square: its sides squashed, or its middle square, the aspect kept."""

ENDINGS: Final = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".dcm", ".dicom")
"""How files of the formats are usually named. Nothing follows from it for what a file is."""


@dataclass(frozen=True)
class Normalised:
    """A radiograph ready to store: `data` (".jpg" or ".png"), its SHA-256, facts, and pixels (H, W)."""

    data: bytes
    suffix: str
    digest: str
    facts: Facts
    pixels: Pixels


def sniff(data: bytes) -> str | None:
    """Return "jpeg", "png" or "dicom" by content alone, else None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(PNG):
        return "png"
    if data[128:132] == b"DICM" or data.startswith(b"DICM") or starts_bare(data):
        return "dicom"
    return None


def normalise(data: bytes, limits: Limits) -> Normalised:
    """Return the radiograph that a file holds, as it is stored. The same bytes always give the same result.

    Raises RadiographError with a code of `intake/rules.toml`; the detail holds no patient data.
    """
    read = _read(data, limits)
    stored = read.jpeg or png_bytes(read.pixels)
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


def middle(squashed: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return the middle square of a radiograph of that size, as (side, side), out of its squash to (side, side).

    That is what resizing its shorter side and cutting the longer one gives, but for resolution: a squash is linear, so
    the square is a part of it, stretched again. A size that is not known (0) is taken for a square.
    """
    if not width or not height or width == height:
        return squashed
    side, kept = len(squashed), min(width, height) / max(width, height)
    first, last = side * (1 - kept) / 2, side * (1 + kept) / 2
    box = (first, 0.0, last, float(side)) if width > height else (0.0, first, float(side), last)
    return np.asarray(Image.fromarray(squashed).resize((side, side), Image.Resampling.BILINEAR, box=box))


def fitted(pixels: Pixels, side: int, fit: Fit) -> NDArray[np.uint8]:
    """Return pixels (H, W) as (side, side) uint8: squashed, or the middle square that the shorter side leaves."""
    squashed, (height, width) = square(pixels, side), pixels.shape
    return squashed if fit == "squash" else middle(squashed, width, height)


def load(data: bytes, limits: Limits, side: int, fit: Fit = "squash") -> NDArray[np.uint8]:
    """Return any image file as the (side, side) uint8 that a model sees; equal for a file and its stored radiograph.

    Raises RadiographError as `normalise` does.
    """
    return fitted(_read(data, limits).pixels, side, fit)


_NO_LIMITS = Limits(max_file_bytes=1 << 62, max_pixels=1 << 62, min_side=1, max_aspect=float("inf"), png_bits=16)
_TO_8_BITS: Final = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def _read(data: bytes, limits: Limits) -> Read:
    if not data:
        raise RadiographError("empty", "the file has no bytes")
    if len(data) > limits.max_file_bytes:
        raise RadiographError("too-large", f"{len(data):,} bytes, {limits.max_file_bytes:,} allowed")
    reader = {"jpeg": read_jpeg, "png": read_png, "dicom": _read_honest_dicom}.get(sniff(data) or "", _refuse)
    try:
        read = reader(data, limits)
    except (RadiographError, DecoderUnavailable):
        raise
    except MemoryError:
        raise RadiographError("bomb", "decoding ran out of memory") from None
    # Decoders meet hostile bytes here and raise what they like; their words may quote a patient's, so none are kept.
    except Exception as error:
        raise RadiographError("corrupt", f"the decoder gave up ({type(error).__name__})") from None
    some = read.pixels[::61, ::61]  # a few pixels settle it for all but blank images
    if some.min() == some.max() and read.pixels.min() == read.pixels.max():
        raise RadiographError("blank", f"every pixel is {int(read.pixels.flat[0])}")
    return read


def _refuse(data: bytes, limits: Limits) -> Read:
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
        return "not-an-image", "a part of DICOM without its Part 10 header; export it again as a DICOM file"
    if start[4:8] == b"ftyp":
        return "not-an-image", "HEIF, AVIF or MP4"
    if not start.strip(b"\0"):
        return "not-an-image", "nothing but zeros"
    if all(byte in _PRINTABLE for byte in start):
        return "not-an-image", "text"
    return "not-an-image", "no format we know"


_PRINTABLE = frozenset((*range(0x20, 0x100), 9, 10, 13)) - {0x7F}


def _read_honest_dicom(data: bytes, limits: Limits) -> Read:
    """Read a DICOM file unless its preamble makes it a second kind of file."""
    for magic, code, name in _MAGIC:
        if data.startswith(magic) and name not in _TIFF:
            reason = code if code == "executable" else "polyglot"
            raise RadiographError(reason, f"the preamble makes the DICOM file {name} as well")
    return read_dicom(data, limits)
