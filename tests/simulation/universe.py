"""The chests that simulated deliveries bring: who they are of, what they show, and their near copies.

Two radiographs of one chest are near copies of each other, those of two chests never are. The files are real PNGs, of
the same pixels where the chest is the same.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import SecretStr

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.fingerprints import Fingerprint, fingerprint
from xray_pipeline.dataset.split import patient_hash, side_of
from xray_pipeline.images.raster import Pixels

KEY = "the key of a simulated hospital, 32 and more"
CLASSES = ("NORMAL", "PNEUMONIA")


@dataclass(frozen=True)
class Radiograph:
    """One image: of which chest, of which patient, and what it truly shows."""

    chest: int
    variant: int
    patient: str
    side: str
    label: str

    @property
    def data(self) -> bytes:
        return _file_of(self.chest, self.variant)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def _pixels_of(chest: int) -> Pixels:
    coarse = np.random.default_rng(chest).integers(0, 255, (10, 10), np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8))


@cache
def _file_of(chest: int, variant: int) -> bytes:
    out, text = io.BytesIO(), PngInfo()
    text.add_text("variant", str(variant))
    Image.fromarray(_pixels_of(chest)).save(out, "PNG", pnginfo=text)
    return out.getvalue()


@cache
def print_of(chest: int) -> Fingerprint:
    """Return the fingerprint of a chest; its near copies share it."""
    return fingerprint(_pixels_of(chest))


def chests(settings: Settings) -> list[Radiograph]:
    """Return radiographs of 24 chests: four of each class on each side, of a patient each, and near copies of all.

    A near copy is given under another patient, so that it may be on another side.
    """
    split = (settings.split_mode, settings.split_validation, settings.split_held_out)
    wanted = [(side, label) for side in ("train", "validation", "held-out") for label in CLASSES * 4]
    patients: dict[str, list[str]] = {"train": [], "validation": [], "held-out": []}
    number = 0
    while any(len(of_side) < 16 for of_side in patients.values()):
        number += 1
        hashed = patient_hash(KEY.encode(), f"patient:{number}")
        patients[side_of(hashed, "", *split)].append(hashed)
    made = []
    for chest, (side, label) in enumerate(wanted):
        made.append(Radiograph(chest, 0, patients[side].pop(), side, label))
        other = ("train", "held-out", "validation")[chest % 3]
        made.append(Radiograph(chest, 1, patients[other].pop(), other, label))
    return made


def settings_of(home: str, promotion: str) -> Settings:
    return Settings(
        home=home,
        store="s3://simulated/store",
        incoming="s3://simulated/incoming",
        tracking_uri="http://simulated",
        patient_key=SecretStr(KEY),
        promotion=promotion,
        workers=1,
        keep_candidates=1,
        keep_days=1,
        approval_hours=1,
        device="cpu",
    )
