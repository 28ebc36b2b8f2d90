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
from xray_pipeline.images.dicom_pixels import (
    BIG_ENDIAN,
    DECODERS,
    DEFLATED,
    IMPLICIT,
    JPEG_EXTENDED,
    NATIVE,
    PIXEL_DATA,
    ImagePixels,
    stored_values,
)
from xray_pipeline.images.raster import VIEWS, Facts, Limits, Read, check_size, turn

# pydicom's warnings quote the value they are about, and a value may name a patient.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")

_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_ITEM = 0xFFFEE000
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
        self._walk(part)

    def _walk(self, part: str) -> None:
        head = struct.Struct(self._order + "HH2sH")
        for _ in range(_MAX_ELEMENTS):
            if self.stop >= len(self.data):
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
        if self._around:
            raise self._broken("the DICOM file ends inside a sequence", "truncated")

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
        return Code(item.text(0x00080102), item.text(0x00080100), item.text(0x00080104))


def read_dicom(data: bytes, limits: Limits) -> Read:
    """Read a DICOM file. Raises RadiographError."""
    syntax, tags = _data_set(data, limits)
    if PIXEL_DATA not in tags.elements:
        deep = 0x7FE00008 in tags.elements or 0x7FE00009 in tags.elements
        reason = "unsupported-pixels" if deep else "no-pixels"
        raise RadiographError(reason, "floating-point pixels" if deep else "the DICOM file holds no image")
    _check_tags(tags)
    _check_subject(tags)
    image = _image(syntax, tags, limits)
    with turn(image.columns, image.rows):
        stored = stored_values(image, tags, limits)
        pixels = displayed(image, stored, tags)
    facts = Facts(
        "dicom",
        image.columns,
        image.rows,
        image.photometric,
        image.stored,
        patient_id=tags.raw(0x00100020)[:1024].decode("latin-1").strip(" \0"),
        view=_view(tags),
        sex=tags.text(0x00100040)[:1] if tags.text(0x00100040)[:1] in ("M", "F", "O") else "",
        age_years=_age(tags),
        scanner=_scanner(tags),
    )
    return Read(facts, pixels)


def _data_set(data: bytes, limits: Limits) -> tuple[str, Elements]:
    meta = Elements(data, 132, implicit=False, little=True, part="meta")
    syntax = meta.text(0x00020010)
    if syntax not in NATIVE and syntax not in DECODERS:
        shown = syntax if re.fullmatch(r"[0-9.]{1,64}", syntax) else "none that is valid"
        raise RadiographError("unsupported-transfer-syntax", f"transfer syntax: {shown}")
    if syntax != DEFLATED:
        return syntax, Elements(data, meta.stop, implicit=syntax == IMPLICIT, little=syntax != BIG_ENDIAN)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(memoryview(data)[meta.stop :], limits.max_file_bytes)
    if inflater.unconsumed_tail:
        raise RadiographError("bomb", f"deflated DICOM grows beyond {limits.max_file_bytes:,} bytes")
    if not inflater.eof:
        raise RadiographError("truncated", "the deflated DICOM data ends early")
    checksum = struct.pack("<II", zlib.crc32(inflated), len(inflated) & 0xFFFFFFFF)  # some toolkits add gzip's
    if inflater.unused_data.removeprefix(checksum).strip(b"\0"):
        raise RadiographError("trailing-garbage", "bytes follow the deflated DICOM data")
    return syntax, Elements(inflated, 0, implicit=False, little=True)


