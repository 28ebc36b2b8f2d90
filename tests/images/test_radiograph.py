from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_radiograph
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from samples import chunk, compressed, dicom, jpeg, picture, png, written

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.jpeg import segments
from xray_pipeline.images.radiograph import Limits, Normalised, decode, load, normalise, sniff, square
from xray_pipeline.intake.rules import QUARANTINED

LIMITS = Limits()


def refusal(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(RadiographError) as caught:
        normalise(data, limits)
    return caught.value.reason


def accepted(data: bytes) -> Normalised:
    return normalise(data, LIMITS)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def secret_jpeg(**options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    exif[0x0132] = "1940:03:05 00:00:00"
    return jpeg(exif=exif, comment=b"DOE^JANE", icc_profile=b"DOE^JANE" * 40, dpi=(300, 300), **options)


# JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 7}])
def test_jpeg_keeps_its_compressed_pixels_and_loses_its_metadata(options: dict[str, Any]) -> None:
    source = secret_jpeg(**options)
    result = accepted(source)
    assert result.suffix == ".jpg"
    assert np.array_equal(result.pixels, np.asarray(opened(source)))
    assert np.array_equal(np.asarray(opened(result.data)), result.pixels)
    assert b"DOE" not in result.data
    assert not any(b"\xff" + bytes([marker]) in result.data for marker in (*range(0xE0, 0xF0), 0xFE))
    scan = source[source.index(b"\xff\xda") :]
    assert result.data.endswith(scan)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_grey_rgb_jpeg_stays_jpeg_with_the_pixels_of_a_plain_decoder(subsampling: int) -> None:
    source = jpeg(np.repeat(picture()[..., None], 3, axis=2), subsampling=subsampling)
    result = accepted(source)
    assert (result.suffix, result.facts.mode) == (".jpg", "RGB")
    plain = np.asarray(opened(source).convert("RGB"))
    assert np.abs(plain.astype(int) - result.pixels[..., None]).max() <= 1
    assert np.array_equal(decode(result.data), result.pixels)


def test_faint_chroma_noise_is_grey() -> None:
    noise = np.random.default_rng(0).integers(-4, 5, (96, 80, 3))
    noisy = np.clip(picture()[..., None].astype(int) + noise, 0, 255).astype(np.uint8)
    assert accepted(jpeg(noisy, quality=75)).suffix == ".jpg"
    assert accepted(png(noisy)).suffix == ".png"


def test_colour_is_refused() -> None:
    tinted = np.stack([picture(), picture() // 2, picture() // 3], axis=2)
    marked = np.repeat(picture()[..., None], 3, axis=2)
    marked[:8, :8] = (255, 0, 0)
    for pixels in (tinted, marked):
        assert refusal(jpeg(pixels)) == "coloured"
        assert refusal(png(pixels)) == "coloured"


def test_rgb_jpeg_without_colour_transform_becomes_png() -> None:
    source = jpeg(np.repeat(picture()[..., None], 3, axis=2), keep_rgb=True)
    result = accepted(source)
    assert result.suffix == ".png"
    assert np.array_equal(result.pixels, np.asarray(opened(source))[..., 0])


def test_cmyk_is_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).convert("CMYK").save(out, "JPEG")
    assert refusal(out.getvalue()) == "cmyk"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("make", [jpeg, png])
def test_exif_orientation_is_applied(make: Callable[..., bytes], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = make(exif=exif)
    result = accepted(source)
    upright = ImageOps.exif_transpose(opened(source))
    assert np.array_equal(result.pixels, np.asarray(upright))
    assert (result.facts.width, result.facts.height) == upright.size
    assert result.suffix == (".jpg" if make is jpeg and orientation == 1 else ".png")


def test_broken_exif_means_upright() -> None:
    source = jpeg()
    for exif in (
        b"",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0",
    ):
        body = b"Exif\0\0" + exif
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        assert accepted(source[:2] + segment + source[2:]).digest == accepted(source).digest


def test_second_image_after_the_first_is_garbage() -> None:
    assert refusal(jpeg() + jpeg()) == "trailing-garbage"


@pytest.mark.parametrize("process", [0xC3, 0xC5, 0xC9, 0xCA, 0xF7])
def test_uncommon_jpeg_process_is_refused(process: int) -> None:
    assert refusal(jpeg().replace(b"\xff\xc0", bytes([0xFF, process]))) == "unsupported-jpeg"


def test_twelve_bit_jpeg_is_refused() -> None:
    source = bytearray(jpeg())
    source[source.index(b"\xff\xc0") + 4] = 12
    assert refusal(bytes(source)) == "unsupported-jpeg"


def test_scan_bomb_is_refused() -> None:
    source = jpeg(progressive=True)
    scan = source[source.rindex(b"\xff\xda") : -2]
    assert refusal(source[:-2] + scan * 70 + b"\xff\xd9") == "corrupt"


def entropy(source: bytes, number: int = -1) -> tuple[int, int]:
    """Where the entropy-coded data of a JPEG's scan starts and stops; by default the last scan's."""
    scan = [segment for segment in segments(source) if segment.marker == 0xDA][number]
    return scan.start + 2 + int.from_bytes(source[scan.start + 2 : scan.start + 4]), scan.stop


def without_end(source: bytes, kept: float, number: int = -1) -> bytes:
    """A JPEG with the given share of a scan's entropy-coded data, and all that follows the scan."""
    start, stop = entropy(source, number)
    return source[: start + int((stop - start) * kept)].rstrip(b"\xff") + source[stop:]


KINDS = pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_blocks": 7}, {"restart_marker_rows": 1}, {"rgb": True}],
    ids=["plain", "progressive", "blocks", "rows", "rgb"],
)


def large_jpeg(rgb: bool = False, **options: Any) -> bytes:
    noisy = picture(1, 300, 260) // 2 + np.random.default_rng(0).integers(0, 100, (300, 260), np.uint8)
    return jpeg(np.repeat(noisy[..., None], 3, axis=2) if rgb else noisy, **options)


@KINDS
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95])
def test_scan_that_ends_early_is_truncated_though_the_end_marker_is_there(options: dict[str, Any], kept: float) -> None:
    source = large_jpeg(**options)
    accepted(source)
    assert refusal(without_end(source, kept)) == "truncated"


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 7}, {"restart_marker_rows": 1}, {"rgb": True}])
def test_zeros_in_the_middle_of_a_scan_are_noticed(options: dict[str, Any]) -> None:
    source = large_jpeg(**options)
    start, stop = entropy(source)
    middle = (start + stop) // 2
    broken = source[:middle].rstrip(b"\xff") + bytes(1500) + source[middle + 1500 :]
    assert refusal(broken) in ("truncated", "corrupt")


def test_scan_that_goes_on_after_the_image_is_corrupt() -> None:
    source = large_jpeg()
    size = source.index(b"\xff\xc0") + 5
    assert refusal(source[:size] + struct.pack(">H", 280) + source[size + 2 :]) == "corrupt"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"rgb": True}])
