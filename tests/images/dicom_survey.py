"""docs/dicom.md, made from what the code does with files of many kinds.

python tests/images/dicom_survey.py > docs/dicom.md
"""

from __future__ import annotations

import io
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from samples import compressed, dicom, jpeg, picture, written

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.images import dicom_elements, dicom_frames
from xray_pipeline.images.radiograph import Limits, normalise

HEAD = """# DICOM: what is read, and what is not

Made by `python tests/images/dicom_survey.py > docs/dicom.md`; a test fails when this page is out of date. Every refusal
is one of the rules in [intake-rules.md](intake-rules.md); a word in code style is its name there.

## Decoders

A compressed frame's own header decides which of them is asked, also where the transfer syntax says otherwise or
nothing. All but Pillow on JPEG and RLE run in processes apart. Where the first refuses a frame the next is asked; each
is strict, so that what is damaged is refused by both.
"""
DECIDED = """
pylibjpeg (2.1) and its plugins were tried against these and left out:

- pylibjpeg-libjpeg 2.5 (JPEG, JPEG lossless, JPEG-LS) read 419 of 420 JPEG-LS frames that were cut, zeroed, filled or
  flipped somewhere as images, where CharLS (pyjpegls, GDCM) refused all: wrong pixels in silence. It is under the GPL
  3, too. What it alone would add, JPEG extended of 12 bits, GDCM reads: with values within 1 of it, and a file more.
- pylibjpeg-openjpeg 2.6 (JPEG 2000, also high-throughput) is OpenJPEG as in Pillow and GDCM: 420 such frames had the
  same end in all three.
- pylibjpeg-rle takes 29 ms for 2,000 x 2,000 pixels of 16 bits where pydicom takes 80; RLE is rare in radiographs.

So each kind but JPEG lossless, JPEG extended of 12 bits and RLE has two decoders, of which none was there for it alone:
Pillow reads JPEG and PNG files, GDCM is the only free one for JPEG lossless. pyjpegls is kept beside GDCM as it also
reads JPEG-LS of 6 and 7 bits.
"""
KINDS = """
## Kinds of files

Made for this page, after what hospitals and public collections hold: JPEG baseline of 8 bits as in the RSNA Pneumonia
Detection Challenge; 10 to 16 bits, both polarities, uncompressed, JPEG lossless and JPEG 2000 as in VinDr-CXR and
SIIM-FISABIO-RSNA COVID-19.
"""
PYDICOM = """
## pydicom's test files

As they are, and said to be a chest radiograph (CR, CHEST) where they have pixels; other limits of size are off.
"""
_LIMITS = Limits(min_side=4, max_aspect=100)


def page() -> str:
    """Return docs/dicom.md."""
    return "\n".join(
        [
            HEAD,
            _table(("encoding", "decoders, in order"), _decoders()),
            DECIDED.strip() + "\n" + KINDS,
            _table(("kind", "end"), ((kind, _end(data)) for kind, data in kinds())),
            PYDICOM.strip() + "\n",
            _table(("encoding", "pixels", "as it is", "as a chest radiograph", "files"), _pydicoms()),
        ]
    ).replace("\n\n\n", "\n\n")


def _decoders() -> Iterable[tuple[str, str]]:
    for syntax in sorted(dicom_elements.NATIVE):
        yield f"{UID(syntax).name} ({syntax})", "none needed"
    for syntax, plugins in dicom_frames.DECODERS.items():
        yield f"{UID(syntax).name} ({syntax})", ", ".join(plugins)


def _end(data: bytes) -> str:
    try:
        result = normalise(data, _LIMITS)
    except RadiographError as error:
        return f"`{error.reason}`"
    return f"read: {8 * result.pixels.itemsize} bits"