_RADIOGRAPHY = frozenset(("", "CR", "DX", "RG", "RF", "OT", "SC"))
# Shown in messages; any other value stays out of them, as anything may have been typed there.
_OTHER_MODALITIES = frozenset(("CT", "MR", "US", "NM", "PT", "MG", "XA", "ES", "SM", "SR", "SEG", "PX", "IO", "ECG"))
_COLOUR = frozenset(("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"))
# SNOMED CT, and as it was coded before (PS3.16 8.1). What is coded otherwise is told by its meaning, if at all.
_SNOMED = frozenset(("SCT", "SRT", "SNM3", "99SDM"))
_HUMAN_CODES = frozenset(("337915000", "L-85003", "30996001", "L-85B00"))
# fmt: off
_CHEST_CODES = frozenset((  # thorax, lung, and regions that include them (PS3.16 CID 4009)
    "816094009", "51185008", "T-D3000", "39607008", "T-28000", "417437006", "R-FAB52", "416152001", "R-FAB53",
    "416319003", "R-FAB54", "416550000", "R-FAB55", "416775004", "R-FAB56",
))
_SIDE_CODES = frozenset((  # lateral, sagittal, oblique (PS3.16 CID 4010)
    "399067008", "R-102CD", "399198007", "R-10232", "399173006", "R-10236", "399352003", "R-10228", "399260004",
    "R-10224", "30730003", "G-A145", "399182000", "R-102C1", "399236003", "R-10234", "399184004", "R-10238",
    "399135007", "R-10220", "399356000", "R-40985", "399006002", "R-10212", "399038007", "R-10210", "399059000",
    "R-10216", "399312000", "R-10208", "399160007", "R-10204", "260427002", "R-40783", "260426006", "R-40782",
    "399099002", "R-10230", "399368009", "R-10226",
))
# fmt: on
_FRONTAL_CODES: Final = {
    **dict.fromkeys(("272479007", "R-40888", "R-10214"), "PA"),
    **dict.fromkeys(("399348003", "R-10206"), "AP"),
    **dict.fromkeys(("399033003", "R-10202"), "FRONTAL"),
}
_CHEST = re.compile(r"CHEST|\bTHORA|THORAX|\bLUNG")
_SPINE = re.compile(r"SPINE|SPINAL|LUMB|VERTEB|COLUMN|COLONN|WIRBEL|RACHIS")
_SIDE_ON = re.compile(
    r"\b(LL|RL|LLD|RLD|LLO|RLO|LAO|RAO|LPO|RPO|[LRD]?LAT\d?|[LRD]?LATER(AL|O)\w*|OBL|OBLI[QC]\w*|PROFIL|SEITLICH\w*"
    r"|SAGITTAL\w*)\b"
)
_FRONTAL = re.compile(rf"\b({'|'.join(VIEWS)})\b")
_SIDEWAYS = re.compile(r"[AP][LRHF]{0,2}\\[LRHFAP]{1,3}")  # what the rows of the image run towards: front or back
_ANIMAL = re.compile(r"\b(CANINE|FELINE|EQUINE|VETERINARY|DOG|HORSE)\b")
_SIDE = "side"


def _check_tags(tags: Elements) -> None:
    """Raise RadiographError when a tag says that this is not one radiograph for viewing."""
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
    ratio = numbers(tags, 0x00280034)
    if len(ratio) == 2 and all(side > 0 for side in ratio) and not math.isclose(*ratio, rel_tol=0.001):
        raise RadiographError("uneven-pixels", "a pixel is not as high as it is wide; resample the image")


def _check_subject(tags: Elements) -> None:
    """Raise RadiographError when a tag says that this is not the chest of a human, seen from the front or back."""
    if not _is_chest(tags):
        raise RadiographError("not-chest", "body part or anatomic region is given, and is not the chest")
    if not _is_human(tags):
        raise RadiographError("not-human", "the species is given, and is not human")
    if _ANIMAL.search(_described(tags)):
        raise RadiographError("not-human", "the description of series, protocol or processing names an animal")
    if _view(tags) == _SIDE:
        raise RadiographError("lateral-view", "the view is given as lateral or oblique")


def _is_chest(tags: Elements) -> bool:
    """Return whether the body part, or without it the coded region, is the chest or not known."""
    if part := tags.text(0x00180015).replace("_", " "):
        return _names_chest(part)
    region = tags.code(0x00082218)
    return region.scheme not in _SNOMED or region.value in _CHEST_CODES or _names_chest(region.meaning)


def _names_chest(text: str) -> bool:
    return bool(_CHEST.search(text)) and not _SPINE.search(text)


def _is_human(tags: Elements) -> bool:
    """Return whether the species, in words and coded, is human or not known."""
    code, word = tags.code(0x00102202), tags.text(0x00102201)
    human = code.value in _HUMAN_CODES or code.meaning.startswith(_HUMAN)
    return (not word or word.startswith(_HUMAN)) and (not (code.meaning or code.scheme in _SNOMED) or human)


_HUMAN = ("HOM", "HUM")


def _described(tags: Elements) -> str:
    return " ".join(tags.text(tag) for tag in (0x00181400, 0x0008103E, 0x00181030)).replace("_", " ")


def _view(tags: Elements) -> str:
    """Return one of VIEWS, `_SIDE`, or "" when not known: position counts before code before the rest."""
    code = tags.code(0x00540220)
    coded = code.meaning
    if code.scheme in _SNOMED:
        coded = _FRONTAL_CODES.get(code.value) or ("LATERAL" if code.value in _SIDE_CODES else coded)
    for text in (tags.text(0x00185101).replace("_", " "), coded):
        if _SIDE_ON.search(text):
            return _SIDE
        if frontal := _FRONTAL.search(text):
            return frontal[0]
    described = _described(tags)
    sideways = _SIDEWAYS.fullmatch(tags.text(0x00200020))
    return _SIDE if sideways or (_SIDE_ON.search(described) and not _FRONTAL.search(described)) else ""


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
    if syntax == JPEG_EXTENDED and stored > 8:
        raise RadiographError("unsupported-transfer-syntax", f"JPEG Extended of {stored} bits; 8 are supported")
    if stored == 1:
        raise RadiographError("bilevel", "one bit stored per pixel")
    signed = tags.number(0x00280103) == 1
    return ImagePixels(syntax, rows, columns, allocated, stored, high_bit, signed, tags.text(0x00280004))