def test_what_follows_the_last_code_of_a_jpeg_may_be_padding_and_nothing_else(options: dict[str, Any]) -> None:
    source = large_jpeg(**options)
    for zeros in (1, 2, 30, 64):
        padded = accepted(source[:-2] + bytes(zeros) + b"\xff\xff\xd9")
        assert np.array_equal(padded.pixels, accepted(source).pixels)
        assert np.array_equal(decode(padded.data), padded.pixels)
    for rest in (bytes(2000), b"\x01" * 40, np.random.default_rng(0).bytes(40).replace(b"\xff", b"")):
        assert refusal(source[:-2] + rest + b"\xff\xd9") == "corrupt"


DAMAGE: dict[str, Callable[[bytes, int, int], bytes]] = {
    "missing": lambda data, at, stop: data[:at] + data[at + 600 :],
    "added": lambda data, at, stop: data[:at] + data[at - 600 : at].rstrip(b"\xff") + data[at:],
    "noise added": lambda data, at, stop: data[:at] + bytes(range(1, 255)) * 3 + data[at:],
    "zeroed to its end": lambda data, at, stop: data[:at] + bytes(stop - at) + data[stop:],
}


@KINDS
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("where", [0.3, 0.6])
def test_stretches_of_a_scan_that_are_missing_added_or_zeroed_are_noticed(
    options: dict[str, Any], damage: str, where: float
) -> None:
    source = large_jpeg(**options)
    longest = max(range(source.count(b"\xff\xda")), key=lambda n: -np.subtract(*entropy(source, n)))
    start, stop = entropy(source, longest)
    at = start + int((stop - start) * where)
    while source[at - 1] == 0xFF:
        at += 1
    assert refusal(DAMAGE[damage](source, at, stop)) in ("truncated", "corrupt")


def test_code_that_is_none_is_corrupt() -> None:
    source = large_jpeg()
    start, stop = entropy(source)
    at, ones = (start + stop) // 2, b"\xff\0" * 20  # no Huffman code consists of them
    assert refusal(source[:at].rstrip(b"\xff") + ones + source[at + 40 :]) == "corrupt"


def test_scan_header_of_a_baseline_jpeg_that_leaves_its_spectrum_empty_is_read() -> None:
    source = large_jpeg()
    first = entropy(source)[0]
    result = accepted(source[: first - 3] + bytes(3) + source[first:])
    assert np.array_equal(result.pixels, accepted(source).pixels)
    assert result.digest == accepted(source).digest


def spliced(factors: list[tuple[int, int]], height: int = 177, width: int = 203) -> bytes:
    """A JPEG whose three components have any sampling factors: a scan each, of a grey JPEG of that size."""
    most = [max(pair[axis] for pair in factors) for axis in range(2)]
    tables, scans, components = b"", b"", b""
    for number, (across, down) in enumerate(factors, 1):
        shape = -(-height * down // most[1]), -(-width * across // most[0])
        plane = jpeg(picture(0, *shape) if number == 1 else np.full(shape, 128, np.uint8))
        for marker, start, stop, _ in segments(plane):
            if marker == 0xDA:
                scans += plane[start : start + 5] + bytes([number]) + plane[start + 6 : stop]
            elif number == 1 and marker in (0xC4, 0xDB):
                tables += plane[start:stop]
        components += bytes([number, across << 4 | down, 0])
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + components
    return b"\xff\xd8" + tables + b"\xff\xc0" + frame + scans + b"\xff\xd9"


def test_usual_samplings_of_colour_are_read_and_odd_ones_refused() -> None:
    for factors in ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1)):
        source = spliced([factors, (1, 1), (1, 1)])
        assert np.array_equal(accepted(source).pixels, np.asarray(opened(source))[..., 0])
    assert refusal(spliced([(3, 1), (1, 1), (1, 1)])) == "unsupported-jpeg"


def test_pixels_of_real_jpegs_are_pillows(shared: Path) -> None:
    small = sorted((shared / "data" / "chest_xray").rglob("*.jpeg"))[::100]
    for path in (*sorted((shared / "data" / "fullres_sample").rglob("*.jpeg"))[::4], *small):
        image = Image.open(path)
        image.draft("L" if image.mode == "L" else "YCbCr", image.size)
        assert np.array_equal(accepted(path.read_bytes()).pixels, np.asarray(image.split()[0]))


def test_missing_scans_are_truncated() -> None:
    source = large_jpeg(progressive=True)
    last = [segment for segment in segments(source) if segment.marker == 0xDA][-1]
    assert refusal(source[: last.start] + b"\xff\xd9") == "truncated"


def test_restart_markers_must_be_as_many_as_the_header_says_and_in_order() -> None:
    source = large_jpeg(restart_marker_rows=1)
    first, second = source.index(b"\xff\xd0"), source.index(b"\xff\xd1")
    assert refusal(source[:first] + source[second:]) == "corrupt"
    assert refusal(source.replace(b"\xff\xd1", b"\xff\xd2", 1)) == "corrupt"
    whole_turn = source[:first] + source[source.index(b"\xff\xd0", first + 2) :]
    assert refusal(whole_turn) == "truncated"
    interval = source.index(b"\xff\xdd")
    assert refusal(source[:interval] + source[interval + 6 :]) == "corrupt"
    accepted(source[:first] + b"\xff\xff" + source[first:])  # fill bytes may stand before any marker