def kinds() -> list[tuple[str, bytes]]:
    """Return files of the kinds that hospitals and public collections have, each with its name."""
    deep = picture().astype(np.uint16) * 16
    twelve = {"BitsStored": 12, "WindowCenter": "2000", "WindowWidth": "3000"}
    plain, rgb = dicom(deep, **twelve), np.repeat(picture()[..., None], 3, axis=2)
    tinted = np.dstack([picture(0), picture(1), picture(2)])
    found = [
        ("JPEG baseline, 8 bits, 1 sample", _holding(jpeg(), JPEGBaseline8Bit)),
        ("JPEG baseline, 8 bits, YBR_FULL_422, grey", _holding(jpeg(rgb), JPEGBaseline8Bit, rgb, "YBR_FULL_422")),
        *((f"{name}, 12 bits in 16", dicom(deep, syntax=syntax, **twelve)) for name, syntax in _NATIVE.items()),
        *((f"{name}, 12 bits in 16", compressed(plain, syntax)) for name, syntax in _LOSSLESS.items()),
        ("MONOCHROME1, 12 bits", dicom(deep, PhotometricInterpretation="MONOCHROME1", **twelve)),
        (
            "signed 16 bits with rescale",
            dicom(deep.astype(np.int16) - 1024, RescaleIntercept="-1024", RescaleSlope="1"),
        ),
        ("RGB, grey", _three(rgb, "RGB")),
        ("RGB, coloured", _three(tinted, "RGB")),
        ("header says implicit VRs, data is explicit", _said(plain, ImplicitVRLittleEndian)),
        ("header says explicit VRs, data is implicit", _said(dicom(deep, syntax=ImplicitVRLittleEndian, **twelve))),
        ("no preamble", plain[132:]),
        ("zeros to the next block of 512 bytes", plain + bytes(-len(plain) % 512)),
        ("the last sequence delimiter is missing", compressed(plain, JPEGLosslessSV1)[:-8]),
        ("some other bytes after it", plain + b"<script>"),
    ]
    tags: dict[str, dict[str, Any]] = {
        "Modality DR": {"Modality": "DR"},
        "Modality CT": {"Modality": "CT"},
        "BodyPartExamined TORAX": {"BodyPartExamined": "2- TORAX"},
        "BodyPartExamined UNKNOWN": {"BodyPartExamined": "UNKNOWN"},
        "BodyPartExamined HAND": {"BodyPartExamined": "HAND"},
        "series TORAX PERFIL, no ViewPosition": {"ViewPosition": None, "SeriesDescription": "TORAX PERFIL"},
        "series TORAX FRENTE Y PERFIL": {"ViewPosition": None, "SeriesDescription": "TORAX FRENTE Y PERFIL"},
        "2 frames": {"NumberOfFrames": 2},
        "32 bits allocated": {"BitsAllocated": 32},
        "detector data (FOR PROCESSING)": {"PresentationIntentType": "FOR PROCESSING"},
        "text burned in": {"BurnedInAnnotation": "YES"},
        "CMYK": {"PhotometricInterpretation": "CMYK"},
    }
    return found + [(kind, dicom(deep, **twelve, **said)) for kind, said in tags.items()]


_NATIVE = {
    "explicit VR little endian": ExplicitVRLittleEndian,
    "implicit VR little endian": ImplicitVRLittleEndian,
    "explicit VR big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}
_LOSSLESS = {
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG lossless": JPEGLossless,
    "JPEG lossless, first-order": JPEGLosslessSV1,
}


def _three(pixels: Any, photometric: str) -> bytes:
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PixelData": pixels.tobytes()}
    return dicom(pixels[..., 0], PhotometricInterpretation=photometric, **tags)


def _holding(frame: bytes, syntax: str, pixels: Any = None, photometric: str = "") -> bytes:
    image = pydicom.dcmread(io.BytesIO(_three(pixels, photometric) if photometric else dicom()))
    image.PixelData, image.file_meta.TransferSyntaxUID = encapsulate([frame]), syntax
    image["PixelData"].VR = "OB"
    return written(image)


def _said(source: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """The file with another transfer syntax in its header; the data set stays as it is."""
    meta = pydicom.dcmread(io.BytesIO(source)).file_meta
    cut = 144 + meta.FileMetaInformationGroupLength
    meta.TransferSyntaxUID, out = UID(syntax), io.BytesIO()
    pydicom.filewriter.write_file_meta_info(out, meta)
    return bytes(128) + b"DICM" + out.getvalue() + source[cut:]


def _pydicoms() -> Iterable[tuple[str, ...]]:
    groups = defaultdict[tuple[str, ...], list[str]](list)
    folder = Path(pydicom.__file__).parent / "data"
    for path in sorted(folder.rglob("*.dcm")):
        data = path.read_bytes()
        groups[(*_described(data), _end(data), _as_chest(data))].append(path.stem.replace("|", ""))
    for group, names in sorted(groups.items()):
        yield *group, ", ".join(names)


def _quiet(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def _described(data: bytes) -> tuple[str, str]:
    image = _quiet(pydicom.dcmread, io.BytesIO(data), force=True)
    syntax = image.file_meta.get("TransferSyntaxUID", "") if hasattr(image, "file_meta") else ""
    if "PixelData" not in image:
        return str(UID(syntax).name or "not given"), "none"
    kind = f"{image.get('PhotometricInterpretation', '?')}, {image.get('BitsStored', '?')} bits"
    return str(UID(syntax).name or "not given"), kind


def _as_chest(data: bytes) -> str:
    image = _quiet(pydicom.dcmread, io.BytesIO(data), force=True)
    if "PixelData" not in image or "TransferSyntaxUID" not in image.file_meta:
        return ""
    image.Modality, image.BodyPartExamined = "CR", "CHEST"
    try:
        return _end(_quiet(written, image))
    except (ValueError, TypeError, AttributeError):
        return "pydicom can't write it"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    sys.stdout.write(page())
