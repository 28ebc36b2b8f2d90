"""The elements of a DICOM data set, found without reading a value, in bounded time, memory and depth."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.dicom_display import numbers
from xray_pipeline.images.dicom_words import read

PIXEL_DATA = 0x7FE00010
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
NATIVE = frozenset((IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED))
"""Transfer syntaxes of uncompressed pixels."""
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
SHORT_VRS = frozenset((
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
))  # fmt: skip
_UNDEFINED = 0xFFFFFFFF
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
        if vr in LONG_VRS:
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