def test_part_between_restart_markers_that_ends_early_is_truncated() -> None:
    for rgb in (False, True):
        source = large_jpeg(rgb, restart_marker_rows=1)
        third, fourth = source.index(b"\xff\xd2"), source.index(b"\xff\xd3")
        assert refusal(source[: (third + fourth) // 2].rstrip(b"\xff") + source[fourth:]) == "truncated"


def test_flat_grey_before_a_restart_marker_is_whole() -> None:
    pixels = picture(1, 128, 128)
    pixels[40:80] = 128
    source = jpeg(pixels, restart_marker_rows=1)
    assert (accepted(source).pixels[48:72] == 128).all()


def test_flat_borders_are_whole() -> None:
    for grey in (0, 128, 255):
        pixels = picture(1, 200, 200)
        pixels[90:] = grey
        pixels[:, 120:] = grey
        for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
            assert accepted(jpeg(pixels, **options)).suffix == ".jpg"


# PNG


def packed_png(packed: bytes, interlaced: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", 80, 96, 8, 0, 0, 0, interlaced)
    parts = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(b"IDAT", part) for part in parts)
        + chunk(b"IEND", b"")
    )


def rows(pixels: NDArray[np.uint8]) -> bytes:
    """Unfiltered PNG rows."""
    return b"".join(b"\0" + row.tobytes() for row in pixels) if pixels.size else b""


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
FILTERED = {0: rows(picture()), 1: b"".join(rows(picture()[y::down, x::right]) for y, x, down, right in ADAM7)}


@pytest.mark.parametrize("interlaced", [0, 1])
def test_png_data_must_be_as_long_as_the_header_says(interlaced: int) -> None:
    plain = FILTERED[interlaced]
    packed = zlib.compress(plain)
    assert np.array_equal(accepted(packed_png(packed, interlaced)).pixels, picture())
    assert refusal(packed_png(zlib.compress(plain[: 81 * 10]), interlaced)) == "truncated"
    assert refusal(packed_png(zlib.compress(plain[:-1]), interlaced)) == "truncated"
    assert refusal(packed_png(packed[:-4], interlaced)) == "truncated"
    assert refusal(packed_png(packed[:-1] + bytes([packed[-1] ^ 1]), interlaced)) == "corrupt"
    assert refusal(packed_png(zlib.compress(plain + b"\0"), interlaced)) == "trailing-garbage"
    assert refusal(packed_png(packed + b"garbage" * 300, interlaced)) == "trailing-garbage"
    assert refusal(packed_png(b"", interlaced)) == "truncated"


def test_png_of_well_packed_pixels_is_whole() -> None:
    flat = np.zeros((2048, 2048), np.uint16)
    flat[0, 0] = 1
    for level in (0, 1, 9):
        assert np.array_equal(accepted(png(flat, compress_level=level)).pixels, flat)


def test_sixteen_bits_are_kept() -> None:
    deep = picture().astype(np.uint16) * 257 + np.arange(80, dtype=np.uint16)
    result = accepted(png(deep))
    assert result.pixels.dtype == np.uint16
    assert np.array_equal(result.pixels, deep)
    assert result.facts.bits == 16
    assert np.array_equal(decode(result.data), deep)


SIXTEEN = picture(3).astype(np.uint16) * 257
"""The same as a radiograph of 16 bits."""


def of_bits(bits: int) -> NDArray[np.uint16]:
    """The picture as a detector of some bits gives it."""
    return np.rint(SIXTEEN * ((2**bits - 1) / 65535)).astype(np.uint16)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_16_bit_png_of_fewer_bits_is_scaled_to_what_it_shows(bits: int) -> None:
    source = png(of_bits(bits))
    result = accepted(source)
    assert (result.facts.mode, result.facts.bits, result.pixels.dtype) == ("I;16", bits, np.uint16)
    assert np.abs(result.pixels.astype(int) - SIXTEEN).max() <= 65535 / (2**bits - 1)
    assert (result.pixels.min(), result.pixels.max()) == (0, 65535)
    assert np.array_equal(load(source, LIMITS, 64), load(result.data, LIMITS, 64))
    assert accepted(result.data).digest == result.digest


@pytest.mark.parametrize(
    ("brightest", "bits"),
    [(1, 8), (255, 8), (256, 10), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, 16)],
)
def test_depth_of_a_16_bit_png_is_the_smallest_that_holds_its_brightest_pixel(brightest: int, bits: int) -> None:
    pixels = (SIXTEEN > 30000).astype(np.uint16) * brightest
    result = accepted(png(pixels))
    assert result.facts.bits == bits
    shown = result.pixels.max() / (255 if bits == 8 else 65535)
    assert shown == pytest.approx(brightest / (2**bits - 1), abs=1e-4)
    assert np.array_equal(decode(result.data), result.pixels)
    assert np.array_equal(load(png(pixels), LIMITS, 64), load(result.data, LIMITS, 64))


def test_eight_bits_in_a_16_bit_png_are_the_8_bit_picture() -> None:
    result = accepted(png(picture().astype(np.uint16)))
    assert result.digest == accepted(png()).digest
    assert (result.facts.mode, result.facts.bits) == ("I;16", 8)


def test_what_is_said_of_the_depth_goes_before_the_brightest_pixel() -> None:
    dark = of_bits(12) // 5  # fits 10 bits
    assert dark.max() < 1024
    said = {bits: normalise(png(dark), Limits(png_bits=bits)) for bits in (12, 15, 16)}
    assert np.array_equal(said[16].pixels, dark)
    for bits in (12, 15):
        assert np.array_equal(said[bits].pixels, np.rint(dark * (65535 / (2**bits - 1))).astype(np.uint16))
    for bits, result in said.items():
        assert result.facts.bits == bits
        for limits in (LIMITS, Limits(png_bits=12), Limits(png_bits=10)):  # what is stored is never scaled again
            assert np.array_equal(load(result.data, limits, 64), square(result.pixels, 64))
    assert refusal(png(of_bits(12)), Limits(png_bits=10)) == "wrong-depth"
    assert normalise(png(), Limits(png_bits=12)).digest == accepted(png()).digest  # no 16-bit PNG
    assert normalise(dicom(), Limits(png_bits=12)).digest == accepted(dicom()).digest


def test_dark_window_of_a_dicom_stays_dark_in_what_is_stored() -> None:
    deep = np.minimum(of_bits(12), 500)
    result = accepted(dicom(deep, BitsStored=12, WindowCenter="2048", WindowWidth="4096"))
    assert 0 < result.pixels.max() < 16384
    assert np.array_equal(load(result.data, LIMITS, 64), square(result.pixels, 64))


def test_reported_png_of_12_bits_and_jpeg_with_a_zero_behind_it(shared: Path) -> None:
    reports = shared / "data" / "reports"
    shown = accepted((reports / "png_12_bits_in_16.reference.png").read_bytes())
    found = accepted((reports / "png_12_bits_in_16.png").read_bytes())
    assert found.facts.bits == 12
    assert np.abs(square(found.pixels, 224).astype(int) - square(shown.pixels, 224)).max() <= 1
    trailing = (reports / "jpg_trailing_nul.jpg").read_bytes()
    assert accepted(trailing).digest == accepted(trailing.rstrip(b"\0")).digest


def test_png_metadata_is_left_out() -> None:
    source = png()
    text = chunk(b"tEXt", b"Author\0DOE^JANE") + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"DOE^JANE"))
    source = source[:33] + text + chunk(b"tIME", b"\x07\xd0\1\1\1\1\1") + source[33:]
    assert b"tEXt" not in accepted(source).data
    assert accepted(source).digest == accepted(png()).digest


def test_alpha_is_dropped_when_opaque_and_refused_when_not() -> None:
    opaque = np.dstack([picture(), np.full_like(picture(), 255)])
    clear = opaque.copy()
    clear[3, 4, 1] = 254
    assert np.array_equal(accepted(png(opaque)).pixels, picture())
    assert refusal(png(clear)) == "transparent"
    rgba = np.dstack([*[picture()] * 3, np.full_like(picture(), 255)])
    assert np.array_equal(accepted(png(rgba)).pixels, picture())
    assert refusal(png(picture(), transparency=int(picture()[0, 0]))) == "transparent"
    deep = picture().astype(np.uint16) * 257
    assert refusal(png(deep, transparency=int(deep[0, 0]))) == "transparent"


