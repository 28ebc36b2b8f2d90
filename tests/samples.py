"""Image files made for tests: grey pictures with structure, as JPEG, PNG and DICOM."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

CR = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography Image Storage


def picture(seed: int = 0, height: int = 96, width: int = 80) -> NDArray[np.uint8]:
    """A smooth grey picture, different for each seed, that uses the whole range from 0 to 255."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 5), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grey = np.asarray(coarse, dtype=np.float64)
    grey = (grey - grey.min()) / (grey.max() - grey.min()) * 255
    return np.rint(grey).astype(np.uint8)


def jpeg(pixels: NDArray[Any] | None = None, seed: int = 0, **options: Any) -> bytes:
    """A JPEG of the pixels, else of `picture(seed)`."""
    return _saved(Image.fromarray(picture(seed) if pixels is None else pixels), "JPEG", **{"quality": 90} | options)


def png(pixels: NDArray[Any] | None = None, seed: int = 0, **options: Any) -> bytes:
    """A PNG of the pixels, else of `picture(seed)`."""
    return _saved(Image.fromarray(picture(seed) if pixels is None else pixels), "PNG", **options)


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def dicom(
    pixels: NDArray[Any] | None = None,
    seed: int = 0,
    syntax: str = ExplicitVRLittleEndian,
    preamble: bytes = bytes(128),
    **tags: Any,
) -> bytes:
    """An uncompressed CR chest DICOM file of 8 or 16-bit pixels; `tags` set elements, or drop them: None."""
    pixels = picture(seed) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CR, generate_uid(entropy_srcs=[str(seed)])
    meta.TransferSyntaxUID = syntax
    uid = UID(syntax)
    image = FileDataset("", Dataset(), preamble, meta, uid.is_implicit_VR, uid.is_little_endian)
    bits = pixels.dtype.itemsize * 8
    given = {
        "SOPClassUID": CR,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "PatientID": f"patient-{seed}",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        "PixelData": pixels.astype(pixels.dtype.newbyteorder(">" if syntax.endswith("1.2.2") else "<")).tobytes(),
    }
    given["HighBit"] = (tags.get("BitsStored") or bits) - 1
    for name, value in {**given, **tags}.items():
        if value is not None:
            setattr(image, name, value)
    image["PixelData"].VR = "OB" if bits == 8 else "OW"
    return written(image)


def compressed(source: bytes, syntax: str) -> bytes:
    """A DICOM file's one frame losslessly compressed: RLE, JPEG-LS, JPEG 2000 or JPEG lossless."""
    image = pydicom.dcmread(io.BytesIO(source))
    if syntax in (RLELossless, JPEGLSLossless):
        image.compress(syntax, generate_instance_uid=False)
        return written(image)
    if syntax == JPEG2000Lossless:
        frame = _saved(Image.fromarray(image.pixel_array), "JPEG2000", no_jp2=True, irreversible=False)
    else:
        frame = _jpeg_lossless(image, syntax)
    image.PixelData = encapsulate([frame])
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = syntax
    return written(image)


def _jpeg_lossless(image: FileDataset, syntax: str) -> bytes:
    import gdcm  # pydicom has no encoder for it

    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder, "plain.dcm"), Path(folder, "packed.dcm")
        plain.write_bytes(written(image))
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        kinds = {JPEGLossless: gdcm.TransferSyntax.JPEGLosslessProcess14, JPEGLosslessSV1: _first_order(gdcm)}
        change.SetTransferSyntax(gdcm.TransferSyntax(kinds[UID(syntax)]))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(packed))
        assert writer.Write()
        return next(generate_frames(pydicom.dcmread(packed).PixelData, number_of_frames=1))


def _first_order(gdcm: Any) -> Any:
    return gdcm.TransferSyntax.JPEGLosslessProcess14_1


def written(image: Dataset) -> bytes:
    """The bytes of a pydicom data set that has its file meta."""
    out = io.BytesIO()
    image.save_as(out, enforce_file_format=True)
    return out.getvalue()


def lay_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files, by their paths below `folder`; return the folder."""
    for file, data in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
