from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from samples import dicom, element, items, picture, with_elements

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.radiograph import Limits, normalise

LIMITS = Limits(min_side=4)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
CURVE = [min(4095, value * value // 2000) for value in range(4096)]
MODALITY_LUT, VOI_LUT, DESCRIPTOR, DATA = 0x00283000, 0x00283010, 0x00283002, 0x00283006
CENTRE, WIDTH, FUNCTION, INTERCEPT, SLOPE = 0x00281050, 0x00281051, 0x00281056, 0x00281052, 0x00281053
PADDING, PADDING_LIMIT, STORED, HIGH_BIT, ASPECT = 0x00280120, 0x00280121, 0x00280101, 0x00280102, 0x00280034


def shown(source: bytes, *elements: bytes) -> NDArray[Any]:
    return normalise(with_elements(source, list(elements)), LIMITS).pixels


def text(tag: int, value: str, vr: str = "DS", syntax: str = ExplicitVRLittleEndian) -> bytes:
    encoded = value.encode("latin-1")
    return element(tag, vr, encoded + b" " * (len(encoded) % 2), syntax)


def window(centre: str, width: str, function: str = "") -> list[bytes]:
    return [text(CENTRE, centre), text(WIDTH, width), text(FUNCTION, function, "CS")]


class Entries(list[int]):
    """Entries of a table, shown in a message by their number."""

    def __repr__(self) -> str:
        return f"<{len(self)} from {self[:3]} to {self[-1]}>"


class Lut(NamedTuple):
    """A lookup table and how it is stored."""

    first: int
    entries: list[int]
    bits: int
    vr: str = "US"  # of the descriptor, "US" or "SS"
    data_vr: str = "OW"
    packed: bool = False

    def item(self, syntax: str = ExplicitVRLittleEndian) -> bytes:
        order = "<" if UID(syntax).is_little_endian else ">"
        described = struct.pack(order + "3H", len(self.entries) % 65536, self.first % 65536, self.bits)
        if self.packed:
            data = bytes(self.entries) + bytes(len(self.entries) % 2)
            if self.data_vr != "OB":  # in words, the first in the low byte
                data = np.frombuffer(data, "<u2").astype(order + "u2").tobytes()
        else:
            data = np.array(self.entries, order + "u2").tobytes()
        return element(DESCRIPTOR, self.vr, described, syntax) + element(DATA, self.data_vr, data, syntax)


def sequence(tag: int, *luts: Lut | bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    return element(tag, "SQ", items([x.item(syntax) if isinstance(x, Lut) else x for x in luts], syntax), syntax)


# the formulas, for one value at a time


def looked_up(lut: Lut, value: float) -> int:
    """PS3.3 C.11.1.1.1, C.11.2.1.1."""
    if value <= lut.first:
        return lut.entries[0]
    if value >= lut.first + len(lut.entries) - 1:
        return lut.entries[-1]
    return lut.entries[round(value) - lut.first]


def linear(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.2.1."""
    if value <= centre - 0.5 - (width - 1) / 2:
        return 0
    if value > centre - 0.5 + (width - 1) / 2:
        return 1
    return (value - (centre - 0.5)) / (width - 1) + 0.5


def linear_exact(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.2."""
    if value <= centre - width / 2:
        return 0
    if value > centre + width / 2:
        return 1
    return (value - centre) / width + 0.5


def sigmoid(value: float, centre: float, width: float) -> float:
    """PS3.3 C.11.2.1.3.1."""
    power = -4 * (value - centre) / width
    return 0 if power > 700 else 1 / (1 + math.exp(power))


FUNCTIONS: dict[str, Callable[[float, float, float], float]] = {
    "": linear,
    "LINEAR": linear,
    "LINEAR_EXACT": linear_exact,
    "SIGMOID": sigmoid,
}


class Case(NamedTuple):
    """An image of a few values, and how it is to be shown."""

    values: list[int]
    bits: int
    signed: bool
    syntax: str
    modality: Lut | tuple[float, float] | None  # or intercept and slope
    voi: Lut | tuple[str, float, float] | None  # or function, centre and width

    def meant(self) -> list[float]:
        if isinstance(self.modality, Lut):
            through = [float(looked_up(self.modality, value)) for value in self.values]
            return through if len(set(through)) > 1 else [float(value) for value in self.values]
        intercept, slope = self.modality or (0.0, 1.0)
        return [value * slope + intercept for value in self.values]

    def brightness(self) -> list[float]:
        """Each value's brightness, 0 to 1."""
        meant = self.meant()
        if isinstance(self.voi, Lut):
            dark, bright = min(self.voi.entries), max(self.voi.entries)
            found = [(looked_up(self.voi, value) - dark) / max(bright - dark, 1) for value in meant]
        elif self.voi:
            found = [FUNCTIONS[self.voi[0]](value, *self.voi[1:]) for value in meant]
        else:
            found = []
        if len({round(value * self.top()) for value in found}) > 1:
            return found
        if self.bits == 8 and not self.signed and meant == self.values:
            return [value / 255 for value in self.values]
        return [(value - min(meant)) / (max(meant) - min(meant)) for value in meant]

    def top(self) -> int:
        return 255 if self.bits == 8 else 65535

    def file(self) -> bytes:
        kind = "int" if self.signed else "uint"
        pixels = np.array(self.values, f"{kind}{8 if self.bits == 8 else 16}").reshape(4, -1)
        elements = []
        if isinstance(self.modality, Lut):
            elements.append(sequence(MODALITY_LUT, self.modality, syntax=self.syntax))
        elif self.modality:
            elements += self._texts((INTERCEPT, self.modality[0]), (SLOPE, self.modality[1]))
        if isinstance(self.voi, Lut):
            elements.append(sequence(VOI_LUT, self.voi, syntax=self.syntax))
        elif self.voi:
            elements.append(text(FUNCTION, self.voi[0], "CS", self.syntax))
            elements += self._texts((CENTRE, self.voi[1]), (WIDTH, self.voi[2]))
        return with_elements(dicom(pixels, syntax=self.syntax, BitsStored=self.bits), elements)

    def _texts(self, *numbers: tuple[int, float]) -> list[bytes]:
        return [text(tag, repr(number), syntax=self.syntax) for tag, number in numbers]


@st.composite
def luts(draw: st.DrawFn, lowest: int, highest: int, depths: st.SearchStrategy[int]) -> Lut:
    """A table for inputs from `lowest` to `highest`."""
    bits = draw(depths)
    count = draw(st.one_of(st.integers(1, 300), st.sampled_from([1024, 4096, 32767, 65535, 65536])))
    entries = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 1 << bits, count).tolist()
    signed = draw(st.booleans()) or lowest < 0
    # 32,768 and above is told from negative by the representation, or by there being such values.
    first = draw(st.integers(-32768, 32767) if signed else st.integers(0, min(max(32767, highest), 65535)))
    told = lowest < 0 and highest < 65536 + first
    short = 2 * count < 65536
    vr = "SS" if first < 0 and not (told and draw(st.booleans())) else "US"
    packed = bits == 8 and draw(st.booleans())
    data_vr = draw(st.sampled_from(["OW", "UN", *(["OB"] if packed else []), *(["US", "SS"] if short else [])]))
    return Lut(first, Entries(entries), bits, vr, data_vr, packed)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    bits, signed = draw(st.integers(8, 16)), draw(st.booleans())
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = draw(st.lists(st.integers(low, high), min_size=16, max_size=16).filter(lambda found: len(set(found)) > 1))
    syntax = draw(st.sampled_from(SYNTAXES))
    numbers = st.integers(-5_000_000, 5_000_000).map(lambda number: number / 1000)
    modality: Any = draw(
        st.none() | luts(low, max(values), st.sampled_from([8, 16])) | st.tuples(numbers, numbers.filter(bool))
    )
    if syntax == ImplicitVRLittleEndian and isinstance(modality, Lut) and modality.first < 0 and not signed:
        modality = None  # nothing says that the first value is negative
    case = Case(values, bits, signed, syntax, modality, None)
    meant = case.meant()
    widths = st.integers(1_000, 9_000_000).map(lambda number: number / 1000)
    voi: Any = draw(
        st.none()
        | luts(math.floor(min(meant)), math.floor(max(meant)), st.integers(8, 16))
        | st.tuples(st.sampled_from(sorted(FUNCTIONS)), numbers, widths)
    )
    if syntax == ImplicitVRLittleEndian and isinstance(voi, Lut) and voi.first < 0 and max(meant) >= 32767:
        voi = None
    return case._replace(voi=voi)


@given(cases())
@example(Case([*range(16)], 8, False, ExplicitVRBigEndian, None, Lut(3, [9, 1, 7, 200, 255], 8, "US", "US", True)))
@example(Case([*range(-8, 8)], 12, True, ImplicitVRLittleEndian, None, Lut(-8, [*range(0, 4096, 256)], 12)))
@example(Case([*range(16)], 16, False, ExplicitVRLittleEndian, None, ("LINEAR", 8.0, 1.0)))
@settings(max_examples=200)
def test_values_are_shown_by_the_formulas_of_the_standard(case: Case) -> None:
    pixels = normalise(case.file(), LIMITS).pixels
    assert np.abs(pixels.ravel() - np.array(case.brightness()) * case.top()).max() <= 0.5001


# lookup tables


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("count", [256, 255, 257, 1024, 4096])
def test_table_of_8_bits_is_read_packed_and_in_words(syntax: str, packed: bool, count: int) -> None:
    curve = [round(255 * (value / (count - 1)) ** 0.6) for value in range(count)]
    pixels = RAMP % count
    lut = Lut(0, curve, 8, packed=packed)
    found = shown(dicom(pixels, syntax=syntax, BitsStored=12), sequence(VOI_LUT, lut, syntax=syntax))
    assert np.array_equal(found, np.array(curve)[pixels] * 257)


def test_table_goes_from_black_to_white_whatever_bits_its_descriptor_claims() -> None:
    for bits in (10, 12, 16):
        found = shown(dicom(RAMP), sequence(VOI_LUT, Lut(0, [value // 4 for value in range(4096)], bits)))
        assert np.array_equal(found, np.rint((RAMP // 4) / 1023 * 65535))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("vr", ["US", "SS", "OW"])
def test_first_value_may_be_negative(syntax: str, vr: str) -> None:
    signed = RAMP.astype(np.int16) - 2000
    lut = Lut(-2000, CURVE, 12, vr=vr)
    for source in (
        dicom(signed, syntax=syntax),
        with_elements(dicom(RAMP, syntax=syntax), [text(INTERCEPT, "-2000", syntax=syntax)]),
    ):
        found = shown(source, sequence(VOI_LUT, lut, syntax=syntax))
        assert np.array_equal(found, np.rint(np.array(CURVE)[RAMP] / 4095 * 65535))


@pytest.mark.parametrize("value", ["4096\\0\\12", "4096\\0\\12 ", " 4096 \\ 0\\12,0\0", "4096.0\\+0\\1.2E1"])
@pytest.mark.parametrize("vr", ["US", "DS", "LO", "UN"])
@pytest.mark.parametrize("tag", [MODALITY_LUT, VOI_LUT])
def test_descriptor_may_be_a_text(value: str, vr: str, tag: int) -> None:
    item = text(DESCRIPTOR, value, vr) + element(DATA, "OW", np.array(CURVE, "<u2").tobytes())
    assert np.array_equal(shown(dicom(RAMP), sequence(tag, item)), np.rint(np.array(CURVE)[RAMP] / 4095 * 65535))


WORDS = np.array(CURVE, "<u2").tobytes()
BROKEN = {
    "no item": [],
    "an empty item": [b""],
    "no descriptor": [element(DATA, "OW", WORDS)],
    "an empty descriptor": [element(DESCRIPTOR, "US", b"") + element(DATA, "OW", WORDS)],
    "both empty": [element(DESCRIPTOR, "US", b"") + element(DATA, "OW", b"")],
    "a descriptor of two values": [element(DESCRIPTOR, "US", bytes(4)) + element(DATA, "OW", WORDS)],
    "a descriptor of words": [text(DESCRIPTOR, "N/A\\N/A\\N/A", "LO") + element(DATA, "OW", WORDS)],
    "no data": [element(DESCRIPTOR, "US", struct.pack("<3H", 4096, 0, 12))],
    "empty data": [element(DESCRIPTOR, "US", struct.pack("<3H", 4096, 0, 12)) + element(DATA, "OW", b"")],
    "half the data": [element(DESCRIPTOR, "US", struct.pack("<3H", 4096, 0, 12)) + element(DATA, "OW", WORDS[:4096])],
    "too much data": [element(DESCRIPTOR, "US", struct.pack("<3H", 1024, 0, 12)) + element(DATA, "OW", WORDS)],
    "data as text": [element(DESCRIPTOR, "US", struct.pack("<3H", 2, 0, 12)) + text(DATA, "9\\12", "LO")],
    "32 bits": [element(DESCRIPTOR, "US", struct.pack("<3H", 4096, 0, 32)) + element(DATA, "OW", WORDS)],
    "entries all alike": [Lut(0, [7] * 4096, 12)],
    "one entry": [Lut(0, [7], 16)],
    "a table beyond all values": [Lut(20_000, CURVE, 12)],
    "an item cut short": [Lut(0, CURVE, 12).item()[:-5000]],
    "rubbish in the item": [b"\x28\0\x02\x30??rubbish"],
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("tag", [MODALITY_LUT, VOI_LUT])
def test_table_that_is_not_whole_counts_as_absent(broken: list[bytes | Lut], tag: int) -> None:
    source = dicom(RAMP + 100)
    assert np.array_equal(shown(source, sequence(tag, *broken)), shown(source))
    windowed = shown(source, *window("2048", "1000"))
    assert np.array_equal(shown(source, sequence(tag, *broken), *window("2048", "1000")), windowed)
    rescaled = [text(INTERCEPT, "-50"), text(SLOPE, "2"), *window("2048", "1000")]
    assert np.array_equal(shown(source, sequence(tag, *broken), *rescaled), shown(source, *rescaled))
    whole = Lut(100, CURVE, 12)
    assert np.array_equal(shown(source, sequence(tag, *broken, whole)), shown(source, sequence(tag, whole)))


def test_first_whole_table_is_taken() -> None:
    one, other = Lut(0, CURVE, 12), Lut(0, CURVE[::-1], 12)
    assert np.array_equal(shown(dicom(RAMP), sequence(VOI_LUT, one, other)), shown(dicom(RAMP), sequence(VOI_LUT, one)))


def test_table_in_a_sequence_of_unknown_representation_and_open_end() -> None:
    inside = Lut(0, CURVE, 12).item(ImplicitVRLittleEndian)
    ends = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inside + b"\xfe\xff\x0d\xe0\0\0\0\0"
    unknown = b"\x28\0\x10\x30UN\0\0\xff\xff\xff\xff" + ends * 2 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    plain = shown(dicom(RAMP), sequence(VOI_LUT, Lut(0, CURVE, 12)))
    assert np.array_equal(shown(dicom(RAMP), unknown), plain)


XRF, XA = "1.2.840.10008.5.1.4.1.1.12.2", "1.2.840.10008.5.1.4.1.1.12.1"


@pytest.mark.parametrize("tags", [{"Modality": "RF"}, {"SOPClassUID": XRF}, {"SOPClassUID": XA, "Modality": ""}])
def test_modality_table_of_fluoroscopy_and_angiography_is_not_for_display(tags: dict[str, str]) -> None:
    source, inverse = dicom(RAMP, **tags), sequence(MODALITY_LUT, Lut(0, CURVE[::-1], 16))
    assert np.array_equal(shown(source, inverse), shown(source))
    assert np.array_equal(shown(source, inverse, *window("900", "500")), shown(source, *window("900", "500")))
    assert not np.array_equal(shown(dicom(RAMP), inverse), shown(dicom(RAMP)))
    voi = sequence(VOI_LUT, Lut(0, CURVE, 12))
    assert np.array_equal(shown(source, inverse, voi), shown(dicom(RAMP), voi))


# windows


def test_first_usable_window_is_taken() -> None:
    plain = shown(dicom(RAMP), *window("2048", "1000"))
    for centre, width in (
        ("N/A\\2048", "N/A\\1000"),
        ("\\2048", "\\1000"),
        ("100\\2048\\9", "0\\1000\\9"),
        ("-9000\\2048", "100\\1000"),  # the first shows nothing of this image
        ("2048\\100", "1000"),
    ):
        assert np.array_equal(shown(dicom(RAMP), *window(centre, width)), plain)


@pytest.mark.parametrize(
    ("function", "width", "expected"),
    [
        ("LINEAR_EXACT", "1000", linear_exact),
        ("linear exact", "1000", linear_exact),
        ("LINEAR_EXACT", "0.5", linear_exact),
        ("SIGMOID", "0.5", sigmoid),
        ("SIGMOID", "1000", sigmoid),
        ("LINEAR", "1", linear),
        ("", "1000", linear),
        ("UNKNOWN", "1000", linear),
    ],
)
def test_window_functions(function: str, width: str, expected: Callable[[float, float, float], float]) -> None:
    pixels = shown(dicom(RAMP), *window("2048", width, function))
    brightness = [expected(value, 2048, float(width)) for value in range(4096)]
    assert np.abs(pixels.ravel() - np.array(brightness) * 65535).max() <= 0.5001


@pytest.mark.parametrize("function", ["", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("number", ["1E308", "-1E308", "1E-308", "99999999999", "0", "-0", "1E999"])
@pytest.mark.parametrize("tag", [CENTRE, WIDTH, INTERCEPT, SLOPE])
def test_extreme_numbers_refuse_nothing(number: str, tag: int, function: str) -> None:
    given = {CENTRE: "2048", WIDTH: "1000", INTERCEPT: "0", SLOPE: "1", tag: number}
    elements = [text(FUNCTION, function, "CS"), *(text(one, value) for one, value in given.items())]
    with np.errstate(all="raise", under="ignore"):
        assert len(np.unique(shown(dicom(RAMP), *elements))) > 1


# numbers as scanners write them

WRITTEN = {
    "2047,5": "2047.5",
    "2047,5 ": "2047.5",
    " 2047.5": "2047.5",
    "+2047.5": "2047.5",
    "2.0475E+03": "2047.5",
    "2,0475e3": "2047.5",
    "2047.5\0": "2047.5",
    "2047.5\0\0\0": "2047.5",
    "2047.5\0rest": "2047.5",
    "\t2047.5\r\n": "2047.5",
    "0002047.50000000": "2047.5",
    "2047.": "2047",
    "2047,": "2047",
}
UNREADABLE = [
    "",
    " ",
    "\0\0",
    "N/A",
    "NaN",
    "nan",
    "inf",
    "-INF",
    "1.#INF",
    "1.#QNAN",
    "NONE",
    "?",
    "--",
    "1 000",
    "0x7FF",
]


@pytest.mark.parametrize(("value", "number"), WRITTEN.items())
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_numbers_are_read_as_scanners_write_them(value: str, number: str, syntax: str) -> None:
    source = dicom(RAMP, syntax=syntax)

    def seen(tag: int, written: str, *others: tuple[int, str]) -> NDArray[Any]:
        return shown(source, *(text(one, what, syntax=syntax) for one, what in ((tag, written), *others)))

    for tag, others in (
        (CENTRE, [(WIDTH, "1000")]),
        (WIDTH, [(CENTRE, "2048")]),
        (INTERCEPT, [(SLOPE, "1"), (CENTRE, "4000"), (WIDTH, "1000")]),
        (SLOPE, [(INTERCEPT, "0"), (CENTRE, "4000000"), (WIDTH, "1000000")]),
    ):
        assert np.array_equal(seen(tag, value, *others), seen(tag, number, *others))
        assert np.array_equal(seen(tag, value + "\\N/A", *others), seen(tag, number, *others))


@pytest.mark.parametrize("value", UNREADABLE)
@pytest.mark.parametrize("vr", ["DS", "LO", "UN"])
def test_what_is_no_number_counts_as_absent(value: str, vr: str) -> None:
    source, plain = dicom(RAMP), window("2048", "1000")
    for tag in (CENTRE, WIDTH):
        other = text(CENTRE + WIDTH - tag, "1000")
        assert np.array_equal(shown(source, text(tag, value, vr), other), shown(source))
    for tag in (INTERCEPT, SLOPE):
        assert np.array_equal(shown(source, text(tag, value, vr), *plain), shown(source, *plain))
    both = [text(INTERCEPT, value, vr), text(SLOPE, "2", vr)]
    assert np.array_equal(shown(source, *both, *plain), shown(source, text(SLOPE, "2"), *plain))


@pytest.mark.parametrize(
    ("vr", "layout"), [("US", "H"), ("SS", "h"), ("UL", "I"), ("SL", "i"), ("FL", "f"), ("FD", "d"), ("IS", "")]
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_value_representation_says_how_a_number_is_stored(vr: str, layout: str, syntax: str) -> None:
    order = "<" if UID(syntax).is_little_endian else ">"

    def stored(tag: int, number: int) -> bytes:
        value = struct.pack(order + layout, number) if layout else f"{number} ".encode()
        return element(tag, vr, value, syntax)

    source = dicom(RAMP, syntax=syntax)
    found = shown(source, stored(CENTRE, 2048), stored(WIDTH, 1000))
    assert np.array_equal(found, shown(dicom(RAMP), *window("2048", "1000")))
    found = shown(source, stored(PADDING, 4095))
    assert np.array_equal(found, shown(dicom(RAMP), element(PADDING, "US", b"\xff\x0f")))
    found = shown(source, stored(STORED, 12), stored(HIGH_BIT, 11))
    assert np.array_equal(found, shown(dicom(RAMP, BitsStored=12)))


# padding


def test_padding_is_read_as_scanners_write_it() -> None:
    for pixels, low, high in ((RAMP, 4000, 4095), (RAMP.astype(np.int16) - 2000, -2000, -1900)):
        plain = shown(
            dicom(pixels),
            *(
                element(tag, "US", struct.pack("<H", value % 65536))
                for tag, value in ((PADDING, low), (PADDING_LIMIT, high))
            ),
        )
        assert (plain[(pixels >= low) & (pixels <= high)] == 0).all()
        for written in (f"{low}", f" {low}.0", f"{low},0\0", f"{low}\\7"):
            found = shown(dicom(pixels), text(PADDING, written, "LO"), text(PADDING_LIMIT, str(high), "IS"))
            assert np.array_equal(found, plain)
        twice = (
            element(PADDING, "SS", struct.pack("<2h", low, 7)),
            element(PADDING_LIMIT, "SS", struct.pack("<h", high)),
        )
        assert np.array_equal(shown(dicom(pixels), *twice), plain)


@pytest.mark.parametrize("value", [*UNREADABLE, "12,5", "99999999", "-40000", "1E300"])
def test_padding_that_is_no_number_of_16_bits_counts_as_absent(value: str) -> None:
    assert np.array_equal(shown(dicom(RAMP), text(PADDING, value, "LO")), shown(dicom(RAMP)))
    one = element(PADDING, "US", b"\xff\x0f")
    if value in UNREADABLE:
        assert np.array_equal(shown(dicom(RAMP), one, text(PADDING_LIMIT, value, "LO")), shown(dicom(RAMP), one))


def test_padding_that_would_leave_nothing_counts_as_absent() -> None:
    every = [element(PADDING, "US", bytes(2)), element(PADDING_LIMIT, "US", b"\xff\xff")]
    assert np.array_equal(shown(dicom(RAMP), *every), shown(dicom(RAMP)))


# bits


@pytest.mark.parametrize("value", UNREADABLE)
def test_bits_that_are_no_number_are_as_usual(value: str) -> None:
    for tag in (STORED, HIGH_BIT, 0x00280103):
        assert np.array_equal(shown(dicom(RAMP), text(tag, value, "LO")), shown(dicom(RAMP)))


@pytest.mark.parametrize("value", UNREADABLE)
def test_bits_stored_that_are_no_number_follow_from_the_high_bit(value: str) -> None:
    found = shown(dicom(RAMP), text(STORED, value, "LO"), element(HIGH_BIT, "US", b"\x0b\0"))
    assert np.array_equal(found, shown(dicom(RAMP, BitsStored=12)))


@pytest.mark.parametrize("ratio", ["1\\1", "1.0\\1", "0,14\\0,14", "N/A\\1", "1\\NaN", "0\\1", "2", "1\\1.00001"])
def test_pixel_aspect_ratio_that_is_even_or_no_number_refuses_nothing(ratio: str) -> None:
    assert np.array_equal(shown(dicom(RAMP), text(ASPECT, ratio, "IS")), shown(dicom(RAMP)))


@pytest.mark.parametrize("ratio", ["2\\1", "2.0\\1.0", "0,14\\0,2", "+4 \\ 3\0"])
def test_pixel_aspect_ratio_that_is_uneven_is_noticed(ratio: str) -> None:
    with pytest.raises(RadiographError) as caught:
        shown(dicom(RAMP), text(ASPECT, ratio, "IS"))
    assert caught.value.reason == "uneven-pixels"


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"BitsStored": 17}, "Bits Stored (0028,0101) is 17"),
        ({"BitsStored": 12, "HighBit": 3}, "High Bit (0028,0102) 3"),
        ({"BitsAllocated": 32}, "Bits Allocated (0028,0100) is 32"),
    ],
)
def test_bits_that_are_refused_are_named(tags: dict[str, int], named: str) -> None:
    source = dicom(RAMP)
    numbers = {"BitsAllocated": 0x00280100, "BitsStored": STORED, "HighBit": HIGH_BIT}
    for name, value in tags.items():
        source = with_elements(source, [element(numbers[name], "US", struct.pack("<H", value))])
    with pytest.raises(RadiographError) as caught:
        normalise(source, LIMITS)
    assert named in caught.value.detail


# files after users' reports


def reported(shared: Path, name: str) -> tuple[pydicom.Dataset, NDArray[Any], NDArray[Any]]:
    """A file's data set, its stored values and what is shown of them."""
    path = shared / "data" / "reports" / name
    image = pydicom.dcmread(path)
    return image, image.pixel_array, normalise(path.read_bytes(), Limits()).pixels


@pytest.mark.parametrize(("name", "layout"), [("voilut_8bit_1024in16.dcm", "<u2"), ("voilut_8bit_packed.dcm", "u1")])
def test_reported_voi_tables_of_8_bits_are_applied(shared: Path, name: str, layout: str) -> None:
    image, stored, found = reported(shared, name)
    table = np.frombuffer(image.VOILUTSequence[0].LUTData, layout).astype(int)
    assert len(table) == image.VOILUTSequence[0].LUTDescriptor[0]
    assert (table.min(), table.max()) == (0, 255)
    assert np.array_equal(found, table[stored] * 257)


def test_reported_modality_tables_are_applied_or_absent(shared: Path) -> None:
    image, stored, found = reported(shared, "modlut_descriptor_text.dcm")
    through = np.frombuffer(image.ModalityLUTSequence[0].LUTData, "<u2")[stored].astype(float)
    assert np.abs(found - (through - through.min()) / np.ptp(through) * 65535).max() <= 0.5001
    image, stored, found = reported(shared, "modlut_item_empty.dcm")
    expected = [linear(value, float(image.WindowCenter), float(image.WindowWidth)) for value in range(4096)]
    assert np.abs(found - np.array(expected)[stored] * 65535).max() <= 0.5001


def test_reported_windows_are_read_or_absent(shared: Path) -> None:
    _, stored, found = reported(shared, "win_comma.dcm")
    expected = np.array([linear(value, 2047.5, 4095) for value in range(4096)])
    assert np.abs(found - expected[stored] * 65535).max() <= 0.5001
    _, stored, found = reported(shared, "win_text.dcm")
    assert np.array_equal(found, np.rint((stored - stored.min()) / np.ptp(stored) * 65535))


def test_picture_of_8_bits_without_display_elements_is_shown_as_it_is() -> None:
    assert np.array_equal(shown(dicom(picture())), picture())