def palette_png(colours: list[tuple[int, int, int]], **options: object) -> bytes:
    image = Image.fromarray(picture()).convert("P")
    image.putpalette([value for colour in colours for value in colour])
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def test_palette_of_greys_is_grey_and_of_colours_is_not() -> None:
    greys = [(255 - value,) * 3 for value in range(256)]
    result = accepted(palette_png(greys))
    assert np.array_equal(result.pixels, 255 - picture())
    assert refusal(palette_png([(value, 255 - value, 0) for value in range(256)])) == "coloured"
    assert refusal(palette_png(greys, transparency=10)) == "transparent"


def test_deep_colour_is_refused() -> None:
    source = bytearray(png(np.repeat(picture()[..., None], 3, axis=2)))
    source[24] = 16
    source[29:33] = struct.pack(">I", zlib.crc32(source[12:29]))
    assert refusal(bytes(source)) == "deep-colour"


def test_bilevel_is_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).convert("1").save(out, "PNG")
    assert refusal(out.getvalue()) == "bilevel"


def test_animated_png_is_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "PNG", save_all=True, append_images=[Image.fromarray(picture(1))])
    assert refusal(out.getvalue()) == "animated"


def test_wrong_checksum_is_corrupt() -> None:
    source = bytearray(png())
    source[60] ^= 1
    assert refusal(bytes(source)) == "corrupt"


# every format

ONE_OF_EACH = pytest.mark.parametrize("source", [jpeg(), png(), dicom()], ids=["jpeg", "png", "dicom"])


@ONE_OF_EACH
def test_normalising_twice_changes_nothing(source: bytes) -> None:
    once = accepted(source)
    twice = accepted(once.data)
    assert (twice.data, twice.digest, twice.suffix) == (once.data, once.digest, once.suffix)
    assert np.array_equal(twice.pixels, once.pixels)
    assert np.array_equal(decode(once.data), once.pixels)


@ONE_OF_EACH
def test_loading_a_file_equals_loading_what_is_stored(source: bytes) -> None:
    from_source = load(source, LIMITS, 48)
    assert from_source.shape == (48, 48)
    assert from_source.dtype == np.uint8
    assert np.array_equal(from_source, load(accepted(source).data, LIMITS, 48))
    assert np.array_equal(from_source, square(decode(accepted(source).data), 48))


@ONE_OF_EACH
def test_cut_anywhere_is_refused(source: bytes) -> None:
    for stop in {*range(1, 200, 7), *range(200, len(source) - 1, 97)}:
        assert refusal(source[:stop]) in (
            "truncated",
            "corrupt",
            "not-an-image",
            "no-pixels",
            "unsupported-transfer-syntax",
        )


@ONE_OF_EACH
def test_cut_in_the_pixels_is_called_truncated(source: bytes) -> None:
    assert refusal(source[:-40]) == "truncated"


@ONE_OF_EACH
@pytest.mark.parametrize("tail", [b"PK\x03\x04 and so on", b"<script>", bytes(600)])
def test_bytes_behind_the_image_are_refused(source: bytes, tail: bytes) -> None:
    if source[128:132] == b"DICM" and not tail.strip(b"\0"):  # it fills a block
        assert accepted(source + tail).digest == accepted(source).digest
    else:
        assert refusal(source + tail) == "trailing-garbage"


@pytest.mark.parametrize("make", [jpeg, png, lambda: jpeg(progressive=True), lambda: png(of_bits(12))])
def test_a_few_zeros_blanks_and_line_ends_behind_a_jpeg_or_png_are_let_pass(make: Callable[[], bytes]) -> None:
    for tail in (b"\0", b"\n", b"\r\n", b"\0\0\0", b" \t\r\n\0", bytes(16)):
        assert accepted(make() + tail).digest == accepted(make()).digest
    for tail in (bytes(17), b"\n" * 17, b"\0x", b"\x1a", b"\n" + make()):
        assert refusal(make() + tail) == "trailing-garbage"


@pytest.mark.parametrize("make", [jpeg, png, dicom])
@pytest.mark.parametrize(
    ("height", "width", "reason"),
    [(1, 1, "too-small"), (63, 70, "too-small"), (64, 257, "extreme-aspect"), (400, 90, "extreme-aspect")],
)
def test_header_limits(make: Callable[..., bytes], height: int, width: int, reason: str) -> None:
    assert refusal(make(np.resize(picture(), (height, width)))) == reason


def test_a_file_can_be_too_large() -> None:
    assert refusal(jpeg(), Limits(max_file_bytes=100)) == "too-large"


@pytest.mark.parametrize("make", [jpeg, png, dicom])
def test_blank_is_refused(make: Callable[..., bytes]) -> None:
    assert refusal(make(np.full((80, 80), 7, np.uint8))) == "blank"


def huge_jpeg() -> bytes:
    source = bytearray(jpeg())
    at = source.index(b"\xff\xc0")
    source[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(source)


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def huge_dicom() -> bytes:
    return dicom(Rows=60_000, Columns=60_000)


def deflated_bomb() -> bytes:
    source = dicom(syntax=DeflatedExplicitVRLittleEndian)
    start = source.index(b"1.2.840.10008.1.2.1.99") + 22
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1_000_000)
    return source[:start] + b"".join(packer.compress(zeros) for _ in range(50)) + packer.flush()


def png_with_a_bomb_behind() -> bytes:
    packer = zlib.compressobj(9)
    zeros = bytes(1_000_000)
    parts = [packer.compress(FILTERED[0]), *(packer.compress(zeros) for _ in range(200)), packer.flush()]
    return packed_png(b"".join(parts))


def test_bomb_behind_the_pixels_of_a_png_is_not_unpacked() -> None:
    source = png_with_a_bomb_behind()
    tracemalloc.start()
    try:
        assert refusal(source) == "trailing-garbage"
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("make", [huge_jpeg, huge_png, huge_dicom, deflated_bomb])
def test_bombs_are_refused_in_bounded_memory(make: Callable[[], bytes]) -> None:
    source = make()
    limits = Limits(max_file_bytes=10_000_000)
    tracemalloc.start()
    try:
        assert refusal(source, limits) == "bomb"
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "reason", "name"),
    [
        (b"", "empty", ""),
        (b"<!DOCTYPE html><html><body>", "not-an-image", "HTML"),
        (b'<?xml version="1.0"?><svg width="9">', "not-an-image", "SVG"),
        (b"%PDF-1.7 ...", "not-an-image", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not-an-image", "EPS"),
        (b"SIMPLE  =                    T", "not-an-image", "FITS"),
        (b"GIF89a...", "not-an-image", "GIF"),
        (b"BM......", "not-an-image", "BMP"),
        (b"II*\0....", "not-an-image", "TIFF"),
        (b"RIFF....WEBP", "not-an-image", "WebP"),
        (b"file,label\na,b\n", "not-an-image", "text"),
        (bytes(500), "not-an-image", "zeros"),
        (b"\x08\0\x05\0CS\x0a\0ISO_IR 100", "not-an-image", "Part 10"),
        (b"PK\x03\x04....", "archive", "zip"),
        (b"\x1f\x8b\x08....", "archive", "gzip"),
        (b"name".ljust(257, b"\0") + b"ustar\x0000", "archive", "tar"),
        (b"\x7fELF....", "executable", "program"),
        (b"MZ......", "executable", "program"),
        (b"\xff\xd8\xff", "truncated", ""),
        (b"\x89PNG\r\n\x1a\n", "truncated", ""),
    ],
)
def test_other_content_is_named(data: bytes, reason: str, name: str) -> None:
    with pytest.raises(RadiographError) as caught:
        normalise(data, LIMITS)
    assert caught.value.reason == reason
    assert name in caught.value.detail


