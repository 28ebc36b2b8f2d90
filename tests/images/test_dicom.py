"""DICOM as hospitals write it: words in their languages, odd encodings, colour that is grey, and what stays refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import dicom_survey
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from samples import compressed, dicom, jpeg, picture, png, written

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.images import dicom_pixels, dicom_words
from xray_pipeline.images.radiograph import Limits, Normalised, normalise, sniff

LOSSLESS = [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1]


def accepted(data: bytes, limits: Limits = Limits()) -> Normalised:  # noqa: B008  (frozen)
    return normalise(data, limits)


def refusal(data: bytes, limits: Limits = Limits()) -> str:  # noqa: B008
    with pytest.raises(RadiographError) as caught:
        normalise(data, limits)
    return caught.value.reason


def same(one: bytes, other: bytes) -> bool:
    return accepted(one).digest == accepted(other).digest


def deep(bits: int = 12) -> NDArray[np.uint16]:
    return picture(1).astype(np.uint16) << (bits - 8)


def in_syntax(syntax: str) -> bytes:
    native = syntax if syntax not in LOSSLESS else ExplicitVRLittleEndian
    source = dicom(deep(), syntax=native, BitsStored=12, WindowCenter="2000", WindowWidth="3000")
    return source if syntax not in LOSSLESS else compressed(source, syntax)


def with_bytes(keyword: str, value: bytes, **tags: Any) -> bytes:
    """A DICOM file with a value that pydicom would not write."""
    mark = "Q" * max(8, len(value) + len(value) % 2)
    source = dicom(**{keyword: mark, **tags})
    assert source.count(mark.encode()) == 1
    return source.replace(mark.encode(), value.ljust(len(mark), b" "))


def coded(value: str, meaning: str) -> Sequence:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "SCT", meaning
    return Sequence([code])


# words

CHEST = """CHEST, Torax, 2- TORAX, RX TORAX PA, TORAX_AP, TORAX1, HEMITORAX, PECHO, PEITO, TORACE, Polmoni,
POITRINE, POUMONS, THORAX FACE, BRUSTKORB, Lunge, BORSTKAS, LONGEN, LONG, BROESTKORG, LUNGOR, BRYSTKASSE,
KEUHKOT, KLATKA PIERSIOWA, KL. PIERSIOWA, PLUCA, AKCIGER, GOGUS, TORAKS, HRUDNIK, MELLKAS, CHESTABDPELVIS,
T?RAX, T??RAX, PULM?O, BR?STKORG, P?UCA, AKC??ER, G???S, XIONGBU"""
NOT_CHEST = """HAND, MANO, KNIE, ABDOMEN, LONG LEG, THORACIC SPINE, TSPINE, COLUMNA TORACICA, COL. TORACICA,
COLONNA TORACICA, BWS, BRUSTBEIN, BRUSTWIRBELSAEULE, BREAST, KREGOSLUP PIERSIOWY, ODCINEK PIERSIOWY,
TORAKAL OMURGA, WERVELKOLOM THORACAAL, PLUNGE, RACHIS THORACIQUE, THORACOLUMBAR, FEMORE LUNGO"""
ABROAD = [
    ("TÓRAX", ("latin-1", "utf-8")),
    ("PULMÃO", ("latin-1", "utf-8")),
    ("BRÖSTKORG", ("latin-1", "utf-8")),
    ("RINTAKEHÄ", ("latin-1", "utf-8")),
    ("PŁUCA", ("iso8859_2", "utf-8")),
    ("AKCİĞER", ("iso8859_9", "utf-8")),
    ("GÖĞÜS", ("iso8859_9", "utf-8")),
    ("ГРУДНАЯ КЛЕТКА", ("iso8859_5", "utf-8")),
    ("胸部", ("shift_jis", "euc_jp", "iso2022_jp", "gb18030", "big5", "utf-8")),
    ("ｷｮｳﾌﾞ", ("shift_jis", "utf-8")),
    ("肺", ("shift_jis", "gb18030", "utf-8")),
    ("흉부", ("euc_kr", "utf-8")),
    ("가슴", ("euc_kr", "utf-8")),
]


@pytest.mark.parametrize("part", [part.strip() for part in CHEST.split(",")])
def test_the_chest_is_known_in_the_languages_of_hospitals(part: str) -> None:
    assert accepted(dicom(BodyPartExamined=part)).facts.format == "dicom"


@pytest.mark.parametrize("part", [part.strip() for part in NOT_CHEST.split(",")])
def test_what_only_sounds_like_the_chest_is_refused(part: str) -> None:
    assert refusal(dicom(BodyPartExamined=part)) == "not-chest"


@pytest.mark.parametrize(("part", "encoding"), [(part, name) for part, names in ABROAD for name in names])
@pytest.mark.parametrize("declared", [None, "ISO_IR 100", "ISO_IR 192"])
def test_the_chest_is_known_in_the_character_sets_of_hospitals(part: str, encoding: str, declared: str | None) -> None:
    assert accepted(with_bytes("BodyPartExamined", part.encode(encoding), SpecificCharacterSet=declared)).pixels.any()


def test_escapes_of_iso_2022_are_read() -> None:
    for mark, part, encoding in ((b"\x1b$)C", "흉부", "euc_kr"), (b"\x1b$)A", "胸部", "gb2312")):
        assert accepted(with_bytes("BodyPartExamined", mark + part.encode(encoding))).pixels.any()


@pytest.mark.parametrize(
    ("part", "encoding"),
    [
        ("胸椎", "shift_jis"),
        ("胸椎", "gb18030"),
        ("흉추", "euc_kr"),
        ("手", "gb18030"),
        ("손", "euc_kr"),
        ("DIREÇÃO", "latin-1"),
    ],
)
def test_other_parts_are_not_taken_for_the_chest_in_any_character_set(part: str, encoding: str) -> None:
    assert refusal(with_bytes("BodyPartExamined", part.encode(encoding))) == "not-chest"


@pytest.mark.parametrize(
    "part",
    [
        "UNKNOWN",
        "OTHER",
        "NONE",
        "N/A",
        "n.a.",
        "???",
        "-",
        "0",
        "UNBEKANNT",
        "DESCONOCIDO",
        "INCONNU",
        "OVERIGE",
        "INNE",
    ],
)
def test_a_word_for_nothing_is_no_body_part(part: str) -> None:
    assert accepted(dicom(BodyPartExamined=part)).pixels.any()
    assert refusal(dicom(BodyPartExamined=part, AnatomicRegionSequence=coded("72696002", "Knee"))) == "not-chest"


def test_nothing_in_other_character_sets_and_tags() -> None:
    assert accepted(with_bytes("BodyPartExamined", "不明".encode("shift_jis"))).pixels.any()
    assert accepted(dicom(Modality="UNKNOWN", PatientSpeciesDescription="N/A")).pixels.any()


def test_a_code_counts_where_the_word_is_not_known() -> None:
    chest = coded("816094009", "")
    assert accepted(dicom(BodyPartExamined="BRINGA", AnatomicRegionSequence=chest)).pixels.any()
    assert refusal(dicom(BodyPartExamined="BRINGA")) == "not-chest"


SIDE = """TORAX PERFIL, THORAX PROFIL, Thorax seitl., THORAX SEITLICH, THORAX DWARS, TORACE LL, TORACE L-L,
LATERO-LATERALE, LATERALE, KLATKA BOCZNE, AKCIGER YAN, SIDEBILDE, SIVUKUVA, SCHRAEG, SCHR?G, OBLIQUA, LATERAAL,
CHEST LAT2"""
BOTH = """TORAX FRENTE Y PERFIL, THORAX FACE ET PROFIL, TORACE AP E LL, KLATKA PA I BOCZNE, P.A. + LAT,
AKCIGER ON-ARKA YAN, POSTERO-ANTERIOR AND LATERAL"""
NEITHER = "TORAX, BILATERAL, LEFT SIDE, BEDSIDE, THORAX ERECT, FLAT PLATE, PORTABLE"


@pytest.mark.parametrize("text", [text.strip() for text in SIDE.split(",")])
def test_lateral_views_are_known_in_the_languages_of_hospitals(text: str) -> None:
    assert refusal(dicom(ViewPosition=None, SeriesDescription=text)) == "lateral-view"
    assert refusal(dicom(ViewPosition=text[:16])) == "lateral-view"
    assert refusal(dicom(ViewPosition=None, BodyPartExamined=f"CHEST {text}"[:64])) == "lateral-view"
    assert accepted(dicom(ViewPosition="PA", SeriesDescription=text)).facts.view == "PA"


@pytest.mark.parametrize("text", [text.strip() for text in (BOTH + "," + NEITHER).split(",")])
def test_a_description_of_both_views_or_of_none_does_not_quarantine(text: str) -> None:
    assert accepted(dicom(ViewPosition=None, SeriesDescription=text)).facts.view == ""


@pytest.mark.parametrize(
    ("text", "encoding", "side"),
    [
        ("胸部側面", "shift_jis", True),
        ("胸部侧位", "gb18030", True),
        ("흉부 측면", "euc_kr", True),
        ("LATÉRAL", "latin-1", True),
        ("SKOŚNE", "iso8859_2", True),
        ("胸部正面側面", "shift_jis", False),
        ("胸部正侧位", "gb18030", False),
        ("胸部正面", "utf-8", False),
        ("흉부 정면", "euc_kr", False),
    ],
)
def test_lateral_views_in_other_character_sets(text: str, encoding: str, side: bool) -> None:
    source = with_bytes("SeriesDescription", text.encode(encoding), ViewPosition=None)
    assert refusal(source) == "lateral-view" if side else accepted(source)


def test_frontal_views_in_other_words_are_known() -> None:
    views = {"POSTEROANTERIOR": "PA", "A-P": "AP", "FRENTE": "FRONTAL", "FACE": "FRONTAL"}
    assert {text: accepted(dicom(ViewPosition=text)).facts.view for text in views} == views


def test_a_site_adds_words_of_its_own() -> None:
    rules = IntakeRules(chest_words=["BRINGA*", "Caja costál"], lateral_words=["AXIAL"])
    limits = Limits.of(rules)
    for part in ("BRINGAN", "CAJA COSTAL", "CAJA COST?L 2"):
        assert refusal(dicom(BodyPartExamined=part)) == "not-chest"
        assert accepted(dicom(BodyPartExamined=part), limits).pixels.any()
    axial = dicom(ViewPosition=None, SeriesDescription="axial")
    assert accepted(axial).pixels.any()
    assert refusal(axial, limits) == "lateral-view"
    for word in ("*", "A", "", "A*B"):
        with pytest.raises(ValueError):
            IntakeRules(chest_words=[word])


def test_every_word_of_the_table_is_found_by_itself() -> None:
    for words, known in ((dicom_words.CHEST, dicom_words.names_chest), (dicom_words.SIDE, dicom_words.names_side)):
        for word in (word for language in words.values() for word in language):
            assert known(dicom_words.fold(word.replace("*", "").lstrip("="))), word


# files that viewers open


@pytest.mark.parametrize("modality", ["DR", "XR", "RX"])
def test_modalities_in_use_are_projection_radiographs(modality: str) -> None:
    assert accepted(dicom(Modality=modality)).pixels.any()


def test_other_modalities_stay_refused() -> None:
    assert [refusal(dicom(Modality=name)) for name in ("MG", "XA", "DRX", "DOC")] == ["wrong-modality"] * 4


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("tail", [b"", b"\xfe\xff\xdd\xe0", bytes(512)])
def test_the_last_delimiter_may_be_missing(syntax: str, tail: bytes) -> None:
    source = compressed(dicom(deep(), BitsStored=12), syntax)
    assert source.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    assert same(source[:-8] + tail, source)
    assert refusal(source[:-30]) in ("truncated", "corrupt")
    assert refusal(source[:-8] + b"garbage") in ("truncated", "corrupt", "trailing-garbage")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, *LOSSLESS])
def test_zeros_fill_the_last_block(syntax: str) -> None:
    source = in_syntax(syntax)
    for size in (1, 2, 7, 511, 512, 4096):
        assert same(source + bytes(size), source)
    assert refusal(source + bytes(512) + b"x") == "trailing-garbage"


def test_many_empty_elements_before_the_end_are_no_padding_and_no_hang() -> None:
    assert refusal(dicom(syntax=ImplicitVRLittleEndian) + bytes(8 * 90_000) + b"x" * 8) == "trailing-garbage"


def odd_jpeg_2000(psot: bool) -> bytes:
    """A JPEG 2000 codestream of odd length; `psot`: its one tile-part has no length."""
    for seed in range(100):
        out = io.BytesIO()
        Image.fromarray(picture(seed, 300, 260)).save(out, "JPEG2000", no_jp2=True, irreversible=False)
        if len(out.getvalue()) % 2:
            break
    frame = bytearray(out.getvalue())
    at = frame.index(b"\xff\x90")
    if not psot:
        frame[at + 6 : at + 10] = bytes(4)
    return bytes(frame)


def holding(frame: bytes, syntax: str, pixels: NDArray[Any], **tags: Any) -> bytes:
    """A DICOM file of the size of `pixels` that holds a compressed frame."""
    image = pydicom.dcmread(io.BytesIO(dicom(pixels, **tags)))
    image.PixelData = encapsulate([frame])
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = syntax
    return written(image)


def test_a_jpeg_2000_tile_without_a_length_ends_at_the_end_marker() -> None:
    shape = np.zeros((300, 260), np.uint8)
    with_length, without = (odd_jpeg_2000(psot) for psot in (True, False))
    assert same(holding(without, JPEG2000Lossless, shape), holding(with_length, JPEG2000Lossless, shape))
    assert refusal(holding(without[:-400] + b"\xff\xd9", JPEG2000Lossless, shape)) in ("corrupt", "truncated")


def test_a_jpeg_2000_codestream_may_lie_in_the_boxes_of_its_file_format() -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "JPEG2000", irreversible=False)
    assert out.getvalue()[4:8] == b"jP  "
    assert same(holding(out.getvalue(), JPEG2000Lossless, picture()), dicom())


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("zeros", [1, 2, 3, 7, 100])
def test_zeros_before_the_end_of_a_jpeg_ls_are_left_out(bits: int, zeros: int) -> None:
    noise = np.random.default_rng(bits).integers(0, 4, (96, 80))
    pixels = (picture() if bits == 8 else deep(bits) + noise).astype(np.uint8 if bits == 8 else np.uint16)
    plain = dicom(pixels, BitsStored=bits)
    frame = frame_of(compressed(plain, JPEGLSLossless)).rstrip(b"\0")
    assert frame.endswith(b"\xff\xd9")
    assert same(holding(frame[:-2] + bytes(zeros) + frame[-2:], JPEGLSLossless, pixels, BitsStored=bits), plain)
    for damaged in (frame[:-12] + frame[-2:], frame[:300] + bytes(40) + frame[340:]):
        assert refusal(holding(damaged, JPEGLSLossless, pixels, BitsStored=bits)) in ("corrupt", "truncated")


def frame_of(source: bytes) -> bytes:
    return next(generate_frames(pydicom.dcmread(io.BytesIO(source)).PixelData, number_of_frames=1))


def said(source: bytes, syntax: str | None) -> bytes:
    """The file with another transfer syntax in its header, or with none; the data set stays as it is."""
    meta = pydicom.dcmread(io.BytesIO(source)).file_meta
    old = b"\x02\0\x10\0UI" + struct.pack("<H", len(meta.TransferSyntaxUID) + 1 & ~1) + meta.TransferSyntaxUID.encode()
    old += b"\0" * (len(meta.TransferSyntaxUID) % 2)
    new = b""
    if syntax is not None:
        padded = syntax.encode() + b"\0" * (len(syntax) % 2)
        new = b"\x02\0\x10\0UI" + struct.pack("<H", len(padded)) + padded
    assert source.count(old) == 1
    return source.replace(old, new)


NATIVE = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("claimed", [*NATIVE, None, "", "nonsense"])
def test_the_data_set_says_itself_how_it_is_encoded(syntax: str, claimed: str | None) -> None:
    source = dicom(deep(), syntax=syntax, BitsStored=12, WindowCenter="2000", WindowWidth="3000")
    assert same(said(source, claimed), source)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, *LOSSLESS])
def test_compressed_pixels_in_a_data_set_of_implicit_vrs(syntax: str) -> None:
    source = compressed(dicom(), syntax) if syntax != JPEGBaseline8Bit else holding(jpeg(), syntax, picture())
    image = pydicom.dcmread(io.BytesIO(source))
    image.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    out = io.BytesIO()
    pydicom.dcmwrite(out, image, implicit_vr=True, little_endian=True)
    of_items = said(out.getvalue(), syntax)  # pydicom writes a length, which should be undefined
    at = of_items.rindex(b"\xe0\x7f\x10\0")
    implicit = of_items[: at + 4] + b"\xff" * 4 + of_items[at + 8 :] + b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert same(of_items, source)
    assert b"\x28\0\x10\0US" not in implicit
    assert same(implicit, source)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_a_compressed_frame_says_itself_what_it_is(syntax: str) -> None:
    source = compressed(dicom(deep(), BitsStored=12), syntax)
    for claimed in (None, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLosslessSV1):
        if syntax != RLELossless or claimed in (None, ExplicitVRLittleEndian):
            assert same(said(source, claimed), source)
        else:
            assert refusal(said(source, claimed)) == "corrupt"
    with pytest.raises(RadiographError, match=r"unsupported-transfer-syntax: .*export the image again"):
        normalise(said(holding(b"\x07" * 999, syntax, deep()), None), Limits())


@pytest.mark.parametrize("syntax", [*NATIVE, JPEGLSLossless])
def test_the_preamble_may_be_missing(syntax: str) -> None:
    source = in_syntax(syntax)
    meta = 144 + struct.unpack("<I", source[140:144])[0]
    for bare in (source[132:], source[128:], source[meta:], bytes(128) + b"DICM" + source[meta:]):
        assert sniff(bare) == "dicom"
        assert same(bare, source)


def test_what_is_too_little_to_show_an_encoding_is_refused_with_what_to_do() -> None:
    for data in (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", b"\x08\0\x05\0CS\xff\0ISO_IR 100" + bytes(200)):
        assert sniff(data) is None
        with pytest.raises(RadiographError, match=r"not-an-image: .*export it again"):
            normalise(data, Limits())
    source = said(dicom(), None)
    meta = source.index(b"\x08\0\x16\0UI")
    with pytest.raises(RadiographError, match=r"unsupported-transfer-syntax: .*export the image again"):
        normalise(source[:meta] + bytes(range(1, 80)), Limits())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bytes_after_native_pixels_are_left_out(dtype: type) -> None:
    image = pydicom.dcmread(io.BytesIO(dicom(picture().astype(dtype))))
    one, whole = image.PixelData, written(image)

    def followed(extra: bytes) -> bytes:
        image.PixelData = one + extra
        return written(image)

    for extra in (b"\x20\x20", b"\xff" * 80, bytes(range(256)) * 8, b"\x55" * (len(one) // 2)):
        assert same(followed(extra), whole)
    assert refusal(followed(one)) == "multi-frame"
    assert refusal(followed(b"\x55" * (len(one) + 100))) == "trailing-garbage"
    for file in (png(), dicom(picture()[:70, :70]), b"PK\x03\x04 and so on", b"%PDF-1.7"):
        assert refusal(followed(file)) in ("trailing-garbage", "multi-frame")


# colour


def colour(pixels: NDArray[Any], photometric: str, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> bytes:
    """A DICOM file of three samples a pixel, uncompressed."""
    planar = tags.pop("PlanarConfiguration", 0)
    stored = np.moveaxis(pixels, -1, 0) if planar else pixels
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = tags.pop("PixelData", stored.astype(stored.dtype.newbyteorder(order)).tobytes())
    raw += b"\0" * (len(raw) % 2)
    tags |= {"PhotometricInterpretation": photometric, "SamplesPerPixel": 3, "PlanarConfiguration": planar}
    return dicom(pixels[..., 0], syntax=syntax, PixelData=raw, **tags)


def grey_as(photometric: str, grey: NDArray[Any]) -> NDArray[Any]:
    neutral = np.full_like(grey, 1 << (8 * grey.dtype.itemsize - 1))
    return np.dstack([grey, neutral, neutral] if photometric.startswith("YBR") else [grey] * 3)


TINTED = np.dstack([picture(0), picture(1), picture(2)])


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [*NATIVE, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("planar", [0, 1])
def test_grey_in_three_native_samples_is_grey(photometric: str, syntax: str, planar: int) -> None:
    source = colour(grey_as(photometric, picture()), photometric, syntax, PlanarConfiguration=planar)
    result = accepted(source)
    assert np.array_equal(result.pixels, picture())
    assert (result.facts.mode, result.facts.bits) == (photometric, 8)
    assert refusal(colour(TINTED, photometric, syntax, PlanarConfiguration=planar)) == "coloured"


def test_grey_in_three_samples_of_16_bits_is_grey() -> None:
    for photometric in ("RGB", "YBR_FULL"):
        source = colour(grey_as(photometric, picture().astype(np.uint16) * 257), photometric)
        assert np.array_equal(accepted(source).pixels, picture().astype(np.uint16) * 257)
        assert refusal(colour(TINTED.astype(np.uint16) * 257, photometric)) == "coloured"
    nearly = grey_as("RGB", picture().astype(np.uint16) * 256)
    nearly[5, 5, 0] += 3
    assert refusal(colour(nearly, "RGB")) == "deep-colour"


def test_grey_under_the_wrong_name_is_grey() -> None:
    for said, meant in (("RGB", "YBR_FULL"), ("YBR_FULL", "RGB")):
        assert np.array_equal(accepted(colour(grey_as(meant, picture()), said)).pixels, picture())


def test_windows_are_not_for_colour() -> None:
    source = colour(grey_as("RGB", picture()), "RGB", WindowCenter="10", WindowWidth="5")
    assert np.array_equal(accepted(source).pixels, picture())


def test_subsampled_native_colour() -> None:
    grey = picture()
    quads = np.full((grey.size // 2, 4), 128, np.uint8)
    quads[:, :2] = grey.reshape(-1, 2)
    source = colour(grey_as("YBR_FULL", grey), "YBR_FULL_422", PixelData=quads.tobytes())
    assert np.array_equal(accepted(source).pixels, grey)
    quads[:, 2] = 30
    assert refusal(colour(grey_as("YBR_FULL", grey), "YBR_FULL_422", PixelData=quads.tobytes())) == "coloured"


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("planar", [0, 1])
def test_grey_in_three_compressed_samples_is_grey(syntax: str, planar: int) -> None:
    def packed(pixels: NDArray[Any]) -> bytes:
        image = pydicom.dcmread(io.BytesIO(colour(pixels, "RGB")))
        image.compress(syntax, generate_instance_uid=False)
        image.PlanarConfiguration = planar  # of no meaning here
        return written(image)

    assert np.array_equal(accepted(packed(grey_as("RGB", picture()))).pixels, picture())
    assert refusal(packed(TINTED)) == "coloured"


@pytest.mark.parametrize("transform", [True, False])
def test_grey_in_a_colour_jpeg_2000_is_grey(transform: bool) -> None:
    def packed(pixels: NDArray[Any]) -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG2000", no_jp2=True, irreversible=False, mct=int(transform))
        three = colour(pixels, "YBR_RCT" if transform else "RGB")
        image = pydicom.dcmread(io.BytesIO(three))
        image.PixelData, image.file_meta.TransferSyntaxUID = encapsulate([out.getvalue()]), JPEG2000Lossless
        image["PixelData"].VR = "OB"
        return written(image)

    assert np.array_equal(accepted(packed(grey_as("RGB", picture()))).pixels, picture())
    assert refusal(packed(TINTED)) == "coloured"


@pytest.mark.parametrize("options", [{}, {"keep_rgb": True}, {"subsampling": 2}])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
@pytest.mark.parametrize("marked", [True, False])
def test_grey_in_a_colour_jpeg_is_grey_whatever_is_said_of_it(
    options: dict[str, Any], photometric: str, marked: bool
) -> None:
    def packed(pixels: NDArray[Any]) -> bytes:
        frame = jpeg(pixels, **options)
        if not marked:  # of JFIF and Adobe, by which a decoder tells RGB; components named 1, 2 and 3, too
            frame = without_names(frame)
        image = pydicom.dcmread(io.BytesIO(colour(pixels, photometric)))
        image.PixelData, image.file_meta.TransferSyntaxUID = encapsulate([frame]), JPEGBaseline8Bit
        image["PixelData"].VR = "OB"
        return written(image)

    if photometric != "RGB" and options.get("keep_rgb") and not marked:
        return  # nothing in the file tells that it is RGB
    shown = accepted(packed(grey_as("RGB", picture()))).pixels
    assert np.abs(shown.astype(int) - picture()).max() < 12
    assert refusal(packed(TINTED)) == "coloured"


def without_names(frame: bytes) -> bytes:
    kept, at = [frame[:2]], 2
    names = bytes.maketrans(b"RGB", b"\1\2\3")
    while frame[at + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(frame[at + 2 : at + 4])
        if frame[at + 1] == 0xC0:
            head = bytearray(frame[at:stop])
            head[10::3] = bytes(head[10::3]).translate(names)
            kept.append(bytes(head))
        elif not 0xE0 <= frame[at + 1] <= 0xEF:
            kept.append(frame[at:stop])
        at = stop
    scan = bytearray(frame[at:])
    scan[5:11:2] = bytes(scan[5:11:2]).translate(names)
    return b"".join([*kept, bytes(scan)])


def palette(entries: int, first: int, bits: int, red: NDArray[Any], blue: NDArray[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in (("Red", red), ("Green", red), ("Blue", blue)):
        made[f"{name}PaletteColorLookupTableDescriptor"] = [entries % 65536, first, bits]
        made[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    return made


def test_a_palette_of_greys_is_grey() -> None:
    ramp = (np.arange(256) * 257).astype("<u2")
    assert np.array_equal(accepted(dicom(**palette(256, 0, 16, ramp, ramp))).pixels, picture().astype(np.uint16) * 257)
    turned = np.arange(256, dtype=np.uint8)[::-1]
    for tables in (turned, turned.astype("<u2")):  # packed, and one entry in each word
        assert np.array_equal(accepted(dicom(**palette(256, 0, 8, tables, tables))).pixels, 255 - picture())
    short = np.arange(100, 150, dtype=np.uint8)
    shown = accepted(dicom(**palette(50, 100, 8, short, short))).pixels
    assert np.array_equal(shown, np.clip(picture(), 100, 149))
    assert refusal(dicom(**palette(256, 0, 16, ramp, ramp[::-1]))) == "coloured"
    assert refusal(dicom(**palette(256, 0, 8, turned, turned[::-1]))) == "coloured"
    assert refusal(dicom(**palette(256, 0, 16, ramp[:9], ramp[:9]))) == "corrupt"
    assert refusal(dicom(PhotometricInterpretation="PALETTE COLOR")) == "colour-dicom"


@pytest.mark.parametrize("tags", [{"PhotometricInterpretation": kind} for kind in ("RGB", "CMYK", "HSV", "ARGB")])
def test_colour_that_does_not_fit_the_header_is_refused(tags: dict[str, Any]) -> None:
    assert refusal(dicom(**tags)) == "colour-dicom"


# decoders


def pydicom_file(name: str, **tags: Any) -> bytes:
    image = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / name)
    for keyword, value in {"Modality": "CR", "BodyPartExamined": "CHEST", **tags}.items():
        setattr(image, keyword, value)
    return written(image)


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG-lossy.dcm"])
def test_a_12_bit_jpeg_is_read(name: str) -> None:
    result = accepted(pydicom_file(name))
    assert (result.pixels.shape, result.pixels.dtype, result.facts.bits) == ((1024, 256), np.uint16, 12)
    assert len(np.unique(result.pixels)) > 200


def test_a_12_bit_jpeg_that_ends_early_is_truncated() -> None:
    source = pydicom_file("JPGExtended.dcm")
    frame = frame_of(source).rstrip(b"\0")
    assert refusal(source.replace(frame[2000:-2], b"")) in ("corrupt", "truncated")
    image = pydicom.dcmread(io.BytesIO(source))
    for kept in (0.2, 0.6, 0.95):
        image.PixelData = encapsulate([frame[: int(len(frame) * kept)] + b"\xff\xd9"])
        assert refusal(written(image)) in ("corrupt", "truncated")


def test_extended_jpeg_of_8_bits_is_read_as_jpeg_is() -> None:
    assert same(holding(jpeg(), JPEGExtended12Bit, picture()), holding(jpeg(), JPEGBaseline8Bit, picture()))
    wide = dicom(picture().astype(np.uint16), BitsStored=8)
    image = pydicom.dcmread(io.BytesIO(wide))
    image.PixelData, image.file_meta.TransferSyntaxUID = encapsulate([jpeg()]), JPEGBaseline8Bit
    assert same(written(image), holding(jpeg(), JPEGBaseline8Bit, picture()))


def test_high_throughput_jpeg_2000_is_named_by_its_syntax() -> None:
    assert same(said(compressed(dicom(), JPEG2000Lossless), HTJ2KLossless), dicom())
    assert dicom_pixels.DECODERS[HTJ2KLossless] == ("pillow", "gdcm")


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_second_decoder_is_asked_where_the_first_fails(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = compressed(dicom(deep(), BitsStored=12), syntax), []
    plain = dicom_pixels.workers.decode

    def decode(uid: str, plugin: str, frame: bytes, options: Any) -> NDArray[Any]:
        asked.append(plugin)
        if len(asked) == 1:
            raise dicom_pixels.Refused("ValueError")
        return plain(uid, plugin, frame, options)

    monkeypatch.setattr(dicom_pixels.workers, "decode", decode)
    assert same(source, dicom(deep(), BitsStored=12))
    assert asked[:2] == list(dicom_pixels.DECODERS[syntax])


def test_every_decoder_is_one_of_pydicoms() -> None:
    from pydicom.pixels.decoders.base import get_decoder

    for syntax, plugins in dicom_pixels.DECODERS.items():
        if syntax in dicom_pixels.GUARDED and syntax not in (JPEGExtended12Bit, *map(UID, HTJ2K)):
            assert set(plugins) <= set(get_decoder(UID(syntax)).available_plugins)


HTJ2K = [f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)]


# files made after public reports

REPORTS = {
    "j2k_odd_psot0.dcm": "accepted",
    "jls_zero_before_eoi.dcm": "accepted",
    "jpll_no_delimiter.dcm": "accepted",
    "body_torax.dcm": "accepted",
    "body_pecho.dcm": "accepted",
    "body_unknown.dcm": "accepted",
    "desc_torax_perfil.dcm": "lateral-view",
    "ts_says_implicit_is_explicit.dcm": "accepted",
    "meta_without_ts.dcm": "accepted",
    "no_preamble_with_meta.dcm": "accepted",
    "file_zero_padded_512.dcm": "accepted",
    "mod_dr.dcm": "accepted",
}


@pytest.mark.parametrize(("name", "outcome"), REPORTS.items())
def test_files_after_public_reports_end_as_they_should(shared: Path, name: str, outcome: str) -> None:
    data = (shared / "data" / "reports" / name).read_bytes()
    if outcome != "accepted":
        assert refusal(data) == outcome
        return
    result = accepted(data)
    assert (result.pixels.shape, result.facts.bits) == ((300, 320), 12)
    assert len(np.unique(result.pixels)) > 200


def test_the_page_about_dicom_is_made_from_what_the_code_does() -> None:
    kept = (Path(__file__).parents[2] / "docs" / "dicom.md").read_text()
    assert kept == dicom_survey.page(), "run `python tests/images/dicom_survey.py > docs/dicom.md`"
