"""DICOM files: found apart, judged by their tags, and read through `dicom_pixels`.

The walker finds the top-level elements without reading a value, in bounded time, memory and depth; pydicom is handed
pixels only, so that it never parses a tag. What a tag holds is repeated in a message only where it is a number or one
of a few known words, as anything may have been typed there.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable
from typing import Final, NamedTuple

import pydicom.config

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.dicom_display import displayed, numbers
from xray_pipeline.images.dicom_elements import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    LONG_VRS,
    NATIVE,
    PIXEL_DATA,
    SHORT_VRS,
    Elements,
)
from xray_pipeline.images.dicom_frames import DECODERS
from xray_pipeline.images.dicom_pixels import ImagePixels, grey_pixels, stored_values
from xray_pipeline.images.dicom_words import (
    CHEST_CODES,
    FRONTAL_CODES,
    HUMAN_CODES,
    SIDE_CODES,
    SNOMED,
    frontal,
    names_chest,
    names_side,
    says_nothing,
)
from xray_pipeline.images.raster import Facts, Limits, Read, check_size, turn

# pydicom's warnings quote the value they are about, and a value may name a patient.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


class _Head(NamedTuple):
    implicit: bool
    little: bool
    tag: int
    stop: int  # of the element


def _head(data: bytes, at: int) -> _Head | None:
    """Return how the element at `at` is encoded, by its own bytes; None when they are those of no usual element.

    The groups that a file starts with are below 256, so one of a group's two bytes is zero, which gives the order.
    """
    head = data[at : at + 12]
    if len(head) < 8 or (head[0] == 0) == (head[1] == 0):
        return None
    little, order = head[1] == 0, "<" if head[1] == 0 else ">"
    group, number = struct.unpack_from(order + "HH", head)
    implicit, vr = False, head[4:6]
    if vr in SHORT_VRS:
        size = 8 + int(struct.unpack_from(order + "H", head, 6)[0])
    elif vr in LONG_VRS and len(head) == 12:
        size = 12 + int(struct.unpack_from(order + "I", head, 8)[0])
    else:
        implicit, size = True, 8 + int(struct.unpack_from(order + "I", head, 4)[0])
    return _Head(implicit, little, group << 16 | number, at + size) if at + size <= len(data) else None


def starts_bare(data: bytes) -> bool:
    """Return whether data starts as DICOM without a preamble: two elements in order, encoded alike."""
    first = _head(data, 0)
    second = _head(data, first.stop) if first and first.tag >> 16 in (2, 8) else None
    return bool(first and second and second.tag > first.tag and second[:2] == first[:2])


def read_dicom(data: bytes, limits: Limits) -> Read:
    """Read a DICOM file. Raises RadiographError."""
    syntax, tags = _data_set(data, limits)
    if PIXEL_DATA not in tags.elements:
        deep = 0x7FE00008 in tags.elements or 0x7FE00009 in tags.elements
        reason = "unsupported-pixels" if deep else "no-pixels"
        raise RadiographError(reason, "floating-point pixels" if deep else "the DICOM file holds no image")
    _check_tags(tags)
    view = _view_of_chest(tags, limits)
    image = _image(syntax, tags, limits)
    with turn(image.columns, image.rows):
        stored = stored_values(image, tags, limits)
        monochrome = image.photometric.startswith("MONOCHROME")
        pixels = displayed(image, stored, tags) if monochrome else grey_pixels(image, stored, tags)
    facts = Facts(
        "dicom",
        image.columns,
        image.rows,
        image.photometric,
        image.stored,
        patient_id=tags.raw(0x00100020)[:1024].decode("latin-1").strip(" \0"),
        view=view,
        sex=tags.text(0x00100040)[:1] if tags.text(0x00100040)[:1] in ("M", "F", "O") else "",
        age_years=_age(tags),
        scanner=_scanner(tags),
    )
    return Read(facts, pixels)


def texts(data: bytes, limits: Limits, tags: Iterable[int]) -> list[str]:
    """Return what elements hold as text, "" for absent ones: raw, to be hashed at once, and never logged or kept.

    Raises RadiographError.
    """
    _, elements = _data_set(data, limits)
    return [elements.raw(tag)[:1024].decode("latin-1").strip(" \0") for tag in tags]


def _data_set(data: bytes, limits: Limits) -> tuple[str, Elements]:
    """Return the transfer syntax, "" when none is given, and the data set, whose own bytes say how it is encoded."""
    start = 132 if data[128:132] == b"DICM" else 4 if data.startswith(b"DICM") else 0
    head = _head(data, start)
    meta = Elements(data, start, implicit=bool(head and head.implicit), little=True, part="meta")
    syntax = meta.text(0x00020010)
    if not re.fullmatch(r"[0-9.]{1,64}", syntax):
        syntax = ""
    if syntax and syntax not in NATIVE and syntax not in DECODERS:
        raise RadiographError("unsupported-transfer-syntax", f"transfer syntax: {syntax}")
    if syntax != DEFLATED:
        return syntax, _encoded(data, meta.stop, syntax)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(memoryview(data)[meta.stop :], limits.max_file_bytes)
    if inflater.unconsumed_tail:
        raise RadiographError("bomb", f"deflated DICOM grows beyond {limits.max_file_bytes:,} bytes")
    if not inflater.eof:
        raise RadiographError("truncated", "the deflated DICOM data ends early")
    checksum = struct.pack("<II", zlib.crc32(inflated), len(inflated) & 0xFFFFFFFF)  # some toolkits add gzip's
    if inflater.unused_data.removeprefix(checksum).strip(b"\0"):
        raise RadiographError("trailing-garbage", "bytes follow the deflated DICOM data")
    return syntax, _encoded(inflated, 0, syntax)


def _encoded(data: bytes, at: int, syntax: str) -> Elements:
    """Return the elements from `at` on, encoded as the first of them is, else as the header says."""
    if head := _head(data, at):
        return Elements(data, at, implicit=head.implicit, little=head.little)
    if not syntax:
        raise RadiographError(
            "unsupported-transfer-syntax",
            "the header names none and the data does not show it; export the image again as a DICOM Part 10 file",
        )
    return Elements(data, at, implicit=syntax == IMPLICIT, little=syntax != BIG_ENDIAN)


# DR and the like are not in the standard (PS3.3 C.7.3.1.1.1), and in use.
_RADIOGRAPHY = frozenset(("CR", "DX", "RG", "RF", "OT", "SC", "DR", "XR", "RX", "CXR", "XRAY", "X-RAY"))
# Shown in messages; any other value stays out of them, as anything may have been typed there.
_OTHER_MODALITIES = frozenset(("CT", "MR", "US", "NM", "PT", "MG", "XA", "ES", "SM", "SR", "SEG", "PX", "IO", "ECG"))
_SAMPLES: Final = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
_SIDEWAYS = re.compile(r"[AP][LRHF]{0,2}\\[LRHFAP]{1,3}")  # what the rows of the image run towards: front or back
_ANIMAL = re.compile(r"\b(CANINE|FELINE|EQUINE|VETERINARY|DOG|HORSE)\b")
_SIDE = "side"


def _check_tags(tags: Elements) -> None:
    """Raise RadiographError when a tag says that this is not one radiograph for viewing."""
    if (frames := _whole(tags.text(0x00280008))) not in (None, 1):
        raise RadiographError("multi-frame", f"{frames} frames")
    kind, samples = tags.text(0x00280004), tags.number(0x00280002, 1)
    if _SAMPLES.get(kind) != samples:
        shown = kind if kind in _SAMPLES else "none we know"
        raise RadiographError("colour-dicom", f"photometric interpretation is {shown}, samples per pixel: {samples}")
    modality = tags.text(0x00080060)
    if modality not in _RADIOGRAPHY and not says_nothing(tags.words(0x00080060)):
        shown = modality if modality in _OTHER_MODALITIES else "none we know"
        raise RadiographError("wrong-modality", f"modality is {shown}; a projection radiograph is CR or DX")
    if tags.text(0x00080068) == "FOR PROCESSING":
        raise RadiographError("for-processing", "raw detector data; send the image for presentation")
    if tags.text(0x00280301) == "YES":
        raise RadiographError("burned-in-annotation", "the modality says that text is burned into the image")
    ratio = numbers(tags, 0x00280034)
    if len(ratio) == 2 and all(side > 0 for side in ratio) and not math.isclose(*ratio, rel_tol=0.001):
        raise RadiographError("uneven-pixels", "a pixel is not as high as it is wide; resample the image")


def _view_of_chest(tags: Elements, limits: Limits) -> str:
    """Return one of VIEWS, or "" when not known.

    Raises RadiographError when a tag says that this is not the chest of a human, seen from the front or back.
    """
    if not _is_chest(tags, limits.chest_words):
        raise RadiographError("not-chest", "body part or anatomic region is given, and is not the chest")
    if not _is_human(tags):
        raise RadiographError("not-human", "the species is given, and is not human")
    if _ANIMAL.search(_described(tags)):
        raise RadiographError("not-human", "the description of series, protocol or processing names an animal")
    if (view := _view(tags, limits.lateral_words)) == _SIDE:
        raise RadiographError("lateral-view", "the view is given as lateral or oblique")
    return view


def _is_chest(tags: Elements, more: tuple[str, ...]) -> bool:
    """Return whether body part or coded region is the chest, or neither is known; a code counts before its meaning."""
    part, region = tags.words(0x00180015), tags.code(0x00082218)
    if names_chest(part, more) or (region.scheme in SNOMED and region.value in CHEST_CODES):
        return True
    return says_nothing(part) and (region.scheme not in SNOMED or names_chest(region.meaning, more))


def _is_human(tags: Elements) -> bool:
    """Return whether the species, in words and coded, is human or not known."""
    code, word = tags.code(0x00102202), tags.words(0x00102201)
    human = code.value in HUMAN_CODES or code.meaning.startswith(_HUMAN)
    return (says_nothing(word) or word.startswith(_HUMAN)) and (not (code.meaning or code.scheme in SNOMED) or human)


_HUMAN = ("HOM", "HUM")


def _described(tags: Elements) -> str:
    return tags.words(0x00181400, 0x0008103E, 0x00181030, 0x00180015)


def _view(tags: Elements, more: tuple[str, ...]) -> str:
    """Return one of VIEWS, `_SIDE`, or "" when not known: position counts before code before the rest.

    A position that names a lateral view is one; a description may list all views of its series.
    """
    code = tags.code(0x00540220)
    coded = code.meaning
    if code.scheme in SNOMED:
        coded = FRONTAL_CODES.get(code.value) or ("LATERAL" if code.value in SIDE_CODES else coded)
    for text in (tags.words(0x00185101), coded):
        if names_side(text, more):
            return _SIDE
        if seen := frontal(text):
            return seen
    described = _described(tags)
    sideways = _SIDEWAYS.fullmatch(tags.text(0x00200020))
    return _SIDE if sideways or (names_side(described, more) and not frontal(described)) else ""


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _age(tags: Elements) -> float | None:
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


def _scanner(tags: Elements) -> str:
    """Return manufacturer and model, printable ASCII, at most 64 characters."""
    words = (tags.raw(tag)[:64].decode("ascii", "ignore") for tag in (0x00080070, 0x00081090))
    return " ".join(re.sub(r"[^ -~]", "", " ".join(words)).split())[:64]


def _image(syntax: str, tags: Elements, limits: Limits) -> ImagePixels:
    """Return the checked Image Pixel module. Raises RadiographError."""
    rows, columns = tags.number(0x00280010), tags.number(0x00280011)
    allocated = tags.number(0x00280100)
    stored = tags.number(0x00280101, tags.number(0x00280102, allocated - 1) + 1)
    high_bit = tags.number(0x00280102, stored - 1)
    check_size(columns, rows, limits)
    if allocated not in (8, 16):
        raise RadiographError("unsupported-pixels", f"Bits Allocated (0028,0100) is {allocated}, not 8 or 16")
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        shown = f"Bits Stored (0028,0101) is {stored}, High Bit (0028,0102) {high_bit}"
        raise RadiographError("corrupt", f"{shown}: these do not fit into Bits Allocated (0028,0100), {allocated}")
    if stored == 1:
        raise RadiographError("bilevel", "one bit stored per pixel")
    signed = tags.number(0x00280103) == 1
    kind, planar = tags.text(0x00280004), tags.number(0x00280006)
    return ImagePixels(syntax, rows, columns, allocated, stored, high_bit, signed, kind, _SAMPLES[kind], planar)
