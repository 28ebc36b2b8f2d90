from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import phantom
import pydicom
import pytest
from numpy.typing import NDArray
from phantom import Patient
from PIL import Image

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake.check import check
from xray_pipeline.intake.deliveries import find

PATTERN = IntakeRules().patient_pattern


def patient(label: str = "NORMAL", severity: float = 0.0, scanner: int = 0, suffix: str = ".jpg") -> Patient:
    return Patient("patient0001", label, severity, 7, 2, scanner, suffix)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def laid(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return phantom.lay(tmp_path_factory.mktemp("laid"), patients=45, seed=1)


def test_lay_is_deterministic(laid: list[Path], tmp_path: Path) -> None:
    assert digests(phantom.lay(tmp_path, patients=45, seed=1)[0].parent) == digests(laid[0].parent)


def test_another_seed_gives_other_patients(laid: list[Path], tmp_path: Path) -> None:
    images = [path.read_bytes() for path in laid[0].glob("*/patient0001_*")]
    others = [path.read_bytes() for path in phantom.lay(tmp_path, patients=6, seed=2)[0].glob("*/patient0001_*")]
    assert images
    assert others
    assert not set(images) & set(others)


def test_layouts(laid: list[Path]) -> None:
    first, second = laid
    assert {path.name for path in first.iterdir()} == {*phantom.CLASSES, "_SUCCESS"}
    with (second / "labels.csv").open(newline="") as table:
        named = {row["file"] for row in csv.DictReader(table)}
    assert named == {path.name for path in second.iterdir()} - {"labels.csv", "_SUCCESS"}
    assert len(named) > sum(path.is_file() for path in first.rglob("*"))


def mode_of(path: Path) -> str:
    with Image.open(path) as image:
        return image.mode


def test_every_format_is_there(laid: list[Path]) -> None:
    files = [path for folder in laid for path in folder.rglob("*") if path.suffix in (".png", ".dcm")]
    polarities = {pydicom.dcmread(path).PhotometricInterpretation for path in files if path.suffix == ".dcm"}
    modes = {mode_of(path) for path in files if path.suffix == ".png"}
    assert polarities == {"MONOCHROME1", "MONOCHROME2"}
    assert modes == {"L", "I;16", "RGB"}  # RGB: the planted photograph


def test_intake_accepts_all_but_the_planted_files(laid: list[Path], settings: Settings) -> None:
    settings = settings.model_copy(update={"incoming": str(laid[0].parent)})
    dataset = Dataset(settings)
    for delivery in find(open_store(settings.incoming), dataset.history(), 0, now=2e9):
        intake = check(delivery, settings, dataset.history(), dataset.patient_key(), None)
        table = intake.table
        reasons = Counter(table["reason"][table["verdict"] == "quarantined"])
        assert reasons == {"truncated": 1, "not-an-image": 1, "empty": 1, "duplicate": 1, "coloured": 1}
        assert intake.fit


def test_radiograph_is_grey_and_uses_the_range() -> None:
    pixels = phantom.radiograph(patient(), 1)
    assert pixels.dtype == np.uint16
    assert all(256 <= side <= 512 for side in pixels.shape)
    assert np.percentile(pixels, 1) < 4000
    assert np.percentile(pixels, 99) > 40000


def lungs_minus_heart(pixels: NDArray[np.uint16]) -> float:
    height, width = pixels.shape
    row = pixels[int(0.55 * height)].astype(float)
    return float(row[int(0.25 * width)] - row[int(0.5 * width)])


def test_lungs_are_darker_than_the_heart() -> None:
    assert lungs_minus_heart(phantom.radiograph(patient(), 1)) < -10000


def lung_density(label: str, severity: float) -> float:
    """Mean of the middle of the lung at the left of the image, over some patients."""
    means = []
    for seed in range(12):
        pixels = phantom.radiograph(Patient("patient0001", label, severity, seed, 1, 0, ".jpg"), 1)
        height, width = pixels.shape
        means.append(pixels[int(0.35 * height) : int(0.7 * height), int(0.2 * width) : int(0.35 * width)].mean())
    return float(np.mean(means))


def test_pneumonia_makes_lungs_denser() -> None:
    assert lung_density("PNEUMONIA", 1.0) > lung_density("NORMAL", 0.0) + 1000


def test_images_of_a_patient_differ() -> None:
    one, two = (phantom.radiograph(patient(), n) for n in (1, 2))
    assert one.shape != two.shape or (one != two).any()


def source(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def laid_files(folders: list[Path]) -> list[str]:
    return sorted(str(p.relative_to(f.parent)) for f in folders for p in f.rglob("*") if p.is_file())


def test_split_keeps_a_patient_in_one_delivery(tmp_path: Path) -> None:
    names = [f"NORMAL/patient{n:02d}_{k}.jpg" for n in range(20) for k in (1, 2)]
    folders = phantom.split_by_patient(source(tmp_path / "in", *names), tmp_path / "out", PATTERN)
    placed = [{path.name[:9] for path in folder.rglob("*.jpg")} for folder in folders]
    assert not placed[0] & placed[1]
    assert len(placed[0] | placed[1]) == 20
    assert 0 < len(placed[0]) < len(placed[1])
    assert all((folder / "_SUCCESS").is_file() for folder in folders)


def test_split_pools_train_and_val_and_keeps_test(tmp_path: Path) -> None:
    names = ("train/A/patient1_1.jpg", "val/A/patient1_1.jpg", "test/B/patient2_1.jpg")
    folders = phantom.split_by_patient(source(tmp_path / "in", *names), tmp_path / "out", PATTERN)
    files = [file.partition("/")[2] for file in laid_files(folders) if not file.endswith("_SUCCESS")]
    assert sorted(files) == ["test/B/patient2_1.jpg", "train/A/patient1_1.jpg", "train/A/patient1_1_2.jpg"]


def test_split_leaves_the_source_alone_and_follows_no_link(tmp_path: Path) -> None:
    folder = source(tmp_path / "in", "A/patient1_1.jpg", "A/notes.txt")
    (folder / "A" / "patient2_1.jpg").symlink_to(folder / "A" / "patient1_1.jpg")
    before = digests(folder)
    folders = phantom.split_by_patient(folder, tmp_path / "out", PATTERN)
    assert digests(folder) == before
    assert [Path(file).name for file in laid_files(folders) if not file.endswith("_SUCCESS")] == ["patient1_1.jpg"]


def test_split_names_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="holds no images in class folders"):
        phantom.split_by_patient(source(tmp_path / "in", "notes.txt"), tmp_path / "out", PATTERN)
