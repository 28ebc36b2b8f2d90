"""Bytes to radiograph: JPEG, PNG and DICOM become one 2-D greyscale array, black = air, or are refused by a rule.

Content decides, never a file's name. Each format is first taken apart by a small walker of ours that checks sizes and
structure without decoding anything; a decoder (libjpeg-turbo, Pillow's PNG plugin, pydicom's pixel decoders) then sees
only the parts that hold pixels: no EXIF, no text chunk, no patient tag. What is stored keeps a JPEG's compressed pixels
byte for byte and is otherwise lossless PNG. `RULES` is every rule there is.

Trade-offs. Colour management is ignored (an ICC profile or gamma chunk is dropped), as training sees grey levels only.
A JPEG of three components is taken at its luminance. Damaged entropy data is noticed when a code is none, when a scan
or a part between restart markers comes out short or over some bytes long, or when one is missing. Damage after which
the count comes out right, as after most single flipped bits, is not: some blocks of the radiograph are then wrong. The
depth of a 16-bit PNG is what its brightest pixel says, unless somebody said it (`formats/png.py`). A DICOM image
without a window is stretched from its darkest to its brightest value, as viewers do, unless it has 8 bits. This module
travels with the registered model, so it imports nothing of the package but its formats and errors: training and serving
make pixels by the same code.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.base.errors import DecoderUnavailable, RadiographError
from xray_pipeline.images.dicom import read_dicom, starts_bare
from xray_pipeline.images.jpeg import read_jpeg
from xray_pipeline.images.png import PNG, png_bytes, read_png
from xray_pipeline.images.raster import Facts, Limits, Pixels, Read

__all__ = ["RULES", "Facts", "Limits", "Normalised", "Pixels", "Rule", "decode", "load", "normalise", "sniff", "square"]

Outcome = Literal["quarantined", "normalised"]


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
    Rule("truncated", "quarantined", "the file, or the compressed pixels in it, ends before the image does"),
    Rule("corrupt", "quarantined", "the file breaks its own format, or its decoder gave up"),
    Rule("undecodable", "quarantined", "the decoder crashed on the file or did not finish; it runs in a process apart"),
    Rule(
        "trailing-garbage",
        "quarantined",
        "bytes follow the end of the image. Behind a JPEG or PNG up to 16 zeros, blanks and line ends may; of DICOM "
        "zeros may, and after uncompressed pixels whatever is less than a second image and starts as no other file "
        "(PS3.5 8.1.1); they are left out",
    ),
    Rule("bomb", "quarantined", "the header claims more pixels than allowed, or data inflates beyond the size limit"),
    Rule("too-small", "quarantined", "the shorter side has fewer pixels than the rules ask for"),
    Rule("extreme-aspect", "quarantined", "the longer side is too many times the shorter one"),
    Rule(
        "unsupported-jpeg",
        "quarantined",
        "a JPEG process viewers don't share (lossless, arithmetic, 12 bits, ...), or colours sampled in an odd way",
    ),
    Rule("cmyk", "quarantined", "four-component (printing) JPEG"),
    Rule("coloured", "quarantined", "over 0.1 % of the pixels are visibly coloured, palettes included"),
    Rule("deep-colour", "quarantined", "16 bits with colour or alpha channels; grey levels would be lost"),
    Rule("wrong-depth", "quarantined", "a 16-bit PNG has a pixel brighter than the bits that were said for it hold"),
    Rule("bilevel", "quarantined", "one bit per pixel"),
    Rule("transparent", "quarantined", "a pixel is not fully opaque"),
    Rule("animated", "quarantined", "animated PNG"),
    Rule("blank", "quarantined", "every pixel has the same value"),
    Rule("no-pixels", "quarantined", "DICOM without pixel data (report, directory, plan, ...)"),
    Rule("multi-frame", "quarantined", "DICOM of several frames, or with pixels for more than one image"),
    Rule(
        "colour-dicom",
        "quarantined",
        "DICOM of other than one MONOCHROME1, MONOCHROME2 or PALETTE COLOR sample or three RGB or YBR ones, or without "
        "its palette; grey images in colour are normalised, coloured ones are `coloured`",
    ),
    Rule("unsupported-pixels", "quarantined", "DICOM pixels of other than 8 or 16 allocated bits, or floating point"),
    Rule(
        "unsupported-transfer-syntax",
        "quarantined",
        "DICOM encoding without a decoder here, or not named and not evident from the data",
    ),
    Rule(
        "wrong-modality",
        "quarantined",
        "DICOM Modality is given and is no projection radiograph's (CR, DX, RG, RF, OT, SC; in use, too: DR, XR, RX)",
    ),
    Rule(
        "lateral-view",
        "quarantined",
        "DICOM view (position, code, orientation, descriptions, body part) is lateral or oblique, by the words below",
    ),
    Rule("not-chest", "quarantined", "DICOM body part, or coded region, is given and is not the chest, by words below"),
    Rule("not-human", "quarantined", "DICOM gives a species other than human, or a description names an animal"),
    Rule("for-processing", "quarantined", "DICOM presentation intent is FOR PROCESSING: raw detector data"),
    Rule("uneven-pixels", "quarantined", "DICOM pixels are not as high as wide (PixelAspectRatio)"),
    Rule("burned-in-annotation", "quarantined", "DICOM BurnedInAnnotation is YES: text of a patient may be visible"),
    Rule("metadata", "normalised", "EXIF, ICC, comments, text and every DICOM tag are left out of what is stored"),
    Rule("jpeg-kept", "normalised", "an upright grey JPEG keeps its compressed pixels byte for byte"),
    Rule("grey-colour", "normalised", "colour files of grey images become grey (JPEG: the luminance), DICOM as well"),
    Rule("grey-palette", "normalised", "a palette of greys becomes grey"),
    Rule("opaque-alpha", "normalised", "a fully opaque alpha channel is dropped"),
    Rule("orientation", "normalised", "EXIF orientation is applied; a turned JPEG becomes PNG"),
    Rule(
        "png-depth",
        "normalised",
        "a 16-bit PNG whose brightest pixel fits fewer bits is scaled to the whole range, by the fewest of 10, 12 and "
        "14 bits that hold it (what fits 8 is an 8-bit image), unless the column `bits` of labels.csv or else "
        "XRAY_RULES__PNG_BITS says how many. This is safe: a true 16-bit radiograph never stays below a quarter of its "
        "range. A dark image may still be taken for fewer bits than it has; a delivery of mixed depths says so",
    ),
    Rule("depth", "normalised", "16 bits are kept; DICOM of over 8 bits stored becomes 16-bit PNG, others 8-bit"),
    Rule(
        "display",
        "normalised",
        "DICOM: modality LUT (XA and XRF: none) or rescale, then the first VOI LUT or window that is whole and shows"
        " anything, else darkest to brightest; a LUT's darkest and brightest entries are black and white",
    ),
    Rule(
        "display-numbers",
        "normalised",
        "DICOM: numbers with a decimal comma, blanks or NULs are read; what is no number (N/A, NaN, inf), and a LUT"
        " that is not as long as it says, count as absent",
    ),
    Rule(
        "monochrome1",
        "normalised",
        "DICOM MONOCHROME1 is inverted, so that black is air; PresentationLUTShape is left aside",
    ),
    Rule("padding", "normalised", "DICOM pixel padding is shown black and does not count for the brightness range"),
    Rule(
        "evident",
        "normalised",
        "where a DICOM header and its data disagree, or the header says nothing, the data says how it is encoded",
    ),
)


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

    Raises RadiographError with one of the quarantined `RULES`; the detail holds no patient data.
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


def load(data: bytes, limits: Limits, side: int) -> NDArray[np.uint8]:
    """Return any image file as the (side, side) uint8 that a model sees; equal for a file and its stored radiograph.

    Raises RadiographError as `normalise` does.
    """
    return square(_read(data, limits).pixels, side)


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
