"""Mutation fuzz of radiograph decoding: every damaged file gets a verdict, soon, and nothing crashes.

    python tests/fuzz_radiograph.py [--seconds 60 | --cases N] [--seed S] [--real]     (a longer run: make fuzz)
    python tests/fuzz_radiograph.py --seed S [--real] --only NUMBER                    (one case again)

Real encodings of every supported kind are cut, spliced, overwritten and flipped; checksums of PNG chunks are made right
again in half of the cases, so that damage reaches the decoder. With --real, files of hospitals are (what lies in
$XRAY_SHARED/data, or in `shared` beside the repository). A case follows from these options, seed and number alone. The
number of the case under way is kept in a file, so that a decoder that takes the process down names its input. A run
fails when its memory grew by more than GROWTH.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from samples import compressed, dicom, element, items, jpeg, picture, png, with_elements, written

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images.jpeg import segments
from xray_pipeline.images.radiograph import Limits, decode, normalise
from xray_pipeline.intake.rules import QUARANTINED

LIMITS = Limits(max_file_bytes=5_000_000, max_pixels=4_000_000, min_side=8)
SLOW = 20.0  # seconds one case may take, on a busy machine
GROWTH = 150  # MB that the process may grow by; a decoded image, of 4 million pixels at most, is there in a few copies
SHARED = Path(os.environ.get("XRAY_SHARED", Path(__file__).resolve().parents[3] / "shared"))
CODES = frozenset(("accepted", *QUARANTINED))
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_PNG = b"\x89PNG\r\n\x1a\n"


def seeds() -> list[bytes]:
    """One file of each kind."""
    rgb = np.repeat(picture()[..., None], 3, axis=2)
    deep = picture().astype(np.uint16) * 16
    shallow, twelve = dicom(), dicom(deep, BitsStored=12, WindowCenter="2000", WindowWidth="3000")
    table = element(0x00283002, "US", struct.pack("<3H", 256, 0, 8)) + element(0x00283006, "OW", bytes(range(256)))
    lossless = (RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1)
    three = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PixelData": rgb.tobytes()}
    coloured = [dicom(PhotometricInterpretation=kind, **three) for kind in ("RGB", "YBR_FULL", "YBR_FULL_422")]
    greys: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        greys[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        greys[f"{name}PaletteColorLookupTableData"] = bytes(range(256)) * 2
    return [
        jpeg(),
        jpeg(rgb),
        jpeg(progressive=True),
        jpeg(restart_marker_blocks=3),
        png(),
        png(deep),
        png(rgb),
        png(np.dstack([picture(), np.full_like(picture(), 255)])),
        shallow,
        twelve,
        with_elements(twelve, [element(tag, "SQ", items([table])) for tag in (0x00283000, 0x00283010)]),
        *(dicom(deep, syntax=s) for s in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)),
        *(compressed(source, syntax) for syntax in lossless for source in (shallow, twelve)),
        *coloured,
        compressed(coloured[0], RLELossless),
        compressed(coloured[0], JPEGLSLossless),
        dicom(**greys),
        twelve_bit_jpeg(),
        shallow[132:],  # without its preamble
    ]


def twelve_bit_jpeg() -> bytes:
    """One of pydicom's test files, said to be a chest radiograph."""
    path = get_testdata_file("JPGExtended.dcm")
    assert isinstance(path, str)
    image = pydicom.dcmread(path)
    image.Modality, image.BodyPartExamined = "CR", "CHEST"
    return written(image)


def real_seeds() -> list[bytes]:
    """Small files of hospitals: a JPEG of each kind (plain, progressive, with restart markers), DICOM and PNG."""
    jpegs = sorted((path.stat().st_size, path) for path in (SHARED / "data" / "fullres_sample").rglob("*.jpeg"))
    kinds: dict[tuple[int, ...], bytes] = {}
    for _, path in jpegs:
        data = path.read_bytes()
        kinds.setdefault(tuple(sorted({s.marker for s in segments(data)} & {0xC0, 0xC1, 0xC2, 0xDD})), data)
    others = sorted(path.read_bytes() for path in (SHARED / "data" / "dicom").iterdir())
    small = sorted((SHARED / "data" / "chest_xray").rglob("*.jpeg"))[::2000]
    return [
        *kinds.values(),
        *(path.read_bytes() for path in small),
        *(data for data in others if len(data) <= LIMITS.max_file_bytes),
    ]


