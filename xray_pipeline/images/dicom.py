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
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import pydicom.config

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.dicom_display import displayed, numbers
from xray_pipeline.images.dicom_frames import DECODERS
from xray_pipeline.images.dicom_pixels import (
    BIG_ENDIAN,
    DEFLATED,
    IMPLICIT,
    NATIVE,
    PIXEL_DATA,
    ImagePixels,
    grey_pixels,
    stored_values,
)
from xray_pipeline.images.dicom_words import (
    CHEST_CODES,
    FRONTAL_CODES,
    HUMAN_CODES,
    SIDE_CODES,
    SNOMED,
    frontal,
    names_chest,
    names_side,
    read,
    says_nothing,
)
from xray_pipeline.images.raster import Facts, Limits, Read, check_size, turn

# pydicom's warnings quote the value they are about, and a value may name a patient.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset((
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
))  # fmt: skip
_ITEM, _DELIMITER = 0xFFFEE000, struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
_MAX_ELEMENTS, _MAX_DEPTH, _MAX_ITEMS = 100_000, 64, 16


class _Element(NamedTuple):
    start: int  # of the element
    value: int  # of its value
    stop: int  # of its value
    encapsulated: bool  # undefined length


class Code(NamedTuple):
    """A coded concept (PS3.3 8.8): scheme, value, meaning; fit to compare, not to show."""

    scheme: str = ""
    value: str = ""
    meaning: str = ""


class Elements:
    """The top-level elements of a data set, found without reading values: flat, counted, and of bounded depth.

    `part`: "meta" ends with the file meta group, "item" with the delimiter of a sequence's item.
    """

    def __init__(
        self, data: bytes, at: int, *, implicit: bool, little: bool, part: Literal["", "meta", "item"] = ""
    ) -> None:
        self.data, self.stop, self.implicit, self.little = data, at, implicit, little
        self.elements: dict[int, _Element] = {}
        self._order = "<" if little else ">"
        self._nested_implicit = implicit
        self._around: list[bool] = []  # for each open sequence or item: whether what encloses it has implicit VRs
        self._top = (0, 0, 0)  # tag, start and start of value of the last top-level element
        self._end = -1  # without the zeros at the end of the data; counted when asked for
        self._walk(part)

    def _walk(self, part: str) -> None:
        head = struct.Struct(self._order + "HH2sH")
        for _ in range(_MAX_ELEMENTS):
            if self._only_padding_is_left():
                break
            if self.stop + 8 > len(self.data):
                raise self._broken("the DICOM file ends inside an element", "truncated")
            group, number, vr, short = head.unpack_from(self.data, self.stop)
            delimiter = group == 0xFFFE and number != 0xE000
            if not self._around and ((part == "meta" and group != 2) or (part == "item" and delimiter)):
                return
            if delimiter:
                self._close(number)
            else:
                self._enter(group << 16 | number, vr, short)
        else:
            raise RadiographError("corrupt", f"over {_MAX_ELEMENTS:,} DICOM elements")
        if len(self._around) == 1 and self._top[0] == PIXEL_DATA:  # the last delimiter is missing; no fragment is
            self.elements[PIXEL_DATA] = _Element(*self._top[1:], self.stop, True)
        elif self._around:
            raise self._broken("the DICOM file ends inside a sequence", "truncated")

    def _only_padding_is_left(self) -> bool:
        """Return whether nothing follows but zeros, as in a file that fills whole blocks, or a cut last delimiter."""
        head, open_pixels = self.data[self.stop : self.stop + 8], len(self._around) == 1 and self._top[0] == PIXEL_DATA
        if not head or (open_pixels and len(head) < 8 and _DELIMITER.startswith(head)):
            return True
        if head.strip(b"\0") or (self._around and not open_pixels):
            return False
        if self._end < 0:
            self._end = len(self.data.rstrip(b"\0"))
        return self.stop >= self._end

    def _enter(self, tag: int, vr: bytes, short: int) -> None:
        """Step over an element or item, or into it when its length is undefined."""
        size, body = self._length(tag, vr, short)
        if not self._around:
            if tag == _ITEM or (self._top[0] >= PIXEL_DATA and tag <= self._top[0]):
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
        if PIXEL_DATA in self.elements:
            return RadiographError("trailing-garbage", f"bytes that are no DICOM follow the pixels ({detail})")
        return RadiographError(reason, detail)

    def raw(self, tag: int) -> bytes:
        """Return a top-level value, b"" when absent."""
        found = self.elements.get(tag)
        return self.data[found.value : found.stop] if found else b""

    def text(self, tag: int) -> str:
        """Return a short text value, stripped, upper case: fit to compare, not to show."""
        return self.raw(tag)[:1024].decode("latin-1").strip(" \0").upper()

    def words(self, *tags: int) -> str:
        """Return what is typed in text values, as `dicom_words` compares it."""
        return " ".join(read(value[:1024]) for tag in tags if (value := self.raw(tag)))

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first value, a whole number of 16 bits unless the value representation says else."""
        value = next(iter(numbers(self, tag, "H")), math.nan)
        return int(value) if value.is_integer() and abs(value) < 1 << 32 else default

    def items(self, tag: int) -> Iterator[Elements]:
        """Yield the items of a top-level sequence that can be read, of the first _MAX_ITEMS."""
        found = self.elements.get(tag, _Element(0, 0, 0, False))
        implicit = self.implicit or self.data[found.start + 4 : found.start + 6] == b"UN"
        at = found.value
        for _ in range(_MAX_ITEMS):
            if at + 8 > found.stop:
                return
            (size,) = struct.unpack_from(self._order + "I", self.data, at + 4)
            at += 8
            data, start = (self.data, at) if size == _UNDEFINED else (self.data[at : at + size], 0)
            try:
                item = Elements(data, start, implicit=implicit, little=self.little, part="item")
            except RadiographError:
                if size == _UNDEFINED:
                    return
            else:
                yield item
            at = item.stop + 8 if size == _UNDEFINED else at + size

    def code(self, tag: int) -> Code:
        """Return the first code in a top-level sequence, upper case; empty when there is none that can be read."""
        item = next(self.items(tag), None)
        if item is None:
            return Code()
        return Code(item.text(0x00080102), item.text(0x00080100), item.words(0x00080104))


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
    if vr in _SHORT_VRS:
        size = 8 + int(struct.unpack_from(order + "H", head, 6)[0])
    elif vr in _LONG_VRS and len(head) == 12:
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