def test_only_content_decides() -> None:
    assert [sniff(data) for data in (jpeg(), png(), dicom(), b"GIF89a")] == ["jpeg", "png", "dicom", None]


@given(arrays(np.uint16, (70, 66)))
@settings(max_examples=25, deadline=None)
def test_any_16_bit_pixels_survive(pixels: NDArray[np.uint16]) -> None:
    pixels[0, 0] ^= 1
    if pixels.min() == pixels.max():
        pixels[0, 1] ^= 2
    result = normalise(png(pixels), Limits(png_bits=16))
    assert np.array_equal(result.pixels, pixels)
    assert np.array_equal(decode(result.data), pixels)
    shown = accepted(png(pixels))
    assert np.array_equal(decode(shown.data), shown.pixels)
    assert np.array_equal(load(shown.data, LIMITS, 64), square(shown.pixels, 64))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_get_a_verdict(data: bytes, magic: bytes) -> None:
    assert refusal(magic + data) in QUARANTINED


def test_square_rounds_16_bits_to_8() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(square(deep, 256), np.rint(deep / 257).astype(np.uint8))


# DICOM


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.1"]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_dicom_encodings_give_the_stored_values(syntax: str, dtype: type) -> None:
    pixels = picture().astype(dtype) * (1 if dtype is np.uint8 else 100)
    shown = accepted(dicom(pixels, syntax=syntax)).pixels
    top = 255 if dtype is np.uint8 else 65535
    assert np.array_equal(shown, np.rint(picture() / 255 * top))


LOSSLESS = [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1]


@pytest.mark.parametrize("syntax", LOSSLESS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_compression_gives_the_same_radiograph(syntax: str, bits: int) -> None:
    pixels = picture() if bits == 8 else picture().astype(np.uint16) * (16 if bits == 12 else 257)
    plain = dicom(pixels, BitsStored=bits)
    packed = compressed(plain, syntax)
    assert pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(accepted(packed).pixels, accepted(plain).pixels)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
    ],
)
def test_pydicom_test_files_of_one_image_agree(name: str, reference: str) -> None:
    assert np.array_equal(accepted(as_chest(name)).pixels, accepted(as_chest(reference)).pixels)


def as_chest(name: str) -> bytes:
    """One of pydicom's test files, said to be a chest radiograph."""
    path = get_testdata_file(name)
    assert isinstance(path, str)
    image = pydicom.dcmread(path)
    image.Modality, image.BodyPartExamined = "CR", "CHEST"
    return written(image)


def test_every_pydicom_test_file_gets_a_verdict() -> None:
    folder = Path(pydicom.__file__).parent / "data"
    paths = sorted(folder.rglob("*.dcm"))
    assert len(paths) > 80
    outcomes = set()
    for path in paths:
        try:
            normalise(path.read_bytes(), Limits(min_side=4))
            outcomes.add("accepted")
        except RadiographError as error:
            outcomes.add(error.reason)
    assert {"accepted", "multi-frame", "colour-dicom", "no-pixels", "wrong-modality", "not-an-image"} <= outcomes


def test_monochrome1_is_inverted() -> None:
    plain = accepted(dicom()).pixels
    assert np.array_equal(accepted(dicom(PhotometricInterpretation="MONOCHROME1")).pixels, 255 - plain)


