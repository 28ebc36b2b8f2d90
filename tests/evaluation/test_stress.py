"""Perturbations do what their names say; their predictions are kept; the baseline sees no lungs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from xray_pipeline.base.storage import open_store
from xray_pipeline.evaluation import stress
from xray_pipeline.evaluation.bootstrap import Resampling

IMAGES = np.random.default_rng(0).integers(40, 200, size=(3, 64, 64)).astype(np.uint8)
CLASSES = ("NORMAL", "PNEUMONIA")


@pytest.mark.parametrize("name", list(stress.PERTURBATIONS))
def test_each_perturbation_gives_images_of_the_same_kind_and_leaves_its_input_alone(name: str) -> None:
    before = IMAGES.copy()
    after = stress.PERTURBATIONS[name](IMAGES)
    assert after.shape == IMAGES.shape
    assert after.dtype == np.uint8
    np.testing.assert_array_equal(IMAGES, before)
    assert (after == IMAGES).all() == (name == stress.UNTOUCHED)


def test_brightness_and_contrast_move_mean_and_spread() -> None:
    assert stress.brightness(IMAGES, 0.1).mean() == pytest.approx(IMAGES.mean() + 25.5, abs=0.5)
    flat = stress.contrast(IMAGES, 0.5)
    assert flat.std() == pytest.approx(IMAGES.std() / 2, rel=0.05)
    assert flat.mean() == pytest.approx(IMAGES.mean(), abs=0.5)


def test_a_crop_enlarges_the_middle() -> None:
    image = np.zeros((1, 64, 64), np.uint8)
    image[:, 16:48, 16:48] = 200
    cropped = stress.crop(image, 0.5)
    assert cropped[0, 4:-4, 4:-4].min() == 200


def test_the_blur_is_as_wide_at_every_side() -> None:
    wide, small = np.zeros((1, 224, 224), np.uint8), np.zeros((1, 112, 112), np.uint8)
    wide[:, :, 112:], small[:, :, 56:] = 200, 200
    assert np.abs(stress.blur(wide, 8)[0, 100, ::2].astype(int) - stress.blur(small, 8)[0, 50]).max() <= 8


def test_the_two_border_views_part_the_image() -> None:
    inside, outside = stress.without_border(IMAGES), stress.only_border(IMAGES)
    assert (inside[:, :8] == 0).all()
    assert (inside[:, 8:-8, 8:-8] == IMAGES[:, 8:-8, 8:-8]).all()
    assert (outside[:, :8] == IMAGES[:, :8]).all()
    assert len(np.unique(outside[0, 8:-8, 8:-8])) == 1


@dataclass
class Look:
    """A model that calls pneumonia by the brightness of one region: the middle, or a corner."""

    digest: str
    region: tuple[slice, slice]
    threshold: float = 0.4
    classes: tuple[str, ...] = CLASSES
    asked: list[int] = field(default_factory=list)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        self.asked.append(len(pixels))
        s = pixels[:, *self.region].mean(axis=(1, 2)) / 255
        both: npt.NDArray[np.float64] = np.c_[1 - s, s]
        return both


LUNGS, CORNER = (slice(24, 40), slice(24, 40)), (slice(0, 6), slice(0, 6))


class Made:
    """Radiographs whose finding is bright in the lungs and, as a marker would, in a corner."""

    def ensure(self, rows: pd.DataFrame, read: Any) -> None:
        assert set(rows.columns) >= {"digest", "suffix"}

    def get(self, digests: Any) -> npt.NDArray[np.uint8]:
        found = []
        for digest in digests:
            number = int(digest, 16)
            image = np.random.default_rng(number).integers(60, 100, size=(64, 64)).astype(np.uint8)
            if number % 2:
                image[LUNGS] += 60
                image[CORNER] += 60
            found.append(image)
        return np.stack(found)


def rows(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "digest": [f"{i:064x}" for i in range(count)],
            "suffix": ".png",
            "label": [CLASSES[i % 2] for i in range(count)],
            "patient": [f"p{i}" for i in range(count)],
        }
    )


def measured(tmp_path: Path, *models: Look, limit: int = 200) -> dict[str, Any]:
    found = stress.stress(
        [(model, Made()) for model in models],
        rows(40),
        lambda digest, suffix: b"",
        open_store(tmp_path),
        limit,
        Resampling(100),
    )
    return {part.value: part for part in found}


def test_a_model_that_reads_lungs_fails_without_them_and_one_that_reads_markers_does_not(tmp_path: Path) -> None:
    found = measured(tmp_path, Look("lungs", LUNGS), Look("corner", CORNER))
    border, covered = found[stress.BASELINE], found["border covered"]
    assert border.candidate["auc"].value == pytest.approx(0.5, abs=0.2)
    assert border.champion["auc"].value == 1
    assert covered.candidate["auc"].value == 1
    assert covered.champion["auc"].value == pytest.approx(0.5, abs=0.2)
    assert border.difference["auc"].value < -0.2
    assert {part.dimension for name, part in found.items() if name != stress.BASELINE} == {"stress"}
    assert border.dimension == "baseline"


def test_predictions_are_kept_by_model_and_perturbation(tmp_path: Path) -> None:
    model = Look("lungs", LUNGS)
    first = measured(tmp_path, model)
    assert model.asked == [40] * len(stress.PERTURBATIONS)
    assert measured(tmp_path, model) == first
    assert len(model.asked) == len(stress.PERTURBATIONS)


def test_the_sample_is_bounded_and_its_smallness_is_said(tmp_path: Path) -> None:
    found = measured(tmp_path, Look("lungs", LUNGS), limit=20)[stress.UNTOUCHED]
    assert (found.n, found.patients, found.small, found.champion) == (20, 20, True, {})