def mutated(corpus: list[bytes], seed: int, number: int) -> bytes:
    """The damaged file of one case."""
    rng = random.Random(seed << 32 | number)
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        # Headers are small and matter most.
        at = rng.randrange(min(len(data), rng.choice((64, 700, 1 << 30)))) if data else 0
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 1] = rng.randbytes(1)
        elif kind == 2:
            size = rng.choice((1, 2, 4))
            data[at : at + size] = struct.pack(rng.choice("<>") + "Q", rng.choice(_NUMBERS))[:size]
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
        elif kind == 5:
            block = data[at : at + rng.choice((2, 16, 400))]
            data[at:at] = block * rng.choice((1, 1, 50))
        elif kind == 6:
            other = rng.choice(corpus)
            cut = rng.randrange(len(other))
            data[at : at + rng.choice((0, 50, 1 << 30))] = other[cut : cut + rng.choice((8, 200, 1 << 30))]
        elif rng.random() < 0.2:
            del data[at:]
    return _with_checksums(bytes(data)) if data.startswith(_PNG) and rng.random() < 0.5 else bytes(data)


def _with_checksums(data: bytes) -> bytes:
    out, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        out.append(struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body)))
        at += 12 + length
    return b"".join(out)


def verdict(data: bytes) -> str:
    """Return "accepted" or the reason; any other outcome is a failure of its own."""
    try:
        result = normalise(data, LIMITS)
    except RadiographError as error:
        reason = error.reason
    else:
        reason = "accepted"
        assert result.pixels.size <= LIMITS.max_pixels
        assert np.array_equal(decode(result.data), result.pixels)
    assert reason in CODES
    return reason


def run(corpus: list[bytes], seed: int, cases: int, seconds: float = float("inf")) -> collections.Counter[str]:
    """Run cases 0, 1, 2, ... and count the verdicts. Raises AssertionError, with the case's number, on a failure."""
    outcomes = collections.Counter[str]()
    end, number = time.monotonic() + seconds, 0
    with tempfile.NamedTemporaryFile(prefix="fuzz-radiograph-", suffix=".case", delete=False) as mark:
        while number < cases and time.monotonic() < end:
            os.pwrite(mark.fileno(), f"--seed {seed} --only {number}\n".encode(), 0)
            start = time.monotonic()
            try:
                outcomes[verdict(mutated(corpus, seed, number))] += 1
            except Exception as error:
                raise AssertionError(f"--seed {seed} --only {number}: {error!r}") from error
            took = time.monotonic() - start
            assert took < SLOW, f"--seed {seed} --only {number}: {took:.1f} s"
            number += 1
    Path(mark.name).unlink()
    return outcomes


def peak() -> int:
    """Return the KB that this program had at most; ru_maxrss begins with what its parent had."""
    return int(next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=1 << 62)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int)
    parser.add_argument("--real", action="store_true")
    chosen = parser.parse_args()
    corpus = real_seeds() if chosen.real else seeds()
    if chosen.only is not None:
        sys.stdout.write(verdict(mutated(corpus, chosen.seed, chosen.only)) + "\n")
        return
    for data in corpus:  # what is loaded once, and one image of each kind, is not growth
        verdict(data)
    before = peak()
    start = time.monotonic()
    outcomes = run(corpus, chosen.seed, chosen.cases, chosen.seconds)
    total, took = outcomes.total(), time.monotonic() - start
    grown = (peak() - before) / 1024
    sys.stdout.write(f"seed {chosen.seed}: {total:,} cases in {took:.0f} s, memory grew by {grown:.0f} MB\n")
    for reason, count in outcomes.most_common():
        sys.stdout.write(f"{count:9,} {reason}\n")
    if grown > GROWTH:
        sys.exit(f"memory grew by {grown:.0f} MB, {GROWTH} allowed")


if __name__ == "__main__":
    main()
