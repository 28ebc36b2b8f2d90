"""The article's view of a radiograph, made from its squash, beside torchvision's transforms."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from xray_pipeline.images.radiograph import decode, fitted, middle
from xray_pipeline.training.augmentation import Augmentation
from xray_pipeline.training.augmenting import augmented

SAMPLE = Path(os.environ.get("XRAY_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "fullres_sample"
ARTICLE = Augmentation(area=(0.08, 1.0), ratio=(3 / 4, 4 / 3))


def test_the_middle_square_is_torchvisions_but_for_interpolation() -> None:
    """Grey levels of 255 between ours, of a squash to 256, and Resize(256), CenterCrop(224) of the radiograph."""
    theirs = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224)])
    files = sorted(SAMPLE.rglob("*.jpeg"))
    if not files:
        pytest.skip("the full-size radiographs are not here")
    found = []
    for file in files:
        pixels = decode(file.read_bytes())
        expected = np.asarray(theirs(Image.fromarray(pixels)), np.float32)
        ours = fitted(pixels, 256, "shorter-side")[16:240, 16:240].astype(np.float32)
        squashed = fitted(pixels, 256, "squash")[16:240, 16:240].astype(np.float32)
        found.append([np.abs(ours - expected).mean(), np.abs(squashed - expected).mean()])
    ours_off, squash_off = np.mean(found, axis=0)
    assert ours_off < 1.5
    assert np.max(found, axis=0)[0] < 3
    assert squash_off > 5 * ours_off


@pytest.mark.parametrize(("height", "width"), [(200, 400), (400, 200), (300, 300)])
def test_the_middle_is_found_in_either_direction(height: int, width: int) -> None:
    """Grey follows the place along the longer side: the middle holds its middle part alone."""
    across = np.linspace(0, 255, width).astype(np.uint8)[None].repeat(height, axis=0)
    pixels = across if width >= height else np.linspace(0, 255, height).astype(np.uint8)[:, None].repeat(width, axis=1)
    square = fitted(pixels, 64, "shorter-side").astype(float)
    share = min(height, width) / max(height, width)
    assert square.min() == pytest.approx(255 * (1 - share) / 2, abs=3)
    assert square.max() == pytest.approx(255 * (1 + share) / 2, abs=3)


def test_a_size_that_is_not_known_is_a_square() -> None:
    squash = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert middle(squash, 0, 0) is squash


def places(aspect: float, ranges: Augmentation, count: int = 400) -> NDArray[np.float32]:
    """Draw crops of a radiograph of that aspect; give each one's left, right, top, bottom edge, in shares of it."""
    ramp = torch.linspace(0, 255, 256)
    edges = []
    for picture in (ramp.expand(256, 256), ramp[:, None].expand(256, 256)):
        batch, aspects = picture.expand(count, 1, -1, -1), torch.full((count,), aspect)
        drawn = augmented(ranges, batch, 224, torch.Generator().manual_seed(0), aspects=aspects)[:, 0] / 255
        line = drawn[:, 112] if not edges else drawn[:, :, 112]
        step = (line[:, 150] - line[:, 74]) / 76
        edges += [line[:, 74] - 74.5 * step, line[:, 150] + 73.5 * step]
    return torch.stack(edges).numpy()


@pytest.mark.parametrize("aspect", [0.6, 1.0, 1.7])
def test_random_crops_have_area_and_ratio_of_the_radiograph(aspect: float) -> None:
    left, right, top, bottom = places(aspect, ARTICLE)
    area, ratio = (right - left) * (bottom - top), aspect * (right - left) / (bottom - top)
    assert 0.075 < area.min() < 0.2
    assert 0.75 < area.max() <= 1.001
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert np.ptp(ratio) > 0.5
    assert min(left.min(), top.min()) > -0.01
    assert max(right.max(), bottom.max()) < 1.01


@pytest.mark.parametrize("aspect", [0.6, 1.7])
def test_what_changes_nothing_shows_the_middle_square(aspect: float) -> None:
    left, right, top, bottom = places(aspect, Augmentation(), 2)[:, 0]
    assert (right - left) / (bottom - top) == pytest.approx(1 / aspect, rel=0.01)
    assert (left + right, top + bottom) == pytest.approx((1, 1), abs=0.01)