def test_window_is_applied_as_the_standard_says() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    shown = accepted(dicom(ramp, BitsStored=12, WindowCenter="2048", WindowWidth="1000")).pixels
    linear = np.clip((ramp - 2047.5) / 999 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    assert np.abs(shown - linear * 65535).max() <= 0.51


def test_first_of_several_windows_is_taken() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    one = dicom(ramp, WindowCenter="2048", WindowWidth="1000")
    two = dicom(ramp, WindowCenter=["2048", "100"], WindowWidth=["1000", "10"])
    assert accepted(one).digest == accepted(two).digest


def test_sigmoid_window() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    shown = accepted(dicom(ramp, WindowCenter="2048", WindowWidth="1000", VOILUTFunction="SIGMOID")).pixels
    expected = 1 / (1 + np.exp(-4 * (ramp - 2048.0) / 1000))  # PS3.3 C.11.2.1.3.1
    assert np.abs(shown - expected * 65535).max() <= 0.51


@pytest.mark.parametrize("window", [("2048", "0"), ("2048", "-5"), ("", ""), ("2048", None)])
def test_unusable_window_means_darkest_to_brightest(window: tuple[str, str | None]) -> None:
    ramp = np.arange(100, 4196, dtype=np.uint16).reshape(64, 64)
    shown = accepted(dicom(ramp, WindowCenter=window[0], WindowWidth=window[1])).pixels
    assert np.array_equal(shown, np.rint((ramp - 100) / 4095 * 65535))


def test_rescale_comes_before_the_window() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    plain = dicom(ramp, WindowCenter="2048", WindowWidth="1000")
    rescaled = dicom(ramp, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter="3095.5", WindowWidth="1999")
    assert np.abs(accepted(plain).pixels.astype(int) - accepted(rescaled).pixels).max() <= 1


def test_negative_rescale_slope_turns_the_image_over() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    shown = accepted(dicom(ramp, RescaleSlope="-1", RescaleIntercept="4095")).pixels
    assert np.array_equal(shown, accepted(dicom(ramp)).pixels[::-1, ::-1])


def lut(data: list[int], first: int, bits: int) -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(data), first, bits]
    item.add_new("LUTData", "US", data)
    return Sequence([item])


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1", ExplicitVRBigEndian])
def test_voi_lut_is_applied_and_preferred_to_the_window(syntax: str) -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    table = [min(4095, value * value // 2000) for value in range(4096)]
    source = dicom(ramp, syntax=syntax, VOILUTSequence=lut(table, 0, 12), WindowCenter="10", WindowWidth="10")
    assert np.array_equal(accepted(source).pixels, np.rint(np.array(table).reshape(64, 64) / 4095 * 65535))


def test_voi_lut_clamps_values_outside() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    shown = accepted(dicom(ramp, VOILUTSequence=lut(list(range(1000)), 1000, 16))).pixels
    assert (shown[ramp <= 1000] == 0).all()
    assert (shown[ramp >= 1999] == 65535).all()


def test_modality_lut_is_applied() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    table = [(value * 7) % 4096 for value in range(4096)]
    shown = accepted(dicom(ramp, ModalityLUTSequence=lut(table, 0, 16))).pixels
    assert np.array_equal(shown, np.rint(np.array(table).reshape(64, 64) / 4095 * 65535))


def test_padding_is_black_and_does_not_count() -> None:
    pixels = picture().astype(np.uint16) + 500
    pixels[:10] = 4000
    shown = accepted(dicom(pixels, PixelPaddingValue=4000, PhotometricInterpretation="MONOCHROME1")).pixels
    assert (shown[:10] == 0).all()
    assert shown[10:].max() == 65535


def test_unused_high_bits_are_masked() -> None:
    pixels = picture().astype(np.uint16) * 16
    overlaid = dicom(pixels | 0x8000, BitsStored=12)
    assert np.array_equal(accepted(overlaid).pixels, accepted(dicom(pixels, BitsStored=12)).pixels)


def coded(scheme: str, value: str, meaning: str) -> Sequence:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return Sequence([code])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 2}, "multi-frame"),
        ({"PhotometricInterpretation": "RGB"}, "colour-dicom"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour-dicom"),
        ({"SamplesPerPixel": 3}, "colour-dicom"),
        ({"Modality": "CT"}, "wrong-modality"),
        ({"ViewPosition": "LL"}, "lateral-view"),
        ({"ViewPosition": "RL"}, "lateral-view"),
        ({"ViewPosition": "LATERAL"}, "lateral-view"),
        *(({"ViewPosition": view}, "lateral-view") for view in ("LLAT", "RLAT", "OBL", "L OBL", "LATERALE", "LAT\\AP")),
        ({"ViewPosition": None, "SeriesDescription": "CHEST LAT"}, "lateral-view"),
        ({"ViewPosition": "ERECT", "SeriesDescription": "CHEST LAT"}, "lateral-view"),
        ({"ViewPosition": None, "PatientOrientation": ["A", "F"]}, "lateral-view"),
        ({"ViewPosition": None, "ViewCodeSequence": coded("SCT", "399173006", "seitlich")}, "lateral-view"),
        ({"ViewPosition": "", "ViewCodeSequence": coded("SRT", "R-10228", "")}, "lateral-view"),
        ({"ViewPosition": None, "ViewCodeSequence": coded("99ACME", "7", "left lateral")}, "lateral-view"),
        *(
            ({"BodyPartExamined": part}, "not-chest")
            for part in ("HAND", "THORACIC SPINE", "THORACIC_SPINE", "THORACOLUMBAR", "PLUNGE")
        ),
        ({"BodyPartExamined": None, "AnatomicRegionSequence": coded("SCT", "72696002", "Knee")}, "not-chest"),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": coded("SCT", "122495006", "Thoracic spine")}, "not-chest"),
        ({"PatientSpeciesDescription": "Canine"}, "not-human"),
        ({"PatientSpeciesCodeSequence": coded("SCT", "448771007", "")}, "not-human"),
        ({"PatientSpeciesCodeSequence": coded("99ACME", "1", "Canis lupus familiaris")}, "not-human"),
        ({"SeriesDescription": "CANINE THORAX"}, "not-human"),
        ({"PixelAspectRatio": ["2", "1"]}, "uneven-pixels"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for-processing"),
        ({"BurnedInAnnotation": "YES"}, "burned-in-annotation"),
        ({"PixelData": None}, "no-pixels"),
        ({"BitsAllocated": 32}, "unsupported-pixels"),
        ({"BitsStored": 9}, "corrupt"),
        ({"Rows": 97}, "truncated"),
        ({"Rows": 0}, "corrupt"),
    ],
)
def test_dicom_tags_that_quarantine(tags: dict[str, Any], reason: str) -> None:
    assert refusal(dicom(**tags) if tags.get("PixelData", 1) else without_pixels()) == reason


def without_pixels() -> bytes:
    image = pydicom.dcmread(io.BytesIO(dicom()))
    del image.PixelData
    return written(image)


@pytest.mark.parametrize(
    "tags",
    [
        {"ViewPosition": "AP", "SeriesDescription": "CHEST PA AND LATERAL"},
        {"ViewPosition": None, "BodyPartExamined": None, "Modality": "DX"},
        *({"BodyPartExamined": part} for part in ("Thorax", "CHEST_ABDOMEN", "CHESTABDPELVIS", "LUNG", "HEMITHORAX")),
        *({"ViewPosition": view} for view in ("AP SUPINE", "ERECT", "LORDOTIC")),
        {"ViewPosition": "PA", "ViewCodeSequence": coded("SCT", "399173006", "left lateral")},
        {"ViewPosition": "PA", "PatientOrientation": ["P", "F"]},
        {"ViewPosition": None, "PatientOrientation": ["L", "F"]},
        {"ViewPosition": None, "ViewCodeSequence": coded("SCT", "272479007", ""), "SeriesDescription": "LAT"},
        {"ViewPosition": None, "ViewCodeSequence": coded("99ACME", "7", "")},
        {"BodyPartExamined": "CHEST", "AnatomicRegionSequence": coded("SCT", "72696002", "Knee")},
        {"BodyPartExamined": None, "AnatomicRegionSequence": coded("SCT", "816094009", "Brustkorb")},
        {"BodyPartExamined": None, "AnatomicRegionSequence": coded("99ACME", "7", "Brustkorb")},
        {"PatientSpeciesCodeSequence": coded("SRT", "L-85B00", "")},
        {"PatientSpeciesCodeSequence": coded("99ACME", "1", "")},
        {"PatientSpeciesDescription": "human"},
        {"SeriesDescription": "CAT"},
        {"PixelAspectRatio": ["1", "1"]},
        {"BurnedInAnnotation": "NO", "NumberOfFrames": 1},
        {"PatientSpeciesDescription": "Homo sapiens"},
    ],
)
def test_dicom_tags_that_do_not_quarantine(tags: dict[str, Any]) -> None:
    assert accepted(dicom(**tags)).facts.format == "dicom"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1", ExplicitVRBigEndian])
@pytest.mark.parametrize("open_ended", [True, False])
def test_codes_are_read_in_every_encoding(syntax: str, open_ended: bool) -> None:
    region = coded("SCT", "72696002", "Knee")
    region[0].is_undefined_length_sequence_item = open_ended
    source = pydicom.dcmread(io.BytesIO(dicom(syntax=syntax, BodyPartExamined=None, AnatomicRegionSequence=region)))
    source["AnatomicRegionSequence"].is_undefined_length = open_ended
    assert refusal(written(source)) == "not-chest"


