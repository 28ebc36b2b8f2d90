"""Synthetic chest radiographs: deliveries for the demo and the tests, made from a seed alone.

A phantom looks like a frontal chest X-ray at a glance and carries what makes the real task hard: several images a
patient, two scanners, exposure, rotation, shallow breaths, markers; opacities that range from plain to invisible, and
shadows in healthy lungs that look like them. It is no physical simulation and proves nothing about patients: a
classifier of phantoms is a test of the pipeline only. The trade-off: shapes are soft masks on a 256-pixel canvas,
about 20 ms each, so small structures are blurred at larger sizes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.base.errors import DeliveryError

__all__ = ["CLASSES", "Patient", "lay", "radiograph", "split_by_patient"]

CLASSES = ("NORMAL", "PNEUMONIA")
_SIDE = 256
_IMAGES = (".jpg", ".jpeg", ".png", ".dcm")

Plane = NDArray[Any]

_Y, _X = np.meshgrid(
    np.linspace(0, 1, _SIDE, dtype=np.float32), np.linspace(-0.5, 0.5, _SIDE, dtype=np.float32), indexing="ij"
)


@dataclass(frozen=True)
class Patient:
    """One made-up person; `severity` is 0 without pneumonia, else how dense the opacities are, about 0 to 1."""

    name: str
    label: str
    severity: float
    seed: int
    images: int
    scanner: int
    suffix: str


def radiograph(patient: Patient, number: int) -> NDArray[np.uint16]:
    """Return image `number` of a patient: uint16 [H, W], black = air, sides 256 to 512. The same for the same input."""
    body = np.random.default_rng([patient.seed, 0])
    shot = np.random.default_rng([patient.seed, 1, number])
    density = _expose(_chest(patient, body, shot), patient.scanner, shot)
    return _frame(density, shot)


def lay(folder: Path, deliveries: int = 2, patients: int = 500, seed: int = 0, mildest: float = 0.25) -> list[Path]:
    """Write deliveries of phantoms below `folder` and return their folders, 2026-01-01 first.

    Each delivery brings new patients, the later ones half as many again as the first; odd ones sort files into class
    folders, even ones are flat with a labels.csv. Each also holds five files that intake must quarantine: a truncated
    JPEG, a web page, an empty file, a copy of another file, a colour photograph. `_SUCCESS` is written last. `mildest`
    is how dense the faintest pneumonia is: from 0, which nobody sees, to 1.
    """
    rng = np.random.default_rng([seed, 2])
    share = int(patients / (1.5 * deliveries - 0.5))
    sizes = [share] + [share * 3 // 2] * (deliveries - 1)
    sizes[-1] += patients - sum(sizes)
    folders, first = [], 1
    for index, size in enumerate(sizes):
        delivery = folder / f"2026-01-{index + 1:02d}"
        people = [_patient(rng, first + n, seed, mildest) for n in range(size)]
        shots = [(person, n) for person in people for n in range(1, person.images + 1)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            contents = pool.map(_encode, *zip(*shots, strict=True))
            files = [(f"{p.name}_{n}{p.suffix}", p.label, data) for (p, n), data in zip(shots, contents, strict=True)]
        files += _bad_files(first + size, files, rng)
        _write(delivery, files, flat=bool(index % 2))
        folders.append(delivery)
        first += size + 5
    return folders


def split_by_patient(source: Path, target: Path, patient_pattern: str) -> list[Path]:
    """Make two deliveries, of 1/3 and 2/3 of the patients, from a labelled folder and return their folders.

    `source` is `<CLASS>/*` or `{train,val,test}/<CLASS>/*`. train and val are pooled, because patients are split anew;
    what is in test stays test. The first group of `patient_pattern`, searched in the file's name, is the patient;
    without a match the file is its own. Files are linked, or copied where that can't be. Raises DeliveryError without
    any image.
    """
    placed = list(_labelled(source))
    if not placed:
        raise DeliveryError(
            f"{source} holds no images in class folders; put them in <CLASS>/ or in {{train,val,test}}/<CLASS>/"
        )
    given = any(test for _, _, test in placed)
    pattern = re.compile(patient_pattern)
    folders = [target / "2026-01-01", target / "2026-01-02"]
    for path, label, test in placed:
        match = pattern.search(path.name)
        patient = match.group(1) if match else path.name
        later = hashlib.sha256(patient.encode("utf-8", "surrogateescape")).digest()[0] % 3 > 0
        place = Path("test" if test else "train", label) if given else Path(label)
        _link(path, folders[later] / place / path.name)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_SUCCESS").touch()
    return folders


def _labelled(source: Path) -> Iterator[tuple[Path, str, bool]]:
    """Yield (file, class, given as test) of a labelled folder, sorted, without links and other than image names."""
    splits = [source / name for name in ("train", "val", "test") if (source / name).is_dir()]
    for top in splits or [source]:
        for folder in sorted(path for path in top.iterdir() if path.is_dir() and not path.is_symlink()):
            for path in sorted(folder.iterdir()):
                if path.is_file() and not path.is_symlink() and path.suffix.lower() in _IMAGES:
                    yield path, folder.name, top.name == "test"


def _link(source: Path, target: Path) -> None:
    """Link or copy a file; a name that is taken (the same in train and val) gets a number at its end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free = target
    number = 2
    while free.exists():
        free = target.with_name(f"{target.stem}_{number}{target.suffix}")
        number += 1
    try:
        os.link(source, free)
    except OSError:
        shutil.copyfile(source, free)