def test_codes_that_can_not_be_read_count_as_not_given() -> None:
    source = dicom(BodyPartExamined=None, AnatomicRegionSequence=coded("SCT", "72696002", "Knee"))
    assert refusal(source) == "not-chest"
    at = source.index(b"\x08\0\0\x01SH")
    assert accepted(source[: at + 4] + b"??" + source[at + 6 :]).pixels.shape == (96, 80)


def test_photometric_interpretation_alone_decides_the_polarity() -> None:
    # PS3.3 asks for IDENTITY with MONOCHROME2 and INVERSE with MONOCHROME1, so the shape says nothing more.
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        plain = accepted(dicom(PhotometricInterpretation=kind))
        for shape in ("IDENTITY", "INVERSE"):
            shown = accepted(dicom(PhotometricInterpretation=kind, PresentationLUTShape=shape))
            assert shown.digest == plain.digest


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "AP"}, "AP"),
        ({"ViewPosition": "PA erect"}, "PA"),
        ({"ViewPosition": "DOE^JANE 1940"}, ""),
        ({"ViewPosition": None, "ViewCodeSequence": coded("SRT", "R-10206", "")}, "AP"),
        ({"ViewPosition": None}, ""),
    ],
)
def test_view_is_one_of_a_few_words(tags: dict[str, Any], view: str) -> None:
    assert accepted(dicom(**tags)).facts.view == view


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.10008.1.2.4.103", "unsupported-transfer-syntax"),  # MPEG-4
        ("1.2.3", "unsupported-transfer-syntax"),
        ("1.2.840.10008.1.2.4.50", "corrupt"),  # says JPEG, is not
    ],
)
def test_transfer_syntaxes_that_quarantine(syntax: str, reason: str) -> None:
    source = dicom()
    old = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0"
    new = (
        b"\x02\0\x10\0UI"
        + struct.pack("<H", len(syntax) + len(syntax) % 2)
        + syntax.encode()
        + b"\0" * (len(syntax) % 2)
    )
    assert old in source
    assert refusal(source.replace(old, new)) == reason


@pytest.mark.parametrize(
    ("preamble", "reason"),
    [(b"MZ", "executable"), (b"\x7fELF", "executable"), (b"#!/bin/sh", "executable"), (b"%PDF-1.4", "polyglot")],
)
def test_preamble_of_another_kind_is_refused(preamble: bytes, reason: str) -> None:
    assert refusal(dicom(preamble=preamble.ljust(128, b"\0"))) == reason


def test_preamble_with_a_tiff_header_is_usual() -> None:
    assert accepted(dicom(preamble=b"II*\0".ljust(128, b"\0"))).digest == accepted(dicom()).digest


def header() -> bytes:
    source = dicom()
    return source[: source.index(b"\x08\0\x16\0UI")]


@pytest.mark.parametrize(
    "body",
    [
        b"\x09\0\x10\0OB\0\0\xfe\xff\xff\xff" + bytes(50),  # a length of 4 GB
        b"\x09\0\x10\0SQ\0\0\xff\xff\xff\xff"
        + b"\xfe\xff\x00\xe0\xff\xff\xff\xff\x09\0\x10\0SQ\0\0\xff\xff\xff\xff" * 100_000,
        b"\x09\0\x10\0SQ\0\0\xff\xff\xff\xff" * 3,
        b"\x09\0\x10\0LO\0\0" * 200_000,
        b"\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\x00\xe0\0\0\0\0",
        b"\x09\0\x10\0??\0\0",
    ],
)
def test_hostile_dicom_structure_is_refused_without_a_hang(body: bytes) -> None:
    start = time.perf_counter()
    assert refusal(header() + body) in ("truncated", "corrupt")
    assert time.perf_counter() - start < 60  # a parser that is quadratic in these takes far longer


def test_deeply_nested_lookup_table_is_harmless() -> None:
    nested = b""
    for _ in range(5000):
        item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(nested)) + nested
        nested = b"\x28\0\x10\x30SQ\0\0" + struct.pack("<I", len(item)) + item
    source = dicom()
    at = source.index(b"\xe0\x7f\x10\0")
    assert np.array_equal(accepted(source[:at] + nested + source[at:]).pixels, picture())


def test_inner_image_must_be_the_size_the_header_says() -> None:
    for syntax in LOSSLESS:
        image = pydicom.dcmread(io.BytesIO(compressed(dicom(), syntax)))
        image.Rows = 95
        assert refusal(written(image)) in ("corrupt", "truncated")


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_damaged_compressed_pixels_are_refused(syntax: str) -> None:
    image = pydicom.dcmread(io.BytesIO(compressed(dicom(), syntax)))
    image.PixelData = image.PixelData[:60] + image.PixelData[-8:]
    assert refusal(written(image)) in ("corrupt", "truncated")


def in_dicom(frames: list[bytes], syntax: str = JPEGBaseline8Bit, **tags: Any) -> bytes:
    """A DICOM file of the size of `large_jpeg` that holds the given frames, each in a fragment."""
    image = pydicom.dcmread(io.BytesIO(dicom(picture(1, 300, 260), **tags)))
    image.PixelData = encapsulate(frames)
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = syntax
    return written(image)


def frame_of(source: bytes) -> bytes:
    return next(generate_frames(pydicom.dcmread(io.BytesIO(source)).PixelData, number_of_frames=1))


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_jpeg_inside_dicom_is_held_to_the_same_rules(options: dict[str, Any]) -> None:
    frame = large_jpeg(**options)
    levels = np.asarray(opened(frame))
    assert np.array_equal(accepted(in_dicom([frame])).pixels, levels)
    signed = accepted(in_dicom([frame], PixelRepresentation=1)).pixels.astype(int)
    assert np.corrcoef(signed.ravel(), levels.view(np.int8).ravel())[0, 1] > 0.9999
    assert refusal(in_dicom([without_end(frame, 0.5)])) == "truncated"
    assert refusal(in_dicom([without_end(frame, 0.05)])) == "truncated"
    assert refusal(in_dicom([frame + b"x" * 4000])) == "trailing-garbage"
    for padding in (b"\xff", bytes(600)):
        assert np.array_equal(accepted(in_dicom([frame + padding])).pixels, levels)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_lossless_jpeg_that_ends_early_is_truncated_though_the_end_marker_is_there(syntax: str, kept: float) -> None:
    frame = frame_of(compressed(dicom(picture(1, 300, 260)), syntax))
    accepted(in_dicom([frame], syntax))
    assert refusal(in_dicom([without_end(frame, kept)], syntax)) == "truncated"


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_lossless_jpeg_with_a_flat_border_is_whole(syntax: str, grey: int) -> None:
    pixels = picture(1)
    pixels[60:] = grey
    assert np.array_equal(accepted(compressed(dicom(pixels), syntax)).pixels, accepted(dicom(pixels)).pixels)


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_second_compressed_frame_is_noticed_without_a_number_of_frames(syntax: str) -> None:
    frame = frame_of(compressed(dicom(picture(1, 300, 260)), syntax))
    accepted(in_dicom([frame], syntax))
    assert refusal(in_dicom([frame, frame], syntax)) == "multi-frame"


@pytest.mark.parametrize("syntax", sorted(set(LOSSLESS) - {RLELossless}))
def test_bytes_behind_a_compressed_frame_are_refused_unless_they_are_padding(syntax: str) -> None:
    frame = frame_of(compressed(dicom(picture(1, 300, 260)), syntax))
    assert refusal(in_dicom([frame + b"PK\x03\x04"], syntax)) == "trailing-garbage"
    whole = accepted(in_dicom([frame], syntax)).digest
    assert accepted(in_dicom([frame + bytes(7)], syntax)).digest == whole


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_native_pixels_are_one_image(dtype: type) -> None:
    image = pydicom.dcmread(io.BytesIO(dicom(picture().astype(dtype))))
    one = image.PixelData

    def with_pixels(pixels: bytes) -> bytes:
        image.PixelData = pixels
        return written(image)

    assert refusal(with_pixels(one * 3)) == "multi-frame"
    assert refusal(with_pixels(one + b"\x55" * 100_000)) == "trailing-garbage"
    assert refusal(with_pixels(one + dicom(seed=3))) == "trailing-garbage"
    assert accepted(with_pixels(one + bytes(128))).digest == accepted(with_pixels(one)).digest


def test_odd_number_of_pixels_is_padded() -> None:
    image = pydicom.dcmread(io.BytesIO(dicom(picture(0, 95, 81))))
    image.PixelData = image.PixelData[: 95 * 81] + b"\x20"
    assert accepted(written(image)).pixels.shape == (95, 81)


def test_facts_of_a_dicom() -> None:
    facts = accepted(
        dicom(PatientSex="F", PatientAge="007M", Manufacturer="ACME", ManufacturerModelName="Röntgen 1", seed=3)
    ).facts
    assert (facts.patient_id, facts.view, facts.sex) == ("patient-3", "PA", "F")
    assert facts.age_years == pytest.approx(0.58)
    assert facts.scanner == "ACME Rntgen 1"
    assert (facts.format, facts.width, facts.height, facts.mode, facts.bits) == ("dicom", 80, 96, "MONOCHROME2", 8)


@pytest.mark.parametrize(
    ("tags", "age"),
    [
        ({"PatientAge": "062Y"}, 62),
        ({"PatientAge": "95Y"}, 90),
        ({"PatientAge": "030M"}, 2),
        ({"PatientBirthDate": "19400305", "StudyDate": "20040826"}, 64),
        ({"PatientBirthDate": "20040826", "StudyDate": "19400305"}, None),
        ({}, None),
    ],
)
def test_age_is_coarse(tags: dict[str, Any], age: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom minds writing "95Y"
        assert accepted(dicom(**tags)).facts.age_years == age


def test_patient_data_stays_out_of_pixels_messages_and_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "DOE^JANE^19400305"
    tags: dict[str, Any] = {
        "PatientName": secret,
        "PatientID": secret,
        "OtherPatientIDs": secret,
        "ImageComments": secret,
    }
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        result = accepted(dicom(**tags))
        messages = []
        for broken in (
            dicom(**tags, Rows=500),
            dicom(**tags, PhotometricInterpretation=secret),
            dicom(**tags, Modality=secret),
            dicom(**tags, BitsStored=99),
        ):
            with pytest.raises(RadiographError) as caught:
                normalise(broken, LIMITS)
            messages.append(str(caught.value))
    assert secret.encode() not in result.data
    ours = [str(w.message) for w in warned if "samples" not in w.filename and "pydicom" not in w.filename]
    assert "JANE" not in " ".join([*messages, *ours, caplog.text])


# real files


def test_real_radiographs_are_accepted_unchanged(shared: Path) -> None:
    data = shared / "data"
    paths = sorted((data / "fullres_sample").rglob("*.jpeg")) + sorted((data / "chest_xray").rglob("*.jpeg"))[::40]
    for path in paths:
        result = accepted(path.read_bytes())
        assert result.suffix == ".jpg"
        assert np.array_equal(result.pixels, np.asarray(Image.open(path).convert("L")))
        assert accepted(result.data).digest == result.digest


def test_real_monochrome_pair_are_inverses(shared: Path) -> None:
    folder = shared / "data" / "dicom"
    plain = next(folder.glob("1.2.276*.dcm"))
    stored = pydicom.dcmread(plain).pixel_array
    assert np.array_equal(accepted(plain.read_bytes()).pixels, stored)
    assert np.array_equal(accepted((folder / "Fake_MONOHR1.dcm").read_bytes()).pixels, 255 - stored)


def test_real_dicoms(shared: Path) -> None:
    folder = shared / "data" / "dicom"
    deep = accepted((folder / "RG1_J2KI.dcm").read_bytes())
    assert deep.pixels.dtype == np.uint16
    assert (deep.pixels.shape, deep.facts.age_years) == ((1955, 1841), 64)
    assert deep.pixels[5, 5] < deep.pixels[900, 920]  # air beside the patient is darker than the spine
    assert refusal((folder / "highdicom_dx_dog_lateral.dcm").read_bytes()) == "not-human"
    assert refusal((folder / "html_page_named.dcm").read_bytes()) == "not-an-image"


def test_real_dicom_and_its_16_bit_png_show_the_same(shared: Path) -> None:
    folder = shared / "data" / "dicom"
    image = pydicom.dcmread(folder / "panimg_cxr.dcm")
    del image.WindowCenter, image.WindowWidth
    image.PixelPaddingValue = None
    shown = accepted(written(image)).pixels.astype(np.float64)
    made = accepted((folder / "panimg_cxr_16bit.png").read_bytes()).pixels.astype(np.float64)
    assert np.corrcoef(shown.ravel(), made.ravel())[0, 1] > 0.999999


def fuzzed(*options: str) -> set[str]:
    """The verdicts of a run in a process of its own, whose memory tells of nothing else."""
    command = [sys.executable, fuzz_radiograph.__file__, "--seed", "20", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_thousands_of_damaged_files_get_a_verdict_in_bounded_memory() -> None:
    assert {"5,000", "accepted", "corrupt", "truncated", "not-an-image", "trailing-garbage", "bomb"} <= fuzzed(
        "--cases", "5000"
    )


def test_damaged_files_of_hospitals_get_a_verdict_in_bounded_memory(shared: Path) -> None:
    assert {"300", "accepted", "corrupt", "truncated"} <= fuzzed("--cases", "300", "--real")