def _patient(rng: np.random.Generator, number: int, seed: int, mildest: float) -> Patient:
    label = CLASSES[int(rng.random() < 0.55)]
    suffix = str(rng.choice([".jpg", ".png", ".png16", ".dcm"], p=[0.76, 0.08, 0.06, 0.10]))
    return Patient(
        name=f"patient{number:04d}",
        label=label,
        severity=float(mildest + (1 - mildest) * rng.beta(1.6, 1.4)) if label == "PNEUMONIA" else 0.0,
        seed=seed * 1_000_003 + number,
        images=int(rng.choice([1, 2, 3, 4], p=[0.75, 0.15, 0.07, 0.03])),
        scanner=int(rng.random() < 0.4),
        suffix=suffix,
    )


_BEND = 0.02  # of the side, deviation

# ---- anatomy, as densities: 0 is air, 1 is the densest bone -------------------------------------------------------


def _soft(distance: Plane, width: float) -> Plane:
    """1 where a distance is well below 0, 0 well above, a smooth edge of about `width` between."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / width * 4, -30, 30))), dtype=np.float32)


def _noise(rng: np.random.Generator, cells: int, height: int | None = None) -> Plane:
    """Smooth noise of mean 0 and deviation 1 with about `cells` bumps across."""
    coarse = rng.standard_normal((height or cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), dtype=np.float32)


def _chest(patient: Patient, body: np.random.Generator, shot: np.random.Generator) -> Plane:
    width, tilt = body.uniform(0.9, 1.1), body.uniform(-0.02, 0.02)
    breath = float(np.clip(body.normal(0, 0.02) + shot.normal(0, 0.015), -0.06, 0.04))
    turn = np.deg2rad(shot.normal(0, 2.5))
    x = (_X * np.cos(turn) + (_Y - 0.5) * np.sin(turn)) / width + shot.normal(0, 0.012)
    y = (_Y - 0.5) * np.cos(turn) - _X * np.sin(turn) + 0.5 + shot.normal(0, 0.012)
    # No two bodies are built alike: a smooth bend of their own, or the intake would take strangers for copies.
    bend = np.random.default_rng([patient.seed, 2])
    x, y = x + _BEND * _noise(bend, 4), y + _BEND * _noise(bend, 4)
    torso = _soft(np.abs(x) - (0.47 + 0.02 * y), 0.03) * _soft(
        0.04 - y + 1.5 * np.maximum(np.abs(x) - 0.13, 0) ** 1.6, 0.03
    )
    lungs = _lungs(x, y, breath, body)
    inside = np.maximum(*lungs)
    image = torso * (0.6 + 0.1 * y + 0.16 * np.exp(-((x / 0.3) ** 2)) + 0.03 * _noise(body, 5))
    image -= 0.42 * inside
    image += _bones(x, y, inside, torso, body)
    image += _heart(x, y, tilt, body) * (0.34 - 0.12 * inside)
    image += inside * _vessels(x, y, body)
    image += inside * (_opacities(lungs, x, y, patient.severity, body, shot) + _confusers(x, y, body, shot))
    image = np.maximum(image, 0)
    return np.asarray(1.18 * image / (1 + image**3) ** (1 / 3), dtype=np.float32)  # film saturates softly


def _lungs(x: Plane, y: Plane, breath: float, body: np.random.Generator) -> tuple[Plane, Plane]:
    """The lungs as soft masks: the one at the left of the image (the person's right), then the other."""
    apex, wide = body.uniform(0.13, 0.17), body.uniform(0.36, 0.39)
    base = 0.8 + breath + body.uniform(-0.02, 0.02)
    masks = []
    for side, dome in ((-1.0, -0.03), (1.0, 0.01)):
        across = side * x
        height = np.clip((y - apex) / (base - apex), 0, 1)
        lateral = wide * (0.52 + 0.48 * np.sqrt(height)) * (1 - 0.06 * height**6)
        medial = 0.065 + 0.05 * (1 - height) ** 4 + (0.02 if side < 0 else 0.08) * height**2.5
        top = apex + 1.4 * (across - 0.19) ** 2
        bottom = base + dome + 1.1 * (across - 0.2) ** 2 + 0.25 * np.maximum(across - 0.24, 0)
        masks.append(
            _soft(across - lateral, 0.018)
            * _soft(medial - across, 0.02)
            * _soft(top - y, 0.02)
            * _soft(y - bottom, 0.012)
        )
    return masks[0], masks[1]


def _bones(x: Plane, y: Plane, inside: Plane, torso: Plane, body: np.random.Generator) -> Plane:
    pitch, start = body.uniform(0.068, 0.076), body.uniform(0.1, 0.13)
    strength = body.uniform(0.75, 1.2)
    across = np.abs(x)
    behind = (y - start - 0.55 * across + 1.5 * across**2) / pitch
    before = (y - start + 0.62 * across - 0.55 * across**2 - 0.1) / (1.15 * pitch)
    cage = _soft(across - 0.4, 0.02) * _soft(0.06 - across, 0.02) * _soft(y - 0.86, 0.04) * _soft(0.08 - y, 0.03)
    ribs = (0.12 * _band(behind, 0.26) + 0.055 * _band(before, 0.3) * _soft(0.16 - across, 0.04)) * cage
    spine = np.exp(-((x / 0.042) ** 2)) * (0.13 + 0.035 * np.cos(2 * np.pi * y / 0.072)) * _soft(0.02 - y, 0.02)
    rise = 0.135 + body.uniform(-0.012, 0.012) - 0.16 * (across - 0.06) + 0.25 * (across - 0.2) ** 2
    collar = _soft(np.abs(y - rise) - 0.014, 0.01) * _soft(across - 0.36, 0.02) * _soft(0.045 - across, 0.015)
    blade = np.exp(-(((across - 0.37) / 0.045) ** 2) - ((y - 0.33) / 0.13) ** 2)
    return np.asarray(
        torso * strength * (ribs * (0.6 + 0.4 * inside) + spine + 0.17 * collar + 0.06 * blade), dtype=np.float32
    )


def _band(phase: Plane, width: float) -> Plane:
    """Stripes at whole phases, brighter along their edges as a rib's cortex is."""
    off = np.abs(phase - np.round(phase))
    return _soft(off - width, 0.12) * (0.65 + 0.7 * np.exp(-(((off - width) / 0.07) ** 2)))


def _heart(x: Plane, y: Plane, tilt: float, body: np.random.Generator) -> Plane:
    size = body.uniform(0.9, 1.18)
    u, v = x - 0.045 - tilt, y - 0.66
    u, v = u * 0.9 + v * 0.42, v * 0.9 - u * 0.42
    muscle = _soft((u / (0.125 * size)) ** 2 + (v / (0.165 * size)) ** 2 - 1, 0.25)
    column = _soft(np.abs(x - 0.3 * tilt) - 0.06 - 0.03 * _soft(y - 0.3, 0.1), 0.02)
    knob = _soft(((x - 0.062) / 0.032) ** 2 + ((y - 0.3) / 0.04) ** 2 - 1, 0.35)
    below = _soft(0.82 - y + 0.5 * (np.abs(x) - 0.15) ** 2, 0.03)
    return np.asarray(np.clip(muscle + 0.8 * column + 0.5 * knob + 0.6 * below, 0, 1.15), dtype=np.float32)


def _vessels(x: Plane, y: Plane, body: np.random.Generator) -> Plane:
    reach = np.hypot((np.abs(x) - 0.1) / 0.12, (y - 0.46) / 0.16)
    strands = np.abs(_noise(body, 26)) + 0.8 * np.abs(_noise(body, 48, 40))
    full = body.uniform(0.7, 1.4)
    return np.asarray(full * ((0.09 * strands + 0.05) * np.exp(-reach) + 0.012 * strands), dtype=np.float32)


def _opacities(
    lungs: Sequence[Plane],
    x: Plane,
    y: Plane,
    severity: float,
    body: np.random.Generator,
    shot: np.random.Generator,
) -> Plane:
    """Consolidations and haze of pneumonia, of 0 when healthy; they come and go a little between images."""
    shadow = np.zeros_like(x)
    count = 1 + int(body.poisson(1.2))
    patches = 0.75 + 0.35 * _noise(body, 14) + 0.2 * _noise(body, 34)
    for _ in range(count if severity else 0):
        side = int(body.random() < 0.45)
        at_x = (2 * side - 1) * body.uniform(0.13, 0.3) + shot.normal(0, 0.008)
        at_y = float(np.clip(body.normal(0.57, 0.13), 0.25, 0.78)) + shot.normal(0, 0.008)
        radius, long = body.uniform(0.06, 0.15), body.uniform(0.7, 1.5)
        reach = ((x - at_x) / radius) ** 2 + ((y - at_y) / (radius * long)) ** 2
        edge = body.uniform(0.5, 1.4)
        shadow += severity * body.uniform(0.3, 0.6) * np.exp(-(reach**edge)) * lungs[side]
    if severity and body.random() < 0.35:
        shadow += severity * 0.05 * (1 + np.abs(_noise(body, 40))) * lungs[int(body.random() < 0.5)]
    return np.asarray(shadow * np.clip(patches, 0.1, 1.6) * shot.uniform(0.8, 1.2), dtype=np.float32)


def _confusers(x: Plane, y: Plane, body: np.random.Generator, shot: np.random.Generator) -> Plane:
    """What healthy and ill chests alike may show: breast shadows, a nipple or old scar, a full hilum, haze, a wire."""
    shadow = np.zeros_like(x)
    across = np.abs(x)
    if body.random() < 0.45:
        depth, size = body.uniform(0.03, 0.1), body.uniform(0.1, 0.15)
        shadow += depth * _soft(((across - 0.2) / 0.13) ** 2 + ((y - 0.66) / size) ** 2 - 1, 0.5)
    for _ in range(int(body.poisson(0.7))):
        spot_x, spot_y = body.choice([-1, 1]) * body.uniform(0.1, 0.3), body.uniform(0.22, 0.75)
        radius = body.uniform(0.008, 0.035)
        shadow += body.uniform(0.05, 0.16) * np.exp(-(((x - spot_x) / radius) ** 2 + ((y - spot_y) / radius) ** 2))
    if body.random() < 0.3:
        side = body.choice([-1, 1])
        shadow += body.uniform(0.04, 0.1) * np.exp(-(((x - side * 0.12) / 0.05) ** 2 + ((y - 0.47) / 0.08) ** 2))
    shadow += 0.018 * _noise(shot, 4)
    if shot.random() < 0.15:
        wire = shot.uniform(-0.25, 0.25) + 0.08 * np.sin(5 * y + shot.uniform(0, 6))
        shadow += 0.2 * _soft(np.abs(x - wire) - 0.003, 0.005)
    return np.asarray(shadow, dtype=np.float32)


# ---- acquisition and files ----------------------------------------------------------------------------------------


def _expose(density: Plane, scanner: int, shot: np.random.Generator) -> Plane:
    """What a scanner makes of densities: 0 to 1, with its own curve, grain, sharpness, marker and collimation."""
    gain, gamma, grain = ((0.92, 0.95, 0.010), (1.0, 1.25, 0.018))[scanner]
    image = np.clip(density * gain * shot.normal(1, 0.06) + shot.normal(0, 0.02), 0, 1)
    if scanner:
        coarse = np.asarray(Image.fromarray(image).resize((64, 64)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))
        image = np.clip(image + 0.35 * (image - coarse), 0, 1)
    image = image ** (gamma * float(np.exp(shot.normal(0, 0.1))))
    image = image + grain * shot.uniform(0.6, 1.6) * shot.standard_normal(image.shape, dtype=np.float32)
    if shot.random() < 0.8:
        _mark(image, scanner, shot)
    if shot.random() < 0.3:
        border = int(shot.integers(3, 12))
        image[:border], image[-border:], image[:, :border], image[:, -border:] = 0.02, 0.02, 0.02, 0.02
    return np.asarray(np.clip(image, 0, 1), dtype=np.float32)


def _mark(image: Plane, scanner: int, shot: np.random.Generator) -> None:
    """Put the side marker, an R or an L, in an upper corner."""
    letter = ("111 101 111 110 101", "100 100 100 100 111")[scanner]
    bits = np.array([[int(bit) for bit in row] for row in letter.split()], dtype=bool)
    glyph = np.kron(bits, np.ones((3, 3), dtype=bool))
    top, left = int(shot.integers(12, 40)), int(shot.integers(10, 30))
    if scanner:
        left = _SIDE - left - glyph.shape[1]
    image[top : top + glyph.shape[0], left : left + glyph.shape[1]][glyph] = 0.95


def _frame(image: Plane, shot: np.random.Generator) -> NDArray[np.uint16]:
    height = int(shot.integers(256, 513))
    width = int(np.clip(height * shot.uniform(0.9, 1.25), 256, 512))
    grown = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(np.rint(np.clip(np.asarray(grown), 0, 1) * 65535), dtype=np.uint16)


def _encode(patient: Patient, number: int) -> bytes:
    pixels = radiograph(patient, number)
    if patient.suffix == ".dcm":
        return _dicom(patient, number, pixels)
    stored = pixels if patient.suffix == ".png16" else np.rint(pixels / 257).astype(np.uint8)
    image = Image.fromarray(stored)
    if patient.suffix == ".jpg":
        return _saved(image, "JPEG", quality=(92, 84)[patient.scanner])
    return _saved(image, "PNG", compress_level=1)


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _dicom(patient: Patient, number: int, pixels: NDArray[np.uint16]) -> bytes:
    """A 12-bit Computed Radiography file; scanner 1 stores it inverted, as MONOCHROME1."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"{patient.seed}/{number}"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.PatientID, ds.PatientName = patient.name, f"DOE^{patient.name.upper()}"
    ds.PatientSex, ds.PatientAge = "FM"[patient.seed % 2], f"{1 + patient.seed % 90:03d}Y"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "CR", "CHEST", "PA"
    ds.Manufacturer, ds.ManufacturerModelName = "Phantom", f"Scanner {patient.scanner}"
    stored = pixels >> 4
    ds.PhotometricInterpretation = ("MONOCHROME2", "MONOCHROME1")[patient.scanner]
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 12, 11, 0
    ds.PixelData = (4095 - stored if patient.scanner else stored).tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _bad_files(
    number: int, files: Sequence[tuple[str, str, bytes]], rng: np.random.Generator
) -> list[tuple[str, str, bytes]]:
    _, label, whole = next(file for file in files if file[0].endswith(".jpg"))
    ramp = np.linspace(0, 255, 300, dtype=np.uint8)
    colours = np.stack(
        [np.tile(ramp, (300, 1)), np.tile(ramp[:, None], (1, 300)), np.full((300, 300), 90, np.uint8)], -1
    )
    grain = rng.integers(0, 24, colours.shape, dtype=np.uint8)
    page = b"<!doctype html><html><title>404</title><body>No such image.</body></html>\n"
    contents = [
        (".jpg", whole[: len(whole) * 2 // 3]),
        (".jpeg", page),
        (".jpg", b""),
        (".jpg", whole),
        (".png", _saved(Image.fromarray(colours // 2 + grain), "PNG")),
    ]
    return [(f"patient{number + n:04d}_1{suffix}", label, data) for n, (suffix, data) in enumerate(contents)]


def _write(delivery: Path, files: Sequence[tuple[str, str, bytes]], flat: bool) -> None:
    for name, label, data in files:
        folder = delivery if flat else delivery / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.replace(".png16", ".png")).write_bytes(data)
    if flat:
        with (delivery / "labels.csv").open("w", newline="") as table:
            writer = csv.writer(table)
            writer.writerow(["file", "label"])
            writer.writerows([name.replace(".png16", ".png"), label] for name, label, _ in files)
    (delivery / "_SUCCESS").touch()
